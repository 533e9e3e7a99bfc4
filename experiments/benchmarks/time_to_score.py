"""Seconds of training until the paper's return after one step is passed, as JSON.

Each family is trained by plain MAML and by MAML with a learned step until the mean return on an iteration's new
training tasks, after one step, passes the published one for the first time. The half-cheetahs' physics differ from
the paper's, so that the return with the paper's score is taken. Seconds end with the iteration that passes, and
include neither imports nor evaluations. Those of a run that goes on to its last iteration include the one there.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from maml_rl.envs import num_cores

from maml_rl import Config, train
from maml_rl.process import tune_process
from maml_rl.results import published
from maml_rl.results.comparison import by_method, load_runs

sys.path.insert(0, str(Path(__file__).parents[1]))
import report
from reproduce import options


class PassedError(Exception):
    """The return is passed."""


def target(family: str, env_id: str) -> float:
    """The return after one step that is to be passed."""
    paper = published.RETURNS[env_id]
    if env_id in published.SAME_PHYSICS:
        return paper["maml"][1]
    (score,) = published.score(np.array(paper["maml"][1:2]), np.array(paper["random"][1:2]), paper["oracle"][0])
    ours = by_method(load_runs(report.runs_of(family)))
    random, oracle = (np.concatenate(ours[name].returns).mean(0) for name in ("random", "oracle"))
    return float(random[1] + score * (oracle[0] - random[1]))


def seconds_to(config: Config, goal: float) -> dict[str, float]:
    """Trains until the return is passed, or to the end of the run."""
    found: dict[str, float] = {"passed": False, "iterations": 0, "seconds": 0.0}
    start = time.perf_counter()

    def check(env_steps: int, scalars: dict[str, float]) -> None:
        found["iterations"] += 1
        found["seconds"] = round(time.perf_counter() - start, 1)
        if scalars["train/return_step_1"] >= goal:
            found["passed"] = True
            raise PassedError

    with contextlib.suppress(PassedError):
        train(config, callbacks=[check])
    return found


def main(
    families: tuple[str, ...] = ("navigation_2d", "half_cheetah_vel"),
    methods: tuple[str, ...] = ("maml", "learned_step"),
    seeds: tuple[int, ...] = (1, 2, 3),
) -> None:
    """Trains and prints.

    Args:
        families: Families of reproduce.py with a published return.
        methods: Methods of reproduce.py with an inner step.
        seeds: Seeds of each method.
    """
    tune_process()
    runs = []
    for family in families:
        for method in methods:
            for seed in seeds:
                with tempfile.TemporaryDirectory() as folder:
                    config = options(family, method, seed, Path(folder))
                    goal = target(family, config.env_id)
                    found = seconds_to(dataclasses.replace(config, eval_num_tasks=2), goal)
                runs.append({"family": family, "method": method, "seed": seed, "return": round(goal, 2), **found})
                print(runs[-1], file=sys.stderr)
    print(json.dumps({"cores": num_cores(), "torch": torch.__version__, "runs": runs}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
