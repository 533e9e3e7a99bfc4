"""Runs that begin with the trained parameters of another run."""

import dataclasses
import json
import os
import re
import shutil

import pytest
import torch
from conftest import scalars, theta_of
from misbehaving import MisbehavingVectorEnv
from torch import nn

import maml_rl
from maml_rl import Config, UserError, train
from maml_rl.cli import _options
from maml_rl.policies import GaussianHead, initialise
from maml_rl.results.comparison import by_method, load_runs
from maml_rl.runs.checkpoint import load_checkpoint
from maml_rl.runs.folder import load_config, new_policy, save_config


def own_policy(seed):
    policy = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), GaussianHead(4, 2, 0.5))
    initialise(policy, torch.Generator().manual_seed(seed))
    return policy


def test_a_run_goes_on_from_another_with_other_options(command, finished, tmp_path):
    """Its other options are those of that run, unless they are given."""
    first, _ = finished
    words = ("train", "--start-from", first.run_dir, "--run-dir", "more", "--num-rollouts", 3, "--iterations", 2)
    result = command(*words, "--env-id", first.env_id)
    assert result.returncode == 0, result.stderr
    own = {"run_dir": tmp_path / "more", "start_from": first.run_dir, "num_rollouts": 3, "iterations": 2}
    assert load_config(tmp_path / "more") == dataclasses.replace(first, **own, resume=False)
    before = load_checkpoint(first.run_dir, new_policy(first))
    after = load_checkpoint(tmp_path / "more", new_policy(first))
    assert torch.equal(after.untrained, before.untrained)
    assert not torch.equal(after.theta, before.theta)
    steps = [step for step, _ in scalars(tmp_path / "more")["train/return_step_0"]]
    assert len(steps) == 2
    assert before.env_steps < steps[0] < steps[1] == after.env_steps
    evaluations = [json.loads((run / "evaluation.json").read_text()) for run in (first.run_dir, tmp_path / "more")]
    assert evaluations[0]["methods"]["random"] == evaluations[1]["methods"]["random"]
    assert by_method(load_runs([first.run_dir, tmp_path / "more"])).keys() == {"maml", "maml, continued", "random"}


@pytest.mark.parametrize("eval_every", [0, 1])
def test_training_begins_with_the_parameters_of_the_other_run(finished, tmp_path, eval_every):
    """Without an iteration, the result is the other run's: its θ, and returns on the same held-out tasks."""
    first, _ = finished
    config = dataclasses.replace(
        first,
        start_from=first.run_dir,
        run_dir=tmp_path / "run",
        iterations=0,
        eval_every=eval_every,
        resume=False,
    )
    train(config)
    assert torch.equal(theta_of(config.run_dir), theta_of(first.run_dir))
    own, other = (json.loads((run / "evaluation.json").read_text()) for run in (config.run_dir, first.run_dir))
    assert own["methods"] == other["methods"]
    [(at, _)] = scalars(config.run_dir).get("eval/return_step_0", [(None, 0)])[:1]
    assert at in (None, load_checkpoint(first.run_dir, new_policy(first)).env_steps)


def test_a_stopped_run_does_not_start_again_from_the_other(finished, tmp_path):
    first, _ = finished
    config = dataclasses.replace(
        first, start_from=first.run_dir, run_dir=tmp_path / "run", iterations=2, resume=True
    )
    train(config)
    train(dataclasses.replace(config, run_dir=tmp_path / "stopped"), callbacks=[lambda *_: False])
    train(dataclasses.replace(config, run_dir=tmp_path / "stopped"))
    assert torch.equal(theta_of(tmp_path / "run"), theta_of(tmp_path / "stopped"))


