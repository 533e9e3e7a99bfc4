"""Tables and pictures of the committed results: `python experiments/report.py`.

Writes the tables into README.md and the pages under docs/, between `<!-- table: NAME -->` and `<!-- end -->`.
Draws adaptation.png and learning.png into each family's folder. From the family's policy in the zoo, or the
checkpoint of a run of MAML, it draws what the robot or the point does before and after adaptation: rollouts.png,
strip.png or film.webp.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import estimators
import faults
import gymnasium
import navigation_2d_table
import numpy as np
import short_baselines
import sinusoid_shots
import tyro
from gymnasium.envs.registration import load_env_creator
from matplotlib.figure import Figure
from PIL import Image
from reproduce import BASES, FEW_SHOT, META_WORLD, METHODS, SHORT
from torch import nn

from maml_rl import Config, zoo
from maml_rl.cli import run
from maml_rl.commands import table
from maml_rl.results import published
from maml_rl.results.comparison import (
    CONTINUED,
    as_markdown,
    by_method,
    comparison_figure,
    comparison_table,
    family_name,
    groups,
    label,
    load_runs,
    step_names,
)
from maml_rl.results.curves import Curves, columns, means_in_columns, scores
from maml_rl.results.plots import rollouts_figure, write_figure
from maml_rl.results.report import learning_figure
from maml_rl.results.video import adaptation_video, animation
from maml_rl.runs.evaluation import held_out
from maml_rl.runs.files import write_atomically
from maml_rl.runs.folder import load_config, load_run
from maml_rl.runs.tensorboard import return_tags
from maml_rl.sampling.normalisation import as_returned
from maml_rl.sampling.spaces import Array

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
ZOO = Path(zoo.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_TABLE = re.compile(r"<!-- table: (.*?) -->\n.*?<!-- end -->", re.DOTALL)
# Options of a method that have a column of their own, or follow from others.
_IN_OTHER_COLUMNS = {"env_id", "iterations", "method"}
_FRAMES = 5
_COUNTED = ("iterations", "seconds")
_FEW_SHOT_STEPS = (0, 1, 3, 5, 10)
# Nothing moves in bandits and tables, and pictures of carts and pendulums need pygame.
WITHOUT_PICTURE = [*SHORT, "cart_pole_params", "pendulum_params"]
LEARNED = ("cavia + learned step + lvc", "maml + learned step")  # as `label` calls it; the first that a family has


def runs_of(family: str, root: Path = RESULTS) -> list[Path]:
    """The folders of a family's finished runs, in the order of its methods."""
    found = [sorted((root / family / method).glob("seed*/evaluation.json")) for method in METHODS[family]]
    return [path.parent for of_method in found for path in of_method]


@functools.cache
def methods_of(family: str, root: Path = RESULTS) -> dict[str, Curves]:
    """The curves of a family's methods, none if it has no runs. Their intervals take seconds."""
    folders = runs_of(family, root)
    return by_method(load_runs(folders)) if folders else {}


def records_of(folders: list[Path]) -> dict[Path, dict[str, Any]]:
    """The training.json of each run that has one."""
    paths = {folder: folder / "training.json" for folder in folders}
    return {folder: json.loads(path.read_text()) for folder, path in paths.items() if path.exists()}


def means_of(family: str, root: Path) -> dict[str, Array]:
    """The mean returns of a family's methods, none if it has no runs."""
    curves = methods_of(family, root)
    return with_continued(means_in_columns(curves)) if curves else {}


def scores_of(family: str, root: Path) -> dict[str, Array]:
    """The scores of a family's methods, none if it has no oracle."""
    curves = methods_of(family, root)
    if family == "tabular_mdp" and curves:
        mean = means_of(family, root)
        return {name: published.score(of, mean["random"], short_baselines.optimum()) for name, of in mean.items()}
    return with_continued(scores(curves)) if curves else {}


