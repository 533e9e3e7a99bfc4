"""Whole runs through the real command line: reproducible, resumable, refused where they must be."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import MISBEHAVING, NEED_FILES, TINY, phases, scalars, theta_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import maml_rl
from maml_rl import Config, UserError, train
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.runs.evaluation import evaluate, evaluate_policy, held_out
from maml_rl.runs.folder import load_config, new_policy
from maml_rl.sampling.collect import trimmed
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream


def test_run_folder_holds_everything(finished):
    config, policy = finished
    names = {path.name for path in config.run_dir.iterdir()}
    assert {"config.json", "checkpoint.pt", "evaluation.json", "adaptation.png", "rollouts.png"} <= names
    assert load_config(config.run_dir) == config
    assert torch.equal(theta_of(config.run_dir), flatten(policy))
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert results == evaluate(config.run_dir)
    curves = scalars(config.run_dir)
    for k, mean in enumerate(results["methods"]["maml"]["mean"]):
        assert curves[f"eval/return_step_{k}"][-1][1] == pytest.approx(mean)
    assert {name: results[name] for name in ("env_id", "num_steps", "num_tasks", "num_rollouts", "seed")} == {
        "env_id": config.env_id, "num_steps": 2, "num_tasks": 3, "num_rollouts": 2, "seed": 1,
    }  # fmt: skip
    for method in ("maml", "random"):
        curve = results["methods"][method]
        assert np.shape(curve["returns"]) == (3, 3)
        np.testing.assert_allclose(np.mean(curve["returns"], axis=0), curve["mean"])
        low, high = np.transpose(curve["ci95"])
        # t quantile for 2 degrees of freedom, from a table.
        np.testing.assert_allclose(
            high - low, 2 * 4.30265 * np.std(curve["returns"], axis=0, ddof=1) / 3**0.5, rtol=1e-5
        )


def test_tensorboard_has_every_tag_once_per_iteration(finished):
    config, _ = finished
    curves = scalars(config.run_dir)
    train = ["train/return_step_0", "train/return_step_1", "train/adaptation_gain"]
    outer = [
        f"outer/{name}"
        for name in ("surrogate_before", "surrogate_after", "kl", "line_search_steps", "gradient_norm")
    ]
    timing = [f"time/{name}" for name in ("env_steps_per_second", "collect_seconds", "update_seconds")]
    for tag in train + outer + timing:
        assert len(curves[tag]) == 6, tag
    steps = [step for step, _ in curves["train/return_step_0"]]
    assert all(0 < b - a <= 3 * 4 * 5 * 2 for a, b in zip([0, *steps], steps, strict=False))
    for k in range(3):
        assert [step for step, _ in curves[f"eval/return_step_{k}"]] == [0, *steps[1::2]]
    gain = [after - before for (_, before), (_, after) in zip(curves[train[0]], curves[train[1]], strict=True)]
    np.testing.assert_allclose(gain, [value for _, value in curves[train[2]]], atol=1e-5)
    tags = EventAccumulator(str(config.run_dir)).Reload().Tags()
    assert tags["images"] == ["eval/rollouts"]
    assert sorted(tags["tensors"]) == ["config/text_summary", "custom_scalars__config__"]


def test_tensorboard_compares_options_and_draws_returns_in_one_chart(finished):
    config, _ = finished
    events = EventAccumulator(str(config.run_dir)).Reload()
    contents = {
        tag.partition("/")[2]: HParamsPluginData.FromString(content)
        for tag, content in events.PluginTagToContent("hparams").items()
    }
    options = contents["session_start_info"].session_start_info.hparams
    # Those that differ from the defaults: what a sweep is over comes first.
    names = {field.name for field in dataclasses.fields(Config)} - {"run_dir", "resume"}
    assert set(options) == {"seed", *config.changed(*names)} < names
    assert options["num_tasks"].number_value == config.num_tasks
    assert options["env_id"].string_value == config.env_id
    metrics = [info.name.tag for info in contents["experiment"].experiment.metric_infos]
    logged = scalars(config.run_dir)
    assert sorted(metrics) == sorted(tag for tag in logged if tag.startswith("eval/return_step_"))

    (layout,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(layout.tensor_proto.string_val[0]).category
    drawn = {
        chart.title: sorted(tag for tag in logged if any(re.search(regex, tag) for regex in chart.multiline.tag))
        for chart in category.chart
    }
    assert drawn == {
        group: sorted(tag for tag in logged if tag.startswith(f"{group}/return_step_"))
        for group in ("train", "eval")
    }


def test_same_seed_same_parameters(command, tmp_path):
    for name in ("a", "b"):
        result = command("train", *TINY, "--iterations", 3, "--run-dir", name)
        assert result.returncode == 0, result.stderr
    assert command("train", *TINY, "--iterations", 3, "--run-dir", "c", "--seed", 2).returncode == 0
    a, b, c = (theta_of(tmp_path / name) for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_evaluation_leaves_the_policy_untouched(finished):
    config, policy = finished
    before = flatten(policy)
    first = evaluate_policy(policy, config)
    assert torch.equal(flatten(policy), before)
    assert first == evaluate_policy(policy, config)
    # Nothing is carried over from one method to the next.
    assert evaluate_policy(new_policy(config), config)["methods"]["maml"] == first["methods"]["random"]


def test_nothing_is_carried_from_one_task_to_the_next(finished):
    """The first task's curve does not depend on what the other tasks are."""
    config, policy = finished
    env = make_env(dataclasses.replace(config, horizon=5), 3 * 4)
    tasks = np.array([[0.1, 0.2], [0.3, -0.4], [-0.5, 0.5]])
    curves = [
        [
            batch.rewards[0]
            for batch in phases(env, policy, flatten(policy), some, [1.0, 0.5], config, stream(0, "test"))
        ]
        for some in (tasks, np.array([tasks[0], [0.0, 0.0], [0.2, 0.2]]))
    ]
    for one, other in zip(*curves, strict=True):
        torch.testing.assert_close(one, other)


