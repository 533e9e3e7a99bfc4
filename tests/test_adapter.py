"""Environments without native code: in this process or in others, the same; and what goes wrong in them."""

import dataclasses
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import misbehaving
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, collect
from maml_rl.envs import BrokenEnvironmentError, check_family, make_vec, slots
from torch.utils._pytree import tree_leaves

import maml_rl
from maml_rl import Config, UserError, train
from maml_rl.policies import flatten
from maml_rl.runs import evaluation
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env

TASKS = np.array([[0.1], [0.2], [0.95], [0.3], [0.6]])


def episodes(num_workers, env_id="tests/Troubled-v0", tasks=TASKS, **kwargs):
    """Everything that five environments return in an episode of random actions."""
    env = make_vec(env_id, 5, 20, num_workers=num_workers, **kwargs)
    env.action_space.seed(0)
    history = [env.reset(seed=3, options=None if tasks is None else {"task": tasks})[0]]
    for _ in range(20):
        *step, info = env.step(env.action_space.sample())
        history += [*step, *info.values()]
    history.append(env.reset()[0])  # goes on with the generators there are
    env.close()
    return history


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("env_id", ["tests/Troubled-v0", "maml_rl/CartPoleParams-v0"])
def test_workers_do_what_this_process_does(num_workers, env_id):
    tasks = TASKS if "Troubled" in env_id else None
    for alone, shared in zip(episodes(0, env_id, tasks), episodes(num_workers, env_id, tasks), strict=True):
        np.testing.assert_array_equal(alone, shared)


def collected(num_workers, tasks, env_id="tests/Troubled-v0", exit_codes=None, **kwargs):
    """Two rollouts of each task. After an error, the list `exit_codes` gets those of the workers.

    An exit code of None means that the worker still runs.
    """
    env = make_vec(env_id, 2 * len(tasks), 20, num_workers=num_workers, **kwargs)
    policy = new_policy(Config(env_id=env_id, hidden_sizes=(8,)))
    thetas = flatten(policy).expand(len(tasks), -1)
    try:
        return collect(env, policy, thetas, np.array(tasks)[:, None], np.random.SeedSequence(0))
    except BaseException:
        if exit_codes is not None:
            exit_codes += [worker.process.poll() for worker in env._workers]
        raise
    finally:
        env.close()


@pytest.mark.parametrize(("num_workers", "sizes"), [(1, [8]), (2, [4, 4]), (3, [2, 6]), (4, [4, 4]), (7, [8])])
def test_halves_of_the_workers_do_what_the_whole_does(num_workers, sizes):
    env = make_vec("tests/Troubled-v0", 8, 20, num_workers=num_workers, render_mode="rgb_array")
    shares = env.shares(4)
    assert [share.num_envs for share in shares] == sizes
    assert env.shares(1) == [env]  # its environments stay together
    tasks, actions = np.linspace(0.0, 0.7, 8)[:, None], np.random.default_rng(0).uniform(-1, 1, (8, 1))
    results = []
    for families in ([env], shares):
        first, parts = 0, []
        for family in families:
            rows = slice(first, first := first + family.num_envs)
            reset, _ = family.reset(seed=3 + rows.start, options={"task": tasks[rows]})
            *step, info = family.step(actions[rows].astype(np.float32))
            frames = np.stack([family.snapshot(i) for i in range(family.num_envs)])
            parts.append([reset, *step, info["success"], frames])
        results.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    assert env.shares(4) == shares
    if len(shares) > 1:
        with pytest.raises(gymnasium.error.ResetNeeded):  # its environments have gone on without it
            env.step(actions.astype(np.float32))
    env.close()
    for whole, halves in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, halves)


@pytest.mark.parametrize("env_id", ["tests/Troubled-v0", "tests/SuccessOnce-v0"])
def test_rollouts_do_not_depend_on_the_number_of_workers(env_id):
    tasks = np.linspace(0.0, 0.8, 6)
    alone = collected(0, tasks, env_id)
    for num_workers in (2, 5):
        for ours, theirs in zip(
            tree_leaves(collected(num_workers, tasks, env_id)), tree_leaves(alone), strict=True
        ):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_where_only_successes_are_reported_the_others_failed():
    rollouts = collected(2, np.linspace(0.0, 0.8, 6), "tests/SuccessOnce-v0")
    assert rollouts.success.mean(1).tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("hanging", [0, 3])
