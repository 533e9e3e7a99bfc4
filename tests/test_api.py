"""The library: what `train` returns, callbacks, tasks of one's own, foreign runs, and a method of one's own."""

import dataclasses
import json
import shutil
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY
from gymnasium import spaces
from maml_rl.envs.navigation import Navigation2DVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import maml_rl
from maml_rl import Config, UserError
from maml_rl.methods import METHODS
from maml_rl.policies import flatten
from maml_rl.policies.ready_made import make_policy
from maml_rl.results.comparison import kind_of_tasks, load_runs
from maml_rl.runs.evaluation import curve, held_out, mean_and_interval
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import load_config, new_policy, save_config
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.collect import collect_phase

SMALL = {
    "num_tasks": 3, "num_rollouts": 4, "horizon": 5, "hidden_sizes": (8,), "iterations": 3, "eval_every": 2,
    "eval_num_tasks": 3, "eval_num_rollouts": 2, "eval_num_steps": 2,
}  # fmt: skip


class CountedVectorEnv(Navigation2DVectorEnv):
    """Counts what happens to all environments of this class."""

    made = ends = resets = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).made += 1

    def reset(self, **kwargs):
        type(self).resets += 1
        return super().reset(**kwargs)

    def close_extras(self, **kwargs):
        type(self).ends += 1


gymnasium.register("tests/Counted-v0", vector_entry_point=CountedVectorEnv, max_episode_steps=5)


def test_the_history_is_what_tensorboard_got_and_callbacks_see_it(tmp_path):
    config = Config(run_dir=tmp_path / "run", **SMALL)
    seen = []
    policy, history = maml_rl.train(config, callbacks=[lambda step, scalars: seen.append((step, scalars))])
    assert torch.equal(flatten(policy), flatten(maml_rl.load(config.run_dir).policy))
    events = EventAccumulator(str(config.run_dir), size_guidance={"scalars": 0}).Reload()
    assert set(history) == set(events.Tags()["scalars"])
    for tag, points in history.items():
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in points] == [step for step, _ in logged]
        np.testing.assert_allclose([value for _, value in points], [value for _, value in logged], rtol=1e-6)
    assert len(seen) == 3
    assert [tag in scalars for tag in ("train/return_step_1", "eval/return_step_2") for _, scalars in seen] == [
        *(True, True, True),
        *(False, True, True),  # after iterations 2 and 3
    ]
    for step, scalars in seen:
        for tag, value in scalars.items():
            assert (step, value) in history[tag]
    resumed = maml_rl.train(dataclasses.replace(config, iterations=4, resume=True))
    assert len(resumed.history["train/return_step_0"]) == 1


@pytest.mark.parametrize("eval_every", [0, 2])
def test_a_callback_ends_a_run_as_one_of_so_many_iterations(eval_every, tmp_path):
    whole = Config(run_dir=tmp_path / "whole", **SMALL | {"iterations": 3, "eval_every": eval_every})
    ended = dataclasses.replace(whole, run_dir=tmp_path / "ended", iterations=9, checkpoint_every=9)
    expected, seen = maml_rl.train(whole), []
    # A generator of callbacks, the second of which returns False as NumPy has it.
    callbacks = (f for f in (lambda *_: seen.append(None), lambda *_: np.mean(len(seen)) < 3))
    found = maml_rl.train(ended, callbacks=callbacks)
    assert len(seen) == 3
    assert torch.equal(flatten(found.policy), flatten(expected.policy))
    ours, theirs = (json.loads((config.run_dir / "evaluation.json").read_text()) for config in (ended, whole))
    assert ours == theirs
    assert load_config(ended.run_dir) == dataclasses.replace(ended, iterations=3)
    load_runs([str(ended.run_dir)])
    curves = [found.history[tag] for tag in ("eval/return_step_0", "eval/return_step_1")]
    assert curves == [expected.history[tag] for tag in ("eval/return_step_0", "eval/return_step_1")]
    pictures = [(config.run_dir / "rollouts.png").read_bytes() for config in (ended, whole)]
    assert pictures[0] == pictures[1]
    maml_rl.train(dataclasses.replace(ended, iterations=4, resume=True))
    history = maml_rl.read_history(str(ended.run_dir))
    assert len(history["train/return_step_0"]) == 4
    assert history["train/return_step_1"][:3] == [
        (step, pytest.approx(value)) for step, value in found.history["train/return_step_1"]
    ]


def test_the_history_of_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder .*nowhere; give the folder of a run"):
        maml_rl.read_history(tmp_path / "nowhere")
    assert maml_rl.read_history(tmp_path) == {}


