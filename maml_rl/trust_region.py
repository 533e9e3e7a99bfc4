"""Trust-region policy optimisation of the meta-objective, through the inner steps, with an exact metric."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from . import perceptron
from .config import Config
from .distributions import Distribution
from .objectives import (
    adapted_policy,
    exploration_credits,
    exploration_loss,
    mean_and_gradient,
    outer_objective,
    surrogate,
    through_adaptation,
)
from .rollouts import Rollouts


class Linearised(NamedTuple):
    """The adapted policies of a chunk of tasks at θ, and their derivative J in θ.

    Attributes:
        query: The chunk's query rollouts, (m, K, H, ...).
        outputs: The adapted policies' distributions, of tensors (m, K·H, ...).
        jvp: t ↦ J t, from (P,) to tensors like `outputs`.
        vjp: u ↦ Jᵀ u, the other way round.
    """

    query: Rollouts
    outputs: Distribution
    jvp: Callable[[Tensor], Distribution]
    vjp: Callable[[Distribution], Tensor]


def linearise(f: Callable[[Tensor], Distribution], theta: Tensor, query: Rollouts) -> Linearised:
    """Evaluates f at θ once, keeping what any number of products with its Jacobian need.

    u ↦ Jᵀ u is the reverse pass; it is linear in u, so a reverse pass through it is t ↦ J t.
    """
    theta = theta.detach().requires_grad_()
    outputs = f(theta)
    kind = type(outputs)
    cotangents = [torch.zeros_like(output).requires_grad_() for output in outputs]
    (pullback,) = torch.autograd.grad(outputs, theta, cotangents, create_graph=True)
    return Linearised(
        query,
        kind(*(output.detach() for output in outputs)),
        lambda t: kind(*torch.autograd.grad(pullback, cotangents, t, retain_graph=True)),
        lambda u: torch.autograd.grad(outputs, theta, u, retain_graph=True)[0],
    )


def linearise_chunks(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> list[Linearised]:
    """The linearised adapted policies of all tasks, a few tasks at a time."""

    def chunk(start: int) -> Linearised:
        some, some_query = tree_map(lambda x: x[start : start + config.chunk_tasks], (supports, query))
        if perceptron.covers(policy):
            return Linearised(some_query, *perceptron.linearise(policy, theta, some, some_query, config))

        def f(theta: Tensor) -> Distribution:
            # Every task's own copy of θ: batched products instead of a sum over tasks in every layer.
            thetas = theta.expand(len(some_query.mask), -1)
            return vmap(lambda theta, supports, query: adapted_policy(policy, theta, supports, query, config))(
                thetas, some, some_query
            )

        return linearise(f, theta, some_query)

    return [chunk(start) for start in range(0, len(query.mask), config.chunk_tasks)]


def meta_gradient(chunks: list[Linearised], num_tasks: int) -> Tensor:
    """The gradient of the surrogate, averaged over tasks, in θ: through every inner step, (P,)."""

    def outer_loss(outputs: Distribution, query: Rollouts) -> Tensor:
        return vmap(surrogate)(outputs, query).sum() / num_tasks

    return sum_over(chunks, lambda chunk: chunk.vjp(torch.func.grad(outer_loss)(chunk.outputs, chunk.query)))


def kl_product(chunks: list[Linearised], tangent: Tensor, num_tasks: int) -> Tensor:
    """The Hessian in θ of the mean KL, times a vector, exactly: Jᵀ F J t, (P,).

    At the old parameters the gradient of KL(old ‖ new) in the policy's output vanishes, so the second
    derivative of the output drops out of the Hessian, and what is left is the Fisher information F of the
    action distribution between the Jacobians of the adapted policy's output.
    """

    def product(chunk: Linearised) -> Tensor:
        mask = chunk.query.mask.flatten(1).to(tangent.dtype)
        weight = mask / mask.sum(1, keepdim=True) / num_tasks
        curved = chunk.outputs.fisher_product(chunk.jvp(tangent))  # type: ignore[arg-type]
        return chunk.vjp(tree_map(lambda x: x * weight.view(*weight.shape, *[1] * (x.ndim - 2)), curved))

    return sum_over(chunks, product)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solves A x = b for symmetric positive definite A, from x = 0.

    Args:
        product: v ↦ A v.
        b: The right-hand side, (P,).
        iterations: At most this many products; fewer once the residual is 1e-10 of b.

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
    policy: nn.Module, theta: Tensor, memory: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """One step of trust-region policy optimisation on the meta-objective.

    Maximises the query surrogate of the adapted policies subject to mean KL(old ‖ new) ≤ `max_kl`
    (Schulman et al., arXiv:1502.05477, appendix C; Finn et al., arXiv:1703.03400, section 5.3): direction
    by conjugate gradients, length by the quadratic model of the KL, then backtracking until the surrogate
    falls and the KL holds. Where no candidate does, θ is kept.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        memory: Nothing; it is returned as it is.
        batches: The rollouts before each of S inner steps, and those of the adapted policies, all with
            advantages, (M, K, H, ...).
        config: Of it, the inner step's and the trust region's options.

    Returns:
        The new θ, (P,), the memory, and what happened, under the names of the documentation.
    """
    *before_each, query = batches
    supports = tuple(before_each)
    num_tasks = len(query.mask)
    chunks = linearise_chunks(policy, theta, supports, query, config)
    gradient = meta_gradient(chunks, num_tasks)
    before = sum(vmap(surrogate)(chunk.outputs, chunk.query).sum().item() for chunk in chunks) / num_tasks
    if config.e_maml:
        explored, slope = _exploration(policy, theta, supports, query, config)
        before, gradient = before + explored, gradient + slope
    info = {
        "surrogate_before": before,
        "surrogate_after": before,
        "kl": 0.0,
        "line_search_steps": 0,
        "gradient_norm": gradient.norm().item(),
        "accepted": 0,
    }
    step, image = conjugate_gradient(
        lambda v: kl_product(chunks, v, num_tasks) + config.cg_damping * v, -gradient, config.cg_iterations
    )
    curvature = (step @ image).item()
    if not (0 < curvature < float("inf")):
        return theta, memory, info
    step = (2 * config.max_kl / curvature) ** 0.5 * step
    for tried in range(1, config.line_search_steps + 1):
        candidate = theta + step
        after, kl = outer_objective(policy, candidate, supports, query, config)
        info["line_search_steps"] = tried
        if after < before and kl <= config.max_kl:
            return candidate, memory, info | {"surrogate_after": after, "kl": kl, "accepted": 1}
        step = 0.8 * step
    return theta, memory, info


def _exploration(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> tuple[float, Tensor]:
    """E-MAML's term averaged over tasks, and its gradient, (P,)."""

    def loss(theta: Tensor, supports: tuple[Rollouts, ...], credit: Tensor) -> Tensor:
        _, passed = through_adaptation(policy, theta, supports, config)
        return config.e_maml * exploration_loss(passed, supports, credit)

    return mean_and_gradient(loss, theta, (supports, exploration_credits(query)), config.chunk_tasks)


def sum_over(chunks: list[Linearised], f: Callable[[Linearised], Tensor]) -> Tensor:
    """Σ f(chunk)."""
    total = f(chunks[0])
    for chunk in chunks[1:]:
        total = total + f(chunk)
    return total
