"""Compares runs of several methods and seeds in one table and one picture."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config import Config
from ..errors import UserError
from ..methods import curve_name, method_of
from ..runs.evaluation import held_out_seed
from ..runs.folder import load_config
from ..sampling.families import registered_id
from . import published
from .bootstrap import interquartile_mean, mean_with_interval
from .curves import Curves, columns, scores, unit

# What is added to a method's name if its run starts from another one.
CONTINUED = ", continued"
# A run's folder, options and evaluation.
Run = tuple[Path, Config, dict[str, Any]]


def label(config: Config) -> str:
    """Returns the name of a run's method in comparisons."""
    if not config.is_trained:
        return "scratch"
    return method_of(config).label + CONTINUED * (config.start_from is not None)


def family_name(config: Config) -> str:
    """Returns the id of a run's family, with its arguments and a horizon of its own.

    Published results are those of the id alone.
    """
    words = [f"{name}={value}" for name, value in sorted(config.env_kwargs.items())]
    words += [f"horizon={config.horizon}"] * (config.horizon is not None)
    return registered_id(config.env_id) + (f" ({', '.join(words)})" if words else "")


def load_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Reads config.json and evaluation.json of runs, given their folders.

    Raises:
        UserError: If a file is missing, or the runs cannot be compared.
    """
    runs = []
    for folder in map(Path, folders):
        path = folder / "evaluation.json"
        config = load_config(folder)
        try:
            results = json.loads(path.read_text())
            for curve in results["methods"].values():
                if np.ndim(curve["returns"]) != 2 or len(curve["env_steps"]) != len(curve["mean"]):
                    raise ValueError("returns or env_steps have another shape")
                if np.shape(curve.get("success", curve["returns"])) != np.shape(curve["returns"]):
                    raise ValueError("success has another shape than returns")
            if not {"num_tasks", "num_rollouts"} <= results.keys():
                raise ValueError("num_tasks or num_rollouts is missing")
            if results.get("tasks_given"):
                raise ValueError("it was made on tasks that you chose, which other runs were not evaluated on")
            if results["iterations"] != config.iterations or curve_name(config) not in results["methods"]:
                raise ValueError(f"it is of iteration {results['iterations']} of {config.iterations}")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); finish the run.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be compared ({error}); write another evaluation with evaluate {folder} "
                f"--output {folder}."
            ) from error
        runs.append((folder, config, results))
    if not runs:
        raise UserError("There is nothing to compare; give the folders of at least one run.")
    wants: dict[str, Any] = {}
    for folder, config, results in runs:
        alike = {name: getattr(config, name) for name in ("env_id", "horizon", "env_kwargs")}
        alike |= {name: results[name] for name in ("num_tasks", "num_rollouts")}
        for name, value in (alike | {"env_id": registered_id(config.env_id)}).items():
            if value != wants.setdefault(name, value):
                raise UserError(
                    f"{folder} was evaluated with {name}={value!r} and {runs[0][0]} with {wants[name]!r}; "
                    "compare runs that agree in it."
                )
    return runs


def kind_of_tasks(runs: list[Run]) -> str:
    """Names the tasks that runs were evaluated on."""
    # Evaluations of version 0.1 do not say whether training has seen the tasks.
    return "tasks seen in training" if any(results.get("tasks_seen") for *_, results in runs) else "held-out tasks"


def groups(runs: list[Run]) -> dict[str, list[Run]]:
    """Returns the runs of each method, in the given order, by a name for it.

    If methods have the same name, the options in which they differ are added to it.

    Raises:
        UserError: If two runs have the same method and the same seed.
    """
    # Seeds of one method may each start from a run of their own. What starts from several runs with one seed is
    # several methods.
    ignored = {"start_from"}
    alike = _alike(runs, ignored)
    if any(len({config.seed for _, config, _ in group}) < len(group) for group in alike.values()):
        ignored = set()
        alike = _alike(runs, ignored)
    found = {}
    for (short, _), group in alike.items():
        seeds: dict[int, Path] = {}
        for folder, config, _ in group:
            if config.seed in seeds:
                raise UserError(
                    f"{seeds[config.seed]} and {folder} are the same method with the same seed; leave one out."
                )
            seeds[config.seed] = folder
        others = [other[0][1] for (name, _), other in alike.items() if name == short]
        own = group[0][1].options("method")
        differing = [f"{name}={own[name]}" for name in differing_options(others) if name not in ignored]
        found[short + (f" ({', '.join(differing)})" if differing else "")] = group
    return found


def _alike(runs: list[Run], ignored: set[str]) -> dict[tuple[str, str], list[Run]]:
    """Returns the runs with the same name and options of the method, except the ignored ones."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        options = {name: value for name, value in run[1].options("method").items() if name not in ignored}
        key = json.dumps(options, default=str, sort_keys=True)
        found.setdefault((label(run[1]), key), []).append(run)
    return found


def differing_options(configs: list[Config]) -> list[str]:
    """Returns the names of the method's options in which runs differ."""
    return [
        name
        for name in configs[0].options("method")
        if len({str(config.options("method")[name]) for config in configs}) > 1
    ]


