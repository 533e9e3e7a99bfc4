"""The README's example family, as it stands there, and the commands it names."""

import json
import re
import subprocess
import sys

import gymnasium
import pytest
from benchmarks import scaling
from conftest import ROOT, TINY
from estimators import RESULTS, as_markdown
from maml_rl.envs import check_family, families
from report import summary_table

from maml_rl.cli import table
from maml_rl.config import Config

README = (ROOT / "README.md").read_text()


@pytest.fixture(params=["boat", "hill"])
def example(request, tmp_path):
    """The name of an example, saved as a module in an empty folder."""
    codes = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = (code for code in codes if f'entry_point="{request.param}:' in code)
    assert len(code.splitlines()) <= 50
    (tmp_path / f"{request.param}.py").write_text(code)
    return request.param


@pytest.mark.filterwarnings("ignore:.*Box (observation|action) space.*:UserWarning")
def test_example_keeps_the_contract(example, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(example)
    env_id = f"{example.title()}-v0"
    try:
        check_family(env_id)
    finally:
        gymnasium.registry.pop(env_id)
        sys.modules.pop(example)


def test_example_trains_by_the_readme_s_command(example, tmp_path, command):
    line = re.search(rf"^maml-rl (train --env-id {example}:.*)$", README, re.MULTILINE).group(1)
    result = command(*line.split(), *TINY, "--iterations", 2)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / f"runs/{example}/evaluation.json").read_text())
    assert evaluation["env_id"] == f"{example}:{example.title()}-v0"


def test_families_named_in_the_readme_are_the_registered_ones():
    table = README.split("## Families")[1].split("## ")[0]
    named = re.findall(r"`([A-Za-z0-9]+-v0)`", re.sub(r"(?m)^[^|].*$", "", table))
    assert sorted(f"maml_rl/{name}" for name in named) == [i for i in families() if i.startswith("maml_rl/")]
    for name, horizon in re.findall(r"^\| `([A-Za-z0-9]+-v0)`.*?\| (\d+) \|", table, re.MULTILINE):
        assert gymnasium.spec(f"maml_rl/{name}").max_episode_steps == int(horizon)


def test_options_and_defaults_named_in_the_readme_exist():
    table = README.split("## The options that matter")[1].split("## ")[0]
    for row in re.findall(r"^\| (`--.*?) \|(.*?)\|", table, re.MULTILINE):
        options = [name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", row[0])]
        defaults = [value.strip() for value in row[1].split(",")]
        for option, default in zip(options, defaults, strict=True):
            value = getattr(Config(), option)
            if default == value or (default, value) == ("on", True):
                continue
            if default not in ("the family's", "off", "none", "one for each core"):
                assert float(default) == value, option
            else:
                assert not value, option


def test_metrics_named_in_the_readme_are_the_ones_logged():
    """The table against the code's tags; test_training reads the tags back from event files."""
    table = README.split("## What is logged")[1].split("## ")[0]
    sources = " ".join(
        (ROOT / f"maml_rl/{name}.py").read_text()
        for name in ("training", "outer", "trust_region", "rollouts", "cli")
    )
    for tag in re.findall(r"`(?:train|eval|outer|time)/([a-z_]+?)(?:_k)?`", table):
        assert tag.removesuffix("_step") in sources, tag


def test_tables_are_those_of_the_committed_results():
    results = json.loads((ROOT / "experiments/results/navigation_2d/maml/seed1/evaluation.json").read_text())
    for line in table(results).splitlines():
        assert line.rstrip() in README
    assert summary_table() in README
    script = [sys.executable, str(ROOT / "experiments/navigation_2d_table.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "experiments/README.md").read_text()
    assert printed in page
    assert as_markdown(json.loads((RESULTS / "table.json").read_text())) in page


@pytest.mark.parametrize("name", ["benchmark_scaling", "benchmark_scaling_half_cheetah"])
def test_costs_in_the_table_are_the_committed_ones(name):
    report = json.loads((ROOT / f"experiments/results/{name}.json").read_text())
    assert scaling.as_markdown(report) in (ROOT / "experiments/README.md").read_text()