def with_continued(of_methods: dict[str, Array]) -> dict[str, Array]:
    """Where the run of a method was continued with other options, lets the continued run stand for the method."""
    continued = {name: of for name, of in of_methods.items() if name.endswith(CONTINUED)}
    others = {name: of for name, of in of_methods.items() if name not in continued}
    return others | {name.removesuffix(CONTINUED): of for name, of in continued.items()}


def summary_table(root: Path = RESULTS) -> str:
    """Markdown: MAML, learned step and RL² beside their yardsticks after one step, means over tasks and seeds."""
    head = ["untrained", "pre-training", "MAML", "learned step", "RL²", "oracle"]
    score_head = ["score after 1, 2 steps: MAML", "learned step", "RL²", "as published"]
    rows = [["family", *head, *score_head]]
    for family, base in BASES.items():
        mean = means_of(family, root)
        if base.env_id in published.RETURNS and mean.keys() >= {"random", "pretrain", "maml", "oracle"}:
            learned = next((name for name in LEARNED if name in mean), "")
            shown = ("random", "pretrain", "maml", learned, "rl2", "oracle")
            after = [f"{mean[name][1]:.1f}" if name in mean else "" for name in shown]
            own, paper = scores_of(family, root), score_of_paper(base.env_id)
            cells = [
                f"{of[name][1]:.2f}, {of[name][2]:.2f}" if name in of else ""
                for of, name in ((own, "maml"), (own, learned), (own, "rl2"), (paper, "maml"))
            ]
            rows.append([f"`{base.env_id.removeprefix('maml_rl/')}`", *after, *cells])
    return as_markdown(rows)


def scores_after_one_step(root: Path = RESULTS) -> dict[str, dict[str, float]]:
    """The score of each method after one step, by family. A family needs an oracle and another method.

    Methods that do not adapt have the score that they begin with. The score is that of `published.score`.
    """
    found = {}
    for family, base in BASES.items():
        own = {name: of for name, of in scores_of(family, root).items() if name not in ("random", "oracle")}
        if own:  # those of the two are 0 and 1 by definition
            found[family] = {}
            own |= {f"{name} as published": of for name, of in score_of_paper(base.env_id).items()}
            for name, of in own.items():
                found[family].setdefault(
                    name.removesuffix(" + adam").partition(" (")[0], float(after_one_step(of))
                )
    return found


def score_of_paper(env_id: str) -> dict[str, Array]:
    """The published scores of MAML, none if the paper does not have the family."""
    paper = {name: np.array(returns) for name, returns in published.RETURNS.get(env_id, {}).items()}
    return {"maml": published.score(paper["maml"], paper["random"], paper["oracle"][0])} if paper else {}


def after_one_step(values: Any) -> Any:
    """That of several values that belongs to one step, or to none if nothing adapts."""
    return values[min(1, len(values) - 1)]


def overview_figure(scores: dict[str, dict[str, float]]) -> Figure:
    """A heat map of `scores_after_one_step`: families in rows, methods in columns."""
    names = list(dict.fromkeys(name for of_family in scores.values() for name in of_family))
    names.sort(key=lambda name: name.endswith("published"))
    values = np.array([[of_family.get(name, np.nan) for name in names] for of_family in scores.values()])
    figure = Figure(figsize=(1.1 + 0.75 * len(names), 1.6 + 0.45 * len(scores)), layout="constrained")
    axes = figure.add_subplot(title="score after one step")
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(scores)), scores)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    return figure


def oracles_table(root: Path = RESULTS) -> str:
    """Markdown: whether the returns of oracles were still rising in the last two fifths of their training.

    An oracle is flat if the difference of the two means is within its 95% interval over iterations, in each seed.
    """
    rows = [["family", "env steps", "return in the fourth fifth", "in the last fifth", "flat"]]
    for family in BASES:
        folders = [folder for folder in runs_of(family, root) if folder.parent.name == "oracle"]
        records = [*records_of(folders).values()]
        if records:
            fifths = [np.array_split(one["curves"]["return_step_0"], 5)[3:] for one in records]
            means = np.array([[fifth.mean() for fifth in pair] for pair in fifths])
            errors = np.array([sum(fifth.var(ddof=1) / len(fifth) for fifth in pair) ** 0.5 for pair in fifths])
            flat = bool((np.abs(np.diff(means)[:, 0]) <= 1.96 * errors).all())
            steps = f"{np.mean([one['env_steps'] for one in records]) / 1e6:.1f} M"
            cells = [", ".join(f"{mean:.1f}" for mean in of_fifth) for of_fifth in means.T]
            rows.append([f"[{family}]({family}.md)", steps, *cells, "yes" if flat else "no"])
    return as_markdown(rows)


