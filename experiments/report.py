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
from torch import nn

from maml_rl import Config, published
from maml_rl.cli import run
from maml_rl.comparison import Curves, by_method, comparison_figure, comparison_table, label, load_runs
from maml_rl.evaluation import held_out_rollouts
from maml_rl.plots import rollouts_figure, write_figure
from maml_rl.runs import load_config, load_run
from maml_rl.video import adaptation_video

RESULTS = Path(__file__).parent / "results"
# Options that say what is shown or where, not how it was learnt.
_NOT_SHOWN = {"env_id", "run_dir", "resume", "seed", "iterations", "eval_every", "num_workers"}
_FRAMES = 5


def runs_of(family: str, root: Path = RESULTS) -> list[Path]:
    """The folders of a family's finished runs, in the order of its methods."""
    found = [sorted((root / family / method).glob("seed*/evaluation.json")) for method in METHODS[family]]
    return [path.parent for of_method in found for path in of_method]


def records_of(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """The training.json of each run that has one."""
    paths = {folder: folder / "training.json" for folder in folders}
    return {folder: json.loads(path.read_text()) for folder, path in paths.items() if path.exists()}


def as_markdown(rows: list[list[str]]) -> str:
    """A table, its head first."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def summary_table(root: Path = RESULTS) -> str:
    """Markdown: MAML beside its yardsticks after one step in each family, means over tasks and seeds."""
    rows = [["family", "untrained", "pre-training", "MAML", "oracle", "score after 1, 2 steps", "as published"]]
    for family, base in BASES.items():
        folders = runs_of(family, root)
        mean = {
            name: np.concatenate(curves.returns).mean(0)
            for name, curves in (by_method(load_runs(folders)) if folders else {}).items()
        }
        yardsticks = ("random", "pretrain", "maml", "oracle")
        if mean.keys() >= set(yardsticks):
            after = [mean[name][min(1, len(mean[name]) - 1)] for name in yardsticks]
            ours = published.score(mean["maml"], mean["random"][: len(mean["maml"])], mean["oracle"][0])
            paper = {name: np.array(returns) for name, returns in published.RETURNS[base.env_id].items()}
            theirs = published.score(paper["maml"], paper["random"], paper["oracle"][0])
            scores = [f"{score[1]:.2f}, {score[2]:.2f}" for score in (ours, theirs)]
            rows.append([f"`{base.env_id.removeprefix('maml_rl/')}`", *(f"{x:.1f}" for x in after), *scores])
    return as_markdown(rows)


def how_table(folders: list[Path]) -> str:
    """Markdown: what each method's runs were trained with and what it took, a row for each method."""
    rows = [["method", "options", "iterations", "env steps", "minutes of each seed", "cores", "commit", "command"]]
    groups: dict[Path, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, record in records_of(folders).items():
        groups.setdefault(folder.parent, []).append((folder, record))
    for folder, group in groups.items():
        family, method = folder.parts[-2:]
        config, records = load_config(group[0][0]), [record for _, record in group]
        rows.append(
            [
                label(config),
                f"`{options_of(config)}`",
                str(config.iterations),
                f"{np.mean([record['env_steps'] for record in records]) / 1e6:.1f} M",
                ", ".join(f"{record['seconds'] / 60:.1f}" for record in records),
                ", ".join(dict.fromkeys(str(record["cores"]) for record in records)),
                ", ".join(dict.fromkeys(record["commit"] for record in records)),
                f"`python experiments/reproduce.py --families {family} --methods {method}`",
            ]
        )
    return as_markdown(rows)


def options_of(config: Config) -> str:
    """The options of a run that are not the defaults of `Config`, as on the command line."""
    defaults, words = dataclasses.asdict(Config()), []
    for name, value in dataclasses.asdict(config).items():
        if name not in _NOT_SHOWN and value != defaults[name]:
            values = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
            words += [f"--{'no-' * (value is False)}{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def tuning_table(family: str) -> str:
    """Markdown: single runs that settings were chosen by, with adapted returns on their training tasks."""
    rows = [["options", "iterations 11 to 20", "31 to 40", "its last 10", "of"]]
    for trial in json.loads((RESULTS / family / "tuning.json").read_text()):
        returns = trial.get("return_step_1", trial["return_step_0"])  # an oracle takes no step
        spans = [returns[10:20], returns[30:40], returns[-10:]]
        rows.append(
            [
                f"`{trial['options']}`" + (f"; {trial['note']}" if trial["note"] else ""),
                *(f"{np.mean(span):.1f}" if len(span) == 10 else "" for span in spans),
                str(len(returns)),
            ]
        )
    return as_markdown(rows)


def learning_figure(env_id: str, folders: list[Path]) -> Figure:
    """Returns on training tasks against environment steps: before adaptation dotted, after the last step solid."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        title=env_id, xlabel="environment steps in training", ylabel="return on training tasks"
    )
    colours: dict[str, str] = {}
    for folder, record in records_of(folders).items():
        curves, method = record["curves"], label(load_config(folder))
        names = sorted(name for name in curves if name.startswith("return_step_"))
        if names:
            title = None if method in colours else method
            colour = colours.setdefault(method, f"C{len(colours) % 10}")
            axes.plot(curves["env_steps"], curves[names[-1]], color=colour, linewidth=1, label=title)
            if len(names) > 1:
                axes.plot(curves["env_steps"], curves[names[0]], ":", color=colour, linewidth=1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="after inner steps (dotted: before)", title_fontsize="small")
    return figure


def strip(config: Config, policy: nn.Module) -> np.ndarray:
    """A few moments of the first held-out task, time to the right: above before adaptation, below after it."""
    frames, _ = adaptation_video(policy, dataclasses.replace(config, eval_num_steps=1), num_tasks=1)
    chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).astype(int)]
    before, after = np.split(chosen, 2, axis=2)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (before, after)], axis=0)


def draw(folder: Path, env_id: str, methods: dict[str, Curves], runs: list[Path]) -> None:
    """All pictures of a family."""
    write_figure(folder / "adaptation.png", comparison_figure(env_id, methods))
    write_figure(folder / "learning.png", learning_figure(env_id, runs))
    if not (folder / "maml/seed1/checkpoint.pt").exists():
        return
    config, policy, state = load_run(folder / "maml" / "seed1")
    env, tasks, held_out = held_out_rollouts(policy, state.theta, config)
    if not hasattr(env, "plot_rollouts"):  # the family cannot draw its rollouts, but films them
        Image.fromarray(strip(config, policy)).quantize(128).save(folder / "strip.png", optimize=True)
    else:
        write_figure(folder / "rollouts.png", rollouts_figure(env, tasks, list(held_out)))


def main(root: Path = RESULTS, pictures: bool = True) -> None:
    """Prints tables and draws pictures.

    Args:
        root: The folder that `reproduce.py` trained into.
        pictures: Whether to draw.
    """
    print(f"{summary_table(root)}\n")
    for family, base in BASES.items():
        runs = runs_of(family, root)
        if runs:
            methods = by_method(load_runs(runs))
            print(f"{family}\n\n{comparison_table(base.env_id, methods)}\n\n{how_table(runs)}\n")
            if pictures:
                draw(root / family, base.env_id, methods, runs)
        if (RESULTS / family / "tuning.json").exists():
            print(f"{tuning_table(family)}\n")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
