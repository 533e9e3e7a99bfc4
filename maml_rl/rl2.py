"""RL²: in place of an inner loop, a recurrent policy that learns to learn from what it sees (arXiv:1611.02779)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from .advantages import with_advantages
from .config import Config
from .distributions import Distribution
from .objectives import clipped_surrogate, mean_kl
from .outer import adam_epochs
from .policies import unflatten
from .rollouts import Rollouts


def as_trials(batches: Sequence[Rollouts]) -> Rollouts:
    """E episodes of the same environments as one rollout each of up to E·H steps, the steps taken first.

    Args:
        batches: E batches of rollouts, (M, K, H, ...).

    Returns:
        Trials, (M, K, E·H, ...); no end of an episode within them is an end.
    """
    scale = batches[0].advantage_scale
    parts = [batch._replace(outcomes={}, advantage_scale=batch.mask) for batch in batches]  # all by step
    together = tree_map(lambda *steps: torch.cat(steps, 2), *parts)
    order = torch.sort(~together.mask, dim=-1, stable=True).indices

    def taken_first(x: Tensor) -> Tensor:
        return x.gather(2, order.reshape(*order.shape, *[1] * (x.ndim - 3)).expand_as(x))

    return tree_map(taken_first, together)._replace(advantage_scale=scale)


def rl2_step(
    policy: nn.Module, theta: Tensor, memory: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """PPO on whole trials: the return of all episodes together, through the memory; see `outer.OuterStep`."""
    trials = with_advantages(as_trials(batches), config.discount, config.gae_lambda, config.normalise_advantages)
    shape = trials.mask.shape

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        inputs = trials.observations.flatten(0, 1)
        sequences, _ = functional_call(policy, unflatten(policy, theta), (inputs,))
        # (M·K, T, ...) -> (M, K·T, ...)
        distribution = tree_map(lambda x: x.unflatten(0, shape[:2]).flatten(1, 2), sequences)

        def one(distribution: Distribution, trials: Rollouts) -> tuple[Tensor, Tensor]:
            return clipped_surrogate(distribution, trials, config.ppo_clip), mean_kl(distribution, trials)

        losses, kls = vmap(one)(distribution, trials)
        return losses.mean(), kls.mean()

    def value_and_gradient(theta: Tensor) -> tuple[float, Tensor]:
        leaf = theta.detach().requires_grad_()
        loss, _ = objective(leaf)
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    theta, memory, figures = adam_epochs(value_and_gradient, theta, memory, config.outer_lr, config.ppo_epochs)
    with torch.no_grad():
        after, kl = objective(theta)
    return theta, memory, figures | {"surrogate_after": after.item(), "kl": kl.item()}