def means_table(methods: dict[str, Curves]) -> str:
    """Markdown: means over all tasks, and those of each seed after one step, or before if no method adapts."""
    at, mean = columns(methods), means_in_columns(methods)
    steps = step_names(range(len(next(iter(at.values())))))
    rows = [["mean over tasks", *steps, f"{after_one_step(steps)}, seed by seed"]]
    for name, curves in methods.items():
        seeds = [f"{after_one_step(of_seed.mean(0)[at[name]]):.2f}" for of_seed in curves.returns]
        rows.append([name, *(f"{x:.2f}" for x in mean[name]), ", ".join(seeds)])
    return as_markdown(rows)


def how_table(folders: list[Path]) -> str:
    """Markdown: what each method's runs were trained with and what it took, a row for each method."""
    rows = [["method", "options", "iterations", "env steps", "minutes of each seed", "cores", "commit", "command"]]
    seeds: dict[Path, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, record in records_of(folders).items():
        seeds.setdefault(folder.parent, []).append((folder, record))
    for folder, group in seeds.items():
        family, method = folder.parts[-2:]
        config, records = load_config(group[0][0]), [record for _, record in group]
        device = f" --device {config.device}" * (config.device != Config.device)
        rows.append(
            [
                label(config),
                f"`{options_of(config)}`",
                str(config.iterations),
                f"{np.mean([record['env_steps'] for record in records]) / 1e6:.1f} M",
                ", ".join(f"{record['seconds'] / 60:.1f}" for record in records),
                ", ".join(dict.fromkeys(machine(record) for record in records)),
                ", ".join(dict.fromkeys(record["commit"] for record in records)),
                f"`python experiments/reproduce.py --families {family} --methods {method}{device}`",
            ]
        )
    return as_markdown(rows)


def machine(record: dict[str, Any]) -> str:
    """How many cores a run might use, and its GPU if it had one."""
    return f"{record['cores']} and {record['device']}" if "device" in record else str(record["cores"])


def options_of(config: Config) -> str:
    """The options of a run's method that are not the defaults of `Config`, as on the command line."""
    defaults, words = Config().options("method"), []
    for name, value in config.options("method").items():
        if name not in _IN_OTHER_COLUMNS and value != defaults[name]:
            if isinstance(value, dict):
                value = tuple(word for pair in value.items() for word in pair)
            values = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
            words += [f"--{'no-' * (value is False)}{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def meta_world_table() -> str:
    """Markdown: Meta-World's own steps and memory beside this package's."""
    found = json.loads((RESULTS / "benchmark_meta_world.json").read_text())
    ml10, by_name = found["ML10"], [*found["microseconds_per_step"].values()]
    rates = ml10["steps_per_second"]
    rows = [["", "Meta-World", "this package", "bare physics"]]
    for name, rate in rates.items():
        if words := re.fullmatch(r"this_package_(\d+)_environments", name):
            theirs = rates["meta_world_async"] if int(words[1]) == ml10["num_envs"] else ""
            rows.append([f"ML10's training, {words[1]} environments, steps a second", str(theirs), str(rate), ""])
    for name, sizes in found["megabytes_per_env"].items():
        rows.append([f"{name}, MB of a further environment", *(str(size) for size in sizes.values()), ""])
    for words, which in (("least", min), ("median", np.median), ("most", max)):
        values = [which([of[key] for of in by_name]) for key in ("meta_world", "this_package", "bare_physics")]
        head = f"{words} of the {len(by_name)} manipulations, µs a step"
        rows.append([head, *(f"{value:.0f}" for value in values)])
    return as_markdown(rows)


def benchmark_table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each family, a column for each figure."""
    rows = [["", *next(iter(found.values()))]]
    rows += [[name.removeprefix("maml_rl/"), *map(str, figures.values())] for name, figures in found.items()]
    return as_markdown(rows)


def iteration_table() -> str:
    """Markdown: a row for each part of an iteration, with its seconds and the least that it needs."""
    found = json.loads((RESULTS / "benchmark_iteration.json").read_text())["families"]
    parts: dict[str, dict[str, Any]] = {}
    for family in found:
        for part, figures in family["parts"].items():
            named = {f"{family['env_id'].removeprefix('maml_rl/')}, {key}": of for key, of in figures.items()}
            parts.setdefault(part.replace("_", " "), {}).update(named)
    return benchmark_table(parts)


def scaling_table(name: str) -> str:
    """Markdown: a row for each size of the meta-batch."""
    sizes = json.loads((RESULTS / f"{name}.json").read_text())["iterations"]
    return as_markdown([[*sizes[0]], *([*map(str, size.values())] for size in sizes)]).replace("_", " ")


def protocols_of(family: str, root: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of a family's runs by Meta-World's own protocol, those of all seeds of each method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in runs_of(family, root):
        if (path := folder / "protocol.json").exists():
            found.setdefault(label(load_config(folder)), []).append(json.loads(path.read_text()))
    return found


def protocol_table(root: Path = RESULTS) -> str:
    """Markdown: success of the runs on Meta-World by its own protocol, means over manipulations and seeds."""
    head = ["success on training tasks before", "after", "on test tasks before", "after"]
    rows = [["family", "method", "seeds", *head]]
    for family in META_WORLD:
        for name, found in protocols_of(family, root).items():
            cells = [
                f"{np.mean([one[key] for of_seed in found for one in of_seed[split].values()]):.2f}"
                for split in ("train", "test")
                for key in ("before", "success")
            ]
            rows.append([f"`{family}`", name, str(len(found)), *cells])
    rows += [
        ["`ml10`", f"{name}, as published", "", "", f"{train:.2f}", "", f"{test:.2f}"]
        for name, (train, test) in published.ML10_SUCCESS.items()
    ]
    return as_markdown(rows)


def time_to_score_table() -> str:
    """Markdown: seconds of training until the published return after one step is passed."""
    found = json.loads((RESULTS / "time_to_score.json").read_text())
    alike: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for one in found["runs"]:
        alike.setdefault((one["family"], one["method"], one["return"]), []).append(one)
    rows = [["family", "method", "return to pass", "iterations of each seed", "seconds of each seed"]]
    for (family, method, goal), runs in alike.items():
        cells = [", ".join(str(one[key]) if one["passed"] else "not passed" for one in runs) for key in _COUNTED]
        rows.append([family, method.replace("_", " "), f"{goal:.2f}", *cells])
    return as_markdown(rows)


def few_shot_table(family: str, root: Path) -> str:
    """Markdown: accuracy on held-out tasks in percent, over all seeds, with a 95% interval over tasks."""
    rows = [["method", "seeds", *step_names(_FEW_SHOT_STEPS)]]
    for method in [*METHODS[family], "pretraining"]:
        paths = sorted((root / family / method).glob("seed*/evaluation.json"))
        if not paths:
            continue
        found = [json.loads(path.read_text())["methods"] for path in paths]
        curves = [next(curve for name, curve in curves.items() if name != "random") for curves in found]
        success = 100 * np.concatenate([curve["success"] for curve in curves])
        half = 1.96 * success.std(0) / np.sqrt(len(success))
        cells = [
            f"{success[:, steps].mean():.1f} ± {half[steps]:.1f}" if steps < success.shape[1] else ""
            for steps in _FEW_SHOT_STEPS
        ]
        name = "pre-training" if method == "pretraining" else method.replace("_", "-")
        rows.append([name, str(len(paths)), *cells])
    path = root / "nearest.json"
    nearest = json.loads(path.read_text()).get(family) if path.exists() else None
    if nearest:
        rows.append(
            ["nearest neighbour", str(len(nearest)), f"{100 * np.mean(nearest):.1f}", *[""] * (len(rows[0]) - 3)]
        )
    return as_markdown(rows)


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


def learning_curves(folders: list[Path]) -> dict[str, list[tuple[Array, Array, Array]]]:
    """Environment steps and returns before and after adaptation in training, of each seed, by method."""
    found: dict[str, list[tuple[Array, Array, Array]]] = {}
    records = records_of(folders)
    for method, runs in groups(load_runs([*records])).items():
        for folder, _, _ in runs:
            curves = records[folder]["curves"]
            if names := return_tags(curves):
                steps, before, after = (np.array(curves[name]) for name in ("env_steps", names[0], names[-1]))
                found.setdefault(method, []).append((steps, before, after))
    return found


def success_figure(protocols: dict[str, list[dict[str, Any]]]) -> Figure:
    """Success on each manipulation by Meta-World's own protocol, means over seeds, a panel for each method."""
    figure = Figure(figsize=(1.5 + 4 * len(protocols), 4.5), layout="constrained")
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for axes, (method, found) in zip(panels, protocols.items(), strict=True):
        names = [(split, name) for split in ("train", "test") for name in found[0][split]]
        for key, colour, height in (("success", "C0", 0.8), ("before", "C1", 0.35)):
            values = [np.mean([one[split][name][key] for one in found]) for split, name in names]
            title = "after adaptation" if key == "success" else "before adaptation"
            axes.barh(range(len(names)), values, height, color=colour, label=title)
        axes.set_yticks(range(len(names)), [f"{name} ({split})" for split, name in names])
        axes.set(title=method, xlabel="success", xlim=(0, 1))
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def strip(config: Config, policy: nn.Module) -> np.ndarray:
    """A few moments of the first held-out task, time to the right: above before adaptation, below after it."""
    frames, _ = adaptation_video(policy, dataclasses.replace(config, eval_num_steps=1), num_tasks=1)
    chosen = frames[np.linspace(0, len(frames) - 1, _FRAMES).astype(int)]
    before, after = np.split(chosen, 2, axis=2)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (before, after)], axis=0)


