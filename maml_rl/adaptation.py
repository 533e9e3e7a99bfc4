"""The inner loop. It exists here and nowhere else: training and evaluation both call it."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from .advantages import with_advantages
from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .policies import act
from .rollouts import Rollouts, collect


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the valid entries of x, of any shape."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def inner_loss(policy: nn.Module, theta: Tensor, rollouts: Rollouts) -> Tensor:
    """The surrogate -E[log π_θ(a_t | o_t) Â_t] of one task, a scalar.

    Its gradient at the parameters that collected the rollouts is the policy gradient (Williams, 1992);
    Finn et al., arXiv:1703.03400, equation 5 and algorithm 3.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        rollouts: The task's rollouts, (K, H, ...), with advantages.
    """
    # Rollouts and steps become one axis, so that a batch of tasks is one batched matrix product.
    distribution = act(policy, theta, rollouts.observations.flatten(0, 1))
    log_probs = distribution.log_prob(rollouts.actions.flatten(0, 1))
    return -masked_mean(log_probs * rollouts.advantages.flatten(), rollouts.mask.flatten())


def adapt(
    policy: nn.Module, theta: Tensor, support: Rollouts, step_size: float, first_order: bool = False
) -> Tensor:
    """One inner step on one task: θ' = θ - α ∇_θ L(θ). Batch it over tasks with `vmap`.

    Args:
        policy: The policy module.
        theta: The parameters that collected the rollouts, (P,).
        support: The task's rollouts, (K, H, ...), with advantages.
        step_size: α.
        first_order: Treat the gradient as a constant, so that ∂θ'/∂θ = I.

    Returns:
        θ', (P,), differentiable in θ.
    """
    gradient = grad(inner_loss, argnums=1)(policy, theta, support)
    if first_order:
        gradient = gradient.detach()
    return theta - step_size * gradient


def rollouts_through_adaptation(
    env: VectorFamily,
    policy: nn.Module,
    theta: Tensor,
    tasks: np.ndarray,
    step_sizes: Sequence[float],
    config: Config,
    seeds: np.random.SeedSequence,
) -> list[Rollouts]:
    """Alternates K rollouts of each task with an adaptation step on them, and ends with rollouts.

    Args:
        env: M·K environments.
        policy: The policy module.
        theta: θ, the same for all tasks at first, (P,).
        tasks: (M, D).
        step_sizes: α of each of S steps.
        config: Of it, discount, λ, the chunk size and the share of simulations that may break down.
        seeds: The source of the streams of every phase.

    Returns:
        S + 1 batches of rollouts with advantages, (M, K, H, ...): the k-th one collected after k steps.

    Raises:
        UserError: If too many simulations broke down, and as `collect` does.
    """
    phases = seeds.spawn(len(step_sizes) + 1)
    thetas = theta.detach().expand(len(tasks), -1)
    batches = []
    for k, phase in enumerate(phases):
        rollouts = collect(env, policy, thetas, tasks, phase)
        _require_sound(rollouts, config.max_failed_share)
        rollouts = with_advantages(rollouts, config.discount, config.gae_lambda)
        batches.append(rollouts)
        if k < len(step_sizes):
            step = partial(adapt, policy, step_size=step_sizes[k])
            thetas = vmap(step, chunk_size=config.chunk_tasks)(thetas, rollouts)
    return batches


def _require_sound(rollouts: Rollouts, max_share: float) -> None:
    failed = rollouts.outcomes.get("failed")
    if failed is not None and failed.float().mean() > max_share:
        raise UserError(
            f"The simulation broke down in {int(failed.sum())} of {failed.numel()} rollouts, more than the share "
            f"of {max_share:g} that max_failed_share allows; make tasks or actions milder, or allow more."
        )
