"""The outer optimisers: from θ and an iteration's rollouts to the next θ."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import Config
from ..policies import act
from ..sampling.rollouts import Rollouts
from ..sampling.threads import map_chunks, rows_of
from .linearise import adapt_tasks, linearise, outer_objective
from .objective import (
    clipped_surrogate,
    credits_if_used,
    exploration_loss,
    mean_and_gradient,
    mean_kl,
    over_tasks,
    summed,
    through_adaptation,
    value_and_gradient,
)
from .trust_region import surrogate_gradient, trpo_step, with_exploration

# Its arguments are the policy, θ (P,), the optimiser's state ({} at first), the rollouts before each inner step
# and after the last one, (M, K, H, ...) with advantages, and the options. It returns the next θ, the next state
# (numbers, strings and tensors in lists and dictionaries), and metrics for the log.
OuterStep = Callable[
    [nn.Module, Tensor, dict[str, Any], Sequence[Rollouts], Config],
    tuple[Tensor, dict[str, Any], dict[str, float]],
]


def adam_step(
    policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """A step of Adam (Kingma and Ba, arXiv:1412.6980) along the plain meta-gradient; see `OuterStep`."""
    *before_each, query = batches
    supports, own = tuple(before_each), len(query.mask)
    num_tasks = ranks.all_tasks(own, config)

    def loss_and_gradient(theta: Tensor) -> tuple[float, Tensor]:
        def chunk(policy: nn.Module, rows: slice) -> Tensor:
            some, some_query = rows_of((supports, query), rows)
            return surrogate_gradient(linearise(policy, theta, some, some_query, config), num_tasks)

        value, gradient = value_and_gradient(map_chunks(chunk, policy, own, config))
        return with_exploration(value.item(), gradient, policy, theta, supports, query, config)

    theta, optimiser_state, metrics = adam_epochs(loss_and_gradient, theta, optimiser_state, config.outer_lr)
    if not query.targets:  # an iteration on examples is so quick that this would take half of it
        after, kl = outer_objective(policy, theta, supports, query, config)
        metrics |= {"surrogate_after": after, "kl": kl}
    return theta, optimiser_state, metrics


def ppo_step(
    policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Several steps of Adam on the clipped surrogate of the adapted policies; see `OuterStep`.

    The KL between the sampling and the current policies before every inner step is a penalty. With the estimator
    `lvc`, this is ProMP (Rothfuss et al., arXiv:1810.06784, equation 15).
    """

    def loss(
        policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, credit: Tensor
    ) -> Tensor:
        adapted, before_each = through_adaptation(policy, theta, supports, config)
        distribution = act(policy, adapted, query.observations.flatten(0, 1))
        total = clipped_surrogate(distribution, query, config.ppo_clip)
        for before, support in zip(before_each, supports, strict=True):
            total = total + config.kl_penalty * mean_kl(before, support)
        if config.e_maml:
            total = total + config.e_maml * exploration_loss(before_each, supports, credit)
        return total

    *before_each, query = batches
    supports = tuple(before_each)
    data = (supports, query, credits_if_used(query, config))
    theta, optimiser_state, metrics = adam_epochs(
        lambda theta: mean_and_gradient(over_tasks(loss), policy, theta, data, config),
        theta,
        optimiser_state,
        config.outer_lr,
        config.ppo_epochs,
    )
    after, kl = outer_objective(policy, theta, supports, query, config)
    return theta, optimiser_state, metrics | {"surrogate_after": after, "kl": kl}


def reptile_step(
    policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """θ + β (mean over tasks of the adapted parameters - θ); see `OuterStep`.

    Nichol et al., arXiv:1803.02999, algorithm 1, batched. Rollouts after the last inner step are not used.
    """
    supports = tuple(batches[:-1])

    @torch.no_grad()  # which holds for one thread
    def chunk(policy: nn.Module, rows: slice) -> Tensor:
        some = rows_of(supports, rows)
        thetas = theta.expand(len(some[0].mask), -1)
        for support in some:
            thetas = adapt_tasks(policy, thetas, support, config)
        return (thetas - theta).sum(0, dtype=torch.float64)

    own = len(batches[0].mask)
    direction = (summed(map_chunks(chunk, policy, own, config)) / ranks.all_tasks(own, config)).to(theta)
    return theta + config.outer_lr * direction, optimiser_state, {"gradient_norm": direction.norm().item()}


OPTIMISERS: dict[str, OuterStep] = {
    "trpo": trpo_step,
    "ppo": ppo_step,
    "adam": adam_step,
    "reptile": reptile_step,
}


def adam_epochs(
    loss_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    theta: Tensor,
    optimiser_state: dict[str, Any],
    learning_rate: float,
    epochs: int = 1,
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Takes steps of `torch.optim.Adam`, with its state as a value: the arguments are not changed.

    Args:
        loss_and_gradient: Maps θ to a loss and its gradient, (P,).
        theta: θ, (P,).
        optimiser_state: The state after earlier steps; {} at first.
        learning_rate: β.
        epochs: The number of steps.

    Returns:
        The new θ and state, and the loss and the norm of its gradient before the first step.
    """
    theta = theta.detach().clone()
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    if optimiser_state:
        optimizer.load_state_dict(copy.deepcopy(optimiser_state))
    metrics: dict[str, float] = {}
    for _ in range(epochs):
        value, gradient = loss_and_gradient(theta)
        theta.grad = gradient.to(theta)
        metrics = metrics or {"surrogate_before": value, "gradient_norm": theta.grad.norm().item()}
        optimizer.step()
    theta.grad = None
    return theta, optimizer.state_dict(), metrics
