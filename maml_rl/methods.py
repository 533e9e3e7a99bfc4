"""What a meta-learning method is, and the registry of methods.

A method of your own is a class like this protocol and one line: `METHODS["mine"] = Mine`. Then
`Config(method="mine")` trains it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .maml.method import MAML
from .rl2 import RL2
from .sampling.actors import Actor
from .sampling.rollouts import Rollouts
from .sampling.spaces import Array


class Method(Protocol):
    """A meta-learning method with its options: it collects the phases of a batch, and updates θ from them.

    It is made from a `Config` and raises `UserError` for options that make no sense together.

    Attributes:
        config: The options.
        unit: What separates the phases of a batch, in the singular: "step" or "episode".
        num_adaptations: How many times policies adapt in training. A batch has one phase more.
        name: What evaluations call the method.
        label: What comparisons call it: its name in the literature.
    """

    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def num_adaptations(self) -> int: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102

    def learners(self, num_rollouts: int) -> int:
        """How many learners share K rollouts of a task: 1 if all adapt one policy, K if each adapts its own."""

    def make_policy(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        generator: torch.Generator,
        task_size: int,
    ) -> nn.Module:
        """Makes a new policy for the spaces of one environment. `task_size` is D if it observes the task, or 0."""

    def prepare(self, policy: nn.Module, input_size: int) -> None:
        """Checks that a policy of `input_size` inputs fits, and adds what the method learns to its parameters."""

    def collect(
        self,
        env: VectorFamily,
        policy: nn.Module,
        theta: Tensor,
        tasks: Array,
        num_rollouts: int,
        seeds: np.random.SeedSequence,
        lr_factors: Sequence[float] | None = None,
    ) -> Iterator[Rollouts]:
        """Collects the phases of a batch, adapting in between.

        Args:
            env: M·K environments.
            policy: The policy module.
            theta: θ, the same for all tasks at first, (P,), on the learner's device.
            tasks: (M, D).
            num_rollouts: K, rollouts of each task in each phase.
            seeds: The source of the streams of all phases.
            lr_factors: A factor on the step size for each adaptation; by default 1 for each of `num_adaptations`.

        Yields:
            Rollouts with advantages, (M, K, H, ...), on θ's device: before each adaptation and after the last one.
            A phase is collected when it is asked for, so a thousand phases need no more memory than one.

        Raises:
            UserError: If parameters, observations or rewards are not finite, or environments fail.
        """

    def update(
        self, policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts]
    ) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
        """Takes one outer step.

        Args:
            policy: The policy module.
            theta: θ, (P,).
            optimiser_state: What the previous update returned; {} at first. Numbers, strings and tensors in lists
                and dictionaries. It is stored in checkpoints.
            batches: All phases from `collect`.

        Returns:
            The next θ, the next state, and figures that are logged under `outer/`.
        """

    def adapted(
        self, policy: nn.Module, theta: Tensor, batches: Sequence[Rollouts], lr_factors: Sequence[float]
    ) -> Actor:
        """The policies after they adapted to phases (m, K, H, ...), one phase for each factor on the step size."""


METHODS: dict[str, Callable[[Config], Method]] = {"maml": MAML, "rl2": RL2}


def method_of(config: Config) -> Method:
    """The method that the options choose.

    Raises:
        UserError: If there is no method of that name, or it refuses its options.
    """
    name = config.method or ("rl2" if config.rl2_episodes else "maml")
    if name not in METHODS:
        raise UserError(f"method is {name!r}, but must be one of {', '.join(METHODS)}.")
    return METHODS[name](config)


def curve_name(method: Method) -> str:
    """What evaluations call the run: its method, or "scratch" if it is not trained at all."""
    return method.name if method.config.iterations else "scratch"
