"""The committed results: what the pages say of them, whether today's scripts are those that made them."""

import json

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
    assert report.how_table(folders) in PAGE
    for picture in ("adaptation.png", "learning.png"):
        assert (report.RESULTS / family / picture).exists()
        assert f"results/{family}/{picture}" in PAGE


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: str(folder.relative_to(report.RESULTS)))
def test_today_s_script_asks_for_what_was_run(folder):
    """Options changed since would make the tables those of another experiment."""
    family, method, seed = folder.parts[-3:]
    now = reproduce.options(family, method, int(seed.removeprefix("seed")), report.RESULTS)
    assert load_config(folder) == now
    record = json.loads((folder / "training.json").read_text())
    assert record["command"].endswith(
        f"--families {family} --methods {method} --seeds {seed.removeprefix('seed')}"
    )
    assert not record["commit"].endswith("-dirty")
    if now.iterations:
        assert len(record["curves"]["env_steps"]) == now.iterations
        assert record["curves"]["env_steps"][-1] == record["env_steps"]


@pytest.mark.parametrize("folder", [folder for folder in RUNS if (folder / "checkpoint.pt").exists()], ids=str)
def test_committed_parameters_still_do_what_was_written_down(folder):
    """Not to the digit: contacts, and other processors, change a sum's last one."""
    then = json.loads((folder / "evaluation.json").read_text())["methods"]["maml"]
    now = evaluate(folder, num_steps=1)["methods"]["maml"]
    for k in range(2):
        differences = np.array(now["returns"])[:, k] - np.array(then["returns"])[:, k]
        spread = np.array(then["returns"])[:, k].std()
        assert abs(differences.mean()) < 0.15 * spread
        assert np.median(np.abs(differences)) < 0.5 * spread


@pytest.mark.parametrize("family", FAMILIES)
def test_maml_is_above_pretraining_after_one_step(family):
    methods = by_method(load_runs(report.runs_of(family)))
    assert methods["maml"].interval[1, 0] > methods["pretrain"].interval[1, 1]
