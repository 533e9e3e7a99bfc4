"""Seconds of a meta-iteration and of its parts beside what bounds them, as JSON; of several families in one run.

Every figure is the median over repetitions. A floor is what a part cannot do without, timed in the same turn on
the same cores: of collecting, the environments' own steps under the same actions; of the learner, its bare matrix
products, each by the fastest way there is on this machine for its shape. The yardstick of the KL product is the KL
differentiated twice.
"""

import dataclasses
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.func import vmap

from maml_rl import Config
from maml_rl.maml import objective, trust_region
from maml_rl.maml.linearise import adapt_tasks, linearise_chunks, outer_objective
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
from maml_rl.sampling.threads import in_threads, map_chunks, rows_of, thread_map, torch_threads

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import in_turns


def ways_of(
    num_tasks: int, rows: int, a: int, b: int, transposed: bool, chunk_tasks: int, times: int = 10
) -> dict[str, Callable[[], None]]:
    """Every way to take a product for all tasks, so many times: of rows (a) with weights (a, b), or xᵀ y of rows.

    A forward pass and cotangents of features are the first kind, cotangents of weights the second (transposed).
    """
    x, y = torch.randn(num_tasks, rows, a), torch.randn(num_tasks, *(rows, b) if transposed else (a, b))
    left, out = x.mT if transposed else x, torch.empty(num_tasks, *(a, b) if transposed else (rows, b))
    left_np, y_np, out_np = left.numpy(), y.numpy(), out.numpy()
    chunks = [slice(i, i + chunk_tasks) for i in range(0, num_tasks, chunk_tasks)]

    def in_blocks(some: slice, size: int = 250) -> None:
        left, right = (tensor[some].unflatten(1, (-1, size)).flatten(0, 1) for tensor in (x, y))
        torch.sum((left.mT @ right).unflatten(0, (-1, rows // size)), 1, out=out[some])

    on_chunk: dict[str, Callable[[slice], Any]] = {
        "torch": lambda some: torch.bmm(left[some], y[some], out=out[some]),
        "numpy": lambda some: np.matmul(left_np[some], y_np[some], out=out_np[some]),
    }
    if transposed and rows % 250 == 0:
        on_chunk["torch, blocks of rows"] = in_blocks

    def in_chunks(one: Callable[[slice], Any]) -> Callable[[], None]:
        return lambda: in_threads(lambda some: [one(some) for _ in range(times)] and None, chunks) and None

    ways = {f"{name}, a thread per chunk": in_chunks(one) for name, one in on_chunk.items()}
    return ways | {"torch, threads inside": lambda: [torch.bmm(left, y, out=out) for _ in range(times)] and None}


def bare_products(
    sizes: list[int], num_tasks: int, rows: int, chunk_tasks: int, repetitions: int, times: int = 10
) -> list[list[dict[str, Any]]]:
    """The speed of each layer's two kinds of product by every way, and the seconds of one by the fastest."""
    found = []
    for a, b in pairwise(sizes):
        both = []
        for transposed in (False, True):
            ways = ways_of(num_tasks, rows, a, b, transposed, chunk_tasks, times)
            turns = in_turns(ways, repetitions)
            medians = {way: statistics.median(turn[way] for turn in turns) / times for way in ways}
            speed = {way: round(2e-9 * num_tasks * rows * a * b / one, 1) for way, one in medians.items()}
            shape = f"({a}, {rows}) @ ({rows}, {b})" if transposed else f"({rows}, {a}) @ ({a}, {b})"
            both.append({"shape": f"{num_tasks} x {shape}", "gflops": speed, "seconds": min(medians.values())})
        found.append(both)
    return found


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

    def adapted_chunk(policy: torch.nn.Module, rows: slice) -> torch.Tensor:
        return adapt_tasks(policy, *rows_of((thetas, support), rows), config)

    adapted = torch.cat(map_chunks(adapted_chunk, policy, num_tasks, config))
    chunks = linearise_chunks(policy, theta, (support,), query, config)
    gradient = trust_region.meta_gradient(chunks, num_tasks)[1].to(theta)

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

    def kl_products() -> None:
        """Takes as many as an iteration does, one after the other."""
        with thread_map(len(chunks)) as map_:
            for _ in range(config.cg_iterations):
                trust_region.kl_product(chunks, gradient, num_tasks, map_)

    sizes = [
        support.observations.shape[-1],
        *config.hidden_sizes,
        next(iter(support.behaviour)).shape[-1],
    ]
    bare = bare_products(sizes, num_tasks, support.mask[0].numel(), chunk_tasks, repetitions)

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
        "adapt": lambda: map_chunks(adapted_chunk, policy, num_tasks, config),
        "linearise": lambda: linearise_chunks(policy, theta, (support,), query, config),
        "gradient": lambda: trust_region.meta_gradient(chunks, num_tasks),
        "kl_product": kl_products,
        "line_search_candidate": lambda: outer_objective(policy, theta, (support,), query, config),
    }
    floors = {
        "collect_before": stepping(support, 0),
        "collect_after": stepping(query, 1),
        "advantages": lambda: (gram.mT @ gram, gram.mT @ gram[..., :1], gram @ gram[:, :columns, :1]),
    }
    # How many products of each kind a part needs in each layer. A forward pass has one of rows with weights. Its
    # gradient has one of rows with rows, and but in the first layer one more of rows with weights. A product with
    # the Hessian of the inner loss needs none for the mixed derivative of the first two layers: it is taken once,
    # while linearising, by O + 1 products with the middle layer that are no part of that floor.
    counts = {
        "adapt": [(1, 1), (2, 1), (2, 1)],
        "linearise": [(2, 1), (3, 1), (3, 1)],
        "gradient": [(1, 2), (4, 2), (5, 3)],
        "kl_product": [(3, 3), (9, 3), (11, 5)],
        "line_search_candidate": [(2, 1), (3, 1), (3, 1)],
    }
    floor_of = {
        part: sum(
            count * one["seconds"]
            for layer, both in zip(layers, bare, strict=True)
            for count, one in zip(layer, both, strict=True)
        )
        for part, layers in counts.items()
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
        metrics = dict.fromkeys(("surrogate_before", "surrogate_after", "kl", "gradient_norm", "accepted"), 0.0)
        with open_run(run_config, method_of(run_config)) as run:
            bookkeeping = {
                "log": lambda: (run.collected([support, query]), run.record(theta, {}, metrics)),
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
    for turn in turns:
        turn["kl_product"] /= config.cg_iterations

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
                "floor": round(floor_of.get(name) or median(f"{name} floor"), 4),
                "ratio": round(median(name) / floor_of[name], 3)
                if name in floor_of
                else ratio(name, f"{name} floor"),
            }
            for name in parts
        },
        "products": {one["shape"]: one["gflops"] for both in bare for one in both},
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
            measure("maml_rl/Navigation2D-v0", 20, 20, chunk_tasks, repetitions),
            measure("maml_rl/HalfCheetahVel-v0", 40, 20, chunk_tasks, repetitions),
        ],
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
