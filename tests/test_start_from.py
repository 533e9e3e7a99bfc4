"""Runs that begin with the trained parameters of another run."""

import dataclasses
import json
import re

import pytest
import torch
from conftest import scalars, theta_of

import maml_rl
from maml_rl import Config, UserError, train
from maml_rl.results.comparison import by_method, load_runs
from maml_rl.runs.checkpoint import load_checkpoint
from maml_rl.runs.folder import load_config, new_policy, save_config


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
        ({"hidden_sizes": (3,)}, "holds the parameters of another policy. The options of the policy"),
        ({"learn_lr": "layer"}, "holds the parameters of another policy. The options of the policy"),
        ({"env_id": "maml_rl/CartPoleParams-v0"}, "the spaces of the family must be those of its run"),
        ({"start_from": "nowhere"}, "nowhere has no checkpoint.pt yet"),
        ({"start_from": "zoo/nothing"}, "There is no policy zoo/nothing"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(finished, tmp_path, options, message):
    first, _ = finished
    config = dataclasses.replace(first, run_dir=tmp_path / "run", resume=False)
    with pytest.raises(UserError, match=re.escape(message)):
        train(dataclasses.replace(config, **{"start_from": first.run_dir, **options}))
    train(dataclasses.replace(config, iterations=0))  # nothing was trained there, so that it can be used


def test_a_module_named_by_the_other_run_is_not_imported(command, tmp_path):
    (tmp_path / "foreign.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "other").mkdir()
    save_config(Config(env_id="foreign:Foreign-v0", run_dir=tmp_path / "other"))
    result = command("train", "--start_from", "other", "--run-dir", "run", fresh=True)
    assert result.returncode == 2
    assert "name it yourself: --env-id foreign:Foreign-v0" in result.stderr