def write_film(path: Path, config: Config, policy: nn.Module) -> None:
    """A small film of five held-out tasks, before adaptation at the left, after one step at the right."""
    frames, fps = adaptation_video(policy, dataclasses.replace(config, eval_num_steps=1), num_tasks=5)
    write_atomically(path, animation(frames, fps, 4, "WEBP"))


def draw(folder: Path, base: Config, methods: dict[str, Curves], runs: list[Path]) -> None:
    """All pictures of a family."""
    write_figure(folder / "adaptation.png", comparison_figure(family_name(base), methods))
    write_figure(folder / "learning.png", learning_figure(family_name(base), learning_curves(runs)))
    protocols = protocols_of(folder.name, folder.parent)
    several = any(len(found[0]["train"]) > 1 for found in protocols.values())  # manipulations
    if several:
        write_figure(folder / "success.png", success_figure(protocols))
    if folder.name in [*WITHOUT_PICTURE, "sinusoid"]:  # sinusoid_shots.py draws sinusoids
        return
    runs_with_policy = (ZOO / folder.name, folder / "learned_step/seed1", folder / "maml/seed1")
    shown = next((run for run in runs_with_policy if (run / "checkpoint.pt").exists()), None)
    if shown is None:
        return
    config, policy, state = load_run(shown)
    native = gymnasium.spec(base.env_id).vector_entry_point
    if native and hasattr(load_env_creator(str(native)), "plot_rollouts"):
        with held_out(policy, state.theta, config) as (env, tasks, batches):
            phases = as_returned(policy, state.theta, list(batches))
            write_figure(folder / "rollouts.png", rollouts_figure(env, tasks, phases, "step"))
    elif several:
        write_film(folder / "film.webp", config, policy)
    else:  # the family cannot draw its rollouts, but films them
        Image.fromarray(strip(config, policy)).quantize(128).save(folder / "strip.png", optimize=True)


