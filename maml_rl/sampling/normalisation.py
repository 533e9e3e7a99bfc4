"""Observations in units of their own running mean and standard deviation, with `normalise_observations`.

The statistics are a parameter of the policy that forward passes do not use, so that checkpoints, resumed runs and
adapted policies have them. No gradient changes it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import Config
from ..errors import UserError
from ..policies.parameters import OBSERVATION_STATISTICS, unflatten
from .rollouts import Rollouts

_LIMIT = 10.0  # standard deviations


def add_statistics(policy: nn.Module, config: Config, observation_size: int) -> None:
    """Makes statistics of no observations a parameter of the policy, if the option says so and it has none.

    They are the number of observations so far, and the mean and the variance of each entry, (3, O).

    Args:
        policy: The policy module.
        config: `normalise_observations` is used.
        observation_size: O.

    Raises:
        UserError: If the policy has statistics, but the option is off.
    """
    given = OBSERVATION_STATISTICS in dict(policy.named_parameters())
    if given and not config.normalise_observations:
        raise UserError(
            "The policy given was trained with normalise_observations; turn that on, or pass a policy without "
            f"the parameter {OBSERVATION_STATISTICS}."
        )
    if config.normalise_observations and not given:
        none_yet = torch.tensor([[0.0], [0.0], [1.0]]).expand(3, observation_size).clone()
        policy.register_parameter(OBSERVATION_STATISTICS, nn.Parameter(none_yet))


def normaliser(policy: nn.Module, thetas: Tensor) -> Callable[[Tensor], Tensor]:
    """Prepares what policies see of observations.

    Args:
        policy: The policy module.
        thetas: Each task's parameters, (M, P), or (1, P) for all tasks.

    Returns:
        A function of observations (M, N, O). Without `normalise_observations`, it returns them as they are. With
        it, outliers are cut off at 10 standard deviations, and an entry that does not vary keeps its unit.
    """
    statistics = unflatten(policy, thetas).get(OBSERVATION_STATISTICS)
    if statistics is None:
        return _unchanged  # functions of the module, because adapted policies are pickled
    number, mean, variance = (part.unsqueeze(-2) for part in statistics.unbind(-2))
    return partial(_scaled, mean=mean, unit=units(variance), limit=torch.where(number > 0, _LIMIT, torch.inf))


def _unchanged(observations: Tensor) -> Tensor:
    return observations


def _scaled(observations: Tensor, mean: Tensor, unit: Tensor, limit: Tensor) -> Tensor:
    scaled = (observations - mean) / unit
    return scaled.clamp(-limit, limit).add(scaled, alpha=0)  # 0 · ∞ is NaN, so that it is refused later


def as_returned(policy: nn.Module, theta: Tensor, batches: Sequence[Rollouts]) -> list[Rollouts]:
    """Turns the observations of rollouts back into what the environment returned. Outliers stay cut off.

    Args:
        policy: The policy module.
        theta: The parameters that the observations were normalised with, (P,).
        batches: Rollouts, (M, K, H, ...). Inputs of policies other than observations are left as they are.
    """
    statistics = unflatten(policy, theta).get(OBSERVATION_STATISTICS)
    if statistics is None:
        return list(batches)
    _, mean, variance = statistics.unbind()
    size, unit = len(mean), units(variance)
    inputs = [batch.observations for batch in batches]
    returned = [torch.cat([x[..., :size] * unit + mean, x[..., size:]], dim=-1) for x in inputs]
    return [batch._replace(observations=x) for batch, x in zip(batches, returned, strict=True)]


def moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of rows (N, n) on all ranks, a scalar, and their mean and variance, both (n,) in float64."""
    rows = rows.double()
    number = ranks.total(torch.tensor(float(len(rows)), device=rows.device))
    mean = ranks.total(rows.sum(0)) / number
    return number, mean, ranks.total((rows - mean).square().sum(0)) / number


def units(variance: Tensor) -> Tensor:
    """The standard deviations, or 1 for what does not vary, of the same shape."""
    std = variance.sqrt()
    return torch.where(std > 1e-6, std, 1.0)


def with_observations(policy: nn.Module, theta: Tensor, batches: Sequence[Rollouts]) -> Tensor:
    """Adds the observations of an iteration to the statistics in θ.

    Means and variances are joined by the formulae of Chan, Golub and LeVeque (1979).

    Args:
        policy: The policy module.
        theta: θ, (P,), with the statistics that all rollouts were collected with.
        batches: Rollouts, (M, K, H, ...). Their observations are normalised. An outlier counts as the limit.

    Returns:
        θ, (P,). It is not changed without `normalise_observations`.

    Raises:
        UserError: If a variance is not finite.
    """
    if OBSERVATION_STATISTICS not in dict(policy.named_parameters()):
        return theta
    theta = theta.detach().clone()
    statistics = unflatten(policy, theta)[OBSERVATION_STATISTICS]  # a view
    number, mean, variance = statistics.double().unbind()
    size = statistics.shape[1]
    seen = torch.cat([batch.observations[..., :size][batch.mask] for batch in batches])
    new, new_mean, new_variance = moments(seen)
    unit = units(variance)
    shift, share = new_mean * unit, new / (number + new)  # of the means, in units of the environment
    variance = variance + share * (new_variance * unit**2 - variance) + share * (1 - share) * shift**2
    statistics.copy_(torch.stack([number + new, mean + share * shift, variance]))
    if not torch.isfinite(statistics).all():
        raise UserError(
            "Observations are so large that their variance is not finite in float32; scale them in the "
            "environment."
        )
    return theta
