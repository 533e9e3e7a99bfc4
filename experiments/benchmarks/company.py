"""Seconds of a meta-iteration alone, beside a busy process, and with 2 and 4 runs at once, as JSON.

Each run is a process of its own. All of them begin to measure together, and go on until all have finished.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import tyro
from maml_rl.envs import num_cores

from maml_rl import Config
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.process import tune_process
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream


def measure(env_id: str, num_tasks: int, repetitions: int) -> None:
    """Measures iterations once it is told to, prints their seconds, and goes on until it is stopped."""
    tune_process()
    config = Config(env_id=env_id, num_tasks=num_tasks)
    env, policy, method = make_env(config, num_tasks * config.num_rollouts), new_policy(config), method_of(config)
    tasks, theta = env.sample_tasks(num_tasks, np.random.default_rng(0)), flatten(policy)

    def iteration() -> float:
        start = time.perf_counter()
        batches = [*method.collect(env, policy, theta, tasks, config.num_rollouts, stream(0, "benchmark"))]
        method.update(policy, theta, {}, batches)
        return time.perf_counter() - start

    iteration()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps([iteration() for _ in range(repetitions)]), flush=True)
    while True:
        iteration()


@contextlib.contextmanager
def processes(*commands: list[str]) -> Iterator[list["subprocess.Popen[str]"]]:
    """Starts processes, and ends them."""
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def seconds(env_id: str, num_tasks: int, repetitions: int, num_runs: int) -> float:
    """The median over runs that go on at once, and over their iterations."""
    options = ["--env-id", env_id, "--num-tasks", str(num_tasks), "--repetitions", str(repetitions)]
    with processes(*[[sys.executable, __file__, "--one", *options]] * num_runs) as runs:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            assert run.stdin is not None
            print(file=run.stdin, flush=True)
        measured = [json.loads(run.stdout.readline()) for run in runs if run.stdout is not None]
    return statistics.median(value for values in measured for value in values)


def main(
    env_id: str = "maml_rl/Navigation2D-v0",
    num_tasks: int = 20,
    repetitions: int = 5,
    rounds: int = 2,
    one: bool = False,
) -> None:
    """Measures and prints.

    Args:
        env_id: The task family.
        num_tasks: M.
        repetitions: Iterations of each run in each round.
        rounds: How often all situations are measured, in turns; the ratios are medians over them.
        one: Be one of the runs.
    """
    if one:
        measure(env_id, num_tasks, repetitions)
        return
    tune_process()  # sets variables that the runs read when they import torch
    busy = [sys.executable, "-c", "while True: pass"]
    turns = []
    for _ in range(rounds):
        turn = {f"{n}_at_once": seconds(env_id, num_tasks, repetitions, n) for n in (1, 2, 4)}
        with processes(busy):
            turn["beside_a_busy_process"] = seconds(env_id, num_tasks, repetitions, 1)
        turns.append(turn)
        print(turn, file=sys.stderr)
    report = {
        "env_id": env_id,
        "num_tasks": num_tasks,
        "cores": num_cores(),
        "torch": torch.__version__,
        "alone_seconds": round(statistics.median(turn["1_at_once"] for turn in turns), 3),
        "times_alone": {
            name: round(statistics.median(turn[name] / turn["1_at_once"] for turn in turns), 2)
            for name in turns[0]
            if name != "1_at_once"
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
