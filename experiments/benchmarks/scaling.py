"""Seconds and peak memory of one meta-iteration for other M, K and H, as JSON, each in a process of its own.

The first iteration of a process pays for what is loaded and allocated once, so that the second is timed.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import tyro

from maml_rl import Config
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.process import tune_process
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream


def measure(config: Config) -> dict[str, Any]:
    """Seconds of collecting, with adaptation, and of the outer step, and the peak of memory."""
    tune_process()
    method = method_of(config)
    env = make_env(config, config.num_tasks * config.num_rollouts)
    policy = new_policy(config)
    theta = flatten(policy)
    for iteration in range(2):
        tasks = env.sample_tasks(config.num_tasks, np.random.default_rng(iteration))
        seeds = stream(0, "benchmark", iteration)
        start = time.perf_counter()
        batches = [*method.collect(env, policy, theta, tasks, config.num_rollouts, seeds)]
        collected = time.perf_counter()
        theta, _, _ = method.update(policy, theta, {}, batches)
        end = time.perf_counter()
    return {
        "M": config.num_tasks,
        "K": config.num_rollouts,
        "H": env.max_episode_steps,
        "collect_seconds": round(collected - start, 3),
        "outer_seconds": round(end - collected, 3),
        "microseconds_per_env_step": round((end - start) / sum(int(b.mask.sum()) for b in batches) * 1e6, 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main(
    env_id: str = "maml_rl/Navigation2D-v0",
    sizes: tuple[tuple[int, int, int], ...] = (
        *((m, 20, 100) for m in (5, 10, 20, 40, 80, 160)),
        *((20, k, 100) for k in (5, 10, 40, 80)),
        *((20, 20, h) for h in (25, 50, 200, 400)),
    ),
    one: bool = False,
) -> None:
    """Measures and prints.

    Args:
        env_id: The task family.
        sizes: M, K and H, again and again.
        one: In this process; for the first sizes alone.
    """
    if one:
        m, k, h = sizes[0]
        config = Config(env_id=env_id, num_tasks=m, num_rollouts=k, horizon=h, inner_lr=0.1)
        print(json.dumps(measure(config)))
        return
    rows = []
    for size in sizes:
        command = [sys.executable, __file__, "--env-id", env_id, "--one", "--sizes", *map(str, size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], file=sys.stderr)
    print(json.dumps({"env_id": env_id, "iterations": rows}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
