"""Iterations of regression and few-shot classification, as JSON, all in one run.

Milliseconds of an iteration of `sinusoid.py`, with 25 tasks, and, with 64 filters, of `glyphs.py` (conv-4, images
of Omniglot's size, 32 tasks of 5 ways and 1 shot), with second derivatives and without. The products of conv-4 are
the floor: an iteration with second derivatives needs at least twelve of the size of each layer's, nine for the
support set and three for the query set. They are measured as torch's batched products, on as many threads.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from maml_rl.envs import num_cores

from maml_rl import Config, train
from maml_rl.process import tune_process

sys.path.insert(0, str(Path(__file__).parents[1]))
import glyphs
import sinusoid
from benchmarks.timing import seconds

# Products of each layer for the support set: forwards, the gradient's two, and two for the derivative of each of
# these three. Query set: forwards, and the gradient's two.
_PRODUCTS = 9 + 3
SINUSOID = dataclasses.replace(sinusoid.CONFIG, num_tasks=25)  # the paper's number
CONV4 = dataclasses.replace(glyphs.CONFIG, hidden_sizes=(64,))


def milliseconds(config: Config, iterations: int) -> float:
    """The median of an iteration, without the first third of them."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        short = {"run_dir": Path(folder), "iterations": iterations, "checkpoint_every": iterations}
        short |= {"eval_every": 0, "eval_num_tasks": 2, "eval_num_steps": 0}
        train(
            dataclasses.replace(config, **short),  # type: ignore[arg-type]
            callbacks=[lambda env_steps, scalars: ends.append(time.perf_counter())],
        )
    times = [end - start for start, end in pairwise(ends)]
    return 1e3 * statistics.median(times[len(times) // 3 :])


def floor(config: Config, repetitions: int) -> float:
    """Milliseconds of the products of an iteration."""
    torch.set_num_threads(num_cores())
    size, channels, total = 28, 1, 0.0
    for _ in range(4):
        size = -(-size // 2)
        rows, filters = config.num_rollouts * size**2, config.hidden_sizes[-1]
        x = torch.randn(config.num_tasks, rows, 9 * channels)
        w = torch.randn(config.num_tasks, 9 * channels, filters)
        total += _PRODUCTS * statistics.median(seconds(partial(torch.bmm, x, w)) for _ in range(repetitions))
        channels = filters
    torch.set_num_threads(1)
    return 1e3 * total


def main(iterations: int = 300, conv4_iterations: int = 20, repetitions: int = 30) -> None:
    """Measures and prints.

    Args:
        iterations: Iterations of the sinusoid.
        conv4_iterations: Iterations of conv-4.
        repetitions: Repetitions of each product.
    """
    tune_process()
    report: dict[str, object] = {"cores": num_cores(), "torch": torch.__version__}
    for name, config, number in (
        ("sinusoid", SINUSOID, iterations),
        ("conv4", CONV4, conv4_iterations),
    ):
        both = {
            "second_order": milliseconds(config, number),
            "first_order": milliseconds(dataclasses.replace(config, first_order=True), number),
        }
        report[name] = {
            **{f"{order}_milliseconds": round(value, 2) for order, value in both.items()},
            "times_first_order": round(both["second_order"] / both["first_order"], 2),
        }
        if name == "conv4":
            products = floor(CONV4, repetitions)
            report[name] |= {  # type: ignore[operator]
                "products_milliseconds": round(products, 2),
                "times_products": round(both["second_order"] / products, 2),
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
