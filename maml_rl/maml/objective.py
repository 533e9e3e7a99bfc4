"""The outer objective: how good the policies of all tasks are after adaptation, as a function of θ.

Functions take one task. `over_tasks` and `vmap` apply them to many.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .. import ranks
from ..config import Config
from ..policies import Distribution, act
from ..sampling.rollouts import Rollouts, masked_mean
from ..sampling.threads import map_chunks, rows_of
from .inner import adapt, example_loss

T = TypeVar("T")


def through_adaptation(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], config: Config
) -> tuple[Tensor, list[Distribution]]:
    """Repeats all inner steps of one task, as a function of θ.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        supports: For each of S inner steps, the task's rollouts (K, H, ...) with advantages.
        config: The inner step's options are used.

    Returns:
        The adapted parameters, (P,), and the policies before each step at its observations, of tensors (K·H, ...).
        All are differentiable in θ.
    """
    before_each = []
    for support in supports:
        theta, distribution = adapt(policy, theta, support, config)
        before_each.append(distribution)
    return theta, before_each


def adapted_policy(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> Distribution:
    """The adapted policy of one task at its query observations, of tensors (K·H, ...), differentiable in θ."""
    theta, _ = through_adaptation(policy, theta, supports, config)
    return act(policy, theta, query.observations.flatten(0, 1))


def ratios(distribution: Distribution, rollouts: Rollouts) -> Tensor:
    """π_θ(a_t | o_t) / π_old(a_t | o_t), (K·H,), where π_old drew the actions.

    Args:
        distribution: π_θ at the observations of the rollouts, of tensors (K·H, ...).
        rollouts: The task's rollouts, (K, H, ...).
    """
    return torch.exp(distribution.log_prob(rollouts.actions.flatten(0, 1)) - rollouts.log_probs.flatten())


def surrogate(distribution: Distribution, query: Rollouts) -> Tensor:
    """One task's outer loss: L of its query examples, or -E[π_θ'(a_t | o_t) / π_old(a_t | o_t) · Â_t], a scalar.

    Schulman et al., arXiv:1502.05477, equation 14; shapes as in `ratios`.
    """
    if query.targets:
        return example_loss(distribution, query)
    return -masked_mean(ratios(distribution, query) * query.advantages.flatten(), query.mask.flatten())


def surrogates(distributions: Distribution, query: Rollouts) -> Tensor:
    """`surrogate` of m tasks, (m,). Examples need no vmap, which would take longer than their loss."""
    return example_loss(distributions, query) if query.targets else vmap(surrogate)(distributions, query)


def clipped_surrogate(distribution: Distribution, query: Rollouts, clip: float) -> Tensor:
    """The surrogate without reward for ratios beyond 1 ± clip (Schulman et al., arXiv:1707.06347, equation 7)."""
    ratio, advantages = ratios(distribution, query), query.advantages.flatten()
    least = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_mean(least, query.mask.flatten())


def mean_kl(distribution: Distribution, rollouts: Rollouts) -> Tensor:
    """One task's mean KL(π_old ‖ π_θ) over the states of its rollouts, a scalar; shapes as in `ratios`."""
    old = tree_map(lambda x: x.flatten(0, 1), rollouts.behaviour)
    return masked_mean(old.kl(distribution), rollouts.mask.flatten())


def exploration_loss(before_each: list[Distribution], supports: tuple[Rollouts, ...], credit: Tensor) -> Tensor:
    """E-MAML's term: it credits the policies that drew the support rollouts for the return after adaptation.

    -c Σ log π(a_t | o_t) over all support rollouts of a task, the first term of the gradient of
    E[J(θ'(τ))] = Σ_τ p_θ(τ) J(θ'(τ)) (Stadie et al., arXiv:1803.01118).

    Args:
        before_each: The policies before each inner step, from `through_adaptation`.
        supports: The rollouts that they collected.
        credit: c, a scalar.
    """
    log_probs = [
        torch.where(support.mask.flatten(), policy.log_prob(support.actions.flatten(0, 1)), 0.0).sum()
        for policy, support in zip(before_each, supports, strict=True)
    ]
    return -credit * torch.stack(log_probs).sum()


def exploration_credits(query: Rollouts) -> Tensor:
    """The credit c of each task, (M,): its return after adaptation minus the mean over the other tasks.

    It has the unit of the surrogate: it is divided by the mean length of an episode and by the scale of the task's
    advantages. If a task's returns hardly differ, its scale is only noise of the baseline, so at least a tenth of
    the mean scale is used. The credit is 0 where all advantages are 0, because the surrogate is 0 there too.

    Args:
        query: The rollouts of the adapted policies, (M, K, H, ...).
    """
    returns, scale = query.returns().double(), query.advantage_scale
    sums = torch.stack([returns.sum(), scale.double().sum(), returns.new_tensor(len(returns))])
    everything, scales, num_tasks = ranks.total(sums)
    others = (everything - returns) / (num_tasks - 1).clamp(min=1)
    unit = query.mask.sum((1, 2)) / query.mask.shape[1] * scale.maximum((0.1 * scales / num_tasks).to(scale))
    credits = (returns - others).to(unit) / unit
    return torch.where(query.advantages.flatten(1).any(1), credits, 0.0)


