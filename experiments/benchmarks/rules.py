"""What the learned inner rules add to an iteration, as JSON: seconds with and without each, in turns."""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import in_turns

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned step": {"learn_lr": "task"},
    "learned advantage": {"inner_advantage": "learned"},
}


def iteration(env_id: str, rule: dict[str, Any]) -> Callable[[], object]:
    """One iteration of 20 tasks with 20 rollouts, always the same."""
    config = Config(env_id=env_id, **rule)
    env, policy, method = make_env(config, 400), new_policy(config), method_of(config)
    tasks, theta = env.sample_tasks(20, np.random.default_rng(0)), flatten(policy)

    def run() -> object:
        batches = [*method.collect(env, policy, theta, tasks, 20, stream(0, "rules"))]
        return method.update(policy, theta, {}, batches)

    return run


def main(repetitions: int = 5) -> None:
    """Prints the medians, and how much longer an iteration with each rule takes.

    Args:
        repetitions: Turns, after two to warm up.
    """
    tune_process()
    found = {}
    for env_id in ("maml_rl/Navigation2D-v0", "maml_rl/HalfCheetahVel-v0"):
        turns = in_turns({name: iteration(env_id, rule) for name, rule in RULES.items()}, repetitions)
        seconds = {name: statistics.median(turn[name] for turn in turns) for name in RULES}
        found[env_id] = {name: round(of, 3) for name, of in seconds.items()} | {
            f"{name}, times plain": round(of / seconds["plain"], 3)
            for name, of in seconds.items()
            if name != "plain"
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
