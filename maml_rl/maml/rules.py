"""Inner rules that are learned: how far a step goes in a task, and which advantages it follows.

Each rule is a small network, kept in one flat parameter of the policy. Only outer steps change it. Its last layer
is 0 at first, so that training starts with the plain rule. Its inputs are shifted and scaled by what the first
batch of tasks shows, because their units depend on the family. These scales are a part of the parameter too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..sampling.normalisation import moments, units
from ..sampling.rollouts import Rollouts, masked_mean

_UNITS = 32  # of the hidden layer
NUM_STATISTICS = 2  # of a task, see `statistics`


def initial_network(num_inputs: int, num_outputs: int) -> Tensor:
    """A network whose output is 0, in one tensor: shifts and factors of the inputs, then weights and biases."""
    first = torch.randn(num_inputs * _UNITS, generator=torch.Generator().manual_seed(0)) / num_inputs**0.5
    return torch.cat([torch.zeros(2 * num_inputs), first, torch.zeros(_UNITS + (_UNITS + 1) * num_outputs)])


def evaluate_network(network: Tensor, inputs: Tensor) -> Tensor:
    """The outputs for inputs (..., n)."""
    n = inputs.shape[-1]
    shift, factor, first, bias, last = network.split(
        [n, n, n * _UNITS, _UNITS, len(network) - n * (2 + _UNITS) - _UNITS]
    )
    hidden = torch.tanh((inputs - shift.detach()) * factor.detach() @ first.view(n, _UNITS) + bias)
    weight, offset = last.view(_UNITS + 1, -1).split([_UNITS, 1])
    outputs: Tensor = hidden @ weight + offset.squeeze(0)
    return outputs


def statistics(support: Rollouts) -> Tensor:
    """What `learn_lr task` knows of a task, (2,), from its rollouts (K, H, ...).

    These are the mean and the standard deviation of its rewards. Advantages do not contain them.
    """
    mean = masked_mean(support.rewards, support.mask)
    std = masked_mean((support.rewards - mean).square(), support.mask).sqrt()
    return torch.stack([mean, std])


def num_features(observation_size: int, action_size: int) -> int:
    """The number of `step_features`."""
    return 2 * observation_size + action_size + 2


def step_features(support: Rollouts) -> Tensor:
    """What `inner_advantage learned` knows of a step: o_t, o_{t+1} - o_t, a_t, r_t and Â_t, (K, H, 2 O + A + 2).

    The difference is 0 for the last step of an episode.
    """
    observations, actions = support.observations, support.actions
    follows = pad(support.mask[:, 1:], (0, 1)).unsqueeze(-1)
    change = torch.where(follows, pad(observations[:, 1:], (0, 0, 0, 1)) - observations, 0.0)
    if not actions.is_floating_point():
        values = torch.arange(support.behaviour[0].shape[-1], device=actions.device)
        actions = (actions.unsqueeze(-1) == values).flatten(2).to(observations.dtype)  # one-hot
    scalars = torch.stack([support.rewards, support.advantages], dim=-1)
    return torch.cat([observations, change, actions, scalars], dim=-1)


def learned_advantages(network: Tensor, support: Rollouts) -> Tensor:
    """Â_t (1 + u) + v σ, (K, H), where u and v are between -1 and 1, and σ is the scale of Â_t.

    After NoRML (Yang et al., arXiv:1903.01063), which learns an advantage without rewards.
    """
    features = step_features(support)
    u, v = torch.tanh(evaluate_network(network, features)).unbind(-1)
    factor = network[2 * features.shape[-1] - 1].detach()
    scale = torch.where(factor > 0, 1 / factor, 0.0)
    return support.advantages * (1 + u) + scale * v


def set_scales(network: Tensor, num_inputs: int, inputs: Callable[[], Tensor]) -> None:
    """Sets the scales of a network, in place, to those of inputs (N, n), unless they are set.

    An input that does not vary keeps its unit.

    Args:
        network: The network.
        num_inputs: n.
        inputs: Computes the inputs. It is called only in a run's first iteration.
    """
    shift, factor = network[: 2 * num_inputs].view(2, num_inputs)
    if not factor.any():
        _, mean, variance = moments(inputs())
        shift.copy_(mean)
        factor.copy_(1 / units(variance))