def test_when_one_half_fails_the_other_ends(hanging):
    """The environment of a task hangs forever in one half of the workers, and one raises in the other half."""
    tasks, exit_codes = [0.5] * 4, []
    tasks[hanging], tasks[3 - hanging] = 0.95, 0.05
    with pytest.raises(UserError, match=rf"environment {2 * (3 - hanging)} with task \[0.05\] raised ZeroDiv"):
        collected(2, tasks, "tests/Hanging-v0", exit_codes=exit_codes, worker_timeout=1000.0)
    assert len(exit_codes) == 2
    assert None not in exit_codes


@pytest.mark.parametrize("hanging", [0, 3])
def test_an_interrupt_ends_both_halves(hanging):
    tasks, exit_codes = [0.5] * 4, []
    tasks[hanging] = 0.95
    with pytest.raises(KeyboardInterrupt):
        collected(
            2, tasks, "tests/Interrupting-v0", exit_codes=exit_codes, process=os.getpid(), worker_timeout=1000.0
        )
    assert len(exit_codes) == 2
    assert None not in exit_codes


def test_seeds_reach_every_environment():
    env = make_vec("tests/Troubled-v0", 5, num_workers=2)
    first, _ = env.reset(seed=10, options={"task": TASKS})
    assert len(np.unique(first[:, 0])) == 5
    for i in range(5):
        alone = gymnasium.make("tests/Troubled-v0").reset(seed=10 + i)[0]
        np.testing.assert_array_equal(first[i], alone)
    np.testing.assert_array_equal(env.reset(seed=10)[0], first)
    assert not (env.reset()[0] == first).all(axis=1).any()
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_environments_get_seeds_of_31_bits(num_workers):
    """The learner draws seeds of 62 bits, which NumPy's old generator refuses."""
    env = make_vec("tests/OldGenerator-v0", 3, num_workers=num_workers)
    for seed in (2**62 - 1, 2**31 - 2, 5):
        observations, _ = env.reset(seed=seed)
        expected = [np.random.RandomState((seed + i) % 2**31).uniform(-9, -8) for i in range(3)]
        np.testing.assert_array_equal(observations[:, 0], expected)
    seeds = [2**61, 3, 2**40 + 1]
    observations, _ = env.reset(seed=seeds)
    expected = [np.random.RandomState(seed % 2**31).uniform(-9, -8) for seed in seeds]
    np.testing.assert_array_equal(observations[:, 0], expected)
    env.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_environment_s_list_of_tasks_is_used(num_workers):
    env = make_vec("tests/ThreeTasks-v0", 2, num_workers=num_workers)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(np.unique(env.sample_tasks(50, rng)), [0.25, 0.5, 0.75])
    np.testing.assert_array_equal(env.sample_test_tasks(5, rng)[:, 0], [0.25, 0.5, 0.75, 0.25, 0.5])
    env.reset(options={"task": [[0.5], [0.75]]})
    with pytest.raises(ValueError, match=r"task \[0.3\] does not exist; .* \[0.25\], \[0.5\], \[0.75\]"):
        env.reset(options={"task": [[0.5], [0.3]]})
    np.testing.assert_array_equal(env.tasks, [[0.5], [0.75]])
    env.close()
    assert make_vec("tests/Troubled-v0", 2).all_tasks is None


def test_an_ended_environment_rests():
    env = make_vec("tests/Troubled-v0", 5, 20)
    env.reset(seed=0, options={"task": TASKS})
    actions = np.array([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]], np.float32)
    ended, rested = False, 0
    for _ in range(15):
        before = env._observations.copy()
        observations, rewards, terminated, truncated, _ = env.step(actions)
        if ended:
            rested += 1
            np.testing.assert_array_equal(observations[0], before[0])
            assert rewards[0] == 0
            assert not terminated[0]
            assert env._slots.envs[0].unwrapped.steps == ended
        elif terminated[0]:
            ended = env._slots.envs[0].unwrapped.steps
        assert not truncated.any()
    assert rested > 5


