"""Returns, the linear feature baseline, and generalised advantage estimation, masked, per task."""

import torch
from torch import Tensor

from .rollouts import Rollouts

_BLOCK = 1000  # steps. The matrix of 10,000 steps would take 800 MB in float64.


def discounted_sums(x: Tensor, discount: float) -> Tensor:
    """Computes y_t = x_t + discount · y_{t+1} over the last axis, y_{H+1} = 0: (..., H) -> (..., H).

    In blocks of steps, the last one first, it is a product with the matrix of discount^(j - t), j ≥ t. If x is 0
    after the end of an episode, so is y.
    """
    t = torch.arange(min(x.shape[-1], _BLOCK), dtype=x.dtype, device=x.device)
    lag = t[:, None] - t[None, :]
    powers = torch.where(lag >= 0, discount ** lag.clamp(min=0), 0.0)
    sums, later = [], torch.zeros_like(x[..., :1])
    for block in reversed(x.split(_BLOCK, dim=-1)):
        n = block.shape[-1]
        sums.append(block @ powers[:n, :n] + later * discount ** (n - t[:n]))
        later = sums[-1][..., :1]
    return torch.cat(sums[::-1], dim=-1)


# With longer observations, such as images, the baseline would overfit the returns of a batch.
MAX_OBSERVED = 128
_OF_STEPS = 4  # features of t alone, which are the last ones


def features(observations: Tensor) -> Tensor:
    """Returns the baseline's features [o, o², t, t², t³, 1], (..., H, O) -> (..., H, 2 O + 4), in float64.

    t is the step within the rollout over 100, and observations are clipped to ±10, as in rllab's linear
    feature baseline (Duan et al., arXiv:1604.06778, section 4). With O > 128, only the features of t are used.
    """
    if observations.shape[-1] > MAX_OBSERVED:
        observations = observations[..., :0]
    o = observations.double().clamp(-10.0, 10.0)
    t = torch.arange(o.shape[-2], dtype=o.dtype, device=o.device) / 100.0
    t = t.unsqueeze(-1).expand(*o.shape[:-1], 1)
    return torch.cat([o, o**2, t, t**2, t**3, torch.ones_like(t)], dim=-1)


def fit_values(observations: Tensor, returns: Tensor, mask: Tensor, ridge: float = 1e-5) -> Tensor:
    """Fits a linear baseline to each task's returns by ridge regression, and evaluates it.

    Where a task has fewer than two steps for each feature, only the features of t are used. With all of them, the
    baseline would fit the returns themselves, and little would be left of the advantages.

    A task's ridge grows tenfold until its normal equations can be solved.

    Args:
        observations: (M, K, H, O).
        returns: Discounted returns to go, (M, K, H).
        mask: (M, K, H) bool.
        ridge: The initial multiple of the identity that is added to the normal equations.

    Returns:
        V(o_t, t), (M, K, H) float64, 0 where masked.
    """
    weighted = (features(observations) * mask.unsqueeze(-1)).flatten(1, 2)
    too_few = mask.sum((1, 2)) < 2 * weighted.shape[-1]
    weighted[too_few, :, :-_OF_STEPS] = 0.0
    gram = weighted.mT @ weighted
    target = weighted.mT @ returns.double().flatten(1, 2).unsqueeze(-1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ridges = gram.new_full((len(gram), 1, 1), ridge)
    factor, failed = torch.linalg.cholesky_ex(gram + ridges * identity)
    while failed.any():
        ridges = torch.where(failed[:, None, None] > 0, 10.0 * ridges, ridges)
        factor, failed = torch.linalg.cholesky_ex(gram + ridges * identity)
    coefficients = torch.cholesky_solve(target, factor)
    values: Tensor = (weighted @ coefficients).squeeze(-1).unflatten(1, mask.shape[1:])
    return values


def with_advantages(rollouts: Rollouts, discount: float, gae_lambda: float, scaled: bool = True) -> Rollouts:
    """Computes generalised advantages, with mean 0 and standard deviation 1 over each task's steps.

    δ_t = r_t + γ V_{t+1} - V_t and Â_t = δ_t + γ λ Â_{t+1} (Schulman et al., arXiv:1506.02438, equations
    11 and 16). The horizon is part of the task, so V is 0 after the last step, whatever ended the episode.

    Args:
        rollouts: (M, K, H, ...).
        discount: γ.
        gae_lambda: λ.
        scaled: Whether to divide by the standard deviation. The mean is always subtracted.

    Returns:
        The same rollouts with their advantages.
    """
    mask = rollouts.mask
    rewards = rollouts.rewards.double()
    returns = discounted_sums(rewards, discount)
    values = fit_values(rollouts.observations, returns, mask)
    next_values = torch.nn.functional.pad(values[..., 1:], (0, 1))
    advantages = discounted_sums(rewards + discount * next_values - values, discount * gae_lambda)
    advantages, scale = normalise(advantages, mask, scaled)
    dtype = rollouts.rewards.dtype
    return rollouts._replace(advantages=advantages.to(dtype), advantage_scale=scale.to(dtype))


def normalise(x: Tensor, mask: Tensor, scaled: bool) -> tuple[Tensor, Tensor]:
    """Shifts and, if asked, scales each task's valid entries (M, K, H) to mean 0 and standard deviation 1.

    Returns:
        The result, (M, K, H), 0 where masked, and the divisors, (M,).
    """
    count = mask.sum((1, 2), keepdim=True)
    centred = (x - (x * mask).sum((1, 2), keepdim=True) / count) * mask
    std = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    scale = std + 1e-8 if scaled else torch.ones_like(std)  # equal entries stay 0
    return centred / scale, scale.flatten()
