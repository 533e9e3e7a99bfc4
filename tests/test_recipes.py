"""The recipes for environments of other packages: families that use their task and train by the page's command."""

import importlib
import json
import re
import sys

import gymnasium
import numpy as np
import pytest
from conftest import ROOT, TINY
from maml_rl.envs import check_family, make_vec

PAGE = (ROOT / "docs/start/recipes.md").read_text()
# The name of each recipe's file, and what it needs.
NEEDS = {"scrambled": "minigrid", "lanes": "highway_env", "reach": "gymnasium_robotics", "moons": "Box2D"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]


@pytest.fixture(params=NEEDS)
def recipe(request, tmp_path, monkeypatch):
    """The name of a recipe, saved as a module in an empty folder. What it registers is forgotten afterwards."""
    name, registered = request.param, dict(gymnasium.registry)
    pytest.importorskip(NEEDS[name], reason=f"the package {NEEDS[name]} is not installed")
    (section,) = (part for part in PAGE.split("\n## ") if f"Save this as `{name}.py`" in part)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)


def test_page_has_these_recipes():
    assert re.findall(r"Save this as `(\w+)\.py`", PAGE) == [*NEEDS]


def test_it_keeps_the_contract_and_uses_its_task(recipe):
    check_family(f"{recipe}:{recipe.title()}-v0", num_envs=2, num_steps=9)  # a warning is an error


def test_its_first_observation_does_not_show_the_task(recipe):
    if recipe == "moons":
        pytest.skip("LunarLander's reset takes a first step, with the gravity of the task")
    importlib.import_module(recipe)
    env = make_vec(f"{recipe.title()}-v0", 2)
    tasks = np.unique(env.sample_tasks(20, np.random.default_rng(0)), axis=0)
    observations, _ = env.reset(seed=[0, 0], options={"task": tasks[:2]})
    env.close()
    np.testing.assert_array_equal(observations[0], observations[1])


def test_it_trains_by_its_command(recipe, tmp_path, command):
    (line,) = re.findall(rf"^maml-rl (train --env-id {recipe}:.*)$", PAGE, re.MULTILINE)
    result = command(*line.split(), *TINY, "--iterations", 1, "--num-workers", 0)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / f"runs/{recipe}/evaluation.json").read_text())
    assert evaluation["env_id"] == f"{recipe}:{recipe.title()}-v0"
    assert ("success" in evaluation["methods"]["maml"]) == (recipe == "reach")