def test_success_is_passed_on():
    env = make_vec("tests/Troubled-v0", 5)
    env.reset(seed=0, options={"task": TASKS})
    success = np.zeros(5, bool)
    for _ in range(5):
        *_, info = env.step(np.ones((5, 1), np.float32))
        success |= info.get("success", False)
    np.testing.assert_array_equal(success, TASKS[:, 0] > 0.5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_renders_where_the_environment_is(num_workers):
    env = make_vec("tests/Troubled-v0", 5, num_workers=num_workers, render_mode="rgb_array")
    env.reset(seed=0, options={"task": TASKS})
    assert [frame[0, 0, 0] for frame in env.render()] == [int(50 * task) for (task,) in TASKS]
    assert env.metadata["render_fps"] == 7
    env.close()


def step_five_times(env):
    for _ in range(5):
        env.step(np.zeros((5, 1), np.float32))


def run_into(trouble, num_workers, timeout=60.0):
    env = make_vec("tests/Troubled-v0", 5, num_workers=num_workers, worker_timeout=timeout, trouble=trouble)
    env.reset(seed=0, options={"task": TASKS})
    processes = [worker.process for worker in env._workers]
    with pytest.raises(BrokenEnvironmentError) as caught:
        step_five_times(env)
    assert all(process.poll() is not None for process in processes)
    env.close()  # must not wait for what is gone
    message = str(caught.value)
    assert "environment 2 with task [0.95]" in message
    assert "misbehaving.py" in message  # the traceback, down to the line
    return message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_is_reported_with_task_and_traceback(num_workers):
    message = run_into("raise", num_workers)
    assert "raised ZeroDivisionError('the friction is 0') in step" in message
    assert 'raise ZeroDivisionError("the friction is 0")' in message


def test_an_environment_s_own_broken_connection_is_reported():
    """A worker must not take it for its parent's end."""
    assert "raised ConnectionResetError('the simulator has gone') in step" in run_into("connection", 2)


def test_a_module_in_the_working_folder_hides_none_of_python_s(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError('not me')")
    monkeypatch.chdir(tmp_path)
    make_vec("tests/Troubled-v0", 2, num_workers=1).close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_refused_reset_changes_nothing(num_workers):
    env = make_vec("tests/Troubled-v0", 5, num_workers=num_workers)
    env.reset(seed=0, options={"task": TASKS})
    for seed in ([1, 2], -5, [0, 1, 2, 3, -1]):
        with pytest.raises(ValueError, match="seed"):
            env.reset(seed=seed, options={"task": 1 - TASKS})
    np.testing.assert_array_equal(env.tasks, TASKS)
    env.close()


def test_a_crash_is_reported_with_task_and_traceback():
    assert "ended its process (exit code -11) in step" in run_into("crash", 2)


def test_a_worker_that_hangs_is_reported_in_time():
    started = time.monotonic()
    message = run_into("hang", 2, timeout=0.5)
    assert "has not come back for 0.5 s (worker_timeout) in step" in message
    assert time.monotonic() - started < 30  # and not never


def test_a_worker_that_exits_is_reported_with_its_task():
    env = make_vec("tests/Troubled-v0", 5, num_workers=2, trouble="die")
    env.reset(seed=0, options={"task": TASKS})
    with pytest.raises(BrokenEnvironmentError, match=r"environment 2 with task \[0.95\] ended its process .*7\)"):
        step_five_times(env)


def test_slow_environments_that_come_back_are_waited_for():
    """The limit is for one environment, not for all that a worker steps."""
    env = make_vec("tests/Slow-v0", 8, num_workers=1, worker_timeout=0.3)
    env.reset(seed=0)
    env.step(np.zeros((8, 1), np.float32))  # 8 times 0.1 s
    env.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "sentence"),
    [
        ("tests/NoTaskSpace-v0", {}, "has no task_space"),
        ("tests/Newcomer-v0", {"task": "dict"}, "but must be a Box, Discrete, MultiDiscrete or MultiBinary"),
        ("tests/NoWay-v0", {}, "no way to set the environment's task"),
        ("Acrobot-v1", {}, "has no task_space"),
        ("CartPole-v1", {}, "is not a task family"),
        ("tests/Troubled-v0", {"num_workers": -1}, "num_workers is -1, but must be at least 0"),
        ("tests/InScript-v0", {"num_workers": 1}, "move it into a module of its own"),
        ("tests/ByName-v0", {"num_workers": 1}, "move it into a module of its own"),
    ],
)
def test_what_cannot_be_adapted_is_refused(env_id, kwargs, sentence, monkeypatch):
    in_script = type("InScript", (misbehaving.TroubledEnv,), {"__module__": "__main__"})
    for name, entry_point in (("InScript", in_script), ("ByName", "__main__:InScript")):
        spec = gymnasium.envs.registration.EnvSpec(f"tests/{name}-v0", entry_point)
        monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(ValueError, match=sentence):
        make_vec(env_id, 2, 5, **kwargs)


