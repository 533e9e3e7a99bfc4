"""Base classes for families written as batched functions. They make Gymnasium environments of them."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from PIL import Image, ImageDraw

from .family import Array, Bools, BrokenEnvironmentError, Floats, VectorFamily, checked_task

# The number of steps whose noise is drawn at once. It has no influence on the numbers drawn.
_NOISE_BLOCK = 64


class TaskVectorEnv(VectorFamily):
    """N environments of a family written as batched functions, which step all of them together.

    A task is T = {L, q(x_1), q(x_{t+1} | x_t, a_t), H}. A subclass defines it by functions of a batch of n
    environments. They are deterministic: all randomness comes from the argument `noise`. They do not change their
    arguments: `state` and `task` are read-only.

    * `initial_state(task, noise)` -> (n, ...): x_1.
    * `transition(state, action, task, noise)` -> (n, ...): x_{t+1}.
    * `reward(state, action, next_state, task, noise)` -> (n,): r_t = -L(x_t, a_t).
    * `terminated(state, task)` -> (n,) bool: whether x_{t+1} ends the episode. By default never.
    * `broken(state, task)` -> (n,) bool: whether the simulation broke down in x_{t+1}. By default never.
    * `observation(state, task)` -> (n, O): a new array.
    * `frame(state, task)` -> (height, width, 3) uint8: a picture of one environment. By default text.

    `noise` is uniform on [0, 1), of shape (n, `initial_noise`) for the first state and (n, `step_noise`) for
    a step. `scipy.special.ndtri` turns it into normal noise. Each episode of each environment has its own stream
    of noise. Environment i gets the seed s + i, and does exactly what a single environment with that seed does.

    The next step after the end of an episode resets that environment and ignores its action (Gymnasium's mode
    `NEXT_STEP`), unless `make_vec` was told otherwise. If a simulation breaks down, its episode is truncated: the
    state stays x_t, the reward is 0, and `step` returns True for it in `info["failed"]`, (N,) bool. Arguments,
    attributes and tasks are those of `VectorFamily`.
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
        self._seeds: Array | None = None
        self._streams: dict[int, np.random.Generator] = {}
        self._noise = np.empty((num_envs, _NOISE_BLOCK, self.step_noise))

    # A family defines these.

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns the first states x_1 of n environments; see the class."""
        raise NotImplementedError

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Returns the next states x_{t+1} of n environments; see the class."""
        raise NotImplementedError

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the rewards of n environments, (n,); see the class."""
        raise NotImplementedError

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns which of n environments are in a terminal state, (n,)."""
        return np.zeros(len(state), dtype=bool)

    def broken(self, state: Array, task: Array) -> Bools:
        """Returns in which of n environments the simulation broke down, (n,)."""
        return np.zeros(len(state), dtype=bool)

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the observations of n environments, (n, O); see the class."""
        raise NotImplementedError

    def frame(self, state: Array, task: Array) -> Array:
        """Draws one environment, (height, width, 3) uint8. By default its state and task as text."""
        image = Image.new("RGB", (200, 200), "white")
        text = f"{type(self).__name__}\n\nstate\n{np.round(state, 3)}\n\ntask\n{np.round(task, 3)}"
        ImageDraw.Draw(image).multiline_text((8, 8), text, fill="black")
        return np.array(image)

    # The base class builds these from them.

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts a new episode in every environment.

        Args:
            seed: s, for the seeds s, s + 1, ..., s + N - 1, or a list of N seeds. None continues the current
                streams of noise; the first time, it starts random ones.
            options: {"task": tasks} sets the tasks, (N, D).

        Returns:
            The first observations (N, O), and an empty dictionary.

        Raises:
            ValueError: If the tasks have the wrong shape or are not valid, if there are not N seeds, or if there
                are other options.
            BrokenEnvironmentError: If a function of the family returns another shape than it must.
        """
        tasks = self._given_tasks(options)
        if seed is not None or self._seeds is None:
            self._seeds = self._checked_seeds(seed)
            self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self.tasks = tasks
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._any_ended = False
        self._state = self._first_states(np.arange(self.num_envs))
        return self._observed(), {}

    def _observed(self) -> Array:
        """The observations in the current states, (N, O)."""
        state, tasks = self._state.view(), self.tasks.view()
        state.flags.writeable = tasks.flags.writeable = False
        seen = self._of_shape("observation", self.observation(state, tasks), self.observation_space.shape)
        return seen if seen.flags.writeable else seen.copy()  # it may be the state, which a caller must not change

    def _of_shape(self, function: str, result: Array, shape: tuple[int, ...] | None) -> Array:
        """Checks what a function of the family returns. Errors far from it would not name it."""
        if getattr(result, "shape", None) == shape:
            return result
        found = f"an array of shape {result.shape}" if isinstance(result, np.ndarray) else repr(result)
        raise BrokenEnvironmentError(
            f"{self.name}: {function} returned {found}, but must return an array of shape {shape}, with one row "
            "per environment; fix the family."
        )

    def _first_states(self, indices: Array) -> Array:
        """Starts the noise of a new episode in the given environments. Returns their x_1, (n, ...)."""
        assert self._seeds is not None
        noise = np.empty((len(indices), self.initial_noise))
        if self.initial_noise or self.step_noise:
            for row, i in enumerate(indices.tolist()):
                # Philox uses its key directly. Hashing, as in default_rng, would take twice as long.
                key = np.array([self._seeds[i], self._episodes[i]], np.uint64)
                self._streams[i] = np.random.Generator(np.random.Philox(key=key))
                noise[row] = self._streams[i].random(self.initial_noise)
        self._episodes[indices] += 1
        first = self.initial_state(self.tasks[indices], noise)
        shape = np.shape(first)[1:] if len(indices) == self.num_envs else self._state.shape[1:]
        return np.array(self._of_shape("initial_state", first, (len(indices), *shape)))

    def _step_noise(self) -> Floats:
        """Returns the next noise of every environment, (N, step_noise), from blocks (N, rows, step_noise)."""
        if not self.step_noise:
            return np.empty((self.num_envs, 0))
        row = self._steps % _NOISE_BLOCK
        for i in np.flatnonzero(row == 0).tolist():
            self._noise[i] = self._streams[i].random((_NOISE_BLOCK, self.step_noise))
        return self._noise[np.arange(self.num_envs), row]

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools, dict[str, Any]]:
        """Steps every environment once.

        Args:
            actions: (N, A), or (N,) for discrete actions.

        Returns:
            Observations (N, O), rewards (N,), terminated (N,) and truncated (N,) bool, and a dictionary, which is
            empty unless a simulation broke down. An environment whose episode ended at the step before is reset
            instead: its observation is the first of a new episode, and its reward is 0. In mode `DISABLED`, it
            rests until the next `reset`: its observation stays the same, and its reward is 0.

        Raises:
            ValueError: If the actions have the wrong shape.
        """
        if self._seeds is None:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before the first step.")
        actions, noise, ended = self._checked_actions(actions), self._step_noise(), self._ended
        rests = self.metadata["autoreset_mode"] == AutoresetMode.DISABLED
        rows = np.flatnonzero(~ended) if rests and self._any_ended else np.s_[:]
        rewards, (terminated, failed) = np.zeros(self.num_envs), np.zeros((2, self.num_envs), dtype=bool)
        if not (rests and ended.all()):
            rewards[rows], terminated[rows], failed[rows] = self._advance(rows, actions[rows], noise[rows])
        self._steps[rows] += 1
        if self._any_ended and not rests:
            restarted = np.flatnonzero(ended)
            self._state[restarted] = self._first_states(restarted)
            self._steps[restarted] = 0
            rewards[restarted], terminated[restarted], failed[restarted] = 0.0, False, False
        late = self.max_episode_steps is not None and self._steps >= self.max_episode_steps
        truncated: Bools = (failed | late) & ~ended
        self._ended = terminated | truncated | (rests & ended)
        self._any_ended = bool(self._ended.any())
        info = {"failed": failed} if failed.any() else {}
        return self._observed(), rewards, terminated, truncated, info

    def _advance(self, rows: Any, actions: Array, noise: Floats) -> tuple[Floats, Bools, Bools]:
        """Moves some environments on. Returns their rewards, whether they terminated, and whether they broke."""
        state, tasks = self._state[rows], self.tasks[rows]
        state.flags.writeable = tasks.flags.writeable = False  # of these arrays, which are views or copies
        next_state = self._of_shape("transition", self.transition(state, actions, tasks, noise), state.shape)
        if not next_state.flags.writeable:  # the same state
            next_state = next_state.copy()
        per_row = (len(state),)
        failed = self._of_shape("broken", self.broken(next_state, tasks), per_row)
        any_failed = bool(failed.any())
        if any_failed:
            next_state[failed] = state[failed]
        rewards = self._of_shape("reward", self.reward(state, actions, next_state, tasks, noise), per_row)
        terminated = self._of_shape("terminated", self.terminated(next_state, tasks), per_row)
        if any_failed:  # what the family returned may be a part of its state
            rewards, terminated = np.where(failed, 0.0, rewards), terminated & ~failed
        if len(state) == self.num_envs:
            self._state = next_state
        else:
            self._state[rows] = next_state
        return rewards, terminated, failed

    def snapshot(self, index: int) -> Array:
        """Renders one environment in its current state, (height, width, 3) uint8."""
        if self._seeds is None:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before rendering.")
        return self.frame(self._state[index], self.tasks[index])


