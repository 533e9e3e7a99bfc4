"""What a meta-learning method is, and the registry of methods.

To add a method, write a class with this protocol and register it: `METHODS["mine"] = Mine`. Then
`Config(method="mine")` selects it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from .config import Config
from .envs import SupervisedFamily, VectorFamily
from .errors import UserError
from .maml.method import MAML
from .rl2 import RL2
from .sampling.actors import Actor
from .sampling.examples import learns_from_examples
from .sampling.rollouts import Rollouts
from .sampling.spaces import Array


class Method(Protocol):
    """A meta-learning method with its options. It collects the phases of a batch and updates θ from them.

    The constructor takes a `Config` and raises `UserError` for options that make no sense together.

    Attributes:
        config: The options.
        unit: What one adaptation is called: "step" or "episode".
        num_adaptations: How many times a policy adapts in training. A batch has one more phase.
        name: The method's name in evaluations.
        label: The method's name in comparisons, as in the literature.
        independent_learners: Whether each of the K rollouts of a task belongs to a learner of its own. If not, all
            of them adapt one policy.
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
    @property
    def independent_learners(self) -> bool: ...  # noqa: D102

    def make_policy(self, env: VectorFamily, generator: torch.Generator) -> nn.Module:
        """Makes a policy for the spaces of a family. The generator draws its parameters."""

    def prepare(self, policy: nn.Module, env: VectorFamily) -> None:
        """Checks that a policy fits a family, and adds the method's own learned parameters."""

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
        """Collects the phases of a batch, and adapts in between.

        Args:
            env: M·K environments.
            policy: The policy module.
            theta: θ, the same for all tasks at first, (P,), on the learner's device.
            tasks: (M, D).
            num_rollouts: K, rollouts of each task in each phase.
            seeds: The source of the streams. Its spawned children belong to the phases, in order.
            lr_factors: A factor on the step size for each adaptation; by default 1 for each of `num_adaptations`.

        Yields:
            Rollouts with advantages, (M, K, H, ...), on θ's device: before each adaptation and after the last one.
            A phase is collected only when it is requested, so many phases need no more memory than one.

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
        """Returns the policies adapted to phases (m, K, H, ...), with one factor on the step size per phase."""


METHODS: dict[str, Callable[[Config], Method]] = {"maml": MAML, "rl2": RL2}


def method_of(config: Config) -> Method:
    """Returns the method that the options select.

    Raises:
        UserError: If there is no method of that name, or it rejects the options.
    """
    name = config.chosen_method
    if name not in METHODS:
        raise UserError(
            f"method is {name!r}, but must be one of {', '.join(METHODS)}; import the module that registers a "
            "method of your own first, or pass --trust to a command that reads runs."
        )
    if config.rl2_episodes and name != "rl2":
        raise UserError(
            f"rl2_episodes is {config.rl2_episodes}, but the method is {name!r}; choose method rl2, or leave "
            "rl2_episodes out."
        )
    method = METHODS[name](config)
    if method.name == "random":
        raise UserError("A method cannot have the name 'random', which is the untrained policy's; choose another.")
    return method


def adapts_to_examples(env: VectorFamily, method: Method) -> TypeGuard[SupervisedFamily]:
    """Returns whether a policy adapts to a set of K examples. Learners that have one rollout each cannot."""
    return learns_from_examples(env, method.config) and not method.independent_learners


def curve_name(config: Config) -> str:
    """Returns a run's name in evaluations: its method, or "scratch" if it is not trained at all."""
    return method_of(config).name if config.iterations else "scratch"
