"""The inner loop: one policy-gradient step on one task. It exists here and nowhere else."""

import torch
from torch import Tensor, nn
from torch.func import grad

from .policies import act
from .rollouts import Rollouts


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the valid entries of x, of any shape."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def inner_loss(theta: Tensor, policy: nn.Module, rollouts: Rollouts) -> Tensor:
    """The surrogate -E[log π_θ(a_t | o_t) Â_t] of one task, a scalar.

    Its gradient at the parameters that collected the rollouts is the policy gradient (Williams, 1992);
    Finn et al., arXiv:1703.03400, equation 5 and algorithm 3.
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
    gradient = grad(inner_loss)(theta, policy, support)
    if first_order:
        gradient = gradient.detach()
    return theta - step_size * gradient
