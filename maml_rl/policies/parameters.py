"""A policy's parameters θ as one flat tensor of P numbers. They are unflattened only for a call."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .distributions import Distribution

# The name of what learned factors on α come from: their logarithms, or a network.
LOG_LR_FACTORS = "log_lr_factors"
# The name of the network that learned advantages come from.
ADVANTAGE_NETWORK = "advantage_network"
# Parameters of the inner step. Only outer steps change them, and forward passes do not use them.
INNER_RULES = (LOG_LR_FACTORS, ADVANTAGE_NETWORK)
# The name of the statistics that observations are normalised with.
OBSERVATION_STATISTICS = "observation_statistics"
# Parameters that forward passes do not use. Inner steps leave them as they are.
NOT_IN_FORWARD = (*INNER_RULES, OBSERVATION_STATISTICS)
# The name of log σ in a policy with a ready-made head.
LOG_STD = "head.log_std"


def flatten(policy: nn.Module) -> Tensor:
    """Returns the parameters of a module as one tensor, (P,)."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def layout(policy: nn.Module) -> list[list[Any]]:
    """Returns the names and shapes of the parameters in θ: [name, size, ...] of each."""
    return [[name, *parameter.shape] for name, parameter in policy.named_parameters()]


def load(policy: nn.Module, theta: Tensor) -> None:
    """Copies θ (P,) into the module's own parameters, in place."""
    nn.utils.vector_to_parameters(theta.clone(), policy.parameters())


def unflatten(policy: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Returns views of θ (..., P) under the names and in the shapes of the module's parameters."""
    parameters = dict(policy.named_parameters())
    parts = theta.split([parameter.numel() for parameter in parameters.values()], dim=-1)
    return {
        name: part.view(part.shape[:-1] + parameter.shape)  # unflatten refuses numbers of shape ()
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def act(policy: nn.Module, theta: Tensor, observations: Tensor) -> Distribution:
    """Returns π_θ, the distribution of actions at observations (N, O) under parameters θ (P,)."""
    return cast(Distribution, functional_call(policy, unflatten(policy, theta), (observations,)))