def tables_of_runs(root: Path = RESULTS) -> dict[str, str]:
    """The tables of the runs in a folder, by name: the summary, and for each family its methods and its runs."""
    found = {"summary": summary_table(root)}
    for family, base in BASES.items():
        if runs := runs_of(family, root):
            if family in FEW_SHOT:
                found[f"{family} accuracy"] = few_shot_table(family, root)
            else:
                methods = methods_of(family, root)
                found[f"{family} methods"] = comparison_table(base.env_id, methods)
                found[f"{family} means"] = means_table(methods)
            found[f"{family} runs"] = how_table(runs)
    return found


def all_tables() -> dict[str, str]:
    """Every table of the committed results, by the name that the pages call it."""
    found = tables_of_runs()
    found |= {
        f"{path.parent.name} tuning": tuning_table(path.parent.name) for path in RESULTS.glob("*/tuning.json")
    }
    for name in ("benchmark_scaling", "benchmark_scaling_half_cheetah"):
        found[name] = scaling_table(name)
    for name in ("benchmark_ended", "benchmark_rules", "benchmark_device", "benchmark_workers"):
        found[name] = benchmark_table(json.loads((RESULTS / f"{name}.json").read_text()))
    found["benchmark_iteration"] = iteration_table()
    found["meta_world"], found["time_to_score"] = meta_world_table(), time_to_score_table()
    found["oracles"] = oracles_table()
    found["meta_world protocol"] = protocol_table()
    found["navigation_2d seeds"] = navigation_2d_table.seeds_table()
    if (sinusoid_shots.RESULTS / "shots.json").exists():
        found["sinusoid shots"] = sinusoid_shots.committed_table()
    for family in SHORT:
        found[f"{family} totals"] = short_baselines.table(family)
    found["faults"] = faults.table(json.loads((RESULTS / "faults.json").read_text()))
    found["estimators"] = estimators.tables(json.loads((estimators.RESULTS / "table.json").read_text()))
    evaluation = json.loads((RESULTS / "navigation_2d/learned_step/seed1/evaluation.json").read_text())
    printed = "\n".join(line.rstrip() for line in table(evaluation).splitlines())
    return found | {"printed by make train": f"```text\n{printed}\n```"}


