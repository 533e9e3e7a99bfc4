"""Collecting with worker processes, as JSON: seconds with all environments in lock step, and with two halves.

In halves, the policy acts in one half of the workers while the other half is stepped, and neither waits for the
other. Both are medians of turns with the same rollouts. ML10 needs the extra `metaworld`.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro

from maml_rl import Config
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.process import tune_process
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import in_turns

SIZES = {"maml_rl/PendulumParams-v0": (20, 20, 50), "maml_rl/ML10-v0": (20, 5, 50)}  # M, K and H


def measure(env_id: str, repetitions: int) -> dict[str, float]:
    """Seconds of the two phases of an iteration in both ways."""
    num_tasks, num_rollouts, horizon = SIZES[env_id]
    config = Config(env_id=env_id, num_tasks=num_tasks, num_rollouts=num_rollouts, horizon=horizon)
    env, policy, method = make_env(config, num_tasks * num_rollouts), new_policy(config), method_of(config)
    tasks, theta, shares = env.sample_tasks(num_tasks, np.random.default_rng(0)), flatten(policy), env.shares

    def collecting(in_halves: bool) -> Callable[[], object]:
        def run() -> object:
            env.shares = shares if in_halves else lambda num_tasks: [env]  # type: ignore[method-assign]
            return [*method.collect(env, policy, theta, tasks, num_rollouts, stream(0, "workers"))]

        return run

    turns = in_turns({"lock step": collecting(False), "two halves": collecting(True)}, repetitions)
    env.close()
    seconds = {name: round(statistics.median(turn[name] for turn in turns), 3) for name in turns[0]}
    return {**seconds, "halves, times lock step": round(seconds["two halves"] / seconds["lock step"], 3)}


def main(repetitions: int = 9) -> None:
    """Prints seconds for each family.

    Args:
        repetitions: Turns, after two to warm up.
    """
    tune_process()
    print(json.dumps({env_id: measure(env_id, repetitions) for env_id in SIZES}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
