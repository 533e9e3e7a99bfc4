"""Whole runs through the real command line: reproducible, resumable, refused where they must be."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, phases
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import maml_rl
from maml_rl import Config, UserError
from maml_rl.policies import flatten
from maml_rl.runs.checkpoint import load_checkpoint
from maml_rl.runs.evaluation import evaluate, evaluate_policy, held_out
from maml_rl.runs.folder import load_config, new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream

MISBEHAVING = ("--env-id", "misbehaving:tests/Misbehaving-v0")


def scalars(run_dir):
    """Every tag's (step, value) pairs, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def theta_of(run_dir):
    return load_checkpoint(run_dir, new_policy(load_config(run_dir))).theta


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 6 iterations, trained in this process."""
    config = Config(
        env_id="misbehaving:tests/Misbehaving-v0",
        run_dir=tmp_path_factory.mktemp("finished") / "run",
        iterations=6,
        num_tasks=3,
        num_rollouts=4,
        horizon=5,
        hidden_sizes=(8,),
        eval_num_tasks=3,
        eval_num_rollouts=2,
        eval_num_steps=2,
        eval_every=2,
        checkpoint_every=2,
    )
    return config, maml_rl.train(config).policy


def test_run_folder_holds_everything(finished):
    config, policy = finished
    names = {path.name for path in config.run_dir.iterdir()}
    assert {"config.json", "checkpoint.pt", "evaluation.json", "adaptation.png", "rollouts.png"} <= names
    assert load_config(config.run_dir) == config
    assert torch.equal(theta_of(config.run_dir), flatten(policy))
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert results == evaluate(config.run_dir)
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
        assert [step for step, _ in curves[f"eval/return_step_{k}"]] == steps[1::2]
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
    assert set(options) == {field.name for field in dataclasses.fields(Config)}
    assert options["gae_lambda"].number_value == config.gae_lambda
    assert options["first_order"].bool_value is config.first_order
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


# An iteration resets twice, an evaluation (after iterations 2 and 4) three times.
@pytest.mark.parametrize(
    ("how", "reset", "done"),
    [
        ("SIGKILL", 16, 4),  # in iteration 5, two after the checkpoint of iteration 4 was due
        ("SIGINT", 11, 3),  # in iteration 4, with no checkpoint due since iteration 2
        ("SIGINT", 13, 3),  # in the evaluation that belongs to iteration 4
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(command, tmp_path, finished, how, reset, done):
    """Parameters, curves and evaluation of a run that was stopped and resumed: as if never stopped."""
    arguments = (
        "train",
        *MISBEHAVING,
        *TINY,
        "--iterations",
        6,
        "--checkpoint-every",
        2,
        "--run-dir",
        "run",
        "--resume",
    )
    # An iteration resets twice, an evaluation (after iterations 2 and 4) three times: 16 is iteration 5's query.
    stopped = command(*arguments, MISBEHAVE=how, MISBEHAVE_AT=str(reset))
    if how == "SIGKILL":
        assert stopped.returncode == -9
    else:
        assert stopped.returncode == 130, stopped.stderr
        assert "--resume" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    config, _ = finished
    assert load_checkpoint(tmp_path / "run", new_policy(config)).iteration == done
    if how == "SIGINT":  # the printed command, as it stands
        program, *arguments = shlex.split(
            stopped.stderr.strip().splitlines()[-1].removeprefix("stopped; continue with: ")
        )
        assert program == sys.executable
        assert arguments.pop(0) == "-m"
        assert arguments.pop(0) == "maml_rl"
    resumed = command(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert torch.equal(theta_of(tmp_path / "run"), theta_of(config.run_dir))
    whole, pieces = scalars(config.run_dir), scalars(tmp_path / "run")
    assert whole.keys() == pieces.keys()
    for tag, points in whole.items():
        if not tag.startswith("time/"):
            np.testing.assert_allclose(pieces[tag], points, err_msg=tag, rtol=1e-6)
    assert json.loads((tmp_path / "run/evaluation.json").read_text()) == json.loads(
        (config.run_dir / "evaluation.json").read_text()
    )


def test_killed_before_the_first_checkpoint_starts_afresh(command, tmp_path):
    arguments = ("train", *MISBEHAVING, *TINY, "--iterations", 2, "--run-dir", "run", "--resume")
    assert command(*arguments, MISBEHAVE="SIGKILL", MISBEHAVE_AT="3").returncode == -9
    assert not (tmp_path / "run/checkpoint.pt").exists()
    assert command(*arguments).returncode == 0
    assert len(scalars(tmp_path / "run")["train/return_step_0"]) == 2


def test_a_run_is_not_overwritten(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = ("train", *MISBEHAVING, *TINY, "--checkpoint-every", 2, "--iterations", 6, "--run-dir", "run")
    for arguments, sentence in (
        (again, "already holds a run"),
        ((*again, "--resume", "--inner-lr", "0.2"), "has inner_lr=0.1"),
    ):
        result = command(*arguments)
        assert result.returncode == 2
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_full_disk_keeps_the_previous_checkpoint(command, tmp_path):
    """A limit on file size stands for the full disk: the system refuses to write on."""
    arguments = (
        "train",
        "--env-id",
        "maml_rl/TabularMDP-v0",
        *TINY,
        "--hidden-sizes",
        "200",
        "--run-dir",
        "run",
    )
    assert command(*arguments, "--iterations", 2).returncode == 0
    first = theta_of(tmp_path / "run")
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from maml_rl.cli import main\n"
        "main()\n"
    )
    result = command(*arguments, "--iterations", 4, "--resume", script=limited)
    assert result.returncode == 2
    assert "Cannot write run/checkpoint.pt (File too large)" in result.stderr
    assert "Traceback" not in result.stderr
    assert torch.equal(theta_of(tmp_path / "run"), first)
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert command(*arguments, "--iterations", 4, "--resume").returncode == 0


def test_full_disk_under_the_event_file(command, tmp_path):
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from maml_rl.cli import main\n"
        "main()\n"
    )
    result = command(
        "train", *TINY, "--iterations", 40, "--checkpoint-every", 40, "--run-dir", "run", script=limited
    )
    assert result.returncode == 2
    assert "Cannot write TensorBoard events into run (File too large); make room" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint at all", "truncated", "one bit", "foreign", "missing key", "other policy", "short"],
)
def test_bad_checkpoints_are_refused(finished, tmp_path, content):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    path = run_dir / "checkpoint.pt"
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "one bit":
        damaged = bytearray(path.read_bytes())
        start = damaged.find(theta_of(run_dir).numpy().tobytes()[:16])
        assert start > 0
        damaged[start + 1] ^= 4
        path.write_bytes(damaged)
    elif content == "missing key":
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["env_steps"]
        torch.save(checkpoint, path)
    elif content == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    elif content == "other policy":
        checkpoint = torch.load(path, weights_only=True)
        torch.save({**checkpoint, "layout": [["weight", 3]], "theta": torch.zeros(3)}, path)
    elif content == "short":
        checkpoint = torch.load(path, weights_only=True)
        torch.save({**checkpoint, "theta": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        UserError, match="damaged|not a checkpoint of this version|holds the parameters of another policy"
    ):
        evaluate(run_dir)


def test_a_checkpoint_with_code_is_not_run(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    torch.save({"format": Path("code")}, run_dir / "checkpoint.pt")  # any class not known to be harmless
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        evaluate(run_dir)


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
        *("evaluate", "run", "--num-steps", 4, "--num-tasks", 5, "--num-rollouts", 3, "--seed", 7, "--trust")
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert np.shape(results["methods"]["maml"]["returns"]) == (5, 5)
    assert f"{results['methods']['maml']['mean'][4]:.2f}" in result.stdout


def test_families_command(command):
    result = command("families")
    assert result.returncode == 0, result.stderr
    assert "maml_rl/TabularMDP-v0" in result.stdout
    assert len(result.stdout.splitlines()) == 5 * result.stdout.count("  task ")  # long spaces are shortened


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--env-id", "Nowhere-v0"), "Cannot make the task family 'Nowhere-v0'"),
        (("train", "--num-tasks", "0"), "num_tasks is 0, but must be at least 1"),
        (("train", "--no-such-option", "1"), "no-such-option"),
        (("train", "--num-rollouts", "many"), "many"),
        (("train", "--run-dir", "/proc/run"), "Cannot make the run folder /proc/run"),
        (("evaluate", "nowhere"), "holds no run"),
        (("evaluate", "run", "--num-tasks", "1", "--trust"), "eval_num_tasks is 1, but must be at least 2"),
    ],
)
def test_bad_input_is_one_sentence(command, finished, tmp_path, arguments, sentence):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    result = command(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_not_finite_reward_stops_the_command(command):
    result = command("train", *MISBEHAVING, *TINY, "--run-dir", "run", MISBEHAVE="reward", MISBEHAVE_AT="3")
    assert result.returncode == 2
    assert "the reward at step 3 of task" in result.stderr
    assert "Traceback" not in result.stderr


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
