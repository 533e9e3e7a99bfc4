"""The interface that the learner uses: N environments, each with a task of its own."""

import copy
import os
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class BrokenEnvironmentError(RuntimeError):
    """An environment raised an error, or its process died or hung, or it returned what it must not.

    The message says which one. If the environment raised an error, it has the traceback.
    """


def num_cores() -> int:
    """Returns how many cores this process may use. Processes that torchrun started on this machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_words(thing: Array | spaces.Space[Any]) -> str:
    """Writes a task or a space for a message. Long arrays are shortened to their first and last numbers."""
    if isinstance(thing, spaces.Box):
        low, high = (
            str(bound.flat[0]) if bound.size and (bound == bound.flat[0]).all() else in_words(bound)
            for bound in (thing.low, thing.high)
        )
        return f"Box({low}, {high}, {thing.shape}, {thing.dtype})"
    return np.array2string(thing, precision=4, threshold=12) if isinstance(thing, np.ndarray) else str(thing)


def converted(values: Array, dtype: np.dtype[Any]) -> Array:
    """Converts numbers to a type of the same or a more general kind, as floats are for integers.

    Raises:
        TypeError: If the type is of a less general kind, or cannot hold one of the integers.
    """
    integers = values.dtype.kind in "iu" and dtype.kind in "iu"
    if integers or np.can_cast(values.dtype, dtype, "same_kind"):
        result = values.astype(dtype, copy=False)
        if not integers or (result == values).all():
            return result
    raise TypeError(f"{in_words(values)} are not {dtype} numbers")


def checked_task(name: str, space: spaces.Space[Any], task: Any) -> Array:
    """Converts the task of a single environment to an array of the task space's type, (D,).

    Raises:
        ValueError: If it is not in the task space.
    """
    return _in_task_space(name, space, task, None, "options['task']")


def _in_task_space(name: str, space: spaces.Space[Any], tasks: Any, num_tasks: int | None, source: str) -> Array:
    """Converts n tasks, (n, D), or a single one, (D,), where n is None; see `VectorFamily.checked_tasks`."""
    whole, each = (space, "") if num_tasks is None else (batch_space(space, num_tasks), ", one task per row")
    try:
        checked = converted(np.array(tasks), np.dtype(space.dtype))  # a copy, which the caller cannot change
    except (TypeError, ValueError) as error:
        what = "a task" if num_tasks is None else "an array of tasks"
        raise ValueError(
            f"{name}: {source} is not an array of {space.dtype} numbers; it must be {what} of the task space "
            f"{in_words(space)}{each}."
        ) from error
    expected = whole.shape or ()
    if checked.shape != expected:
        raise ValueError(
            f"{name}: {source} has shape {checked.shape}, but must have shape {expected}{each}; the task space is "
            f"{in_words(space)}."
        )
    if not whole.contains(checked):
        rows = checked.reshape(-1, *(space.shape or ()))
        outside = np.asarray(next(task for task in rows if not space.contains(task)))
        raise ValueError(
            f"{name}: {source} has the task {in_words(outside)}, which is not in the task space "
            f"{in_words(space)}; choose one that is."
        )
    return checked


class VectorFamily(VectorEnv[Any, Any, Any]):
    """N environments of one task family. The learner uses only this interface.

    `reset(options={"task": tasks})` sets the tasks, of shape (N, D). They stay in force through all later resets
    and auto-resets until new ones are given. Before that, all environments have the same fixed, arbitrary task.

    Args:
        num_envs: The number of environments N.
        max_episode_steps: The horizon H, after which an episode is truncated. None means no horizon.
        render_mode: None or "rgb_array".

    Attributes:
        task_space: The space of one task, usually a `Box` of D numbers.
        all_tasks: Every task there is, (n, D), if p(T) has only a few. Held-out tasks are then tasks that training
            has seen. None if p(T) has more tasks than can be listed.
        tasks: The tasks in force, (N, D).
        quiet: Whether new environments send a simulator's warnings to the log. The command line switches it on.
    """

    quiet: ClassVar[bool] = False
    task_space: spaces.Space[Any]
    all_tasks: Array | None = None

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None, render_mode: str | None = None):
        # A space has a random generator, which environments must not share through an attribute of their class.
        for attribute in ("task_space", "single_observation_space", "single_action_space"):
            shared = getattr(type(self), attribute, None)
            if isinstance(shared, spaces.Space) and attribute not in vars(self):
                setattr(self, attribute, copy.deepcopy(shared))
        if num_envs < 1:
            raise ValueError(f"{self.name}: num_envs is {num_envs}, but must be at least 1.")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"{self.name}: max_episode_steps is {max_episode_steps}, but must be at least 1.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"{self.name}: render_mode is {render_mode!r}, but must be None or one of "
                f"{self.metadata['render_modes']}."
            )
        space = self.task_space
        if space.dtype is None or space.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.name}: task_space is {space}, but must be a Box, Discrete, MultiDiscrete or MultiBinary."
            )
        if self.all_tasks is not None and np.ndim(self.all_tasks) != 1 + len(space.shape or ()):
            raise ValueError(
                f"{self.name}: all_tasks has shape {np.shape(self.all_tasks)}, but must be an array of tasks, "
                "(n, D), and no method."
            )
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self._resize(num_envs)

    def _resize(self, num_envs: int) -> None:
        """Sets everything that depends on the number of environments, as if the object were new."""
        self._set_size(num_envs)
        first = self.checked_tasks(self.sample_tasks(1, np.random.default_rng(0)), 1, "the result of sample_tasks")
        self.tasks = np.repeat(first, num_envs, axis=0)

    def _set_size(self, num_envs: int) -> None:
        """Sets the number of environments, and the spaces of all of them together."""
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def name(self) -> str:
        """The family's name in messages."""
        return type(self).__name__

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws tasks from p(T), by default uniformly from a bounded or discrete `task_space`.

        `all_tasks` are dealt out in random order. In an iteration, all occur equally often, give or take one.
        Otherwise, its meta-gradient would follow those tasks that happen to be more frequent.

        Args:
            num_tasks: The number of tasks M.
            rng: The only source of randomness.

        Returns:
            The tasks, (M, D).
        """
        if self.all_tasks is not None:
            return np.asarray(self.all_tasks)[np.resize(rng.permutation(len(self.all_tasks)), num_tasks)]
        space, shape = self.task_space, (num_tasks, *(self.task_space.shape or ()))
        if isinstance(space, spaces.Box) and space.is_bounded():
            if np.issubdtype(space.dtype, np.integer):
                return rng.integers(space.low, space.high, size=shape, endpoint=True).astype(space.dtype)
            return rng.uniform(space.low, space.high, size=shape).astype(space.dtype)
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            number = space.n if isinstance(space, spaces.Discrete) else space.nvec
            return (space.start + rng.integers(number, size=shape)).astype(space.dtype)
        raise NotImplementedError(
            f"{self.name}: sample_tasks draws uniformly from a bounded Box, Discrete or MultiDiscrete space, but "
            f"task_space is {space}; define sample_tasks(num_tasks, rng) in the family."
        )

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws held-out tasks (M, D). By default `all_tasks` in turn, some of them, or else tasks from p(T)."""
        if self.all_tasks is None or num_tasks < len(self.all_tasks):
            return self.sample_tasks(num_tasks, rng)
        return np.resize(self.all_tasks, (num_tasks, *np.shape(self.all_tasks)[1:]))

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D) that are in `task_space`. By default they must be among `all_tasks`, if it is set.

        Returns:
            A sentence that says what is wrong, or None if the tasks are valid.
        """
        if self.all_tasks is None:
            return None
        known = np.asarray(self.all_tasks).astype(tasks.dtype)
        for task in tasks:
            if not (known == task).reshape(len(known), -1).all(axis=1).any():
                listed = ", ".join(map(in_words, known[:5])) + ", ..." * (len(known) > 5)
                return f"the task {in_words(task)} does not exist; choose one of {listed}."
        return None

    def shares(self, num_tasks: int) -> list["VectorFamily"]:
        """Splits the environments into families that separate threads can step.

        This family must be reset before it is used again.

        Args:
            num_tasks: The number of tasks M. The N / M environments of a task stay together.
        """
        return [self]

    def abandon(self) -> None:
        """Ends what other threads still do in `shares`, after an error. By default, they finish their episodes."""

    def snapshot(self, index: int) -> Array:
        """Renders one environment in its current state, (height, width, 3) uint8."""
        raise NotImplementedError

    def render(self) -> tuple[Array, ...] | None:
        """Renders every environment in its current state. Returns None without a render mode."""
        return None if self.render_mode is None else tuple(self.snapshot(i) for i in range(self.num_envs))

    def checked_tasks(self, tasks: Any, num_tasks: int, source: str = "options['task']") -> Array:
        """Converts tasks to an array of the task space's type, (n, D).

        Args:
            tasks: What should be an array of tasks.
            num_tasks: The expected number of tasks n.
            source: Where the tasks are from, for the message.

        Raises:
            ValueError: If they are not n valid tasks.
        """
        checked = _in_task_space(self.name, self.task_space, tasks, num_tasks, source)
        if problem := self.task_problem(checked):
            raise ValueError(f"{self.name}: {source}: {problem}")
        checked.flags.writeable = False
        return checked

    def _given_tasks(self, options: dict[str, Any] | None) -> Array:
        """Returns the tasks (N, D) that the options of `reset` set, or else those in force."""
        options = options or {}
        if unknown := sorted(options.keys() - {"task"}):
            raise ValueError(f"{self.name}: reset has no option {unknown[0]!r}; its only option is 'task'.")
        return self.checked_tasks(options["task"], self.num_envs) if "task" in options else self.tasks

    def _checked_seeds(self, seed: int | list[int] | None) -> Array:
        """Returns a seed for each environment, (N,): the given ones, or s, s + 1, ...; s is random if None."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = np.asarray(seed) if np.ndim(seed) else np.asarray(seed) + np.arange(self.num_envs)
        if seeds.shape != (self.num_envs,):
            raise ValueError(
                f"{self.name}: got {seeds.size} seeds for {self.num_envs} environments; give one seed, or one "
                "for each environment."
            )
        if (seeds < 0).any():
            raise ValueError(f"{self.name}: the seed is {seeds.min()}, but must be at least 0.")
        return seeds

    def _checked_actions(self, actions: Array) -> Array:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(
                f"{self.name}: actions have shape {actions.shape}, but must have {self.action_space.shape}."
            )
        of_numbers = isinstance(self.single_action_space, spaces.Box)
        if not of_numbers and (actions.dtype.kind not in "biu" or not self.action_space.contains(actions)):
            raise ValueError(
                f"{self.name}: the actions {in_words(actions)} are not all in {self.single_action_space}."
            )
        return actions