def test_arguments_that_a_worker_cannot_load_are_refused(monkeypatch):
    of_script = lambda: None  # noqa: E731
    of_script.__module__, of_script.__qualname__ = "__main__", "of_script"
    monkeypatch.setattr(sys.modules["__main__"], "of_script", of_script, raising=False)
    with pytest.raises(
        ValueError, match=r"cannot be made in another process \(AttributeError.*of_script.*num_workers to 0"
    ):
        make_vec("tests/Troubled-v0", 2, num_workers=1, trouble=of_script)


@pytest.mark.parametrize(
    ("observation", "fits"), [(3, True), (np.int64(3), True), (300, False), (-1, False), (1.0, False)]
)
def test_integers_are_observations_only_if_the_space_s_type_holds_them(observation, fits):
    observations = np.empty(2, np.uint8)
    if fits:
        assert slots._checked(observation, observations) == 3
    else:
        with pytest.raises(TypeError, match="but its space has shape"):
            slots._checked(observation, observations)


def test_no_process_is_left(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path()])  # Python itself ignores what is no string there
    env = make_vec("tests/Troubled-v0", 4, num_workers=2)
    processes = [worker.process for worker in env._workers]
    env.close()
    assert all(process.poll() == 0 for process in processes)
    env.close()  # a second time changes nothing
    with pytest.raises(BrokenEnvironmentError, match="its worker processes have ended"):
        env.reset(seed=0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes of others")
@pytest.mark.parametrize(
    ("number", "how"),
    [
        *((signal.SIGKILL, how) for how in ("sleep", "spin", "hold", "idle")),
        (signal.SIGTERM, "hold"),
        (signal.SIGHUP, "spin"),
    ],
)
def test_workers_do_not_outlive_their_parent(number, how, tmp_path):
    """Whether they hang or wait for it. Nor does a process that an environment has started."""
    if number == signal.SIGKILL:  # which no parent handles, and this one does not import torch
        (tmp_path / "parent.py").write_text(
            "import signal, misbehaving\n"
            "import numpy as np\n"
            "from maml_rl.envs import make_vec\n"
            f"env = make_vec('tests/Stubborn-v0', 1, num_workers=1, folder={str(tmp_path)!r}, how={how!r})\n"
            "env.reset(seed=0)\n"
            "env.step(np.zeros((1, 1), np.float32))\n"
            "signal.pause()\n"
        )
        words = ["parent.py"]
    else:
        words = ["-m", "maml_rl", "train", "--env-id", "misbehaving:tests/Stubborn-v0", "--run-dir", "run"]
        words += ["--num-workers", "1", "--env-kwargs", "folder", str(tmp_path), "how", how]
    os.mkfifo(tmp_path / "processes")
    run = subprocess.Popen(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.DEVNULL,
    )
    processes = [os.pidfd_open(int(pid)) for pid in (tmp_path / "processes").read_text().split()]
    assert not select.select(processes, [], [], 0)[0]  # none has ended
    run.send_signal(number)
    assert run.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)
    for process in processes:
        assert select.select([process], [], [], 60)[0]
        os.close(process)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_environment_may_change_the_array_of_its_task(num_workers):
    tasks = np.array([[0.4], [0.8]])
    env = make_vec("tests/Greedy-v0", 2, num_workers=num_workers)
    env.reset(seed=0, options={"task": tasks})
    env.step(np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(env.tasks, [[0.4], [0.8]])
    env.close()


@pytest.mark.parametrize("env_id", ["maml_rl/Navigation2D-v0", "tests/Troubled-v0"])
def test_nobody_can_change_the_tasks_in_force_without_a_reset(env_id):
    env = make_vec(env_id, 2)
    tasks = env.sample_tasks(2, np.random.default_rng(0))
    before = tasks.copy()
    env.reset(seed=0, options={"task": tasks})
    tasks += 0.1
    env.reset()
    np.testing.assert_array_equal(env.tasks, before)
    with pytest.raises(ValueError, match="read-only"):
        env.tasks[:] = 0.0
    env.close()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("trouble", misbehaving.CarelessEnv.results)
def test_results_that_numpy_would_convert_are_refused(trouble, num_workers):
    env = make_vec("tests/Careless-v0", 2, num_workers=num_workers, trouble=trouble)
    env.reset(seed=0)
    with pytest.raises(BrokenEnvironmentError, match=r"environment 0 with task .* raised .* in step 1; fix"):
        env.step(np.zeros((2, 1), np.float32))
    env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("init raises", "environment 0 raised OSError('no init today') in __init__"),
        ("init exits", "environment 0 raised SystemExit(0) in __init__"),
        ("reset exits", "raised SystemExit(0) in reset"),
        ("sample_tasks raises", "raised OSError('no sample_tasks today') in sample_tasks"),
        ("sample_tasks exits", "raised SystemExit(0) in sample_tasks"),
        ("task_problem raises", "raised OSError('no task_problem today') in task_problem"),
        ("None", "tasks is not an array of float64 numbers"),
        ("a string", "tasks is not an array of float64 numbers"),
        ("too few", "tasks has shape (2, 1), but must have shape (3, 1)"),
        ("too many", "tasks has shape (6, 1), but must have shape (3, 1)"),
        ("two numbers each", "tasks has shape (3, 2), but must have shape (3, 1)"),
        ("not a number", "the task [nan], which is not in the task space"),
        ("outside", "which is not in the task space"),
    ],
)
def test_a_badly_made_environment_is_one_sentence(trouble, sentence, num_workers, command):
    arguments = ("train", "--env-id", "tests/BadlyMade-v0", *TINY, "--env-kwargs", "trouble", trouble)
    result = command(*arguments, "--num-workers", num_workers, "--run-dir", "run")
    assert result.returncode == 2, result.stderr
    assert sentence in result.stderr.split("error: ")[1]
    assert result.stderr.count("Traceback") <= 1  # the environment's own


