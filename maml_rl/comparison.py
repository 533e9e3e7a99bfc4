"""Runs of several methods and seeds in one table and one picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from . import published
from .config import Config
from .errors import UserError
from .runs import load_config

# Options that say how a run was done, not what method it is.
_NOT_THE_METHOD = {
    *("run_dir", "resume", "seed", "num_workers", "worker_timeout", "max_failed_share", "chunk_tasks", "device"),
    *("eval_every", "eval_num_steps", "eval_num_tasks", "eval_num_rollouts", "eval_seed", "checkpoint_every"),
}
_RESAMPLES = 2000


class Curves(NamedTuple):
    """What the runs of one method did on their held-out tasks.

    Attributes:
        returns: For each seed, (tasks, S + 1).
        episodes: Episodes of a task that the learner had seen before each of the S + 1: K for an inner step, 1
            for an episode of RL².
        env_steps: The environment steps in them, mean over seeds.
        middle: The interquartile mean of the returns, (S + 1,).
        interval: Its 95% interval, (S + 1, 2).
    """

    returns: list[np.ndarray]
    episodes: np.ndarray
    env_steps: np.ndarray
    middle: np.ndarray
    interval: np.ndarray


def label(config: Config) -> str:
    """What the field calls the method that the options make."""
    if config.method != "maml":
        return config.method
    names = {
        "reptile": config.outer == "reptile",
        "promp": (config.outer, config.estimator) == ("ppo", "lvc"),
        "fomaml": config.first_order,
        "e-maml": config.e_maml > 0,
        "meta-sgd": config.learn_lr == "parameter",
        "anil": config.adapt_only == "head",
        "cavia": config.adapt_only == "context",
    }
    found = [name for name, is_it in names.items() if is_it] or ["maml"]
    if "promp" not in found:
        found += [config.estimator] * (config.estimator != "vpg") + [config.outer] * (
            config.outer in ("ppo", "adam")
        )
    return " + ".join(found)


def load_runs(folders: Sequence[Path]) -> list[tuple[Path, Config, dict[str, Any]]]:
    """Reads config.json and evaluation.json of runs.

    Raises:
        UserError: If one of them is not there, or runs cannot be compared.
    """
    runs = []
    for folder in folders:
        path = folder / "evaluation.json"
        config = load_config(folder)
        try:
            results = json.loads(path.read_text())
            for curve in results["methods"].values():
                if np.ndim(curve["returns"]) != 2 or len(curve["env_steps"]) != len(curve["mean"]):
                    raise ValueError("returns or env_steps have another shape")
            if results["iterations"] != config.iterations or config.method not in results["methods"]:
                raise ValueError(f"it is of iteration {results['iterations']} of {config.iterations}")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); finish the run, or evaluate it."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is no evaluation of this version ({error}); evaluate the run anew."
            ) from error
        runs.append((folder, config, results))
    if not runs:
        raise UserError("There is nothing to compare; give the folders of at least one run.")
    wants: dict[str, Any] = {}
    for folder, config, results in runs:
        for name in ("env_id", "horizon", "env_kwargs", "num_rollouts"):
            value = results[name] if name == "num_rollouts" else getattr(config, name)
            if value != wants.setdefault(name, value):
                raise UserError(
                    f"{folder} was evaluated with {name}={value!r} and {runs[0][0]} with {wants[name]!r}; "
                    "compare runs that agree in it."
                )
    return runs


def by_method(runs: list[tuple[Path, Config, dict[str, Any]]]) -> dict[str, Curves]:
    """The curves of each method over its seeds, in the order given, and those of the first one's untrained policy.

    Methods that would have the same name are told apart by the options in which they differ.

    Raises:
        UserError: If two runs are the same.
    """
    groups: dict[tuple[str, str], list[tuple[Path, Config, dict[str, Any]]]] = {}
    for run in runs:
        key = {k: v for k, v in dataclasses.asdict(run[1]).items() if k not in _NOT_THE_METHOD}
        groups.setdefault((label(run[1]), json.dumps(key, default=str)), []).append(run)
    methods = {}
    for (short, _), group in groups.items():
        seeds: dict[int, Path] = {}
        for folder, config, _ in group:
            if config.seed in seeds:
                raise UserError(
                    f"{seeds[config.seed]} and {folder} are the same method with the same seed; leave one out."
                )
            seeds[config.seed] = folder
        alike = [other[0][1] for (name, _), other in groups.items() if name == short]
        differing = [
            f"{field.name}={getattr(group[0][1], field.name)}"
            for field in dataclasses.fields(Config)
            if field.name not in _NOT_THE_METHOD
            and len({str(getattr(config, field.name)) for config in alike}) > 1
        ]
        methods[short + (f" ({', '.join(differing)})" if differing else "")] = _curves(group, group[0][1].method)
    # That of a policy without a memory, if there is one.
    with_random = [group for group in groups.values() if all("random" in run[2]["methods"] for run in group)]
    with_random.sort(key=lambda group: group[0][1].rl2_episodes > 0)
    if with_random:
        methods["random"] = _curves(with_random[0], "random")
    return methods


def _curves(group: list[tuple[Path, Config, dict[str, Any]]], method: str) -> Curves:
    curves = [results["methods"][method] for _, _, results in group]
    shortest = min(len(curve["mean"]) for curve in curves)
    _, config, results = group[0]
    returns = [np.array(curve["returns"])[:, :shortest] for curve in curves]
    return Curves(
        returns,
        np.arange(shortest) * (1 if config.rl2_episodes else results["num_rollouts"]),
        np.mean([curve["env_steps"][:shortest] for curve in curves], axis=0),
        *interquartile_mean(returns),
    )


def interquartile_mean(returns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the middle half over tasks of all seeds, with its 95% interval.

    The interval is a stratified percentile bootstrap: tasks are drawn anew within each seed (Agarwal et al.,
    arXiv:2108.13264, section 4.1, draws seeds within each task; but here every seed has tasks of its own).

    Args:
        returns: For each seed, (tasks, S + 1).

    Returns:
        (S + 1,) and (S + 1, 2).
    """

    def statistic(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
        return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)

    interval = stats.bootstrap(
        returns, statistic, n_resamples=_RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return statistic(*returns), np.stack([interval.low, interval.high], axis=-1)


def at_episodes(curves: Curves, episodes: np.ndarray) -> np.ndarray:
    """The indices of a method's last points for which its learner had seen no more than so many episodes."""
    return np.searchsorted(curves.episodes, episodes, side="right") - 1


def comparison_table(env_id: str, methods: dict[str, Curves]) -> str:
    """Markdown: a row for each method, returns after as many episodes of a task as inner steps take.

    Args:
        env_id: The family, for the scores that were published for it.
        methods: As from `by_method`.
    """
    adapting = [c for c in methods.values() if len(c.episodes) > 1 and c.episodes[1] > 1]
    columns = (adapting or [*methods.values()])[0].episodes[:4]
    at = {name: at_episodes(curves, columns) for name, curves in methods.items()}
    means = {name: np.concatenate(curves.returns).mean(0)[at[name]] for name, curves in methods.items()}
    scored = {"oracle", "random"} <= means.keys()
    steps = [f"{k} step{'s' * (k != 1)}" for k in range(len(columns))]
    rows = [["method", "seeds", *steps, "gain", *["score"] * scored]]
    rows.append(["---"] * len(rows[0]))
    for name, curves in methods.items():
        middle, interval = curves.middle, curves.interval
        cells = [f"{middle[i]:.2f} [{interval[i, 0]:.2f}, {interval[i, 1]:.2f}]" for i in at[name]]
        gain = middle[at[name][-1]] - middle[at[name][0]]
        rows.append([name, str(len(curves.returns)), *cells, f"{gain:.2f}"])
        if scored:
            scores = published.score(means[name], means["random"], means["oracle"][0])
            rows[-1].append(", ".join(f"{score:.3f}" for score in scores))
    if env_id in published.RETURNS:
        paper = {name: np.array(returns) for name, returns in published.RETURNS[env_id].items()}
        maml = paper["maml"][: len(columns)]
        cells = ["MAML as published (means)", "", *(f"{x:.2f}" for x in maml), f"{maml[-1] - maml[0]:.2f}"]
        scores = published.score(paper["maml"], paper["random"], paper["oracle"][0])[: len(columns)]
        rows.append(cells + [", ".join(f"{score:.3f}" for score in scores)] * scored)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def comparison_figure(env_id: str, methods: dict[str, Curves]) -> Figure:
    """Interquartile means with 95% intervals against environment steps in a task, a curve for each method."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        title=env_id, xlabel="environment steps in a new task", ylabel="return (interquartile mean, 95% interval)"
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
    axes.set_xscale("symlog", linthresh=first)
    axes.set_xlim(0, max(longest * 1.05, 1.0))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    return figure
