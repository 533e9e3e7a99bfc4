"""The README's example family, as it stands there, and the commands it names."""

import json
import re
import subprocess
import sys

import gymnasium
import pytest
from conftest import ROOT, TINY
from maml_rl.envs import check_family

from maml_rl.cli import table
from maml_rl.config import Config

README = (ROOT / "README.md").read_text()


@pytest.fixture
def boat(tmp_path):
    """The example saved as boat.py in an empty folder."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 50
    (tmp_path / "boat.py").write_text(code)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*:UserWarning")
def test_example_keeps_the_contract(boat, monkeypatch):
    monkeypatch.syspath_prepend(str(boat))
    __import__("boat")
    try:
        check_family("Boat-v0")
    finally:
        gymnasium.registry.pop("Boat-v0")
        sys.modules.pop("boat")


def test_example_trains_by_the_readme_s_command(boat, command):
    line = re.search(r"^maml-rl (train --env-id boat:.*)$", README, re.MULTILINE).group(1)
    result = command(*line.split(), *TINY, "--iterations", 2)
    assert result.returncode == 0, result.stderr
    assert json.loads((boat / "runs/boat/evaluation.json").read_text())["env_id"] == "boat:Boat-v0"


def test_options_and_defaults_named_in_the_readme_exist():
    table = README.split("## The options that matter")[1].split("## ")[0]
    for row in re.findall(r"^\| (`--.*?) \|(.*?)\|", table, re.MULTILINE):
        options = [name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", row[0])]
        defaults = [value.strip() for value in row[1].split(",")]
        for option, default in zip(options, defaults, strict=True):
            value = getattr(Config(), option)
            if default not in ("the family's", "off"):
                assert float(default) == value, option
            else:
                assert not value, option


def test_metrics_named_in_the_readme_are_the_ones_logged():
    """The table against the code's tags; test_training reads the tags back from event files."""
    table = README.split("## What is logged")[1].split("## ")[0]
    sources = " ".join((ROOT / f"maml_rl/{name}.py").read_text() for name in ("training", "outer"))
    for tag in re.findall(r"`(?:train|eval|outer|time)/([a-z_]+?)(?:_k)?`", table):
        assert tag in sources, tag


def test_tables_are_those_of_the_committed_results():
    results = json.loads((ROOT / "experiments/results/navigation_2d/seed1.json").read_text())
    for line in table(results).splitlines():
        assert line.rstrip() in README
    script = [sys.executable, str(ROOT / "experiments/navigation_2d_table.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert printed in (ROOT / "experiments/README.md").read_text()
