"""Prints the table of 2D navigation's committed results: `python experiments/navigation_2d_table.py`.

Its last column is a yardstick: the return of a point that walks straight towards its goal but always equally
far, by the distance that is best for these 40 tasks, and stands there without noise.
"""

import json
from pathlib import Path

import numpy as np
from maml_rl.envs import make_vec
from maml_rl.envs.navigation import STEP

from maml_rl.results.comparison import as_markdown
from maml_rl.sampling.streams import stream

RESULTS = Path(__file__).parent / "results" / "navigation_2d" / "maml"


def fixed_distance_return(goals: np.ndarray, horizon: int, distance: float) -> float:
    """Mean return over goals (M, 2) of walking `distance` towards each at full speed, then standing."""
    length = np.linalg.norm(goals, axis=1)
    speed = STEP * length / np.abs(goals).max(axis=1)  # each coordinate moves by at most STEP
    walked = np.minimum(np.arange(1, horizon + 1)[:, None] * speed, distance)
    return float(-np.abs(length - walked).sum(axis=0).mean())


def seeds_table() -> str:
    """Markdown: a row for each seed."""
    rows = [["seed", "0 steps", "1 step", "2 steps", "3 steps", "untrained, 1 step", "best fixed distance"]]
    for path in sorted(RESULTS.glob("seed*/evaluation.json")):
        results = json.loads(path.read_text())
        env = make_vec(results["env_id"], 1)
        rng = np.random.default_rng(stream(results["seed"], "held-out tasks"))
        goals, horizon = env.sample_tasks(results["num_tasks"], rng), env.max_episode_steps or 0
        best = max(fixed_distance_return(goals, horizon, distance) for distance in np.arange(0, 0.71, 0.01))
        curves = results["methods"]
        cells = [
            f"{mean:.2f} ± {high - mean:.2f}"
            for curve, steps in ((curves["maml"], slice(None)), (curves["random"], slice(1, 2)))
            for mean, (_, high) in zip(curve["mean"][steps], curve["ci95"][steps], strict=True)
        ]
        rows.append([str(results["seed"]), *cells, f"{best:.2f}"])
    return as_markdown(rows)


if __name__ == "__main__":
    print(seeds_table())