def credits_if_used(query: Rollouts, config: Config) -> Tensor:
    """`exploration_credits`, or zeros without E-MAML's term: ranks need not exchange what has no influence."""
    return exploration_credits(query) if config.e_maml else torch.zeros_like(query.advantage_scale)


def outer_loss(
    policy: nn.Module,
    theta: Tensor,
    supports: tuple[Rollouts, ...],
    query: Rollouts,
    credit: Tensor,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """One task's surrogate with E-MAML's term, and the KL of its adapted policy, both scalars."""
    adapted, before_each = through_adaptation(policy, theta, supports, config)
    distribution = act(policy, adapted, query.observations.flatten(0, 1))
    loss = surrogate(distribution, query)
    if config.e_maml:
        loss = loss + config.e_maml * exploration_loss(before_each, supports, credit)
    return loss, mean_kl(distribution, query)


def over_tasks(one: Callable[..., T]) -> Callable[..., T]:
    """Turns a function of the policy module, θ and one task's data into one of m tasks at once."""

    def all_of(policy: nn.Module, theta: Tensor, *data: Any) -> T:
        # A copy of θ for each task gives batched products instead of a sum over tasks in every layer.
        thetas = theta.expand(len(tree_leaves(data)[0]), -1)
        result: T = vmap(partial(one, policy))(thetas, *data)
        return result

    return all_of


def jacobian_products(f: Callable[..., Any], *at: Tensor) -> tuple[Any, Callable[..., Any], Callable[[Any], Any]]:
    """The value of f, and any number of products with its Jacobian: v ↦ J v and u ↦ Jᵀ u.

    u ↦ Jᵀ u is the reverse pass. It is linear in u, so a reverse pass through it is v ↦ J v.

    Args:
        f: A function of tensors, whose value is a tensor or a tree of them.
        at: Its arguments.

    Returns:
        The value of f; v ↦ J v, of a tangent for each argument; and u ↦ Jᵀ u, with a cotangent for each argument.
    """
    at = tuple(x.detach().requires_grad_() for x in at)
    outputs, tree = tree_flatten(f(*at))
    # Constants too, such as a fixed standard deviation, become functions of the arguments.
    outputs = [output if output.requires_grad else output + 0 * at[0].sum() for output in outputs]
    grad = partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)

    @cache  # not every outer optimiser needs it
    def transposed() -> tuple[tuple[Tensor, ...], list[Tensor]]:
        cotangents = [torch.zeros_like(output).requires_grad_() for output in outputs]
        return grad(outputs, at, cotangents, create_graph=True), cotangents

    def jvp(*tangents: Tensor) -> Any:
        pulled, cotangents = transposed()
        return tree_unflatten(grad(pulled, cotangents, tangents), tree)

    def vjp(cotangent: Any) -> tuple[Tensor, ...]:
        return grad(outputs, at, tree_leaves(cotangent))

    return tree_unflatten([output.detach() for output in outputs], tree), jvp, vjp


def means(
    losses: Callable[..., tuple[Tensor, ...]], policy: nn.Module, theta: Tensor, data: Any, config: Config
) -> list[float]:
    """The means over tasks of losses (m,), without derivatives. Arguments as in `mean_and_gradient`."""

    @torch.no_grad()  # which holds for one thread
    def chunk(policy: nn.Module, rows: slice) -> Tensor:
        return torch.stack(losses(policy, theta, *rows_of(data, rows))).sum(1, dtype=torch.float64)

    own = len(tree_leaves(data)[0])
    return (summed(map_chunks(chunk, policy, own, config)) / ranks.all_tasks(own, config)).tolist()


def summed(parts: Sequence[Tensor]) -> Tensor:
    """The sum over chunks and ranks of tensors of one shape, in float64.

    Chunks are added in order, so that rounding is always the same. In float64, the split of the tasks among ranks
    makes next to no difference.
    """
    return ranks.total(reduce(torch.add, [part.double() for part in parts]))


def value_and_gradient(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Adds up parts, (P + 1,) each, over chunks and ranks. A part is a gradient and then its value.

    Returns:
        The value, a scalar, and the gradient, (P,).
    """
    both = summed(parts)
    return both[-1], both[:-1]


def mean_and_gradient(
    losses: Callable[..., Tensor], policy: nn.Module, theta: Tensor, data: Any, config: Config
) -> tuple[float, Tensor]:
    """The mean of a loss over tasks and its gradient in θ, a few tasks at a time.

    Args:
        losses: Maps the policy module, θ and the data of m tasks to their losses, (m,).
        policy: The policy module.
        theta: θ, (P,).
        data: A tuple of the arguments of all tasks: tensors (M, ...) or trees of them.
        config: The chunk size and the number of threads are used.

    Returns:
        The mean, and its gradient, (P,).
    """
    own = len(tree_leaves(data)[0])
    num_tasks = ranks.all_tasks(own, config)

    def chunk(policy: nn.Module, rows: slice) -> Tensor:
        leaf = theta.detach().requires_grad_()
        part = losses(policy, leaf, *rows_of(data, rows)).sum() / num_tasks
        return torch.cat([torch.autograd.grad(part, leaf)[0], part.detach().unsqueeze(0)])

    value, gradient = value_and_gradient(map_chunks(chunk, policy, own, config))
    return value.item(), gradient
