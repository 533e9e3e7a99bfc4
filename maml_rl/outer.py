"""The outer optimisers: from θ and an iteration's rollouts to the next θ."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from .config import Config
from .errors import UserError
from .objectives import (
    clipped_surrogate,
    exploration_credits,
    exploration_loss,
    mean_and_gradient,
    mean_kl,
    outer_loss,
    outer_objective,
    through_adaptation,
)
from .policies import act
from .rollouts import Rollouts
from .trust_region import trpo_step

# From the policy, θ (P,), what the optimiser remembers of earlier iterations ({} at first), the rollouts before
# each inner step and after the last one, (M, K, H, ...) with advantages, and the options, to the next θ, what it
# now remembers (numbers, strings and tensors in lists and dictionaries), and figures for the log.
OuterStep = Callable[
    [nn.Module, Tensor, dict[str, Any], Sequence[Rollouts], Config],
    tuple[Tensor, dict[str, Any], dict[str, float]],
]


def adam_step(
    policy: nn.Module, theta: Tensor, memory: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """A step of Adam (Kingma and Ba, arXiv:1412.6980) along the plain meta-gradient; see `OuterStep`."""
    *before_each, query = batches
    supports = tuple(before_each)

    def loss(theta: Tensor, supports: tuple[Rollouts, ...], credit: Tensor, query: Rollouts) -> Tensor:
        return outer_loss(policy, theta, supports, query, credit, config)[0]

    data = (supports, exploration_credits(query), query)
    theta, memory, figures = adam_epochs(
        lambda theta: mean_and_gradient(loss, theta, data, config.chunk_tasks), theta, memory, config.outer_lr
    )
    after, kl = outer_objective(policy, theta, supports, query, config)
    return theta, memory, figures | {"surrogate_after": after, "kl": kl}


def ppo_step(
    policy: nn.Module, theta: Tensor, memory: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Some steps of Adam on the clipped surrogate of the adapted policies; see `OuterStep`.

    With the KL between sampling and current policies before every inner step as a penalty, and the estimator
    `lvc`, it is ProMP (Rothfuss et al., arXiv:1810.06784, equation 15).
    """
    *before_each, query = batches
    supports = tuple(before_each)

    def loss(theta: Tensor, supports: tuple[Rollouts, ...], credit: Tensor, query: Rollouts) -> Tensor:
        adapted, passed = through_adaptation(policy, theta, supports, config)
        distribution = act(policy, adapted, query.observations.flatten(0, 1))
        total = clipped_surrogate(distribution, query, config.ppo_clip)
        for before, support in zip(passed, supports, strict=True):
            total = total + config.kl_penalty * mean_kl(before, support)
        if config.e_maml:
            total = total + config.e_maml * exploration_loss(passed, supports, credit)
        return total

    data = (supports, exploration_credits(query), query)
    theta, memory, figures = adam_epochs(
        lambda theta: mean_and_gradient(loss, theta, data, config.chunk_tasks),
        theta,
        memory,
        config.outer_lr,
        config.ppo_epochs,
    )
    after, kl = outer_objective(policy, theta, supports, query, config)
    return theta, memory, figures | {"surrogate_after": after, "kl": kl}


def reptile_step(
    policy: nn.Module, theta: Tensor, memory: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """θ + β (mean over tasks of the adapted parameters - θ); see `OuterStep`.

    Nichol et al., arXiv:1803.02999, algorithm 1 batched. Rollouts after the last inner step are not used.
    """
    supports = tuple(batches[:-1])

    def adapted(supports: tuple[Rollouts, ...]) -> Tensor:
        return through_adaptation(policy, theta, supports, config)[0]

    with torch.no_grad():
        direction = (vmap(adapted, chunk_size=config.chunk_tasks)(supports) - theta).mean(0)
    return theta + config.outer_lr * direction, memory, {"gradient_norm": direction.norm().item()}


OPTIMISERS: dict[str, OuterStep] = {
    "trpo": trpo_step,
    "ppo": ppo_step,
    "adam": adam_step,
    "reptile": reptile_step,
}


def optimiser(config: Config) -> OuterStep:
    """The outer step that the options name.

    Raises:
        UserError: If there is none of that name.
    """
    if config.outer not in OPTIMISERS:
        raise UserError(f"outer is {config.outer!r}, but must be one of {', '.join(OPTIMISERS)}.")
    return OPTIMISERS[config.outer]


def adam_epochs(
    value_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    theta: Tensor,
    memory: dict[str, Any],
    learning_rate: float,
    epochs: int = 1,
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Steps of `torch.optim.Adam`, with its state as a value: θ and the memory given are not changed.

    Args:
        value_and_gradient: From θ to a loss and its gradient, (P,).
        theta: θ, (P,).
        memory: The state after earlier steps; {} at first.
        learning_rate: β.
        epochs: How many steps.

    Returns:
        The new θ and state, and the loss and the norm of its gradient before the first step.
    """
    theta = theta.detach().clone()
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    if memory:
        optimizer.load_state_dict(copy.deepcopy(memory))
    figures: dict[str, float] = {}
    for _ in range(epochs):
        value, theta.grad = value_and_gradient(theta)
        figures = figures or {"surrogate_before": value, "gradient_norm": theta.grad.norm().item()}
        optimizer.step()
    theta.grad = None
    return theta, optimizer.state_dict(), figures
