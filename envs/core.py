"""The base of every native task family: batched pure functions in, a Gymnasium environment out."""

import os
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from PIL import Image, ImageDraw

# Steps whose noise is drawn at once; the numbers drawn do not depend on it.
_NOISE_BLOCK = 64


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_words(thing: np.ndarray | spaces.Space) -> str:
    """A task or a space as part of a message: long arrays by their first and last numbers."""
    if isinstance(thing, spaces.Box):
        low, high = (
            str(bound.flat[0]) if bound.size and (bound == bound.flat[0]).all() else in_words(bound)
            for bound in (thing.low, thing.high)
        )
        return f"Box({low}, {high}, {thing.shape}, {thing.dtype})"
    return np.array2string(thing, precision=4, threshold=12) if isinstance(thing, np.ndarray) else str(thing)


class VectorFamily(VectorEnv):
    """N environments of one task family, whatever steps them: all that the learner knows of them.

    The task is put in force by `reset(options={"task": tasks})` with tasks of shape (N, D), and stays in
    force through every later reset and auto-reset until another is given. Before the first one, all
    environments have the same, arbitrary but fixed task.

    Args:
        num_envs: N, the number of environments.
        max_episode_steps: The horizon H; the episode is truncated there. None: no horizon.
        render_mode: None or "rgb_array".

    Attributes:
        task_space: The space of one task, usually a `Box` of D numbers.
        tasks: The tasks in force, (N, D).
    """

    task_space: spaces.Space

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None, render_mode: str | None = None):
        if num_envs < 1:
            raise ValueError(f"{self.name}: num_envs is {num_envs}, but must be at least 1.")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"{self.name}: max_episode_steps is {max_episode_steps}, but must be at least 1.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"{self.name}: render_mode is {render_mode!r}, but must be None or one of "
                f"{self.metadata['render_modes']}."
            )
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self._resize(num_envs)

    def _resize(self, num_envs: int) -> None:
        """Sets all that depends on the number of environments, as if newly made."""
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks = self._checked_tasks(
            np.repeat(self.sample_tasks(1, np.random.default_rng(0)), num_envs, axis=0)
        )

    @property
    def name(self) -> str:
        """What messages call the family."""
        return type(self).__name__

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws tasks from p(T); by default uniformly from a bounded `task_space`.

        Args:
            num_tasks: M.
            rng: The only source of chance.

        Returns:
            The tasks, (M, D).
        """
        space = self.task_space
        if not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise NotImplementedError(
                f"{self.name}: sample_tasks draws uniformly from a bounded Box, but task_space is {space}; "
                "define sample_tasks(num_tasks, rng) in the family."
            )
        return rng.uniform(space.low, space.high, size=(num_tasks, *space.shape)).astype(space.dtype)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws held-out tasks (M, D); from p(T) too, unless the family keeps some tasks for tests alone."""
        return self.sample_tasks(num_tasks, rng)

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """What is wrong with tasks (n, D) beyond not being in `task_space`, as a sentence; None if nothing."""
        return None

    def shares(self, num_tasks: int) -> list["VectorFamily"]:
        """Families of whole tasks' environments that can be stepped by threads of their own, in place of this one.

        Args:
            num_tasks: M; each task has N / M environments, and belongs to one share.
        """
        return [self]

    def snapshot(self, index: int) -> np.ndarray:
        """A picture of one environment as it stands, (height, width, 3) uint8."""
        raise NotImplementedError

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of every environment as it stands, or None without a render mode."""
        return None if self.render_mode is None else tuple(self.snapshot(i) for i in range(self.num_envs))

    def _checked_tasks(self, tasks: Any) -> np.ndarray:
        space = self.task_space
        try:
            given = np.asarray(tasks)
            checked = given.astype(space.dtype, casting="same_kind")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}: options['task'] is no array of numbers; it must be in the task space "
                f"{in_words(space)}."
            ) from error
        expected = (self.num_envs, *(space.shape or ()))
        if checked.shape != expected:
            raise ValueError(
                f"{self.name}: options['task'] has shape {checked.shape}, but a task for each of "
                f"{self.num_envs} environments has shape {expected}; the task space is {in_words(space)}."
            )
        if not batch_space(space, self.num_envs).contains(checked):
            outside = np.asarray(next(task for task in checked if not space.contains(task)))
            raise ValueError(
                f"{self.name}: task {in_words(outside)} is not in the task space {in_words(space)}; choose one "
                "that is."
            )
        if problem := self.task_problem(checked):
            raise ValueError(f"{self.name}: {problem}")
        return checked

    def _checked_seeds(self, seed: int | list[int] | None) -> np.ndarray:
        """A seed for each environment, (N,): those given, or counted up from the one given, or unpredictable."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = np.asarray(seed) if np.ndim(seed) else np.asarray(seed) + np.arange(self.num_envs)
        if seeds.shape != (self.num_envs,):
            raise ValueError(
                f"{self.name}: got {seeds.size} seeds for {self.num_envs} environments; give one number, or one "
                "for each."
            )
        if (seeds < 0).any():
            raise ValueError(f"{self.name}: the seed is {seeds.min()}, but must be at least 0.")
        return seeds

    def _checked_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"{self.name}: actions have shape {actions.shape}, but must have {self.action_space.shape}."
            )
        return actions


