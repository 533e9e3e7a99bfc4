"""Policies: stateless modules from observations (N, O) to an action distribution.

A policy's parameters θ are one flat tensor of P numbers; the module sees them unflattened at the call
only. Any `torch.nn.Module` that returns a distribution of `maml_rl.distributions` is a policy.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .distributions import Categorical, Distribution, Normal
from .errors import UserError

# exp(-13.8) = 1e-6: below it, log-probabilities of float32 actions mean nothing.
MIN_LOG_STD = -13.8


class Linear(nn.Linear):
    """A linear layer whose parameters may have a leading task axis: weight (M, out, in), bias (M, out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., N, in) to (..., N, out)."""
        return input @ self.weight.mT + self.bias.unsqueeze(-2)


class GaussianMLP(nn.Module):
    """A multi-layer perceptron for the mean, and a standard deviation that does not depend on the state."""

    def __init__(self, observation_size: int, num_actions: int, hidden_sizes: tuple[int, ...], std: float):
        super().__init__()
        self.mean = _mlp(observation_size, *hidden_sizes, num_actions)
        self.log_std = nn.Parameter(torch.full((num_actions,), math.log(std)))

    def forward(self, observations: Tensor) -> Normal:
        """The distribution of actions (..., N, A) at observations (..., N, O)."""
        mean = self.mean(observations)
        return Normal(mean, self.log_std.clamp(min=MIN_LOG_STD).unsqueeze(-2).expand_as(mean))


class CategoricalMLP(nn.Module):
    """A multi-layer perceptron for the logits."""

    def __init__(self, observation_size: int, num_actions: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.logits = _mlp(observation_size, *hidden_sizes, num_actions)

    def forward(self, observations: Tensor) -> Categorical:
        """The distribution of actions (..., N) at observations (..., N, O)."""
        return Categorical(self.logits(observations))


def _mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, next_size in pairwise(sizes):
        # Parameters are filled in by `initialise`, from a generator of the run's own.
        layers += [nn.utils.skip_init(Linear, size, next_size), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def initialise(policy: nn.Module, generator: torch.Generator) -> None:
    """Draws all weight matrices from Glorot's uniform distribution and sets all biases to 0, in place.

    The last layer's are 100 times smaller, so that the first policy is the same everywhere: what it does
    at first comes from its noise (Andrychowicz et al., arXiv:2006.05990, section 3.2). With a last layer
    of full size, some seeds of 2D navigation start on a path to nowhere and never find back.
    """
    layers = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, gain=0.01 if layer is layers[-1] else 1.0, generator=generator)
        nn.init.zeros_(layer.bias)


def make_policy(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    hidden_sizes: tuple[int, ...],
    initial_std: float,
    generator: torch.Generator,
) -> nn.Module:
    """A new policy for the spaces of a single environment.

    Args:
        observation_space: A Box of O numbers, or Discrete with O values (seen one-hot).
        action_space: A Box of A numbers (Gaussian policy) or Discrete with A values (categorical policy).
        hidden_sizes: Widths of the hidden layers.
        initial_std: The Gaussian policy's first standard deviation.
        generator: The source of the first parameters.

    Raises:
        UserError: If a space is of another kind.
    """
    observation_size = flat_size(observation_space, "observation")
    num_actions = flat_size(action_space, "action")
    policy: nn.Module
    if isinstance(action_space, spaces.Discrete):
        policy = CategoricalMLP(observation_size, num_actions, hidden_sizes)
    else:
        policy = GaussianMLP(observation_size, num_actions, hidden_sizes, initial_std)
    initialise(policy, generator)
    return policy


def flat_size(space: spaces.Space, role: str) -> int:
    """The O or A of a space: the length of a flat Box, the number of values of a Discrete one."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    raise UserError(
        f"The {role} space is {space}, but the policies here need a one-dimensional Box or a Discrete space; "
        "wrap the environment so that it has one."
    )


def flatten(policy: nn.Module) -> Tensor:
    """The parameters of a module as one tensor, (P,)."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def load(policy: nn.Module, theta: Tensor) -> None:
    """Copies θ (P,) into the module's own parameters, in place."""
    nn.utils.vector_to_parameters(theta.clone(), policy.parameters())


def unflatten(policy: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Views of θ (..., P) under the names and in the shapes of the module's parameters."""
    parameters = dict(policy.named_parameters())
    parts = theta.split([parameter.numel() for parameter in parameters.values()], dim=-1)
    return {
        name: part.unflatten(-1, parameter.shape)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def act(policy: nn.Module, theta: Tensor, observations: Tensor) -> Distribution:
    """π_θ: the distribution of actions at observations (N, O) under parameters θ (P,)."""
    return functional_call(policy, unflatten(policy, theta), (observations,))


def per_task(policy: nn.Module, theta: Tensor) -> Callable[[Tensor], Distribution]:
    """Each task's own policy, for many calls.

    Args:
        policy: The policy module.
        theta: Each task's own parameters, (M, P).

    Returns:
        A function from each task's own observations (M, N, O) to distributions of tensors (M, N, ...).
    """
    parameters = unflatten(policy, theta)
    if not isinstance(policy, GaussianMLP | CategoricalMLP):
        # A copy of its own: functional_call changes the module for the time of the call, and the halves of a
        # MuJoCo family are collected at the same time.
        own = copy.deepcopy(policy)
        batched = vmap(lambda parameters, observations: functional_call(own, parameters, (observations,)))
        return partial(batched, parameters)
    # Layers that take a task axis themselves need half of vmap's time, which counts at every step.
    bound = copy.deepcopy(policy)
    for name, parameter in parameters.items():
        module, _, attribute = name.rpartition(".")
        delattr(bound.get_submodule(module), attribute)
        setattr(bound.get_submodule(module), attribute, parameter)
    return bound
