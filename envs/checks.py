"""Checks for vector environments of task families. Gymnasium's checker is for single environments."""

import importlib
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from .family import VectorFamily, in_words
from .making import make_vec
from .native import TaskEnv, TaskVectorEnv
from .slots import make_flat, reset_with_task


def check_family(env_id: str, num_envs: int = 3, num_steps: int = 25) -> None:
    """Checks that a registered family, native or adapted, behaves as `VectorFamily` and Gymnasium require.

    It warns if tasks make no difference within these steps, because an environment that ignores its task trains
    without any other sign.

    Args:
        env_id: The registered id. `module:id` imports the module first.
        num_envs: The number of environments N.
        num_steps: The number of steps that are compared with N single environments.

    Raises:
        AssertionError: If a requirement is not met; the message says which.
    """
    module, _, env_id = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    # A short horizon, so that auto-resets happen within the compared steps.
    env = make_vec(env_id, num_envs, max(2, num_steps // 3))
    try:
        _check_tasks(env_id, env)
        _check_steps(env_id, env, num_steps)
        single = gymnasium.make(env_id)
        # Rendering an adapted environment may need another package.
        check_env(single.unwrapped, skip_render_check=not isinstance(single.unwrapped, TaskEnv))
        single.close()
        _check_equals_single(env_id, env, num_steps)
        _check_task_stays(env_id, env)
        _check_tasks_differ(env_id, env, num_steps)
    finally:
        env.close()


def _check_tasks(env_id: str, env: VectorFamily) -> None:
    tasks = env.checked_tasks(
        env.sample_tasks(env.num_envs, np.random.default_rng(1)), env.num_envs, "sample_tasks"
    )
    again = env.sample_tasks(env.num_envs, np.random.default_rng(1))
    assert np.array_equal(tasks, again), f"{env_id}: sample_tasks uses randomness other than its generator."
    many = env.sample_tasks(100, np.random.default_rng(1))
    assert len(np.unique(many, axis=0)) > 1, f"{env_id}: sample_tasks draws only one task."
    held_out = env.sample_test_tasks(env.num_envs, np.random.default_rng(1))
    env.reset(options={"task": held_out})
    env.reset(options={"task": tasks})
    assert np.array_equal(env.tasks, tasks), f"{env_id}: the given task is not the task in force."
    outside = tasks.copy()
    if not isinstance(env.task_space, spaces.Box):
        outside = outside.astype(np.int64)
        outside[-1] = getattr(env.task_space, "start", 0) - 1
    elif np.issubdtype(tasks.dtype, np.integer):
        outside = outside.astype(np.int64)
        outside[-1] = env.task_space.high.astype(np.int64) + 1
    else:
        outside[-1] = np.nan
    for wrong, what in (
        (outside, "outside the task space"),
        (tasks[:-1], "too few"),
        (tasks[..., None], "badly shaped"),
    ):
        try:
            env.reset(options={"task": wrong})
        except ValueError:
            assert np.array_equal(env.tasks, tasks), f"{env_id}: a refused task replaced the one in force."
        else:
            raise AssertionError(f"{env_id}: tasks that are {what} are not refused.")


def _two_tasks(env: VectorFamily) -> tuple[Any, Any]:
    """The first and the last of a hundred tasks in order, which differ as much as any."""
    some = np.unique(env.sample_tasks(100, np.random.default_rng(4)), axis=0)
    return some[0], some[-1]


def _make_single(env_id: str, env: VectorFamily) -> gymnasium.Env[Any, Any]:
    """Makes a single environment with observations and a horizon like those of the vector environment."""
    make = gymnasium.make if isinstance(env, TaskVectorEnv) else make_flat
    return make(env_id, max_episode_steps=env.max_episode_steps)


def _check_task_stays(env_id: str, env: VectorFamily) -> None:
    """Checks that resets without a task keep that of a single environment, as `load(run_dir).adapt(env)` needs."""
    single = _make_single(env_id, env)
    for task in _two_tasks(env):
        episodes = []
        for given in (True, False):
            observation, _ = reset_with_task(single, task, seed=7) if given else single.reset(seed=7)
            episodes.append([observation])
            env.single_action_space.seed(2)
            ended = False
            while not ended:
                observation, reward, terminated, truncated, _ = single.step(env.single_action_space.sample())
                episodes[-1] += [observation, reward]
                ended = terminated or truncated
        same = len(episodes[0]) == len(episodes[1]) and all(map(np.array_equal, *episodes))
        assert same, (
            f"{env_id}: after reset with the task {in_words(task)}, a reset without a task does not begin the "
            "same episode; keep the task until another is given."
        )
    single.close()


def _check_tasks_differ(env_id: str, env: VectorFamily, num_steps: int) -> None:
    """Warns if two different tasks give the same observations and rewards for the same seeds and actions."""
    some, histories = _two_tasks(env), []
    for task in some:
        env.action_space.seed(0)
        observations, _ = env.reset(seed=5, options={"task": np.repeat(task[None], env.num_envs, axis=0)})
        steps = [env.step(env.action_space.sample())[:2] for _ in range(num_steps)]
        histories.append([observations, *(array for step in steps for array in step)])
    if all(map(np.array_equal, *histories)):
        warnings.warn(
            f"{env_id}: the tasks {in_words(some[0])} and {in_words(some[1])} give the same observations and "
            f"rewards for {num_steps} steps; make sure that the environment uses its task.",
            stacklevel=3,
        )


def _check_steps(env_id: str, env: VectorFamily, num_steps: int) -> None:
    """Checks types, shapes, spaces, new arrays, determinism, auto-reset, and that the task stays in force."""
    assert env.metadata.get("autoreset_mode") in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED), (
        f"{env_id}: auto-reset is neither NEXT_STEP nor DISABLED."
    )
    tasks = env.sample_tasks(env.num_envs, np.random.default_rng(2))
    runs = []
    for _ in range(2):
        env.action_space.seed(0)
        observations, info = env.reset(seed=5, options={"task": tasks})
        assert isinstance(info, dict), f"{env_id}: the second result of reset is not a dictionary."
        history = [observations]
        ended = np.zeros(env.num_envs, dtype=bool)
        for step in range(num_steps):
            latest = history[-4:]
            before = [array.copy() for array in latest]
            observations, rewards, terminated, truncated, info = env.step(env.action_space.sample())
            where = f"{env_id}, step {step}"
            assert all(map(np.array_equal, latest, before)), f"{where}: changes an array that was returned before."
            assert env.observation_space.contains(observations), f"{where}: observations are not in their space."
            assert rewards.shape == (env.num_envs,), f"{where}: rewards have shape {rewards.shape}."
            assert np.isfinite(rewards).all(), f"{where}: a reward is not finite."
            for name, flags in (("terminated", terminated), ("truncated", truncated)):
                assert flags.shape == (env.num_envs,), f"{where}: {name} has shape {flags.shape}."
                assert flags.dtype == bool, f"{where}: {name} has type {flags.dtype}."
            assert not rewards[ended].any(), f"{where}: the step of an auto-reset has a reward."
            assert not (terminated | truncated)[ended].any(), f"{where}: an episode ends in its reset step."
            assert np.array_equal(env.tasks, tasks), f"{where}: the task in force changed."
            ended = terminated | truncated
            history += [observations, rewards, terminated, truncated]
        runs.append(history)
    for first, second in zip(*runs, strict=True):
        assert np.array_equal(first, second), f"{env_id}: the same seed and actions give a different episode."


def _check_equals_single(env_id: str, env: VectorFamily, num_steps: int) -> None:
    """Checks that N environments do the same as N single ones with the same seeds and tasks."""
    tasks = env.sample_tasks(env.num_envs, np.random.default_rng(3))
    singles = [_make_single(env_id, env) for _ in tasks]
    observations, _ = env.reset(seed=11, options={"task": tasks})
    for i, single in enumerate(singles):
        first, _ = reset_with_task(single, tasks[i], seed=11 + i)
        assert np.array_equal(np.ravel(first), observations[i].ravel()), (
            f"{env_id}: environment {i} does not start like a single one."
        )
    ended = np.zeros(env.num_envs, dtype=bool)
    rests = env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    env.action_space.seed(1)
    for step in range(num_steps):
        actions: Any = env.action_space.sample()
        batch: tuple[Any, ...] = env.step(actions)
        for i, single in enumerate(singles):
            alone: tuple[Any, ...]
            if not ended[i]:
                alone = single.step(actions[i])
            else:
                alone = (observations[i] if rests else single.reset()[0], 0.0, False, False)
            for name, one, many in zip(
                ("observation", "reward", "terminated", "truncated"), alone, batch, strict=False
            ):
                assert np.array_equal(np.ravel(one), np.ravel(many[i])), (
                    f"{env_id}, step {step}: {name} of environment {i} differs from a single one."
                )
        observations = batch[0]
        ended = batch[2] | batch[3] | (rests & ended)
    for single in singles:
        single.close()
