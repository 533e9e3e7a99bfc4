"""What a meta-learning method is, and the registry of methods.

To add a method, write a class with this protocol and register it: `METHODS["mine"] = Mine`. Then
`Config(method="mine")` selects it.
"""

from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from types import NoneType
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

from .config import Config
from .envs import SupervisedFamily, VectorFamily
from .errors import UserError
from .maml.method import MAML
from .rl2 import RL2
from .sampling.actors import Actor
from .sampling.examples import learns_from_examples
from .sampling.families import registered_id
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
            Rollouts (M, K, H, ...) on θ's device: before each adaptation and after the last one. They have
            advantages if `update` does not compute its own.
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
            The next θ, the next state, and metrics that are logged under `outer/`.
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
            f"method is {name!r}, but must be one of {', '.join(METHODS)}; first import the module that registers "
            "a method of your own. Commands import it if the env_id of the run names it, as in "
            f"my_module:{registered_id(config.env_id)}; those that read runs need --trust too."
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


def require_update(name: str, before: Tensor, theta: Any, optimiser_state: Any, metrics: Any) -> None:
    """Refuses results of `Method.update` that could not be used, saved or read again.

    Args:
        name: The name of the method.
        before: θ before the update, (P,).
        theta: What should be the next θ.
        optimiser_state: What should be the next state.
        metrics: What should be numbers for the log, by name.

    Raises:
        UserError: The message says what is wrong.
    """
    wrong = f"The method {name!r} returned from update"
    if not (isinstance(theta, Tensor) and (theta.shape, theta.dtype) == (before.shape, before.dtype)):
        found = (
            f"a {theta.dtype} tensor of shape {tuple(theta.shape)}" if isinstance(theta, Tensor) else repr(theta)
        )
        raise UserError(
            f"{wrong} {found} as θ, but must return a {before.dtype} tensor of shape {tuple(before.shape)}."
        )
    if type(optimiser_state) is not dict:
        raise UserError(f"{wrong} {optimiser_state!r} as its state, but must return a dictionary.")
    for path, leaf in tree_leaves_with_path(optimiser_state):
        # A checkpoint with anything else could not be read without running code.
        if not isinstance(leaf, Tensor) and type(leaf) not in (bool, int, float, str, NoneType):
            raise UserError(
                f"{wrong} a {type(leaf).__module__}.{type(leaf).__qualname__} at {keystr(path)} of its state, but "
                "must return numbers of Python, strings and tensors in lists and dictionaries; convert it, for "
                "example with float()."
            )
    if type(metrics) is not dict:
        raise UserError(f"{wrong} {metrics!r} as its metrics, but must return a dictionary of numbers.")
    for metric, value in metrics.items():
        if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)):
            raise UserError(f"{wrong} {value!r} as the metric {metric!r}, but must return a number.")


def adapts_to_examples(env: VectorFamily, method: Method) -> TypeGuard[SupervisedFamily]:
    """Returns whether a policy adapts to a set of K examples. Learners that have one rollout each cannot."""
    return learns_from_examples(env, method.config) and not method.independent_learners


def curve_name(config: Config) -> str:
    """Returns a run's name in evaluations: its method, or "scratch" if it is not trained at all."""
    return method_of(config).name if config.is_trained else "scratch"
