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
from . import published
from .comparison import Curves, interval_words

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


def comparison_figure(env_id: str, methods: dict[str, Curves]) -> Figure:
    """Draws interquartile means with 95% intervals over environment steps in a task, one curve per method."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    # Steps that all use the same examples are told apart by their number only.
    same = any((np.diff(curves.env_steps) == 0).any() for curves in methods.values())
    if same:
        methods = {name: c._replace(env_steps=np.arange(len(c.middle))) for name, c in methods.items()}
    axes = figure.add_subplot(
        title=f"{env_id}\n{interval_words(methods)}",
        xlabel="adaptation steps" if same else "environment steps in a new task",
        ylabel="return (interquartile mean)",
    )
    longest = max(curves.env_steps[-1] for curves in methods.values())
    first = min((c.env_steps[1] for c in methods.values() if len(c.env_steps) > 1), default=1.0)
    for i, (name, curves) in enumerate(methods.items()):
        middle, interval = curves.middle, curves.interval
        colour, style = f"C{i % 10}", "-" if i < 10 else "--"
        if len(middle) == 1:  # does not adapt
            axes.axhline(middle[0], color=colour, linestyle=":", label=name)
            axes.fill_between([0, longest], *np.repeat(interval.T, 2, axis=1), color=colour, alpha=0.15)
        else:
            axes.plot(curves.env_steps, middle, style, color=colour, marker="o", markersize=3, label=name)
            axes.fill_between(curves.env_steps, *interval.T, color=colour, alpha=0.15)
    if env_id in published.SAME_PHYSICS and "maml" in methods:
        paper = published.RETURNS[env_id]["maml"][: len(methods["maml"].env_steps)]
        steps = methods["maml"].env_steps[: len(paper)]
        axes.plot(steps, paper, "k--", marker="x", label="MAML as published (means)")
    if longest > 10 * first:
        axes.set_xscale("symlog", linthresh=first)
    axes.set_xlim(0, max(longest * 1.05, 1.0))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
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