def test_a_policy_of_the_zoo_learns_another_family(command, tmp_path):
    result = command(
        *("train", "--start-from=zoo/navigation_2d", "--env-id", "maml_rl/SparseNavigation2D-v0"),
        *("--run-dir", "run", "--iterations", 1, "--num-tasks", 2, "--num-rollouts", 2, "--eval-num-tasks", 2),
    )
    assert result.returncode == 0, result.stderr
    config, zoo = load_config(tmp_path / "run"), maml_rl.load("zoo/navigation_2d").config
    assert (config.env_id, config.learn_lr) == ("maml_rl/SparseNavigation2D-v0", zoo.learn_lr)
    assert config.inner_lr == zoo.inner_lr != Config.inner_lr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": (3,)}, "which has hidden_sizes=(8,), but this run has (3,); give it the same"),
        ({"activation": "relu"}, "which has activation=tanh, but this run has relu; give it the same"),
        ({"env_id": "maml_rl/CartPoleParams-v0"}, "The spaces of the family must be those of its run"),
        ({"start_from": "nowhere"}, "nowhere holds no run"),
        ({"start_from": "zoo/nothing"}, "There is no policy zoo/nothing"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(finished, tmp_path, options, message):
    first, _ = finished
    config = dataclasses.replace(first, run_dir=tmp_path / "run", resume=False)
    with pytest.raises(UserError, match=re.escape(message)):
        train(dataclasses.replace(config, **{"start_from": first.run_dir, **options}))
    train(dataclasses.replace(config, iterations=0))  # nothing was trained there, so that it can be used


def test_a_run_may_start_from_one_that_did(finished, tmp_path, monkeypatch):
    """Relative folders count from the working folder of the start, also if an environment changes it."""
    first, _ = finished
    config = dataclasses.replace(first, run_dir=tmp_path / "a", start_from=first.run_dir, iterations=1, seed=2)
    train(config)
    monkeypatch.chdir(tmp_path)
    make = MisbehavingVectorEnv.__init__

    def elsewhere(env, *arguments, **options):
        os.chdir(tmp_path.parent)
        make(env, *arguments, **options)

    monkeypatch.setattr(MisbehavingVectorEnv, "__init__", elsewhere)
    train(dataclasses.replace(config, run_dir=tmp_path / "b", start_from="a", iterations=0))
    assert torch.equal(theta_of(tmp_path / "b"), theta_of(tmp_path / "a"))
    states = [load_checkpoint(folder, new_policy(first)) for folder in (tmp_path / "b", first.run_dir)]
    assert torch.equal(states[0].untrained, states[1].untrained)
    assert str(load_config(tmp_path / "b").start_from) == "a"


def test_a_policy_of_one_s_own_goes_on(tmp_path):
    """The parameters of the other run take the place of those of the module."""
    config = Config(run_dir=tmp_path / "a", iterations=1, num_tasks=2, num_rollouts=2, eval_num_tasks=2)
    train(config, policy=own_policy(seed=1))
    more = dataclasses.replace(config, run_dir=tmp_path / "b", start_from=tmp_path / "a", iterations=0)
    train(more, policy=own_policy(seed=2))
    states = [
        load_checkpoint(folder, new_policy(config, own_policy(seed=3)))
        for folder in (more.run_dir, config.run_dir)
    ]
    assert torch.equal(states[0].theta, states[1].theta)
    assert torch.equal(states[0].untrained, states[1].untrained)


def test_seeds_that_each_go_on_from_their_own_run_are_one_method(finished, tmp_path):
    """Several runs that start from different ones with the same seed are different methods."""
    first, _ = finished
    runs = []
    for name, start, seed in (("a", "one", 1), ("b", "two", 2), ("c", "two", 1)):
        shutil.copytree(first.run_dir, tmp_path / name)
        save_config(dataclasses.replace(first, run_dir=tmp_path / name, start_from=start, seed=seed))
        runs.append(tmp_path / name)
    assert by_method(load_runs(runs[:2])).keys() == {"maml, continued", "random"}
    assert by_method(load_runs(runs)).keys() == {
        "maml, continued (start_from=one)",
        "maml, continued (start_from=two)",
        "random",
    }


def test_which_options_a_command_line_takes_from_the_other_run(tmp_path):
    first = Config(run_dir=tmp_path / "first", env_kwargs={"num_arms": 7}, horizon=9, max_kl=0.03, seed=4)
    first = dataclasses.replace(first, env_id="maml_rl/BernoulliBandit-v0")
    first.run_dir.mkdir()
    save_config(first)
    words = ["--start-from", str(first.run_dir)]
    alike = _options(words, Config())
    assert alike == dataclasses.replace(first, start_from=first.run_dir, run_dir=Config().run_dir)
    other = _options([*words, "--env-id=maml_rl/TabularMDP-v0", "--env-kwargs", "num_actions", "5"], Config())
    assert (other.env_kwargs, other.horizon, other.max_kl) == ({"num_actions": 5}, None, 0.03)
    experiment = Config(env_id="maml_rl/BernoulliBandit-v0", max_kl=0.05)
    assert _options(words, experiment) == dataclasses.replace(experiment, start_from=first.run_dir)
    assert _options([*words, "--start-from", "None"], Config()) == Config()
    assert _options([f"--resume={first.run_dir}"], Config()) == dataclasses.replace(first, resume=True)
    with pytest.raises(UserError, match="leave --run-dir out"):
        _options([f"--resume={first.run_dir}", "--run-dir="], Config())


def test_a_module_named_by_the_other_run_is_not_imported(command, tmp_path):
    (tmp_path / "foreign.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "other").mkdir()
    save_config(Config(env_id="foreign:Foreign-v0", run_dir=tmp_path / "other"))
    result = command("train", "--start_from", "other", "--run-dir", "run", fresh=True)
    assert result.returncode == 2
    assert "name it yourself: --env-id foreign:Foreign-v0" in result.stderr
