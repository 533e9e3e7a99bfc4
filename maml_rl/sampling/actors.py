"""How policies act in many environments at once."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..policies import Distribution
from ..policies.batched import per_task
from .normalisation import normaliser


class Actor(Protocol):
    """The policies of M tasks, acting step by step in K environments of each.

    Attributes:
        remembers: Whether `observe` influences later actions.
    """

    remembers: bool

    def act(self, observations: Tensor) -> tuple[Tensor, Distribution]:
        """Acts on observations (M, K, O).

        Returns:
            The policies' inputs, (M, K, ...), and the distributions of their actions, of tensors (M, K, ...).
        """

    def observe(
        self, actions: Tensor, rewards: npt.NDArray[Any], ended: npt.NDArray[Any], alive: npt.NDArray[np.bool_]
    ) -> None:
        """Takes note of the result of a step.

        Args:
            actions: As drawn, (M, K, A), or (M, K) if discrete.
            rewards: (M·K,).
            ended: Whether the episode ended with the step, (M·K,) bool.
            alive: Whether the step was taken, (M·K,) bool.
        """

    def rows(self, tasks: slice) -> "Actor":
        """Returns the actor of some of the tasks. It shares its memory with this one."""


class TaskPolicies:
    """An actor without memory. Each task's policy has its own parameters and sees only the current observation.

    Args:
        policy: The policy module.
        thetas: Each task's parameters, (M, P).
        seen_tasks: The tasks as inputs of the policies, in addition to the observation, (M, D), or None.
    """

    remembers = False

    def __init__(self, policy: nn.Module, thetas: Tensor, seen_tasks: Tensor | None = None):
        self.policy, self.thetas, self.seen_tasks = policy, thetas, seen_tasks

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the prepared policies, which cannot be pickled and are prepared again."""
        return {name: value for name, value in vars(self).items() if name != "_policies"}

    @cached_property
    def _policies(self) -> Any:
        return per_task(self.policy, self.thetas)

    @cached_property
    def _normalise(self) -> Callable[[Tensor], Tensor]:
        return normaliser(self.policy, self.thetas)

    def act(self, observations: Tensor) -> tuple[Tensor, Distribution]:
        """See `Actor`."""
        observations = self._normalise(observations)
        if self.seen_tasks is not None:
            seen = self.seen_tasks.unsqueeze(1).expand(-1, observations.shape[1], -1)
            observations = torch.cat([observations, seen], dim=-1)
        return observations, self._policies(observations)

    def observe(
        self, actions: Tensor, rewards: npt.NDArray[Any], ended: npt.NDArray[Any], alive: npt.NDArray[np.bool_]
    ) -> None:
        """Does nothing, because there is no memory."""

    def rows(self, tasks: slice) -> "TaskPolicies":
        """See `Actor`."""
        seen = None if self.seen_tasks is None else self.seen_tasks[tasks]
        return TaskPolicies(self.policy, self.thetas[tasks], seen)
