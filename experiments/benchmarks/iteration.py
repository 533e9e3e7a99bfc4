"""Seconds of a meta-iteration and of its parts beside what bounds them, as JSON; of several families in one run.

Every figure is the median over repetitions. A floor is what a part cannot do without, timed in the same turn with
the same threads: of collecting, the environments' own steps under the same actions; of the learner, its bare
matrix products. The yardstick of the KL product is the KL differentiated twice.
"""

import dataclasses
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.func import vmap

from maml_rl import Config
from maml_rl.maml import objective, trust_region
from maml_rl.maml.inner import adapt
from maml_rl.maml.linearise import linearise_chunks
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.process import tune_process
from maml_rl.recording import open_run
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.advantages import features, with_advantages
from maml_rl.sampling.collect import collect_rollouts
from maml_rl.sampling.families import make_env
from maml_rl.sampling.rollouts import Rollouts
from maml_rl.sampling.spaces import action_map
from maml_rl.sampling.streams import integer_seed, stream
from maml_rl.sampling.threads import torch_threads

NAVIGATION, CHEETAH = "maml_rl/Navigation2D-v0", "maml_rl/HalfCheetahVel-v0"


def seconds(f: Callable[[], Any]) -> float:
    """The wall time of a call."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def in_turns(parts: dict[str, Callable[[], Any]], repetitions: int, warm_up: int = 2) -> list[dict[str, float]]:
    """Seconds of each part, turn after turn, as the speed of a shared machine drifts."""
    return [{name: seconds(f) for name, f in parts.items()} for _ in range(warm_up + repetitions)][warm_up:]


def products(
    sizes: list[int], num_tasks: int, rows: int, counts: list[int], chunk_tasks: int
) -> Callable[[], None]:
    """Matrix products of all tasks' rows with their weights, so many with the shape of each layer."""
    layers = []
    for a, b, count in zip(sizes, sizes[1:], counts, strict=False):
        x, w, out = torch.randn(num_tasks, rows, a), torch.randn(num_tasks, a, b), torch.empty(num_tasks, rows, b)
        layers.append((x, w, out, count))

    def run() -> None:
        for x, w, out, count in layers:
            for start in range(0, num_tasks, chunk_tasks):
                some = slice(start, start + chunk_tasks)
                for _ in range(count):
                    torch.bmm(x[some], w[some], out=out[some])

    return run


