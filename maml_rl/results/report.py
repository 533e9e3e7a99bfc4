"""One page about any runs: tables, curves, pictures and films in a single HTML file that needs nothing else."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

from .. import __version__
from ..config import Config
from ..runs.folder import load_config
from ..runs.tensorboard import read_history, return_tags
from ..sampling.spaces import Array
from .comparison import (
    Run,
    by_method,
    comparison_figure,
    comparison_rows,
    differing_options,
    family_name,
    groups,
    interval_words,
    kind_of_tasks,
    load_runs,
    success_rows,
)
from .plots import pixels, png

_POINTS = 200  # of a learning curve
_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
img, video { max-width: 100%; background: white }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #8888; padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap }
"""
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
{body}
<p>Made by maml_rl {version}.</p>
</html>
"""


def report(folders: Sequence[Path]) -> str:
    """Returns a page about finished runs as HTML. Runs of each family get a section.

    Raises:
        UserError: If a run is not finished, or two runs are the same method with the same seed.
    """
    families: dict[str, list[Path]] = {}
    for folder in folders:
        families.setdefault(family_name(load_config(folder)), []).append(folder)
    title = "Runs on " + ", ".join(families)
    body = "\n".join(part for name, of_family in families.items() for part in _section(name, load_runs(of_family)))
    return _PAGE.format(title=escape(title), style=_STYLE, body=body, version=__version__)


def _section(name: str, runs: list[Run]) -> Iterator[str]:
    """The parts of a family's section."""
    methods, named = by_method(runs), groups(runs)
    yield f"<h2>{escape(name)}</h2>"
    tasks = kind_of_tasks(runs)
    yield f"<h3>Returns on {tasks}</h3>"
    yield _table(comparison_rows(name, methods))
    yield (
        f"<p>Interquartile means over tasks and seeds, with their {interval_words(methods)}. Gain: the last "
        "column minus the first. Score: (method - random) / (oracle - random), of means over the seeds that "
        "the three share. Random is an untrained policy.</p>"
    )
    if success := success_rows(methods):
        yield f"<h3>Success on {tasks}</h3>"
        yield _table(success)
        yield "<p>The mean share of rollouts, with a 95% bootstrap interval.</p>"
    yield _picture(comparison_figure(name, methods), f"Returns on {tasks} of {name}")
    curves = {method: [learning_curve(folder) for folder, _, _ in group] for method, group in named.items()}
    if any(len(steps) for of_method in curves.values() for steps, _, _ in of_method):
        yield "<h3>Learning</h3>"
        yield _picture(learning_figure(name, curves), f"Returns on training tasks of {name}")
    yield "<h3>Options</h3>"
    yield from _options({method: group[0][1] for method, group in named.items()})
    yield "<h3>Runs</h3>"
    yield _table(
        [
            ["method", "seed", "iterations", "folder"],
            *(
                [method, str(config.seed), str(config.iterations), str(folder)]
                for method, group in named.items()
                for folder, config, _ in group
            ),
        ]
    )
    for method, group in named.items():
        for kind, file in (("image/png", "rollouts.png"), ("video/mp4", "adaptation.mp4")):
            if shown := [folder / file for folder, _, _ in group if (folder / file).exists()]:
                yield f"<h3>{escape(method)}, {shown[0].name} of {escape(str(shown[0].parent))}</h3>"
                yield _embedded(shown[0].read_bytes(), kind, f"{method}: before and after adaptation")


def learning_curve(folder: Path) -> tuple[Array, Array, Array]:
    """A run's environment steps, and its returns before and after adaptation, at each iteration, (iterations,).

    They are read from the run's TensorBoard events, and are empty if it trained nothing.
    """
    history = read_history(folder)
    if not (tags := return_tags(history)):
        return (np.zeros(0),) * 3
    (steps, before), (_, after) = (np.array(history[tag]).T for tag in (tags[0], tags[-1]))
    return steps, before, after


def learning_figure(title: str, curves: dict[str, list[tuple[Array, Array, Array]]]) -> Figure:
    """Draws the mean return after adaptation over seeds against environment steps, and the one before it dotted.

    With three seeds or more, the bands are 95% t-intervals of the mean. Those of two seeds, 13 standard errors to
    each side, would hide the other curves. Curves are cut at the shortest seed's end, and
    long ones are averaged over neighbouring iterations.

    Args:
        title: The title of the picture.
        curves: The `learning_curve` of each seed, by method.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="environment steps in training", ylabel="return on training tasks"
    )
    for i, (method, seeds) in enumerate(curves.items()):
        length = min(len(steps) for steps, _, _ in seeds)
        if not length:
            continue
        parts = np.array_split(np.arange(length), min(length, _POINTS))
        steps, before, after = (
            np.array([[curve[k][part].mean() for part in parts] for curve in seeds]) for k in range(3)
        )
        colour, style, x = f"C{i % 10}", "-" if i < 10 else "--", steps.mean(0)
        axes.plot(x, after.mean(0), style, color=colour, label=method)
        if (before != after).any():
            axes.plot(x, before.mean(0), ":", color=colour, linewidth=1)
        if len(seeds) > 2:
            half = stdtrit(len(seeds) - 1, 0.975) * after.std(0, ddof=1) / np.sqrt(len(seeds))
            axes.fill_between(x, after.mean(0) - half, after.mean(0) + half, color=colour, alpha=0.15)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="after adaptation (dotted: before)", title_fontsize="small")
    return figure


def _options(configs: dict[str, Config]) -> Iterator[str]:
    """The options in which methods differ, and those that all have changed from their defaults."""
    differing, default = differing_options([*configs.values()]), Config().options("method")
    values = {method: config.options("method") for method, config in configs.items()}
    if differing:
        yield _table(
            [
                ["option", *configs],
                *([name, *(str(of_method[name]) for of_method in values.values())] for name in differing),
            ]
        )
    common = [
        f"{name}={value}"
        for name, value in next(iter(values.values())).items()
        if name not in differing and value != default[name]
    ]
    yield f"<p>The same for all: {escape(', '.join(common) or 'the defaults')}.</p>"


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [f"<thead>{_row(head, 'th')}</thead>", "<tbody>", *(_row(row, "td") for row in body), "</tbody>"]
    return "\n".join(["<table>", *lines, "</table>"])


def _row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _picture(figure: Figure, description: str) -> str:
    return _embedded(png(pixels(figure)), "image/png", description)


def _embedded(content: bytes, kind: str, description: str) -> str:
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    if kind.startswith("video"):
        return f'<video controls loop aria-label="{escape(description)}" src="{source}"></video>'
    return f'<img alt="{escape(description)}" src="{source}">'
