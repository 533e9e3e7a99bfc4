"""Trust-region policy optimisation of the meta-objective, through the inner steps, with an exact metric."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .. import ranks
from ..config import Config
from ..errors import UserError
from ..policies import Distribution
from ..sampling.rollouts import Rollouts
from ..sampling.threads import in_threads, thread_map
from .linearise import Linearised, linearise_chunks, outer_objective
from .objective import (
    exploration_credits,
    exploration_loss,
    mean_and_gradient,
    over_tasks,
    summed,
    surrogates,
    through_adaptation,
    value_and_gradient,
)


def surrogate_gradient(chunk: Linearised, num_tasks: int) -> Tensor:
    """A chunk's part of the mean surrogate over all tasks, (P + 1,): its gradient in θ, then its value."""
    outputs: Distribution = tree_map(lambda x: x.detach().requires_grad_(), chunk.outputs)
    value = surrogates(outputs, chunk.query).sum(dtype=torch.float64) / num_tasks
    slope = type(outputs)(*torch.autograd.grad(value, list(outputs), materialize_grads=True))
    return torch.cat([chunk.vjp(slope), value.detach().unsqueeze(0)])


def meta_gradient(chunks: list[Linearised], num_tasks: int, threads: int | None = None) -> tuple[Tensor, Tensor]:
    """The surrogate averaged over tasks, a scalar, and its gradient in θ: through every inner step, (P,)."""
    return value_and_gradient(in_threads(lambda chunk: surrogate_gradient(chunk, num_tasks), chunks, threads))


def kl_product(
    chunks: list[Linearised], tangent: Tensor, num_tasks: int, map_: Callable[..., list[Tensor]] = in_threads
) -> Tensor:
    """The Hessian in θ of the mean KL, times a vector, exactly: Jᵀ F J t, (P,).

    At the old parameters the gradient of KL(old ‖ new) in the policy's output vanishes, so the second
    derivative of the output drops out of the Hessian, and what is left is the Fisher information F of the
    action distribution between the Jacobians of the adapted policy's output.
    """

    def product(chunk: Linearised) -> Tensor:
        mask = chunk.query.mask.flatten(1).to(tangent.dtype)
        weight = mask / mask.sum(1, keepdim=True) / num_tasks
        scaled: Distribution = chunk.outputs.fisher_product(chunk.jvp(tangent))  # type: ignore[arg-type]
        return chunk.vjp(tree_map(lambda x: x * weight.view(*weight.shape, *[1] * (x.ndim - 2)), scaled))

    return summed(map_(product, chunks))


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solves A x = b for symmetric positive definite A, from x = 0.

    Args:
        product: v ↦ A v.
        b: The right-hand side, (P,).
        iterations: The largest number of products. It stops earlier once the residual is 1e-10 of b.

    Returns:
        x and A x, both (P,).
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    rr = residual @ residual
    enough = 1e-20 * rr
    for _ in range(iterations):
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            break
        x = x + rr / curvature * direction
        residual = residual - rr / curvature * image
        rr, rr_before = residual @ residual, rr
        if rr <= enough:
            break
        direction = residual + rr / rr_before * direction
    return x, b - residual


def trpo_step(
    policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """One step of trust-region policy optimisation on the meta-objective; see `OuterStep`.

    It maximises the query surrogate of the adapted policies subject to mean KL(old ‖ new) ≤ `max_kl` (Schulman et
    al., arXiv:1502.05477, appendix C; Finn et al., arXiv:1703.03400, section 5.3). Conjugate gradients give the
    direction, and the quadratic model of the KL gives the length. Then the line search shortens the step until the
    surrogate falls and the KL holds. If no candidate does, θ is kept.

    Raises:
        UserError: If the surrogate or its gradient is not finite.
    """
    *before_each, query = batches
    supports = tuple(before_each)
    before, size, step, image = natural_gradient_step(policy, theta, supports, query, config)
    metrics = {
        "surrogate_before": before,
        "surrogate_after": before,
        "kl": 0.0,
        "line_search_steps": 0.0,
        "gradient_norm": size,
        "accepted": 0.0,
    }
    curvature = (step @ image).item()
    if not (0 < curvature < float("inf")):
        return theta, optimiser_state, metrics
    step = ((2 * config.max_kl / curvature) ** 0.5 * step).to(theta)
    for tried in range(1, config.line_search_steps + 1):
        candidate = theta + step
        after, kl = outer_objective(policy, candidate, supports, query, config)
        metrics["line_search_steps"] = float(tried)
        if after < before and kl <= config.max_kl:
            return candidate, optimiser_state, metrics | {"surrogate_after": after, "kl": kl, "accepted": 1.0}
        step = 0.8 * step
    return theta, optimiser_state, metrics


def natural_gradient_step(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> tuple[float, float, Tensor, Tensor]:
    """The surrogate at θ, the norm of its gradient g, and x with A x = -g, where A is the KL's damped Hessian.

    What the products with A keep is most of the memory of an outer step. It is free again before the line search.

    Returns:
        The surrogate, the norm, x and A x, both (P,).

    Raises:
        UserError: If the surrogate or its gradient is not finite.
    """
    num_tasks = ranks.all_tasks(len(query.mask), config)
    chunks = linearise_chunks(policy, theta, supports, query, config)
    value, gradient = meta_gradient(chunks, num_tasks, config.threads)
    surrogate, gradient = with_exploration(value.item(), gradient, policy, theta, supports, query, config)
    size = gradient.norm().item()
    if not (math.isfinite(surrogate) and math.isfinite(size)):
        raise UserError(
            f"The surrogate is {surrogate:g} and its gradient's norm {size:g}, so no outer step can be taken; "
            "lower inner_lr."
        )
    # A new thread's first product takes longer, so all products share the threads.
    with thread_map(len(chunks), config.threads) as map_:

        def product(v: Tensor) -> Tensor:
            return kl_product(chunks, v.to(theta), num_tasks, map_) + config.cg_damping * v

        return surrogate, size, *conjugate_gradient(product, -gradient, config.cg_iterations)


def with_exploration(
    value: float,
    gradient: Tensor,
    policy: nn.Module,
    theta: Tensor,
    supports: tuple[Rollouts, ...],
    query: Rollouts,
    config: Config,
) -> tuple[float, Tensor]:
    """Adds E-MAML's term, averaged over tasks, to the surrogate and to its gradient in θ, (P,), if it is used."""
    if not config.e_maml:
        return value, gradient

    def loss(policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], credit: Tensor) -> Tensor:
        _, before_each = through_adaptation(policy, theta, supports, config)
        return config.e_maml * exploration_loss(before_each, supports, credit)

    data = (supports, exploration_credits(query))
    explored, slope = mean_and_gradient(over_tasks(loss), policy, theta, data, config)
    return value + explored, gradient + slope
