"""Errors of the sinusoid runs with 5, 10 and 20 examples of a task: `python experiments/sinusoid_shots.py`.

Writes two files beside the committed results. shots.json has the mean squared errors on held-out tasks, of which
`report.py` makes a table. fits.png shows predictions of the first MAML run before and after 1 and 10 steps.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from maml_rl.envs.supervised import SinusoidVectorEnv
from matplotlib.figure import Figure
from reproduce import METHODS

import maml_rl
from maml_rl import UserError
from maml_rl.cli import run
from maml_rl.methods import curve_name
from maml_rl.results.comparison import as_markdown, step_names
from maml_rl.results.plots import write_figure
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import load_config

RESULTS = Path(__file__).parent / "results" / "sinusoid"
SHOTS = (5, 10, 20)
STEPS = (0, 1, 5, 10)
# With 5 examples (arXiv:1703.03400, appendix C, "multi-task baselines").
PUBLISHED = {"MAML as published": [None, 0.67, 0.38, 0.35], "pre-training as published": [None, 2.41, 2.23, 2.19]}


def errors(folder: Path) -> dict[str, list[float]]:
    """The mean squared errors of a run after 0 ... 10 steps, by the number of examples."""
    name, found = curve_name(load_config(folder)), {}
    for shots in SHOTS:
        curve = maml_rl.evaluate(folder, num_rollouts=shots, num_steps=max(STEPS))["methods"][name]
        found[str(shots)] = [-value for value in curve["mean"]]
    return found


def fits_figure(folder: Path, num_tasks: int = 4, shots: int = 5) -> Figure:
    """Predictions on a few tasks that are drawn here, before and after 1 and 10 steps on the same examples."""
    policy, env, rng = maml_rl.load(folder), SinusoidVectorEnv(1), np.random.default_rng(0)
    tasks = env.sample_test_tasks(num_tasks, rng)
    inputs, targets = env.examples(tasks, shots, rng)
    x = np.linspace(-5, 5, 201)
    figure = Figure(figsize=(3 * num_tasks, 2.8), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, num_tasks, sharey=True)):
        axes.plot(x, env.value(tasks[i : i + 1], x[None])[0], color="black", linewidth=1, label="the task")
        for steps, style in ((0, ":"), (1, "--"), (10, "-")):
            adapted = policy.adapt((inputs[i], targets[i]), num_steps=steps)
            name = f"{steps} step{'s' * (steps != 1)}"
            axes.plot(x, adapted(x[:, None], deterministic=True)[:, 0], style, label=name)
        axes.plot(inputs[i], targets[i], "^", color="crimson", label="examples")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


def table(found: dict[str, Any]) -> str:
    """Markdown: means over seeds, and each seed in brackets."""
    rows = [["method", "examples", *step_names(STEPS)]]
    for method, seeds in found.items():
        for shots in map(str, SHOTS):
            values = np.array([of_seed[shots] for of_seed in seeds.values()])[:, STEPS]
            each = [", ".join(f"{value:.2f}" for value in column) for column in values.T]
            cells = [f"{mean:.2f} ({words})" for mean, words in zip(values.mean(0), each, strict=True)]
            rows.append([method, shots, *cells])
    for name, numbers in PUBLISHED.items():
        rows.append([name, "5", *("" if number is None else f"{number:.2f}" for number in numbers)])
    return as_markdown(rows)


def main(root: Path = Path("runs/reproduce/sinusoid"), output: Path = RESULTS) -> None:
    """Evaluates finished runs, and prints the table.

    Args:
        root: Their folder, as `reproduce.py` makes it for a family.
        output: The folder to write into. Errors of other runs in its shots.json are kept.
    """
    paths = [path for method in METHODS["sinusoid"] for path in sorted(root.glob(f"{method}/seed*/checkpoint.pt"))]
    # The oracle does not adapt.
    folders = [path.parent for path in paths if load_config(path.parent).eval_num_steps]
    if not folders:
        raise UserError(
            f"{root} has no checkpoint of a method that adapts; train one with python experiments/reproduce.py "
            "--families sinusoid, or give the folder of such runs as --root."
        )
    shots = output / "shots.json"
    found: dict[str, Any] = json.loads(shots.read_text()) if shots.exists() else {}
    for folder in folders:
        found.setdefault(folder.parent.name.replace("_", "-"), {})[folder.name] = errors(folder)
        write_json(shots, found)
    if (root / "maml/seed1/checkpoint.pt").exists():
        write_figure(output / "fits.png", fits_figure(root / "maml/seed1"))
    print(table(found))


def committed_table() -> str:
    """The table of the committed results."""
    return table(json.loads((RESULTS / "shots.json").read_text()))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