def test_points_that_a_resumed_run_replaced_are_dropped_without_a_message(tmp_path, caplog):
    for first, purge_step in ((0, None), (2, 3)):
        with SummaryWriter(str(tmp_path), purge_step=purge_step) as writer:
            for step in range(first, first + 4):
                writer.add_scalar("train/return_step_0", 10 * first + step, step)
    assert maml_rl.read_history(tmp_path)["train/return_step_0"] == [
        (0, 0), (1, 1), (2, 2), (2, 22), (3, 23), (4, 24), (5, 25)
    ]  # fmt: skip
    assert not caplog.records


def test_a_callback_that_fails_loses_nothing(tmp_path):
    config = Config(run_dir=tmp_path / "run", **SMALL)

    def fail(step, scalars):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        maml_rl.train(config, callbacks=[fail])
    content = torch.load(config.run_dir / "checkpoint.pt", weights_only=True)
    assert content["iteration"] == 1


def test_one_function_for_callbacks_is_refused_before_anything_is_written(tmp_path):
    config = Config(run_dir=tmp_path / "run", **SMALL)
    with pytest.raises(maml_rl.UserError, match="callbacks="):
        maml_rl.train(config, callbacks=print)
    assert not config.run_dir.exists()


def test_an_interrupt_is_reported_even_if_nothing_can_be_saved(tmp_path):
    """The first error is the one that counts; the second one is a note on it."""
    config = Config(run_dir=tmp_path / "run", **SMALL)

    def fail(step, scalars):
        (config.run_dir / "checkpoint.pt").mkdir()  # in the way of the file
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        maml_rl.train(config, callbacks=[fail])
    assert any("Cannot write" in note for note in caught.value.__notes__)


def test_the_last_evaluation_runs_once_and_all_environments_are_closed(tmp_path):
    CountedVectorEnv.made = CountedVectorEnv.ends = CountedVectorEnv.resets = 0
    options = {**SMALL, "iterations": 1, "eval_every": 1}
    maml_rl.train(Config(env_id="tests/Counted-v0", run_dir=tmp_path / "run", **options))
    # Two phases of training, and three of an evaluation of the trained and of the untrained policy.
    assert CountedVectorEnv.resets == 2 + 3 + 3
    assert CountedVectorEnv.ends == CountedVectorEnv.made == 5


def test_an_evaluation_that_is_never_begun_closes_its_environments():
    config = Config(env_id="tests/Counted-v0", **SMALL)
    policy = new_policy(config)
    CountedVectorEnv.made = CountedVectorEnv.ends = 0
    with held_out(policy, flatten(policy), config):
        pass
    assert CountedVectorEnv.ends == CountedVectorEnv.made == 1


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    config = Config(run_dir=tmp_path_factory.mktemp("api") / "run", **SMALL)
    maml_rl.train(config)
    return config.run_dir


def test_tasks_of_one_s_own_are_evaluated(run_dir):
    goals = [[0.1, 0.2], [0.3, -0.4], [-0.5, 0.5], [0.0, 0.0]]
    results = maml_rl.evaluate(run_dir, tasks=goals, num_steps=1)
    assert results["tasks"] == goals
    assert results["num_tasks"] == 4
    assert np.shape(results["methods"]["maml"]["returns"]) == (4, 2)
    held_out_ones = maml_rl.evaluate(run_dir)
    again = maml_rl.evaluate(run_dir, tasks=held_out_ones["tasks"])
    assert again == held_out_ones | {"tasks_given": True}
    for wrong, sentence in (
        ([0.1, 0.2], "tasks has shape"),
        ([[0.1, 0.2, 0.3]] * 2, "tasks has shape"),
        ([[0.1, 9.0]] * 2, "tasks has the task .* not in the task space"),
        ([["here", "there"]] * 2, "tasks is not an array of float"),
        ([[0.1, 0.2]], "tasks must be an array of at least two tasks"),
        (0.1, "tasks must be an array of at least two tasks"),
        (np.array(0.1), "tasks must be an array of at least two tasks"),
    ):
        with pytest.raises(UserError, match=sentence):
            maml_rl.evaluate(run_dir, tasks=wrong)
    with pytest.raises(UserError, match="leave num_tasks out"):
        maml_rl.evaluate(run_dir, tasks=goals, num_tasks=4)


