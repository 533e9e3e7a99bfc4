"""The adapted policies as a function of θ, linearised: values, and products with the Jacobian.

This is the one place that chooses between the derivatives written out for the ready-made MLP and automatic
differentiation.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..config import Config
from ..policies import Distribution
from ..policies.batched import as_made
from ..sampling.rollouts import Rollouts
from ..sampling.threads import map_chunks, rows_of
from . import mlp
from .inner import adapt
from .objective import (
    adapted_policy,
    credits_if_used,
    jacobian_products,
    mean_kl,
    means,
    outer_loss,
    over_tasks,
    surrogates,
)

_log = logging.getLogger(__name__)


class Linearised(NamedTuple):
    """The adapted policies of m tasks at θ, and their Jacobian J in θ.

    Attributes:
        query: The tasks' query rollouts, (m, K, H, ...).
        outputs: The adapted policies' distributions at the query observations, of tensors (m, K·H, ...).
        jvp: v ↦ J v, from (P,) to tensors like `outputs`.
        vjp: u ↦ Jᵀ u, from tensors like `outputs` to (P,). It is float64 where the derivatives are written out.
    """

    query: Rollouts
    outputs: Distribution
    jvp: Callable[[Tensor], Distribution]
    vjp: Callable[[Distribution], Tensor]


@cache
def _say_slower(name: str) -> None:
    """Says once for each class of policies that a faster way exists."""
    _log.warning("%s is differentiated automatically, which is slower than for a ready-made MLP.", name)


def adapt_tasks(
    policy: nn.Module, thetas: Tensor, support: Rollouts, config: Config, lr_factor: float = 1.0
) -> Tensor:
    """Adapts the parameters of m tasks, (m, P), without derivatives. The arguments are those of `adapt`."""
    if as_made(policy):
        with torch.enable_grad():  # whatever the caller has set
            return mlp.inner_step(policy, thetas, support, config, lr_factor)[0]
    adapted, _ = vmap(partial(adapt, policy, config=config, lr_factor=lr_factor))(thetas, support)
    return adapted


def linearise(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> Linearised:
    """Linearises the adapted policies of m tasks.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        supports: For each of S inner steps, the tasks' rollouts (m, K, H, ...) with advantages.
        query: The rollouts of the adapted policies, (m, K, H, ...).
        config: The inner step's options are used.
    """
    if as_made(policy):
        return Linearised(query, *mlp.linearise(policy, theta, supports, query, config))

    _say_slower(type(policy).__qualname__)

    def f(theta: Tensor) -> Distribution:
        return over_tasks(partial(adapted_policy, config=config))(policy, theta, supports, query)

    outputs, jvp, vjp = jacobian_products(f, theta)
    return Linearised(query, outputs, jvp, lambda u: vjp(u)[0])


def linearise_chunks(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> list[Linearised]:
    """Linearises the adapted policies of all tasks, `chunk_tasks` tasks at a time. Shapes as in `linearise`."""

    def chunk(policy: nn.Module, rows: slice) -> Linearised:
        some, some_query = rows_of((supports, query), rows)
        return linearise(policy, theta, some, some_query, config)

    return map_chunks(chunk, policy, len(query.mask), config)


def outer_objective(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> tuple[float, float]:
    """The outer loss and the KL of θ, averaged over tasks, without derivatives."""

    def written_out(
        policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, credits: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():  # for the inner steps
            outputs = linearise(policy, theta, supports, query, config).outputs
        return surrogates(outputs, query), vmap(mean_kl)(outputs, query)

    automatic = config.e_maml or not as_made(policy)
    losses = over_tasks(partial(outer_loss, config=config)) if automatic else written_out
    data = (supports, query, credits_if_used(query, config))
    loss, kl = means(losses, policy, theta, data, config)
    return loss, kl
