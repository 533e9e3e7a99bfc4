"""Single environments stepped one after the other, and what the first of them says of its family."""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation

from .family import Array, Bools, converted, in_words
from .opengl import opengl_chosen

Env = gymnasium.Env[Any, Any]
_log = logging.getLogger(__name__)


def reset_with_task(env: Env, task: Array, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Resets an environment with a task (D,), set by `set_task` if it has that, or else by the option "task"."""
    if env.has_wrapper_attr("set_task"):
        env.get_wrapper_attr("set_task")(task)
        return env.reset(seed=seed)
    return env.reset(seed=seed, options={"task": task})


def make_flat(spec: EnvSpec | str, render_mode: str | None = None, **kwargs: Any) -> Env:
    """Makes an environment as `gymnasium.make` does, with observations of a one-dimensional Box or Discrete space.

    Raises:
        ValueError: If the observations cannot be flattened to a fixed number of numbers.
    """
    if render_mode is not None:  # not every class has this argument
        kwargs["render_mode"] = render_mode
    env: Env = gymnasium.make(spec, **kwargs)
    space = env.observation_space
    if not isinstance(space, spaces.Discrete) and not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        try:
            env = FlattenObservation(env)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(_NOT_FLAT.format(env.spec.id if env.spec else env, space)) from error
    flat = env.observation_space
    if not isinstance(flat, spaces.Discrete) and not (isinstance(flat, spaces.Box) and flat.shape[0]):
        raise ValueError(_NOT_FLAT.format(env.spec.id if env.spec else env, space))
    return env


_NOT_FLAT = (
    "{}: observations of {} cannot be flattened to a fixed number of numbers; wrap the environment so that they "
    "can, for example without texts and sequences"
)


# Errors of a constructor whose messages say which argument is wrong, or what is not installed.
_REFUSALS = (gymnasium.error.Error, ImportError, TypeError, ValueError)


class Description(NamedTuple):
    """What an environment says of its family.

    Attributes:
        task_space: Its attribute of that name, of any type, or None.
        all_tasks: Its attribute of that name, or None.
        observation_space: The space of its flat observations.
        action_space: The space of its actions.
        render_fps: Pictures per second.
        methods: Which of `OWN_METHODS` it has.
        takes_tasks: Whether its task can be set.
    """

    task_space: Any
    all_tasks: Any
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    render_fps: int
    methods: frozenset[str]
    takes_tasks: bool


OWN_METHODS = ("sample_tasks", "sample_test_tasks", "task_problem")


def refusal(method: str, error: BaseException) -> type[Exception] | None:
    """Returns the type of an error by which a constructor refuses its arguments, or None for other errors."""
    if method != "make":
        return None
    return next((kind for kind in _REFUSALS if isinstance(error, kind)), None)


class Slots:
    """Environments of one process, stepped one after the other.

    Attributes:
        progress: [number of calls begun, slot of the latest call], written before each call.
    """

    def __init__(self, first: int, progress: Array):
        self.first, self.progress = first, progress
        self.envs: list[Env] = []

    def begin(self, row: int) -> None:
        """Notes that a call of the environment in a row begins."""
        self.progress[:] = self.progress[0] + 1, self.first + row

    def make(self, make: Callable[[], Env], num_envs: int) -> int:
        """Makes the environments. Returns how many bytes of memory they and what they import take."""
        before = _resident()
        for row in range(num_envs):
            self.begin(row)
            self.envs.append(make())
        return _resident() - before

    def describe(self) -> Description:
        """Returns what the first environment says of the family."""
        self.begin(0)
        env = self.envs[0]
        task_space, all_tasks = (
            env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
            for name in ("task_space", "all_tasks")
        )
        by_option = inspect.signature(env.unwrapped.reset).parameters.keys() & {"options", "kwargs"}
        return Description(
            task_space,
            all_tasks,
            env.observation_space,
            env.action_space,
            env.metadata.get("render_fps") or 30,
            frozenset(filter(env.has_wrapper_attr, OWN_METHODS)),
            bool(by_option) or env.has_wrapper_attr("set_task"),
        )

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Draws tasks with the first environment's own method. Returns them, and the state of `rng` afterwards."""
        self.begin(0)
        return self.envs[0].get_wrapper_attr("sample_tasks")(num_tasks, rng), rng.bit_generator.state

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Draws held-out tasks in the same way."""
        self.begin(0)
        return self.envs[0].get_wrapper_attr("sample_test_tasks")(num_tasks, rng), rng.bit_generator.state

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D) with the first environment's own method."""
        self.begin(0)
        problem: str | None = self.envs[0].get_wrapper_attr("task_problem")(tasks)
        return problem

    def reset(self, seeds: Array, tasks: Array) -> tuple[Array]:
        """Resets all environments with seeds (n,), where -1 is none, and tasks (n, D)."""
        space = self.envs[0].observation_space
        observations = np.empty((len(self.envs), *(space.shape or ())), space.dtype)
        for row, env in enumerate(self.envs):
            self.begin(row)
            seed = None if seeds[row] < 0 else int(seeds[row])
            observation, _ = reset_with_task(env, tasks[row].copy(), seed)  # which the environment may change
            observations[row] = _checked(observation, observations)
        return (observations,)

    def step(self, actions: Array, alive: Bools, before: Array) -> tuple[Array, ...]:
        """Steps the environments that are alive; the others keep their observation from before."""
        observations = before.copy()
        rewards = np.zeros(len(alive))
        terminated, truncated, reported, success = np.zeros((4, len(alive)), dtype=bool)
        for row in np.flatnonzero(alive).tolist():
            self.begin(row)
            observation, reward, ended, cut, info = self.envs[row].step(actions[row])
            observations[row] = _checked(observation, observations)
            rewards[row] = reward if type(reward) is float else _number("reward", reward, "biuf")
            terminated[row] = ended if type(ended) is bool else _number("terminated", ended, "b")
            truncated[row] = cut if type(cut) is bool else _number("truncated", cut, "b")
            if "success" in info:
                reported[row], success[row] = True, bool(info["success"])
        return observations, rewards, terminated, truncated, reported, success

    def render(self, row: int) -> Array:
        """Renders one environment."""
        self.begin(row)
        with opengl_chosen():
            picture = np.asarray(self.envs[row].render())
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise TypeError(
                f"a picture has shape {picture.shape} and type {picture.dtype}, but must be (height, width, 3) of "
                "uint8; check that render_mode is passed on"
            )
        return picture

    def close(self) -> None:
        """Closes all environments."""
        while self.envs:
            close(self.envs.pop())


def _resident() -> int:
    """Bytes of memory that this process uses, or 0 on systems that do not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def close(env: Env) -> None:
    """Closes an environment. If it fails, that is only logged, because its work is done."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        _log.warning("%s raised %r in close", env.spec.id if env.spec else env, error)


def _checked(observation: Any, observations: Array) -> Array:
    """Refuses an observation that NumPy would silently broadcast or convert to the observations' type."""
    array = np.asarray(observation)
    if array.shape == observations.shape[1:]:
        with contextlib.suppress(TypeError):
            return converted(array, observations.dtype)
    raise TypeError(
        f"the observation {in_words(array)} has shape {array.shape} and type {array.dtype}, but its space has "
        f"shape {observations.shape[1:]} and type {observations.dtype}"
    )


def _number(name: str, value: Any, kinds: str) -> Any:
    """Refuses values that NumPy would silently convert, such as the reward "1.5"."""
    array = np.asarray(value)
    if array.shape or array.dtype.kind not in kinds:
        raise TypeError(f"{name} is {value!r}, but must be a {'bool' if kinds == 'b' else 'number'}")
    return array[()]