def by_method(runs: list[Run]) -> dict[str, Curves]:
    """Returns the curves of each method over its seeds, as `groups` names them, and those of an untrained policy.

    "random" is the untrained policy of plain MAML, or if that is not compared, of the first method in the alphabet
    that has inner steps.
    """
    named = groups(runs)
    methods = {name: _curves(group, curve_name(group[0][1])) for name, group in named.items()}
    # The untrained policy of one method, whose choice must not depend on the order of the folders.
    with_random = {
        (
            method_of(config).unit != "step",
            config.observe_task,
            label(config).removesuffix(CONTINUED) != "maml",
            label(config),
            str(config.options("method")),
        ): group
        for group in named.values()
        for _, config, _ in group[:1]
        if all("random" in run[2]["methods"] for run in group)
    }
    if with_random:
        methods["random"] = _curves(with_random[min(with_random)], "random")
    return methods


def _curves(group: list[Run], method: str) -> Curves:
    curves = [results["methods"][method] for _, _, results in group]
    shortest = min(len(curve["mean"]) for curve in curves)
    config, num_rollouts = group[0][1], group[0][2]["num_rollouts"]
    returns = [np.array(curve["returns"])[:, :shortest] for curve in curves]
    remembers = method_of(config).independent_learners
    # Evaluations of version 0.1 do not have the tasks. Then all are taken to be different.
    tasks = [
        np.array(run[2].get("tasks", range(len(of_seed)))) for run, of_seed in zip(group, returns, strict=True)
    ]
    successes = [np.array(curve["success"])[:, :shortest] for curve in curves if "success" in curve]
    return Curves(
        returns,
        [run[2].get("seed", held_out_seed(run[1])) for run in group],
        np.arange(shortest) * (1 if remembers else num_rollouts),
        remembers,
        np.mean([curve["env_steps"][:shortest] for curve in curves], axis=0),
        *interquartile_mean(returns, tasks),
        mean_with_interval(successes, tasks) if len(successes) == len(curves) else None,
    )


def interval_words(methods: dict[str, Curves]) -> str:
    """Says what the intervals in a comparison are computed over."""
    several = any(len(curves.returns) > 1 for curves in methods.values())
    return "95% bootstrap interval over " + ("seeds and tasks" if several else "tasks (one seed)")


def step_names(numbers: Iterable[int], unit: str = "step") -> list[str]:
    """The heads of columns: 0 steps, 1 step, 2 steps."""
    return [f"{k} {unit}{'s' * (k != 1)}" for k in numbers]


def comparison_rows(env_id: str, methods: dict[str, Curves]) -> list[list[str]]:
    """Returns the rows of a table with the `columns`, its head first and then one per method.

    Args:
        env_id: The family. If its results were published, they get a row beside methods with steps.
        methods: As from `by_method`.
    """
    at = columns(methods)
    num_columns = len(next(iter(at.values())))
    scores_of = scores(methods)
    scored = bool(scores_of)
    steps = step_names(range(num_columns), unit(methods))
    rows = [["method", "seeds", *steps, "gain", *["score"] * scored]]
    for name, curves in methods.items():
        middle, interval = curves.middle, curves.interval
        cells = [f"{middle[i]:.2f} [{interval[i, 0]:.2f}, {interval[i, 1]:.2f}]" for i in at[name]]
        gain = middle[at[name][-1]] - middle[at[name][0]]
        rows.append([name, str(len(curves.returns)), *cells, f"{gain:.2f}"])
        if scored:
            rows[-1].append(", ".join(f"{score:.3f}" for score in scores_of.get(name, [])))
    if env_id in published.RETURNS and unit(methods) == "step":
        paper = {name: np.array(returns) for name, returns in published.RETURNS[env_id].items()}
        maml = paper["maml"][:num_columns]
        cells = ["MAML as published (means)", "", *(f"{x:.2f}" for x in maml), f"{maml[-1] - maml[0]:.2f}"]
        of_paper = published.score(paper["maml"], paper["random"], paper["oracle"][0])[:num_columns]
        rows.append(cells + [", ".join(f"{score:.3f}" for score in of_paper)] * scored)
    return rows


def success_rows(methods: dict[str, Curves]) -> list[list[str]]:
    """Returns the rows of a table of success in percent, in the `columns`. It is empty if no run has success."""
    at = columns(methods)
    head = ["success", "seeds", *step_names(range(len(next(iter(at.values())))), unit(methods))]
    rows = [head]
    for name, curves in methods.items():
        if curves.success is not None:
            mean, interval = (100 * values for values in curves.success)
            cells = [f"{mean[i]:.1f}% [{interval[i, 0]:.1f}, {interval[i, 1]:.1f}]" for i in at[name]]
            rows.append([name, str(len(curves.returns)), *cells])
    return rows if len(rows) > 1 else []


def comparison_table(env_id: str, methods: dict[str, Curves]) -> str:
    """Returns the rows of `comparison_rows` as a Markdown table."""
    return as_markdown(comparison_rows(env_id, methods))


def as_markdown(rows: list[list[str]]) -> str:
    """A table in Markdown, its head first."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


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