def test_held_out_tasks_are_the_family_s_test_tasks():
    config = Config(env_id="tests/SuccessOnce-v0", horizon=4, num_workers=0, eval_num_tasks=3, eval_num_rollouts=2)
    policy = new_policy(config)
    with held_out(policy, flatten(policy), config) as (_, tasks, batches):
        np.testing.assert_array_equal(tasks, np.full((3, 1), 0.75))
        assert all((batch.success == (batch.mask.sum(-1) >= 2)).all() for batch in batches)


def test_held_out_tasks_are_no_training_tasks(finished):
    """Not even with the same seed for both."""
    config, policy = finished
    config = dataclasses.replace(config, eval_seed=config.seed)
    with held_out(policy, flatten(policy), config) as (_, held_out_tasks, _):
        pass
    env = make_env(config, 1)
    for iteration in range(config.iterations):
        rng = np.random.default_rng(stream(config.seed, "tasks", iteration))
        for task in env.sample_tasks(config.num_tasks, rng):
            assert not (held_out_tasks == task).all(axis=1).any()


def test_evaluate_command_and_options(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    result = command(
        *("evaluate", "run", "--num-steps", 4, "--num-tasks", 5, "--num-rollouts", 3, "--seed", 7, "--trust"),
        *("--output", "run"),
    )
    assert result.returncode == 0, result.stderr
    assert all(f"{k} step" in result.stdout for k in range(5))  # 4 is not shown unless it is asked for
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert np.shape(results["methods"]["maml"]["returns"]) == (5, 5)
    assert f"{results['methods']['maml']['mean'][4]:.2f}" in result.stdout
    assert results["seed"] == 7
    sizes = {"num_tasks": 5, "num_rollouts": 3, "num_steps": 4, "trust": True}
    assert results == evaluate(finished[0].run_dir, seed=7, **sizes)
    own = evaluate(finished[0].run_dir, **sizes)
    assert own["seed"] == finished[0].seed
    assert not np.isin(results["tasks"], own["tasks"]).any()


PPO = {"outer": "ppo", "ppo_epochs": 3}
RL2 = {**PPO, "rl2_episodes": 2, "num_steps": 0, "hidden_sizes": (8,)}
BASE = {"num_tasks": 3, "num_rollouts": 4, "horizon": 5, "hidden_sizes": (8,), "iterations": 2, "eval_every": 0}
BASE |= {"eval_num_tasks": 2, "eval_num_rollouts": 1, "eval_num_steps": 0}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Returns θ before and after training with some options. Each combination is trained once."""
    known = {}

    def theta(**options):
        key = tuple(options.items())
        if key not in known:
            config = Config(run_dir=tmp_path_factory.mktemp("learned") / "run", **BASE | options)
            known[key] = flatten(new_policy(config)), flatten(train(config).policy)
        return known[key]

    return theta


@pytest.mark.parametrize(
    ("others", "name", "value"),
    [
        ({}, "discount", 0.5),
        ({}, "gae_lambda", 0.5),
        ({}, "normalise_advantages", False),
        ({}, "initial_std", 0.5),
        ({}, "inner_lr", 0.3),
        ({}, "log_std_lr", 0.0),
        ({}, "num_steps", 2),
        ({}, "estimator", "lvc"),
        ({}, "first_order", True),
        ({}, "e_maml", 1.0),
        ({}, "max_kl", 0.001),
        ({}, "cg_iterations", 1),
        ({}, "cg_damping", 10.0),
        ({"estimator": "dice"}, "dice_lambda", 0.0),
        (PPO, "ppo_clip", 0.001),
        (PPO, "ppo_epochs", 2),
        (PPO, "outer_lr", 0.1),
        (PPO, "kl_penalty", 100.0),
        (RL2, "ppo_clip", 0.001),
        (RL2, "ppo_epochs", 2),
        (RL2, "outer_lr", 0.1),
        (RL2, "discount", 0.5),
        (RL2, "rl2_episodes", 3),
    ],
)
def test_an_option_changes_what_is_learned(others, name, value, learned):
    """By more than rounding does, and in training: what is learned from the same start."""
    start, end = learned(**others)
    other_start, other_end = learned(**{**others, name: value})
    step, other_step = end - start, other_end - other_start
    assert (step - other_step).norm() > 1e-3 * step.norm()


def test_families_command(command):
    result = command("families")
    assert result.returncode == 0, result.stderr
    assert "maml_rl/TabularMDP-v0" in result.stdout
    assert "  Omniglot is not in " in result.stdout
    lines = len(result.stdout.splitlines()) - 2 * len(NEED_FILES)
    assert lines == 5 * result.stdout.count("  task ")  # long spaces are shortened


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--env-id", "Nowhere-v0"), "Cannot make the task family 'Nowhere-v0'"),
        (("train", "--num-tasks", "0"), "num_tasks is 0, but must be at least 1"),
        (("train", "--no-such-option", "1"), "no-such-option"),
        (("train", "--num-rollouts", "many"), "many"),
        (("train", "--run-dir", "/proc/run"), "Cannot make the folder /proc/run"),
        (("evaluate", "nowhere"), "holds no run"),
        (("evaluate", "run", "--num-tasks", "1", "--trust"), "error: num_tasks is 1, but must be at least 2"),
    ],
)
def test_bad_input_is_one_sentence(command, finished, tmp_path, arguments, sentence):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    result = command(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_not_finite_reward_stops_the_command(command, monkeypatch):
    monkeypatch.setattr("misbehaving.MisbehavingVectorEnv.resets", 0)
    monkeypatch.setenv("MISBEHAVE", "reward")
    monkeypatch.setenv("MISBEHAVE_AT", "3")
    result = command("train", *MISBEHAVING, *TINY, "--run-dir", "run")
    assert result.returncode == 2
    assert "the reward at step 3 of task" in result.stderr
    assert "Traceback" not in result.stderr


def test_episodes_that_end_early(tmp_path):
    """Five held-out tasks are evaluated in rounds, whose longest episodes differ."""
    config = Config(
        env_id="maml_rl/CartPoleParams-v0", run_dir=tmp_path / "run", iterations=2, num_tasks=2, num_rollouts=2,
        eval_num_tasks=5, eval_num_rollouts=2, num_workers=0, eval_every=0,
    )  # fmt: skip
    maml_rl.train(config)
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert np.shape(results["methods"]["maml"]["returns"]) == (5, 4)


def test_steps_after_the_longest_episode_make_no_difference():
    config = Config(env_id="maml_rl/HopperRandParams-v0", num_tasks=3, num_rollouts=4, hidden_sizes=(8,))
    env, policy, method = make_env(config, 12), new_policy(config), method_of(config)
    tasks, theta = env.sample_tasks(3, np.random.default_rng(0)), flatten(policy)
    whole = [*method.collect(env, policy, theta, tasks, 4, stream(1, "rollouts"))]
    short = [trimmed(batch) for batch in whole]
    for batch, part in zip(whole, short, strict=True):
        assert part.mask.shape[2] == batch.mask.sum(-1).max() < 200
        torch.testing.assert_close(part.returns(), batch.returns())
    (one, _, _), (other, _, _) = (method.update(policy, theta, {}, batches) for batches in (whole, short))
    assert not torch.equal(one, theta)
    torch.testing.assert_close(other - theta, one - theta, rtol=1e-3, atol=1e-6)


def test_learns_a_trivial_bandit(tmp_path):
    """After one step on an unseen bandit with two arms, the better arm is pulled nearly always."""
    config = Config(
        env_id="misbehaving:tests/TwoArms-v0",
        run_dir=tmp_path / "run",
        iterations=15,
        cg_damping=0.1,  # adapted policies that are certain leave the metric singular
        num_tasks=20,
        num_rollouts=20,
        hidden_sizes=(8,),
        inner_lr=1.0,
        max_kl=0.1,
        eval_every=0,
    )
    maml_rl.train(config)
    curve = json.loads((config.run_dir / "evaluation.json").read_text())["methods"]["maml"]["mean"]
    assert curve[0] == pytest.approx(2.5, abs=1.0)  # arms pay 1 and 0: guessing gets 2.5 of 5
    assert curve[1] > 4.75


@pytest.mark.parametrize("name", ["num_tasks", "eval_num_tasks"])
def test_batches_that_exceed_the_memory_are_refused(name, tmp_path):
    """Only where they are collected: making the policy needs none of them."""
    config = Config(run_dir=tmp_path / "run", **{name: 10**8})
    with pytest.raises(UserError, match=f"GB; lower {name}, "):
        train(config)
    assert not config.run_dir.exists()
    new_policy(config)
