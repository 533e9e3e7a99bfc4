"""Seconds of an iteration where the learner is on a CPU and on a GPU, as JSON; see `Config.device`."""

import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

import tyro

from maml_rl import Config, train
from maml_rl.process import tune_process

sys.path.insert(0, str(Path(__file__).parents[1]))
import glyphs
import half_cheetah_vel
import navigation_2d
import reproduce

# Experiments, and how many iterations of each are measured.
MEASURED: dict[str, tuple[Config, int]] = {
    "navigation": (navigation_2d.CONFIG, 6),
    "half-cheetahs": (half_cheetah_vel.CONFIG, 3),
    "letters, 5 ways, 1 shot": (glyphs.CONFIG, 12),
    "the same with 64 filters": (dataclasses.replace(glyphs.CONFIG, hidden_sizes=(64,)), 12),
    "letters, 20 ways, 1 shot": (reproduce.BASES["glyphs_20_ways_1_shot"], 6),
}


def seconds(config: Config) -> tuple[float, float]:
    """The medians of collecting and of the update, without the first third of the iterations."""
    found: list[tuple[float, float]] = []

    def record(env_steps: int, scalars: dict[str, float]) -> None:
        found.append((scalars["time/collect_seconds"], scalars["time/update_seconds"]))

    with tempfile.TemporaryDirectory() as folder:
        short = {"run_dir": Path(folder), "eval_every": 0, "eval_num_tasks": 2, "eval_num_steps": 0}
        train(dataclasses.replace(config, **short), callbacks=[record])  # type: ignore[arg-type]
    collect, update = zip(*found[len(found) // 3 :], strict=True)
    return statistics.median(collect), statistics.median(update)


def main(devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Measures and prints.

    Args:
        devices: Devices of the learner.
    """
    tune_process()
    found: dict[str, dict[str, float]] = {name: {} for name in MEASURED}
    for device in devices:
        for name, (config, iterations) in MEASURED.items():
            chunk = {"chunk_tasks": 32} if device != "cpu" else {}
            of = seconds(dataclasses.replace(config, device=device, iterations=iterations, **chunk))
            found[name] |= {
                f"{device}, {part} (s)": round(of_part, 3)
                for part, of_part in zip(("collecting", "update"), of, strict=True)
            }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
