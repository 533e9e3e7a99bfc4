"""The committed results: what the pages say of them, whether today's scripts are those that made them."""

import dataclasses
import json
import re

import numpy as np
import pytest
import report
import reproduce
from conftest import ROOT

from maml_rl import evaluate
from maml_rl.comparison import by_method, comparison_table, load_runs
from maml_rl.runs import load_config

PAGE = (ROOT / "experiments/README.md").read_text()
FAMILIES = [family for family in reproduce.BASES if report.runs_of(family)]
RUNS = [folder for family in FAMILIES for folder in report.runs_of(family)]


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_those_of_the_committed_runs(family):
    folders = report.runs_of(family)
    methods = by_method(load_runs(folders))
    assert comparison_table(reproduce.BASES[family].env_id, methods) in PAGE
    how = report.how_table(folders)
    assert how in PAGE
    assert how.count("\n") >= 2
    if (report.RESULTS / family / "tuning.json").exists():
        assert report.tuning_table(family) in PAGE
    for picture in ("adaptation.png", "learning.png"):
        assert f"results/{family}/{picture}" in PAGE


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_pictures_on_the_pages_are_there(page):
    links = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: str(folder.relative_to(report.RESULTS)))
def test_today_s_script_asks_for_what_was_run(folder):
    """Options changed since would make the tables those of another experiment."""
    family, method, seed = folder.parts[-3:]
    now = reproduce.options(family, method, int(seed.removeprefix("seed")), report.RESULTS)
    assert load_config(folder) == now
    for record in report.records_of([folder]).values():
        assert not record["commit"].endswith("-dirty")
        assert len(record["curves"]["env_steps"]) == now.iterations
        assert record["curves"]["env_steps"][-1] == record["env_steps"]


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_parameters_still_do_what_was_written_down(family):
    """On the first tasks, with rollouts of their own; in parts of what training made of the untrained policy."""
    folder = report.RESULTS / family / "maml" / "seed1"
    then = json.loads((folder / "evaluation.json").read_text())["methods"]
    before, untrained = (np.array(then[method]["returns"])[:10, :2] for method in ("maml", "random"))
    after = np.array(evaluate(folder, num_steps=1, num_tasks=10)["methods"]["maml"]["returns"])
    progress = (before - untrained)[:, 1].mean()
    assert np.abs(after.mean(axis=0) - before.mean(axis=0)).max() < 0.15 * progress
    assert np.median(np.abs(after - before)[:, 1]) < 0.3 * progress


@pytest.mark.parametrize("family", FAMILIES)
def test_maml_is_above_pretraining_after_one_step(family):
    methods = by_method(load_runs(report.runs_of(family)))
    assert methods["maml"].interval[1, 0] > methods["pretrain"].interval[1, 1]


def test_a_longer_run_goes_on_and_its_record_is_of_all_of_it(tmp_path, monkeypatch):
    small = {"num_tasks": 2, "num_rollouts": 2, "horizon": 5, "eval_num_tasks": 2, "eval_num_rollouts": 2}
    base = dataclasses.replace(reproduce.BASES["navigation_2d"], iterations=2, **small)
    folder = tmp_path / "navigation_2d/maml/seed1"
    steps = []
    for iterations in (2, 3, 3):
        monkeypatch.setitem(
            reproduce.BASES, "navigation_2d", dataclasses.replace(base, iterations=iterations, eval_every=1)
        )
        reproduce.main(("navigation_2d",), ("maml",), (1,), tmp_path)
        written = (folder / "training.json").stat().st_mtime_ns
        record = json.loads((folder / "training.json").read_text())
        assert record["curves"]["env_steps"] == [2 * 2 * 2 * 5 * i for i in range(1, iterations + 1)]
        assert record["env_steps"] == record["curves"]["env_steps"][-1]
        assert len(record["curves"]["return_step_1"]) == iterations
        steps.append(written)
    assert steps[0] < steps[1] == steps[2]  # what is finished is left alone
    assert report.runs_of("navigation_2d", tmp_path) == [folder]
    assert report.how_table([folder]).count("navigation_2d") == 1
    assert report.summary_table(tmp_path).count("\n") == 1  # without an oracle there is no score
