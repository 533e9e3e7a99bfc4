"""Pictures of adaptation, drawn without a display."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..envs import VectorFamily
from ..runs.files import make_folder, write_atomically, write_json
from ..sampling.rollouts import Rollouts
from ..sampling.spaces import Array

# The number of tasks in a picture of rollouts.
SHOWN_TASKS = 4


def adaptation_figure(results: dict[str, Any]) -> Figure:
    """Draws mean returns after 0 ... S steps with 95% intervals, one curve per method.

    Args:
        results: As `evaluate` returns them.
    """
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.add_subplot(
        title=results["env_id"],
        xlabel="episodes before" if results["unit"] == "episode" else "adaptation steps",
        ylabel="return",
    )
    for method, curve in results["methods"].items():
        steps, interval = range(len(curve["mean"])), np.array(curve["ci95"])
        axes.plot(steps, curve["mean"], marker="o", label=method)
        axes.fill_between(steps, interval[:, 0], interval[:, 1], alpha=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(
        title=describe_tasks(results),
        title_fontsize="small",
    )
    return figure


def describe_tasks(results: dict[str, Any]) -> str:
    """Describes the tasks in a result of `evaluate`, and how often policies adapted to them."""
    num_tasks, num_rollouts = results["num_tasks"], results["num_rollouts"]
    if not results["tasks_seen"]:
        kind = "given" if results["tasks_given"] else "held-out"
        return f"{num_tasks} {kind} tasks, {num_rollouts} rollouts each"
    different = len(np.unique(results["tasks"], axis=0))
    return f"{different} tasks seen in training, {num_tasks} adaptations in all, {num_rollouts} rollouts each"


def rollouts_figure(env: VectorFamily, tasks: Array, batches: list[Rollouts], unit: str) -> Figure | None:
    """Draws rollouts of the first few tasks, one row per task and one column per phase.

    Args:
        env: The family. It draws its own rollouts with `plot_rollouts(axes, task, observations, mask)`.
        tasks: (M, D).
        unit: What an adaptation is called.
        batches: S + 1 batches of rollouts of the first tasks (m, K, H, ...).

    Returns:
        The picture, or None if the family has no `plot_rollouts`.
    """
    if not hasattr(env, "plot_rollouts"):
        return None
    shown = min(SHOWN_TASKS, len(batches[0].observations))  # this process may have only some of the tasks
    figure = Figure(figsize=(2.2 * len(batches), 2.2 * shown + 0.3), layout="constrained")
    grid = figure.subplots(shown, len(batches), squeeze=False)
    for k, batch in enumerate(batches):
        grid[0, k].set_title(f"{k} {unit}{'s' * (k != 1)}")
        for i in range(shown):
            env.plot_rollouts(grid[i, k], tasks[i], batch.observations[i].numpy(), batch.mask[i].numpy())
            grid[i, k].set_xlabel(f"return {batch.rewards[i].sum(-1).mean():.1f}", fontsize="small")
    return figure


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Returns the picture as (height, width, 3) uint8."""
    figure.dpi = 120
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Returns the picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> npt.NDArray[np.uint8]:
    """Writes a PNG file atomically, and returns its pixels (height, width, 3), which take long to draw."""
    picture = pixels(figure)
    write_atomically(path, png(picture))
    return picture


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes evaluation.json and adaptation.png into a folder, which is made if it is not there."""
    make_folder(folder)
    write_json(folder / "evaluation.json", results)
    write_figure(folder / "adaptation.png", adaptation_figure(results))
