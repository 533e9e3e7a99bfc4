"""The trained policies that come with the package: size, cards, and whether they reach what the cards say."""

import json

import numpy as np
import pytest
import zoo
from conftest import ROOT

import maml_rl
import maml_rl.zoo
from maml_rl.zoo import card, located, names


def test_the_zoo_is_what_experiments_zoo_writes(tmp_path):
    """From committed files alone, but for checkpoints that are not committed twice."""
    assert names() == sorted(zoo.CHOSEN)
    for name, (method, seed) in zoo.CHOSEN.items():
        run = ROOT / f"experiments/results/{name}/{method}/seed{seed}"
        assert zoo.card(run) == card(name)
        for file in ("config.json", "checkpoint.pt"):
            if (run / file).exists():
                assert (run / file).read_bytes() == (located(zoo.Path("zoo", name)) / file).read_bytes()


@pytest.mark.parametrize("name", names())
def test_a_policy_is_small_and_reaches_what_its_card_says(name):
    folder = located(zoo.Path("zoo", name))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
    # Of its goals, many are not found. The physics of ants take long.
    num_tasks = {"sparse_navigation_2d": 40, "ant_dir": 3, "ant_vel": 3}.get(name, 6)
    result = maml_rl.evaluate(f"zoo/{name}", num_tasks=num_tasks, num_steps=1, seed=5)
    (method,) = set(result["methods"]) - {"random"}
    returns, said = np.array(result["methods"][method]["returns"])[:, 1], card(name)
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    error_said = (said["ci95"][1][1] - said["returns"][1]) / 1.96
    assert abs(returns.mean() - said["returns"][1]) < 4 * np.hypot(error, error_said)
    gains = returns - np.array(result["methods"]["random"]["returns"])[:, 1]  # on the same tasks
    assert gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(len(gains))


def test_a_policy_can_be_loaded_and_listed(command, tmp_path):
    assert maml_rl.load("zoo/navigation_2d").config.learn_lr == "task"
    listed = command("zoo").stdout
    assert [line.removeprefix("zoo/") for line in listed.splitlines() if line.startswith("zoo/")] == names()
    evaluated = command("evaluate", "zoo/navigation_2d", "--num-tasks", "2", "--num-steps", "0")
    assert "return after" in evaluated.stdout
    assert not [*tmp_path.iterdir()]


def test_a_folder_of_the_user_comes_first(command, tmp_path):
    unknown = command("evaluate", "zoo/nothing")
    assert "give zoo/navigation_2d." in command("evaluate", "navigation_2d").stderr
    assert "There is no policy zoo/nothing; choose one of zoo/ant_dir, " in unknown.stderr
    (tmp_path / "zoo/navigation_2d").mkdir(parents=True)
    (tmp_path / "zoo/navigation_2d/config.json").write_text(json.dumps({}))
    assert "is not a configuration" in command("evaluate", "zoo/navigation_2d").stderr
