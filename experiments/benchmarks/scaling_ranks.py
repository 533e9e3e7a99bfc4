"""Iterations of runs that torchrun shares out to processes, as JSON, all in one run.

* strong: the same meta-batch by one process with two threads, and by two ranks with one thread each, in turns.
* weak: two ranks with twice the tasks, against one rank with one thread.
* exchanged: collectives and bytes of an iteration.
* latency: an iteration of two ranks if every collective takes longer by some milliseconds.
* model: seconds of an iteration on n nodes, calculated from the measured numbers. Each node has as many tasks as
  one process here. A collective takes 2 log2(n) messages of a stated latency, and its bytes 2 times over a stated
  bandwidth. That all wait for the slowest node is left out.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.distributed as dist
import tyro

from maml_rl import Config, train
from maml_rl.process import tune_process

FAMILIES = ("maml_rl/Navigation2D-v0", "maml_rl/HalfCheetahVel-v0")
LATENCIES = (0.0, 1.0, 5.0)
NODES = (1, 2, 5, 10, 20, 50, 100)
# Of messages between two machines of a cluster with 10 gigabit Ethernet.
MESSAGE_SECONDS, BYTES_PER_SECOND = 50e-6, 1e9


def measure(env_id: str, num_tasks: int, threads: int, iterations: int, latency: float) -> None:
    """Trains in this process or rank, and prints an iteration's median seconds, collectives and bytes."""
    tune_process()
    collectives: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        collectives.append(tensor.numel() * tensor.element_size())
        time.sleep(latency / 1e3)
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    ends, numbers = [], []

    def ended(env_steps: int, scalars: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        numbers.append((len(collectives), sum(collectives)))
        collectives.clear()

    with tempfile.TemporaryDirectory() as folder:
        few = {"eval_every": 0, "eval_num_tasks": 2, "eval_num_rollouts": 1, "eval_num_steps": 0}
        options = {**few, "iterations": iterations + 1, "checkpoint_every": 1000, "threads": threads}
        if "HalfCheetah" in env_id:
            options |= {"env_kwargs": {"num_threads": threads}}
        train(
            Config(env_id=env_id, run_dir=Path(folder) / "run", num_tasks=num_tasks, **options),
            callbacks=[ended],
        )
    if os.environ.get("RANK", "0") == "0":
        seconds = statistics.median(end - start for start, end in pairwise(ends))
        counts, sizes = (statistics.median(column) for column in zip(*numbers[1:], strict=True))
        print(json.dumps([seconds, counts, sizes]))


def run(env_id: str, num_tasks: int, threads: int, num_ranks: int, iterations: int, latency: float = 0.0) -> Any:
    """Measures in a process of its own, or in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    given = {"one": True, "env-id": env_id, "num-tasks": num_tasks, "threads": threads, "iterations": iterations}
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, *launcher * (num_ranks > 1), __file__, *words, f"--latency={latency}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def modelled(alone: float, collectives: float, num_bytes: float) -> dict[str, float]:
    """Seconds of an iteration with more and more nodes that each have the same number of tasks."""
    return {
        str(n): round(
            alone + collectives * 2 * math.log2(n) * MESSAGE_SECONDS + (n > 1) * 2 * num_bytes / BYTES_PER_SECOND,
            3,
        )
        for n in NODES
    }


def main(
    env_id: str = FAMILIES[0],
    num_tasks: int = 20,
    threads: int = 1,
    iterations: int = 5,
    latency: float = 0.0,
    repetitions: int = 5,
    one: bool = False,
) -> None:
    """Measures and prints.

    Args:
        env_id: The family, with `one`. Like the next two and `latency`, it is not used otherwise.
        num_tasks: M.
        threads: The learner's threads of each process.
        iterations: Iterations of a run that count.
        latency: Milliseconds that each collective takes longer.
        repetitions: Pairs of runs.
        one: Measure only in this process.
    """
    if one:
        measure(env_id, num_tasks, threads, iterations, latency)
        return
    report: dict[str, Any] = {"message_seconds": MESSAGE_SECONDS, "bytes_per_second": BYTES_PER_SECOND}
    for family in FAMILIES:
        pairs = [
            (run(family, 20, 2, 1, iterations)[0], *run(family, 20, 1, 2, iterations)) for _ in range(repetitions)
        ]
        threaded, ranked, counts, sizes = (statistics.median(column) for column in zip(*pairs, strict=True))
        alone, both = run(family, 20, 1, 1, iterations)[0], run(family, 40, 1, 2, iterations)[0]
        report[family] = {
            "one_process_two_threads": round(threaded, 3),
            "two_ranks_one_thread": round(ranked, 3),
            "speed_of_ranks": round(statistics.median(pair[0] / pair[1] for pair in pairs), 3),
            "weak_efficiency": round(alone / both, 3),
            "collectives": counts,
            "kilobytes": round(sizes / 1e3, 1),
            "seconds_with_latency": {
                f"{extra:g} ms": round(run(family, 20, 1, 2, iterations, extra)[0], 3) for extra in LATENCIES
            },
            "seconds_on_nodes": modelled(threaded, counts, sizes),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