class TaskVectorEnv(VectorFamily):
    """N environments of a family written as batched functions, stepped together as arrays.

    A task is T = {L, q(x_1), q(x_{t+1} | x_t, a_t), H}. A subclass writes that definition down as pure
    functions over a batch of n environments, where every source of chance is an argument:

    * `initial_state(task, noise)` -> (n, ...): x_1;
    * `transition(state, action, task, noise)` -> (n, ...): x_{t+1}, as a new array;
    * `reward(state, action, next_state, task, noise)` -> (n,): r_t = -L(x_t, a_t);
    * `terminated(state, task)` -> (n,) bool: whether x_{t+1} ends the episode; by default never;
    * `broken(state, task)` -> (n,) bool: whether the simulation broke down in x_{t+1}; by default never;
    * `observation(state, task)` -> (n, O): a new array;
    * `frame(state, task)` -> (height, width, 3) uint8: a picture of one environment; by default text.

    `noise` is uniform on [0, 1), shape (n, `initial_noise`) for the first state and (n, `step_noise`) for
    a step; `scipy.special.ndtri` makes it normal. Each environment and each episode has its own stream,
    so environment i seeded with s + i does exactly what a single one seeded with s + i does.

    An episode that ended is reset by the next step (Gymnasium's `NEXT_STEP` mode), which ignores that
    environment's action. One whose simulation broke down is truncated: it stays at x_t, its reward is 0, and
    `step` reports it as true in `info["failed"]`, (N,) bool. Arguments, attributes and task as in
    `VectorFamily`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (typed by Gymnasium)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    initial_noise = 0
    step_noise = 0

    def _resize(self, num_envs: int) -> None:
        super()._resize(num_envs)
        self._seeds: np.ndarray | None = None
        self._streams: dict[int, np.random.Generator] = {}
        self._noise = np.empty((num_envs, _NOISE_BLOCK, self.step_noise))

    # What a family defines.

    def initial_state(self, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The first states x_1 of n environments; see the class."""
        raise NotImplementedError

    def transition(self, state: np.ndarray, action: np.ndarray, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The next states x_{t+1} of n environments; see the class."""
        raise NotImplementedError

    def reward(
        self,
        state: np.ndarray,
        action: np.ndarray,
        next_state: np.ndarray,
        task: np.ndarray,
        noise: np.ndarray,
    ) -> np.ndarray:
        """The rewards of n environments, (n,); see the class."""
        raise NotImplementedError

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Which of n environments have reached a terminal state, (n,) bool."""
        return np.zeros(len(state), dtype=bool)

    def broken(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """In which of n environments the simulation broke down, (n,) bool."""
        return np.zeros(len(state), dtype=bool)

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The observations of n environments, (n, O); see the class."""
        raise NotImplementedError

    def frame(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """A picture of one environment, (height, width, 3) uint8; by default its numbers as text."""
        image = Image.new("RGB", (200, 200), "white")
        text = f"{type(self).__name__}\n\nstate\n{np.round(state, 3)}\n\ntask\n{np.round(task, 3)}"
        ImageDraw.Draw(image).multiline_text((8, 8), text, fill="black")
        return np.array(image)

    # What the base class makes of it.

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode in every environment.

        Args:
            seed: s for the seeds s, s + 1, ..., s + N - 1; or N seeds; or None to go on with the streams
                there are (the first time: with unpredictable ones).
            options: {"task": tasks} puts tasks (N, D) in force.

        Returns:
            The first observations (N, O), and an empty dictionary.

        Raises:
            ValueError: If a task is of the wrong shape or not in the task space, or seeds are not N.
        """
        tasks = self._checked_tasks(options["task"]) if options and "task" in options else self.tasks
        if seed is not None or self._seeds is None:
            self._seeds = self._checked_seeds(seed)
            self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self.tasks = tasks
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._any_ended = False
        self._state = self._first_states(np.arange(self.num_envs))
        return self.observation(self._state, self.tasks), {}

    def _first_states(self, indices: np.ndarray) -> np.ndarray:
        """Opens the noise streams of a new episode in the given environments; returns x_1, (n, ...)."""
        assert self._seeds is not None
        noise = np.empty((len(indices), self.initial_noise))
        if self.initial_noise or self.step_noise:
            for row, i in enumerate(indices.tolist()):
                # Philox takes its key as it is: half the time of default_rng's hashing, N times a reset.
                key = np.array([self._seeds[i], self._episodes[i]], np.uint64)
                self._streams[i] = np.random.Generator(np.random.Philox(key=key))
                noise[row] = self._streams[i].random(self.initial_noise)
        self._episodes[indices] += 1
        return self.initial_state(self.tasks[indices], noise)

    def _step_noise(self) -> np.ndarray:
        """The next row of every environment's noise, (N, step_noise), out of blocks (N, rows, step_noise)."""
        if not self.step_noise:
            return np.empty((self.num_envs, 0))
        row = self._steps % _NOISE_BLOCK
        for i in np.flatnonzero(row == 0).tolist():
            self._noise[i] = self._streams[i].random((_NOISE_BLOCK, self.step_noise))
        return self._noise[np.arange(self.num_envs), row]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every environment once.

        Args:
            actions: (N, A), or (N,) for discrete actions.

        Returns:
            Observations (N, O), rewards (N,), terminated (N,) and truncated (N,) bool, and a dictionary,
            empty unless a simulation broke down. An environment whose episode ended at the step before is
            reset instead: its observation is the first of a new episode, its reward 0.

        Raises:
            ValueError: If the actions are of the wrong shape.
        """
        if self._seeds is None:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before the first step.")
        actions = self._checked_actions(actions)
        noise = self._step_noise()
        state, tasks = self._state, self.tasks
        self._state = self.transition(state, actions, tasks, noise)
        failed = self.broken(self._state, tasks)
        if self._any_ended:
            failed &= ~self._ended  # what an ended environment does before its reset is of no account
        any_failed = bool(failed.any())
        if any_failed:
            self._state[failed] = state[failed]
        rewards = self.reward(state, actions, self._state, tasks, noise)
        terminated = self.terminated(self._state, tasks)
        if any_failed:
            rewards[failed] = 0.0
            terminated[failed] = False
        self._steps += 1
        if self._any_ended:
            restarted = np.flatnonzero(self._ended)
            self._state[restarted] = self._first_states(restarted)
            self._steps[restarted] = 0
            rewards[restarted] = 0.0
            terminated[restarted] = False
        truncated = (
            failed.copy() if self.max_episode_steps is None else failed | (self._steps >= self.max_episode_steps)
        )
        self._ended = terminated | truncated
        self._any_ended = bool(self._ended.any())
        info = {"failed": failed} if any_failed else {}
        return self.observation(self._state, tasks), rewards, terminated, truncated, info

    def snapshot(self, index: int) -> np.ndarray:
        """A picture of one environment as it stands, (height, width, 3) uint8."""
        return self.frame(self._state[index], self.tasks[index])


class TaskEnv(gymnasium.Env):
    """A single environment of a native family: the vector environment's N = 1 without the batch axis.

    A subclass names its family: `vector_class = MyFamilyVectorEnv`. Options and task as in
    `TaskVectorEnv`, with one task of shape (D,).
    """

    vector_class: ClassVar[type[TaskVectorEnv]]
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        self._env = self.vector_class(num_envs=1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._env.metadata["render_fps"]}
        self.task_space = self._env.task_space
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    @property
    def task(self) -> np.ndarray:
        """The task in force, (D,)."""
        return self._env.tasks[0]

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws tasks (M, D) from p(T); see `TaskVectorEnv.sample_tasks`."""
        return self._env.sample_tasks(num_tasks, rng)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts a new episode; options {"task": task} puts a task (D,) in force."""
        super().reset(seed=seed)
        if options and "task" in options:
            options = {**options, "task": [options["task"]]}
        observations, info = self._env.reset(seed=seed, options=options)
        return observations[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps once; see `TaskVectorEnv.step`."""
        observations, rewards, terminated, truncated, info = self._env.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in info.items()}
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """A picture of the environment as it stands, or None without a render mode."""
        frames = self._env.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Closes the vector environment behind it."""
        self._env.close()
