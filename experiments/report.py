"""Tables and pictures of the committed results: `python experiments/report.py`.

Prints what README.md shows and draws, into each family's folder, adaptation.png, learning.png, and, from a MAML
run's checkpoint, what the robot or the point does before and after adaptation: rollouts.png or strip.png.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image
from reproduce import BASES, METHODS

from maml_rl import Config
from maml_rl.cli import run
from maml_rl.comparison import by_method, comparison_figure, comparison_table, label, load_runs
from maml_rl.evaluation import held_out_rollouts
from maml_rl.plots import rollouts_figure, write_figure
from maml_rl.runs import load_config, load_run
from maml_rl.video import adaptation_video

RESULTS = Path(__file__).parent / "results"
# Options that say what is shown or where, not how it was learnt.
_NOT_SHOWN = {"env_id", "run_dir", "resume", "seed", "iterations", "eval_every", "num_workers"}
_FRAMES = 5


def runs_of(family: str, root: Path = RESULTS) -> list[Path]:
    """The folders of a family's runs, in the order of its methods."""
    return [
        path.parent for m in METHODS[family] for path in sorted((root / family / m).glob("seed*/training.json"))
    ]


def how_table(folders: list[Path]) -> str:
    """Markdown: what each method's runs were trained with and what it took, a row for each method."""
    rows = [["method", "options", "iterations", "env steps", "minutes", "cores", "commit", "command"]]
    rows.append(["---"] * len(rows[0]))
    groups: dict[Path, list[Path]] = {}
    for folder in folders:
        groups.setdefault(folder.parent, []).append(folder)
    for group in groups.values():
        config = load_config(group[0])
        records = [json.loads((folder / "training.json").read_text()) for folder in group]
        options = " ".join(
            f"--{field.name.replace('_', '-')} {_as_argument(getattr(config, field.name))}".strip()
            for field in dataclasses.fields(Config)
            if field.name not in _NOT_SHOWN and getattr(config, field.name) != field.default
        )
        command = records[0]["command"].rsplit(" --seeds", 1)[0]
        rows.append(
            [
                label(config),
                f"`{options}`" if options else "",
                str(config.iterations),
                f"{np.mean([record['env_steps'] for record in records]) / 1e6:.1f} M",
                ", ".join(f"{record['seconds'] / 60:.1f}" for record in records),
                ", ".join(sorted({str(record["cores"]) for record in records})),
                ", ".join(dict.fromkeys(record["commit"] for record in records)),
                f"`{command}`",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _as_argument(value: object) -> str:
    if isinstance(value, bool):
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def learning_figure(env_id: str, folders: list[Path]) -> Figure:
    """Returns on training tasks against environment steps: before adaptation dashed, after the last step solid."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        title=env_id, xlabel="environment steps in training", ylabel="return on training tasks"
    )
    colours: dict[str, str] = {}
    for folder in folders:
        record: dict[str, Any] = json.loads((folder / "training.json").read_text())
        curves = record["curves"]
        names = sorted(name for name in curves if name.startswith("return_step_"))
        if not names:
            continue
        method = label(load_config(folder))
        title = None if method in colours else method
        colour = colours.setdefault(method, f"C{len(colours) % 10}")
        for name, style, alpha in ((names[0], ":", 0.5), (names[-1], "-", 0.9))[-len(names) :]:
            axes.plot(curves["env_steps"], curves[name], style, color=colour, alpha=alpha, linewidth=1)
        axes.plot([], [], color=colour, label=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="after inner steps (dotted: before)", title_fontsize="small")
    return figure


def strip(folder: Path) -> np.ndarray:
    """A few moments of the first held-out task, time to the right: above before adaptation, below after it."""
    config, policy, _ = load_run(folder)
    frames, _ = adaptation_video(policy, dataclasses.replace(config, eval_num_steps=1), num_tasks=1)
    chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).astype(int)]
    before, after = np.split(chosen, 2, axis=2)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (before, after)], axis=0)


def draw(family: str, folders: list[Path], root: Path) -> None:
    """All pictures of a family."""
    env_id = BASES[family].env_id
    methods = by_method(load_runs(folders))
    write_figure(root / family / "adaptation.png", comparison_figure(env_id, methods))
    write_figure(root / family / "learning.png", learning_figure(env_id, folders))
    for folder in [folder for folder in folders if (folder / "checkpoint.pt").exists()][:1]:
        config, policy, state = load_run(folder)
        env, tasks, held_out = held_out_rollouts(policy, state.theta, config)
        figure = rollouts_figure(env, tasks, list(held_out)) if hasattr(env, "plot_rollouts") else None
        if figure is not None:
            write_figure(root / family / "rollouts.png", figure)
        else:
            Image.fromarray(strip(folder)).quantize(128).save(root / family / "strip.png", optimize=True)


def main(root: Path = RESULTS, pictures: bool = True) -> None:
    """Prints tables and draws pictures.

    Args:
        root: The folder that `reproduce.py` trained into.
        pictures: Whether to draw.
    """
    for family in BASES:
        folders = runs_of(family, root)
        if folders:
            methods = by_method(load_runs(folders))
            print(f"{family}\n\n{comparison_table(BASES[family].env_id, methods)}\n\n{how_table(folders)}\n")
            if pictures:
                draw(family, folders, root)


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