def test_what_cannot_be_sent_by_a_worker_is_one_sentence():
    env = make_vec("tests/BadlyMade-v0", 3, num_workers=1, trouble="what cannot be sent")
    with pytest.raises(BrokenEnvironmentError, match="cannot pickle 'generator' object.* in sample_tasks; fix"):
        env.sample_tasks(3, np.random.default_rng(0))
    env.close()


@pytest.mark.parametrize(("trouble", "where"), [("init", "__init__"), ("sample_tasks", "sample_tasks")])
def test_environments_that_hang_before_the_first_episode_are_reported(trouble, where, monkeypatch):
    monkeypatch.setattr("maml_rl.envs.adapter._START_SECONDS", 5.0)
    sentence = rf"environment 0 has not come back for \S+ s \(worker_timeout\) in {where}; fix"
    with pytest.raises(BrokenEnvironmentError, match=sentence) as caught:
        make_vec("tests/BadlyMade-v0", 2, num_workers=1, worker_timeout=0.5, trouble=f"{trouble} hangs")
    assert "misbehaving.py" in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_the_memory_of_environments_is_in_the_log(caplog):
    caplog.set_level("INFO", "maml_rl")
    for num_envs in (2, 12):
        make_vec("tests/Heavy-v0", num_envs, num_workers=1).close()
    assert "making 12 environments" in caplog.text
    small, large = map(int, re.findall(r"take (\d+) MB", caplog.text))
    assert 180 <= large - small <= 240  # 10 times 20 MB