def measure(env_id: str, num_tasks: int, num_rollouts: int, chunk_tasks: int, repetitions: int) -> dict[str, Any]:
    """The report of one family."""
    config = Config(
        env_id=env_id, num_tasks=num_tasks, num_rollouts=num_rollouts, inner_lr=0.1, chunk_tasks=chunk_tasks
    )
    env = make_env(config, num_tasks * num_rollouts)
    policy = new_policy(config)
    theta = flatten(policy)
    thetas = theta.expand(num_tasks, -1)
    tasks = env.sample_tasks(num_tasks, np.random.default_rng(0))
    support, query = method_of(config).collect(env, policy, theta, tasks, num_rollouts, stream(0, "benchmark"))
    adapted = vmap(lambda t, s: adapt(policy, t, s, config)[0], chunk_size=chunk_tasks)(thetas, support)
    chunks = linearise_chunks(policy, theta, (support,), query, config)
    gradient = trust_region.meta_gradient(chunks, num_tasks)

    def phase(k: int) -> np.random.SeedSequence:
        # What is spawned from one depends on what was spawned before: a new one each time.
        return stream(0, "benchmark").spawn(2)[k]

    def stepping(rollouts: Rollouts, k: int) -> Callable[[], None]:
        # The same episodes again: from the same states, with the same actions.
        taken = action_map(env.single_action_space)(rollouts.actions.flatten(0, 1).numpy())
        actions = np.ascontiguousarray(taken.swapaxes(0, 1))
        first, slots = integer_seed(phase(k).spawn(2)[0]), np.repeat(tasks, num_rollouts, axis=0)

        def run() -> None:
            with torch_threads(1):
                env.reset(seed=first, options={"task": slots})
                for a_t in actions:
                    env.step(a_t)

        return run

    def twice_differentiated() -> Callable[[], Any]:
        leaf = theta.clone().requires_grad_()

        def kl(support: Any, query: Any) -> torch.Tensor:
            return objective.mean_kl(objective.adapted_policy(policy, leaf, (support,), query, config), query)

        (slope,) = torch.autograd.grad(vmap(kl)(support, query).mean(), leaf, create_graph=True)
        return lambda: torch.autograd.grad(slope, leaf, gradient, retain_graph=True)

    def floor(*counts: int) -> Callable[[], None]:
        size = support.observations.shape[-1]
        sizes = [size, *config.hidden_sizes, next(iter(support.behaviour)).shape[-1]]
        return products(sizes, num_tasks, support.mask[0].numel(), list(counts), chunk_tasks)

    columns = features(support.observations[:1, :1]).shape[-1]
    gram = torch.randn(num_tasks, support.mask[0].numel(), columns, dtype=torch.float64)
    parts: dict[str, Callable[[], Any]] = {
        "collect_before": lambda: collect_rollouts(
            env, TaskPolicies(policy, thetas), tasks, num_rollouts, phase(0)
        ),
        "collect_after": lambda: collect_rollouts(
            env, TaskPolicies(policy, adapted), tasks, num_rollouts, phase(1)
        ),
        "advantages": lambda: with_advantages(support, config.discount, config.gae_lambda),
        "adapt": lambda: vmap(lambda t, s: adapt(policy, t, s, config), chunk_size=chunk_tasks)(thetas, support),
        "linearise": lambda: linearise_chunks(policy, theta, (support,), query, config),
        "gradient": lambda: trust_region.meta_gradient(chunks, num_tasks),
        "kl_product": lambda: trust_region.kl_product(chunks, gradient, num_tasks),
        "line_search_candidate": lambda: objective.outer_objective(policy, theta, (support,), query, config),
    }
    # Products in a layer's shape, for the first, the middle and the last of three layers. A forward pass has one
    # in each, its gradient one for the weights and, but in the first, one for the inputs. A product with the
    # Hessian of the inner loss has 2, 4, 6, as the mixed derivative of the first two layers needs none: it is
    # taken once, while linearising, by O + 1 products with the middle layer that are no part of that floor.
    floors = {
        "collect_before": stepping(support, 0),
        "collect_after": stepping(query, 1),
        "advantages": lambda: (gram.mT @ gram, gram.mT @ gram[..., :1], gram @ gram[:, :columns, :1]),
        "adapt": floor(2, 3, 3),
        "linearise": floor(3, 4, 4),
        "gradient": floor(3, 6, 8),
        "kl_product": floor(6, 12, 16),
        "line_search_candidate": floor(3, 4, 4),
    }

    def iteration(**options: Any) -> Callable[[], None]:
        own = dataclasses.replace(config, **options)
        method = method_of(own)
        own_policy = new_policy(own)
        own_theta = flatten(own_policy)

        def run() -> None:
            seeds = stream(0, "benchmark")
            batches = [*method.collect(env, own_policy, own_theta, tasks, num_rollouts, seeds)]
            method.update(own_policy, own_theta, {}, batches)

        return run

    variants = {
        "maml": iteration(),
        "maml_learned_lr": iteration(learn_lr="parameter"),
        "promp_5_epochs": iteration(estimator="lvc", outer="ppo", ppo_epochs=5),
    }
    many = {"iterations": 10**6, "eval_every": 0, "checkpoint_every": 10**6}
    small_evaluation = {"eval_num_tasks": 2, "eval_num_rollouts": 1, "eval_num_steps": 0}
    with tempfile.TemporaryDirectory() as folder:
        run_config = dataclasses.replace(config, run_dir=Path(folder) / "run", **many, **small_evaluation)
        figures = dict.fromkeys(("surrogate_before", "surrogate_after", "kl", "gradient_norm", "accepted"), 0.0)
        with open_run(run_config, method_of(run_config)) as run:
            bookkeeping = {
                "log": lambda: run.record(theta, {}, [support, query], figures),
                "checkpoint": lambda: run.checkpoint(run.state),
            }
            turns = in_turns(
                {
                    **parts,
                    **{f"{name} floor": f for name, f in floors.items()},
                    "kl_product_twice_differentiated": twice_differentiated(),
                    **variants,
                    **bookkeeping,
                },
                repetitions,
            )

    def median(name: str) -> float:
        return statistics.median(turn[name] for turn in turns)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(turn[one] / turn[other] for turn in turns), 3)

    return {
        "env_id": env_id,
        "num_tasks": num_tasks,
        "num_rollouts": num_rollouts,
        "horizon": env.max_episode_steps,
        "chunk_tasks": chunk_tasks,
        "iteration_seconds": round(median("maml"), 4),
        "iteration_less_stepping_seconds": round(
            statistics.median(
                turn["maml"] - turn["collect_before floor"] - turn["collect_after floor"] for turn in turns
            ),
            4,
        ),
        "parts": {
            name: {
                "seconds": round(median(name), 4),
                "floor": round(median(f"{name} floor"), 4),
                "ratio": ratio(name, f"{name} floor"),
            }
            for name in parts
        },
        "kl_product_over_twice_differentiated": ratio("kl_product", "kl_product_twice_differentiated"),
        "iteration_over_maml": {name: ratio(name, "maml") for name in variants},
        "bookkeeping_over_iteration": {name: ratio(name, "maml") for name in bookkeeping},
    }


def main(repetitions: int = 15, chunk_tasks: int = 10) -> None:
    """Measures and prints.

    Args:
        repetitions: Turns that count.
        chunk_tasks: Tasks differentiated at once.
    """
    tune_process()
    report = {
        "threads": torch.get_num_threads(),
        "families": [
            measure(NAVIGATION, 20, 20, chunk_tasks, repetitions),
            measure(CHEETAH, 40, 20, chunk_tasks, repetitions),
        ],
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
