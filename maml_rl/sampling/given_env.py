"""An environment of the user's that already has its task, with the interface of a family."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from ..envs import TaskEnv, VectorFamily
from ..errors import UserError
from .spaces import Array

AnyEnv = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]


class GivenEnv(VectorFamily):
    """Wraps an environment, or a vector environment, whose task is already set. Resets do not change the task.

    Args:
        env: The environment.
        family: An environment of the run's family, for its spaces and horizon.

    Attributes:
        batched: Whether it is a vector environment.
        must_be_finite: Whether observations must be. Environments of a vector that rest may have others.
        autoreset: How a vector environment resets itself.
        raw_space: The space of one observation.
        flattens: Whether observations are flattened, as those of the run's family were.
        seeded: Whether resets pass on the learner's seeds.

    Raises:
        UserError: If the environment's spaces differ from those of the family.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    task_space = spaces.Box(0.0, 0.0, (0,), np.float64)

    def __init__(self, env: AnyEnv, family: VectorFamily):
        self.batched, self.seeded = isinstance(env, VectorEnv), False
        if isinstance(env, VectorEnv):
            self.raw_space, num_envs = env.single_observation_space, env.num_envs
            self.single_action_space = env.single_action_space
        else:
            self.raw_space, num_envs = env.observation_space, 1
            self.single_action_space = env.action_space
        self._env, self._any_number = env, env is family  # of examples
        self.must_be_finite = self._any_number or not self.batched
        of_run = family.single_observation_space
        self.flattens = (type(self.raw_space), self.raw_space.shape) != (type(of_run), of_run.shape)
        self.single_observation_space = spaces.flatten_space(self.raw_space) if self.flattens else self.raw_space
        for name in ("single_observation_space", "single_action_space"):
            ours, wanted = getattr(self, name), getattr(family, name)
            if ours != wanted:
                what = name.removeprefix("single_").replace("_", " ")
                raise UserError(f"The environment's {what} is {ours}, but the run was trained with {wanted}.")
        inside = env.unwrapped
        tasks = _known_tasks(inside)
        if (tasks != tasks[:1]).any():
            raise UserError(
                "The environments have different tasks, but a policy adapts to one; set the same task in each, as "
                "in env.reset(options={'task': [task] * num_envs})."
            )
        super().__init__(num_envs, family.max_episode_steps)
        self._reports_failures = isinstance(inside, VectorFamily | TaskEnv)
        self.autoreset = env.metadata.get("autoreset_mode") if self.batched else None
        # Families of this package rest until they are reset as a whole.
        rests = isinstance(inside, VectorFamily)
        self._reset_by_hand = self.autoreset == AutoresetMode.DISABLED and not rests
        self._ended, self._steps = np.zeros(num_envs, bool), 0

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the environment out, because adapted policies are pickled, and only collecting needs it."""
        return {**vars(self), "_env": None}

    @property
    def name(self) -> str:
        """The environment's name in messages."""
        return str(self._env)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. The option "task" is ignored."""
        # Environments that use RandomState accept seeds of at most 32 bits.
        observations, info = self._env.reset(seed=seed % 2**31 if self.seeded else None)
        self._ended, self._steps = np.zeros(self.num_envs, bool), 0
        return self.as_rows(observations), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps once. Arrays are (N, ...)."""
        if self.batched:
            if self._reset_by_hand and self._ended.any():
                self._env.reset(options={"reset_mask": self._ended.copy()})
            observations, rewards, terminated, truncated, info = self._env.step(actions)
        else:
            observations, reward, *ends, info = self._env.step(actions[0])
            rewards, (terminated, truncated) = np.array([reward]), np.array(ends, bool)[:, None]
        self._ended = np.asarray(terminated | truncated, bool)
        self._steps += 1
        truncated = truncated | (self._steps == self.max_episode_steps)  # the run's horizon may be shorter
        failed = {"failed": np.atleast_1d(info["failed"])} if self._reports_failures and "failed" in info else {}
        return self.as_rows(observations), rewards, terminated, truncated, failed

    def as_rows(self, observations: Any) -> Array:
        """Copies observations as numbers, (N, ...), flattened if the family's were.

        Raises:
            UserError: If they do not have the form of the observation space.
        """
        try:
            if self.flattens:
                batched = batch_space(self.raw_space, self.num_envs)
                several = iterate(batched, observations) if self.batched else [observations]
                rows = np.stack([np.array(spaces.flatten(self.raw_space, one)) for one in several])
            else:
                rows = np.array(observations)  # environments may reuse their arrays
                rows = rows if self.batched else rows[None]
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"An observation is {observations!r}, which is not in {self.raw_space} ({error}); pass what the "
                "environment returned."
            ) from error
        number = len(rows) if self._any_number and rows.ndim else self.num_envs
        expected = (number, *(self.single_observation_space.shape or ()))
        if rows.shape != expected and self._any_number:
            wanted = ", ".join(["n", *map(str, expected[1:])])
            raise UserError(
                f"The inputs have shape {rows.shape}, but must have shape ({wanted}): a value of {self.raw_space} "
                "in each row."
            )
        if rows.shape != expected:
            of_each = f" for each of {self.num_envs} environments" * self.batched
            raise UserError(
                f"An observation has shape {rows.shape[not self.batched :]}, but must be in {self.raw_space}"
                f"{of_each}; pass what the environment returned."
            )
        return rows


def _known_tasks(env: Any) -> Array:
    """The tasks (N, D) of a vector environment, as far as they can be seen from here; else none, (0, 0)."""
    if isinstance(env, VectorFamily):
        return env.tasks
    if isinstance(env, SyncVectorEnv) and all(isinstance(single.unwrapped, TaskEnv) for single in env.envs):
        return np.stack([single.get_wrapper_attr("task") for single in env.envs])
    return np.empty((0, 0))
