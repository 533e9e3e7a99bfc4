"""Seconds of a meta-iteration and of its parts, as JSON; of 2D navigation, or of another family.

Every figure is the median over repetitions, all in one run. The yardsticks stand beside what they measure:
the KL differentiated twice beside its factored product, and the bare matrix products that one factored
product cannot do without beside both.
"""

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tyro
from torch.func import vmap

from maml_rl import Config, objectives, outer, trust_region
from maml_rl.adaptation import adapt, rollouts_through_adaptation
from maml_rl.advantages import with_advantages
from maml_rl.policies import flatten
from maml_rl.rollouts import collect, make_env
from maml_rl.runs import new_policy
from maml_rl.streams import stream


def median_seconds(f: Callable[[], Any], repetitions: int, warm_up: int = 2) -> float:
    """The median wall time of a call, after calls that do not count."""
    times = []
    for _ in range(warm_up + repetitions):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def main(
    env_id: str = "maml_rl/Navigation2D-v0",
    repetitions: int = 15,
    num_tasks: int = 20,
    num_rollouts: int = 20,
    chunk_tasks: int = 10,
) -> None:
    """Measures and prints.

    Args:
        env_id: The task family.
        repetitions: Calls of each part that count.
        num_tasks: M.
        num_rollouts: K.
        chunk_tasks: Tasks differentiated at once.
    """
    config = Config(
        env_id=env_id, num_tasks=num_tasks, num_rollouts=num_rollouts, inner_lr=0.5, chunk_tasks=chunk_tasks
    )
    env = make_env(config, num_tasks * num_rollouts)
    policy = new_policy(config)
    theta = flatten(policy)
    thetas = theta.expand(num_tasks, -1)
    tasks = env.sample_tasks(num_tasks, np.random.default_rng(0))
    seeds = stream(0, "benchmark")
    support, query = rollouts_through_adaptation(env, policy, theta, tasks, [1.0], config, seeds)
    chunks = trust_region.linearise_chunks(policy, theta, (support,), query, config)
    gradient = trust_region.meta_gradient(chunks, num_tasks)

    def iteration(**options: Any) -> Callable[[], None]:
        own = dataclasses.replace(config, **options)
        own_policy = new_policy(own)
        own_theta = flatten(own_policy)

        def run() -> None:
            batches = [*rollouts_through_adaptation(env, own_policy, own_theta, tasks, [1.0], own, seeds)]
            outer.optimiser(own)(own_policy, own_theta, {}, batches, own)

        return run

    def twice_differentiated() -> Callable[[], Any]:
        leaf = theta.clone().requires_grad_()

        def kl(support: Any, query: Any) -> torch.Tensor:
            return objectives.mean_kl(objectives.adapted_policy(policy, leaf, (support,), query, config), query)

        (slope,) = torch.autograd.grad(vmap(kl)(support, query).mean(), leaf, create_graph=True)
        return lambda: torch.autograd.grad(slope, leaf, gradient, retain_graph=True)

    def matrix_products() -> None:
        # The 64x64 layer alone: 6 products for each of two Hessian-vector products of the inner loss (support),
        # 2 for the Jacobian and 2 for its transpose (query).
        for start in range(0, num_tasks, chunk_tasks):
            for _ in range(16):
                torch.bmm(rows[start : start + chunk_tasks], weights[start : start + chunk_tasks])

    horizon = env.max_episode_steps or 0
    rows, weights = torch.randn(num_tasks, num_rollouts * horizon, 64), torch.randn(num_tasks, 64, 64)
    parts = {
        "iteration": iteration(),
        "collect": lambda: collect(env, policy, thetas, tasks, seeds),
        "advantages": lambda: with_advantages(support, config.discount, config.gae_lambda),
        "adapt": lambda: vmap(lambda t, s: adapt(policy, t, s, config), chunk_size=chunk_tasks)(thetas, support),
        "linearise": lambda: trust_region.linearise_chunks(policy, theta, (support,), query, config),
        "gradient": lambda: trust_region.meta_gradient(chunks, num_tasks),
        "kl_product": lambda: trust_region.kl_product(chunks, gradient, num_tasks),
        "kl_product_twice_differentiated": twice_differentiated(),
        "kl_product_matrix_floor": matrix_products,
        "line_search_candidate": lambda: objectives.outer_objective(policy, theta, (support,), query, config),
    }
    seconds = {name: median_seconds(f, repetitions) for name, f in parts.items()}
    # In turns, as the speed of a shared machine drifts: the ratios are what counts.
    variants: dict[str, Callable[[], None]] = {
        "maml": iteration(),
        "maml_learned_lr": iteration(learn_lr="parameter"),
        "promp_5_epochs": iteration(estimator="lvc", outer="ppo", ppo_epochs=5),
    }
    turns = [{name: median_seconds(f, 1, 0) for name, f in variants.items()} for _ in range(repetitions)]
    of_variants = {name: statistics.median(turn[name] for turn in turns) for name in variants}
    report = {
        "env_id": env_id,
        "threads": torch.get_num_threads(),
        "num_tasks": num_tasks,
        "num_rollouts": num_rollouts,
        "horizon": horizon,
        "chunk_tasks": chunk_tasks,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "iteration_seconds_in_turns": {name: round(value, 4) for name, value in of_variants.items()},
        "iteration_over_maml": {
            name: round(statistics.median(turn[name] / turn["maml"] for turn in turns), 3) for name in variants
        },
        "rollout_steps_per_second": round(int(query.mask.sum()) / seconds["collect"]),
        "kl_product_over_twice_differentiated": round(
            seconds["kl_product"] / seconds["kl_product_twice_differentiated"], 3
        ),
        "kl_product_over_matrix_floor": round(seconds["kl_product"] / seconds["kl_product_matrix_floor"], 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