def test_a_run_whose_environment_hangs_in_its_constructor_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr("maml_rl.envs.adapter._START_SECONDS", 5.0)
    config = Config(
        env_id="tests/BadlyMade-v0",
        env_kwargs={"trouble": "init hangs"},
        run_dir=tmp_path / "run",
        num_workers=1,
        worker_timeout=0.5,
    )
    with pytest.raises(UserError, match="environment 0 has not come back .* in __init__"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_environments_that_hang_in_close_are_ended():
    env = make_vec("tests/BadlyMade-v0", 2, num_workers=1, trouble="close hangs")
    process = env._workers[0].process
    env.close()
    assert process.poll() is not None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_environment_s_own_tasks_move_the_generator_on(num_workers):
    """As a draw in this process does, so that two draws differ."""
    env = make_vec("tests/BadlyMade-v0", 2, num_workers=num_workers)
    rng, expected = np.random.default_rng(0), np.random.default_rng(0)
    for _ in range(2):
        np.testing.assert_array_equal(env.sample_tasks(3, rng), expected.uniform(size=(3, 1)))
    env.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_wrong_arguments_of_an_environment_keep_their_message(num_workers):
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        make_vec("tests/Troubled-v0", 2, num_workers=num_workers, depth=3)


@pytest.mark.parametrize("trouble", ["close raises", "close exits"])
def test_an_environment_that_fails_to_close_is_in_the_log(trouble, caplog):
    env = make_vec("tests/BadlyMade-v0", 2, trouble=trouble)
    env.close()
    assert "in close" in caplog.text


@pytest.mark.parametrize("see", ["table", "number", "picture"])
@pytest.mark.parametrize("task", ["discrete", "multi-discrete"])
def test_environments_as_people_have_them_train_and_are_adapted_to(see, task, command, tmp_path):
    arguments = ("train", "--env-id", "tests/Newcomer-v0", *TINY, "--iterations", 1, "--run-dir", "run")
    result = command(*arguments, "--num-workers", 0, "--env-kwargs", "see", see, "task", task)
    assert result.returncode == 0, result.stderr
    env = gymnasium.make("tests/Newcomer-v0", see=see, task=task)
    adapted = maml_rl.load(tmp_path / "run").adapt(env, num_rollouts=2)
    assert env.action_space.contains(adapted(env.reset(seed=0)[0]))


def test_discrete_tasks_are_drawn_uniformly():
    for task, expected in (
        ("discrete", [2, 3, 4]),
        ("multi-discrete", [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]),
        ("integers", [[-1], [0], [1], [2]]),
    ):
        env = make_vec("tests/Newcomer-v0", 2, task=task)
        tasks, counts = np.unique(env.sample_tasks(6000, np.random.default_rng(0)), axis=0, return_counts=True)
        np.testing.assert_array_equal(tasks, expected)
        np.testing.assert_allclose(counts, 6000 / len(expected), rtol=0.15)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"see": "text"}, "cannot be flattened to a fixed number of numbers; wrap the environment"),
        ({"see": "nothing"}, "cannot be flattened to a fixed number of numbers; wrap the environment"),
        ({"see": "no numbers"}, "cannot be flattened to a fixed number of numbers; wrap the environment"),
        ({"task": "unbounded"}, "define sample_tasks"),
    ],
)
def test_spaces_that_do_not_fit_are_one_sentence(kwargs, sentence, command):
    words = [word for pair in kwargs.items() for word in pair]
    result = command("train", "--env-id", "tests/Newcomer-v0", *TINY, "--run-dir", "run", "--env-kwargs", *words)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_an_environment_that_ignores_its_task_is_named():
    with pytest.warns(
        UserWarning, match=r"tests/Deaf-v0: the tasks 2 and 4 give the same observations and rewards"
    ):
        check_family("tests/Deaf-v0")
    check_family("misbehaving:tests/Newcomer-v0")
    check_family("misbehaving:tests/Integers-v0")
    check_family("misbehaving:tests/Negative-v0")


@pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning")
def test_an_environment_that_forgets_its_task_is_named():
    with pytest.raises(
        AssertionError, match=r"a reset without a task does not begin the same episode; keep the task"
    ):
        check_family("tests/Forgetful-v0")


@pytest.mark.parametrize(
    ("env_id", "task", "sentence"),
    [
        ("maml_rl/CartPoleParams-v0", [-1.0, -5.0, np.nan], "not in the task space"),
        ("maml_rl/CartPoleParams-v0", [1.0], r"has shape \(1,\), but must have shape \(3,\)"),
        ("maml_rl/PendulumParams-v0", [10.0, 0.0, 0.0], "not in the task space"),
        ("maml_rl/PendulumParams-v0", [[5.0, 1.0, 1.0]] * 2, r"has shape \(2, 3\), but must have shape \(3,\)"),
    ],
)
def test_a_single_environment_refuses_what_is_no_task(env_id, task, sentence):
    env = gymnasium.make(env_id)
    with pytest.raises(ValueError, match=sentence):
        env.reset(options={"task": task})


@pytest.mark.parametrize("env_id", ["maml_rl/CartPoleParams-v0", "maml_rl/TabularMDP-v0"])
def test_other_options_and_actions_are_refused(env_id):
    env = make_vec(env_id, 2)
    with pytest.raises(ValueError, match="reset has no option 'tasks'; its only option is 'task'"):
        env.reset(options={"tasks": env.tasks})
    env.reset(seed=0)
    for actions in ([0, -1], [0, 9], [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"the actions .* are not all in Discrete"):
            env.step(np.array(actions))
    env.step(np.array([0, 1]))
    env.close()


def test_environments_share_no_random_generator():
    for env_id in ("maml_rl/Navigation2D-v0", "maml_rl/Sinusoid-v0"):
        one, other = gymnasium.make(env_id), gymnasium.make(env_id)
        for space in ("action_space", "observation_space"):
            getattr(one, space).seed(0)
            expected = getattr(one, space).sample()
            getattr(one, space).seed(0)
            getattr(other, space).seed(1)
            np.testing.assert_array_equal(getattr(one, space).sample(), expected)


def test_the_number_of_rounds_does_not_change_an_evaluation():
    """Nor does the number of ranks, which changes the rounds."""
    config = Config(env_id="tests/SuccessOnce-v0", num_workers=0, num_rollouts=2, horizon=5)
    config = dataclasses.replace(config, eval_num_tasks=7, eval_num_rollouts=3, eval_num_steps=1)
    several, one = (dataclasses.replace(config, num_tasks=num_tasks) for num_tasks in (3, 12))
    results = [evaluation.evaluate_policy(new_policy(config), config) for config in (several, one)]
    assert results[0]["methods"] == results[1]["methods"]


@pytest.mark.parametrize("num_tasks", [2, 3, 7, 8])
def test_an_evaluation_needs_no_more_environments_than_training(num_tasks, monkeypatch):
    """It takes place in rounds, and tasks and results belong together."""
    config = Config(env_id="tests/SuccessOnce-v0", num_workers=0, num_tasks=4, num_rollouts=2, horizon=5)
    config = dataclasses.replace(config, eval_num_tasks=num_tasks, eval_num_rollouts=3, eval_num_steps=1)
    policy, made = new_policy(config), []
    monkeypatch.setattr(evaluation, "make_env", lambda config, n: (made.append(n), make_env(config, n))[1])
    tasks = np.linspace(0.1, 0.9, num_tasks)[:, None]
    found = evaluation.evaluate_policy(policy, config, tasks=tasks)["methods"]["maml"]
    assert max(made) <= 4 * 2
    np.testing.assert_array_equal(np.array(found["success"]) > 0, np.repeat(tasks > 0.5, 2, axis=1))
    assert np.shape(found["returns"]) == (num_tasks, 2)