class TaskEnv(gymnasium.Env[Any, Any]):
    """A single environment of a native family: its vector environment with N = 1, without the batch axis.

    A subclass names its family: `vector_class = MyFamilyVectorEnv`. Options and tasks are those of
    `TaskVectorEnv`, with one task of shape (D,). There too, the step after the end of an episode begins a new one.
    """

    vector_class: ClassVar[type[TaskVectorEnv]]
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        self._env = self.vector_class(num_envs=1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._env.metadata["render_fps"]}
        self.task_space, self.all_tasks = self._env.task_space, self._env.all_tasks
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    @property
    def task(self) -> Array:
        """The task in force, (D,)."""
        return np.asarray(self._env.tasks[0])

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws tasks (M, D) from p(T); see `TaskVectorEnv.sample_tasks`."""
        return self._env.sample_tasks(num_tasks, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws held-out tasks (M, D); see `TaskVectorEnv.sample_test_tasks`."""
        return self._env.sample_test_tasks(num_tasks, rng)

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D); see `TaskVectorEnv.task_problem`."""
        return self._env.task_problem(tasks)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts a new episode. The options {"task": task} set the task, (D,)."""
        super().reset(seed=seed)
        if options and "task" in options:
            options = {**options, "task": [checked_task(self._env.name, self.task_space, options["task"])]}
        observations, info = self._env.reset(seed=seed, options=options)
        return observations[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps once; see `TaskVectorEnv.step`."""
        observations, rewards, terminated, truncated, info = self._env.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in info.items()}
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Array | None:
        """Renders the environment in its current state. Returns None without a render mode."""
        frames = self._env.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Closes the vector environment."""
        self._env.close()