def filled(page: str, tables: dict[str, str]) -> str:
    """A page with its tables as they are now; `NAME: A, B` takes only the rows that begin with A and B."""

    def replacement(match: re.Match[str]) -> str:
        name, _, wanted = match[1].partition(": ")
        lines = tables[name].splitlines()
        if wanted:
            by_name = {line.split("|")[1].strip(): line for line in lines[2:]}
            lines = lines[:2] + [by_name[row] for row in wanted.split(", ")]
        return "\n".join([f"<!-- table: {match[1]} -->", "", *lines, "", "<!-- end -->"])

    return _TABLE.sub(replacement, page)


def main(root: Path = RESULTS, pictures: bool = True) -> None:
    """Writes the tables of the committed runs into the pages, or prints those of other runs, and draws pictures.

    Args:
        root: The folder that `reproduce.py` trained into.
        pictures: Whether to draw.
    """
    if root == RESULTS:
        tables = all_tables()
        for page in PAGES:
            page.write_text(filled(page.read_text(), tables))
    else:
        print("\n\n".join(f"{name}\n\n{content}" for name, content in tables_of_runs(root).items()))
    if pictures and (scores := scores_after_one_step(root)):
        write_figure(root / "overview.png", overview_figure(scores))
    for family, base in BASES.items():
        runs = runs_of(family, root)
        if runs and pictures:
            draw(root / family, base, methods_of(family, root), runs)


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