def test_tasks_from_a_file(run_dir, command, tmp_path):
    np.save(tmp_path / "goals.npy", [[0.1, 0.2], [0.3, -0.4]])
    before = (run_dir / "evaluation.json").read_bytes()
    result = command("evaluate", run_dir, "--tasks", "goals.npy", "--output", "of_goals")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "of_goals/evaluation.json").read_text())
    assert evaluation["tasks"] == [[0.1, 0.2], [0.3, -0.4]]
    assert (run_dir / "evaluation.json").read_bytes() == before
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("code.npy", "nowhere.npy"):
        result = command("evaluate", run_dir, "--tasks", name)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {name} ")
        assert "pickle" not in result.stderr


def test_evaluate_names_options_as_its_caller_does(run_dir, command, tmp_path):
    with pytest.raises(UserError, match="^num_tasks is 1"):
        maml_rl.evaluate(run_dir, num_tasks=1)
    (tmp_path / "file").touch()
    result = command("evaluate", run_dir, "--num-tasks", 1, "--output", "file")
    assert "Cannot make the folder" in result.stderr  # before anything is evaluated


def test_an_evaluation_of_one_s_own_tasks_is_not_compared(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    write_json(tmp_path / "run/evaluation.json", maml_rl.evaluate(run_dir, tasks=[[0.1, 0.2], [0.3, -0.4]]))
    with pytest.raises(UserError, match="made on tasks that you chose"):
        load_runs([tmp_path / "run"])


def test_the_two_directions_are_reported_as_seen(tmp_path, command):
    options = {**SMALL, "iterations": 1, "eval_num_tasks": 6}
    config = Config(env_id="maml_rl/HalfCheetahDir-v0", run_dir=tmp_path / "run", **options)
    maml_rl.train(config)
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert results["tasks_seen"]
    assert sorted(results["tasks"]) == [[-1.0]] * 3 + [[1.0]] * 3  # each as often
    printed = command("evaluate", "run").stdout
    assert "2 tasks seen in training, 6 adaptations in all, 2 rollouts each" in printed
    assert kind_of_tasks([(config.run_dir, config, results)]) == "tasks seen in training"
    others = maml_rl.evaluate_policy(new_policy(Config(**SMALL)), Config(**SMALL))
    assert not others["tasks_seen"]
    assert kind_of_tasks([(config.run_dir, config, others)]) == "held-out tasks"
    untrained = dataclasses.replace(config, iterations=0)
    assert not maml_rl.evaluate_policy(new_policy(untrained), untrained)["tasks_seen"]
    with pytest.raises(UserError, match=r"differ in parameters \(log_lr_factors\)"):
        maml_rl.evaluate_policy(new_policy(config), dataclasses.replace(config, learn_lr="task"))
    with pytest.raises(UserError, match="policy given is 'runs/x', but must be an instance of torch.nn.Module"):
        maml_rl.evaluate_policy("runs/x", config)


def test_the_interval_over_a_few_tasks_leaves_out_how_they_differ():
    tasks, values = np.array([[-1.0], [1.0]] * 3), np.array([[0.0], [10.0], [1.0], [11.0], [2.0], [12.0]])
    mean, ((low, high),) = mean_and_interval(values, tasks)
    assert mean == [6.0]
    # Each task has variance 1 over 3 adaptations; the t quantile for 4 degrees of freedom is from a table.
    assert high - low == pytest.approx(2 * 2.77645 * (2 * 3) ** 0.5 / 6, rel=1e-5)
    _, ((low, high),) = mean_and_interval(values, np.arange(6.0)[:, None])
    assert high - low == pytest.approx(2 * 2.57058 * values.std(ddof=1) / 6**0.5, rel=1e-5)


FOREIGN = "import gymnasium, pathlib\npathlib.Path('ran').touch()\n"


@pytest.mark.parametrize("how", ["evaluate", "render", "compare"])
def test_a_foreign_run_does_not_run_code(how, command, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    (tmp_path / "foreign.py").write_text(FOREIGN)
    config = Config(env_id="foreign:Foreign-v0", run_dir=tmp_path / "run")
    config.run_dir.mkdir()
    save_config(config)
    result = command(how, "run")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    if how != "compare":
        assert "names the module 'foreign', which would run its code" in result.stderr
    assert not (tmp_path / "ran").exists()
    for api in ("load", "evaluate"):
        with pytest.raises(UserError, match="names the module 'foreign'"):
            getattr(maml_rl, api)(config.run_dir)
    if how != "compare":
        command(how, "run", "--trust")
        assert (tmp_path / "ran").exists()


def test_a_module_named_on_the_command_line_is_imported(command, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    (tmp_path / "foreign.py").write_text(FOREIGN)
    result = command("train", "--env-id", "foreign:Foreign-v0", "--run-dir", "run", *TINY)
    assert "Cannot make the task family 'foreign:Foreign-v0'" in result.stderr
    assert (tmp_path / "ran").exists()


HALVES = """
from maml_rl.maml.method import MAML
from maml_rl.methods import METHODS


class Halves(MAML):
    name = label = "halves"


METHODS["halves"] = Halves
"""


def test_a_method_of_the_family_s_module_is_found(command, tmp_path, monkeypatch):
    """By each command, and by the processes that train the runs of a sweep."""
    (tmp_path / "halves.py").write_text(HALVES)
    registries = (METHODS, sys.modules)
    for registry in registries:
        monkeypatch.setitem(registry, "halves", None)  # undone by removing it, after the test

    def forgetful(*arguments):
        for registry in registries:
            registry.pop("halves", None)
        return command(*arguments)

    result = forgetful(
        *("sweep", "--env-id", "halves:maml_rl/Navigation2D-v0", "--method", "halves", "--run-dir", "runs", *TINY),
        *("--iterations", "1", "--seeds", "1"),
    )
    assert result.returncode == 0, result.stderr
    assert "| halves | 1 |" in result.stdout
    assert json.loads((tmp_path / "runs/seed1/config.json").read_text())["method"] == "halves"
    for how in ("evaluate", "report"):
        result = forgetful(how, "runs/seed1", "--trust")
        assert result.returncode == 0, result.stderr
    # A run of the same family, whose name has no module.
    assert command("train", "--run-dir", "plain", *TINY, "--iterations", "1").returncode == 0
    result = forgetful("compare", "runs/seed1", "plain", "--trust")
    assert "| halves | 1 |" in result.stdout, result.stderr
    assert "| maml | 1 |" in result.stdout


class RandomSearch:
    """A method of one's own, in a file of its own: keeps a random change of θ if it earns more."""

    name = label = "random search"
    unit = "step"
    num_adaptations = 1
    independent_learners = False

    def __init__(self, config):
        if config.first_order:
            raise UserError("first_order is no option of random search; leave it out.")
        self.config = config

    def make_policy(self, env, generator):
        return make_policy(env.single_observation_space, env.single_action_space, self.config, generator)

    def prepare(self, policy, env):
        pass

    def collect(self, env, policy, theta, tasks, num_rollouts, seeds, lr_factors=None):
        phases = seeds.spawn(2 if lr_factors is None else 1 + len(lr_factors))
        self.change = 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
        for k, phase in enumerate(phases):
            actor = TaskPolicies(policy, (theta + k * self.change).expand(len(tasks), -1))
            yield collect_phase(env, actor, tasks, num_rollouts, phase, self.config, theta.device)

    def update(self, policy, theta, optimiser_state, batches):
        before, after = (batch.returns().mean() for batch in batches)
        better = bool(after > before)
        tried = {"tried": optimiser_state.get("tried", 0) + 1}
        return theta + better * self.change, tried, {"better": float(better)}

    def adapted(self, policy, theta, batches, lr_factors):
        return TaskPolicies(policy, theta[None])


def test_a_method_of_one_s_own_is_one_line_of_registration(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "search", RandomSearch)
    config = Config(run_dir=tmp_path / "run", method="search", **SMALL)
    history = maml_rl.train(config).history
    assert len(history["outer/better"]) == 3
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert list(results["methods"]) == ["random search", "random"]
    whole = maml_rl.train(dataclasses.replace(config, iterations=5, run_dir=tmp_path / "whole")).policy
    resumed = maml_rl.train(dataclasses.replace(config, iterations=5, resume=True)).policy
    assert torch.equal(flatten(resumed), flatten(whole))
    content = torch.load(config.run_dir / "checkpoint.pt", weights_only=True)
    assert content["optimiser_state"] == {"tried": 5}
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = maml_rl.load(config.run_dir).adapt(env, num_steps=2)
    assert env.action_space.contains(adapted(env.reset()[0]))
    with pytest.raises(UserError, match="no option of random search"):
        maml_rl.train(dataclasses.replace(config, first_order=True, run_dir=tmp_path / "other"))


def test_a_curve_has_no_success_where_none_is_reported(run_dir):
    config = Config(**SMALL)
    policy = new_policy(config)
    with held_out(policy, flatten(policy), config) as (env, tasks, batches):
        assert isinstance(env.task_space, spaces.Box)
        result = curve(batches, tasks, METHODS["maml"](config))
    assert "success" not in result


def test_the_command_line_starts_from_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "maml_rl", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "evaluate" in result.stdout
