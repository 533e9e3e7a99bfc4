"""The inner loop. It exists here and nowhere else: training and evaluation both call it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from .advantages import discounted_sums, with_advantages
from .config import Config
from .distributions import Distribution
from .envs import VectorFamily
from .errors import UserError
from .policies import LOG_LR_FACTORS, act, unflatten
from .recurrent import GRUPolicy, no_memory
from .rollouts import Rollouts, collect


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the valid entries of x, of any shape."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def vpg(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """The log-probability of step t: the surrogate of the original MAML (arXiv:1703.03400, equation 5)."""
    return log_probs


def lvc(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """The ratio π_θ / π_old of step t: low-variance curvature (Rothfuss et al., arXiv:1810.06784, section 5)."""
    return torch.exp(log_probs - old)


def dice(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """What step t changes in the ratio of the whole episode so far: unbiased in every derivative, and noisy.

    r_t Π_{s<t} r_s^(λ^(t-s)) - Π_{s<t} r_s^(λ^(t-s)), where r_s is the ratio π_θ / π_old of step s: DiCE (Foerster
    et al., arXiv:1802.05098) with advantages. λ < 1 trades bias for variance (Farquhar et al., arXiv:1909.10549,
    section 4); λ = 0 has the derivatives of `lvc`.
    """
    log_ratios = log_probs - old
    so_far = discounted_sums(log_ratios.flip(-1), config.dice_lambda).flip(-1)
    return torch.exp(so_far) - torch.exp(so_far - log_ratios)


# The weight w_t of every step's advantage in the inner loss, from log π_θ(a_t | o_t), from log π_old(a_t | o_t) of
# the policy that drew the actions, all (K, H), and the options. At π_θ = π_old each has the gradient ∇ log π_θ.
ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Config], Tensor]] = {"vpg": vpg, "lvc": lvc, "dice": dice}


def inner_loss(
    policy: nn.Module, theta: Tensor, rollouts: Rollouts, config: Config
) -> tuple[Tensor, Distribution]:
    """The surrogate -E[w_t Â_t] of one task, whose gradient is the policy gradient (Williams, 1992).

    Args:
        policy: The policy module.
        theta: θ, (P,).
        rollouts: The task's rollouts, (K, H, ...), with advantages.
        config: Of it, the name of w_t in `ESTIMATORS` and its options.

    Returns:
        The loss, a scalar, and π_θ at the observations, of tensors (K·H, ...).
    """
    # Rollouts and steps become one axis, so that a batch of tasks is one batched matrix product.
    distribution = act(policy, theta, rollouts.observations.flatten(0, 1))
    return policy_gradient_loss(distribution, rollouts, config), distribution


def policy_gradient_loss(distribution: Distribution, rollouts: Rollouts, config: Config) -> Tensor:
    """The same of π_θ at the observations, of tensors (K·H, ...)."""
    log_probs = distribution.log_prob(rollouts.actions.flatten(0, 1)).unflatten(0, rollouts.mask.shape)
    weights = ESTIMATORS[config.estimator](log_probs, rollouts.log_probs, config)
    return -masked_mean(weights * rollouts.advantages, rollouts.mask)


def prepare(policy: nn.Module, config: Config) -> None:
    """Makes α a part of θ, where it is learned: inner steps leave those entries alone, the outer step does not.

    Raises:
        UserError: If there is no inner loss of that name, or the policy lacks what other options name.
    """
    if config.estimator not in ESTIMATORS:
        raise UserError(f"estimator is {config.estimator!r}, but must be one of {', '.join(ESTIMATORS)}.")
    names = [name for name, _ in policy.named_parameters()]
    if config.log_std_lr is not None and not any(name.rpartition(".")[2] == "log_std" for name in names):
        raise UserError(
            f"log_std_lr is {config.log_std_lr}, but the policy has no parameter log_std; leave log_std_lr out."
        )
    if config.adapt_only is not None:
        parts = {name.partition(".")[0] for name in names}
        if config.adapt_only not in parts:
            raise UserError(
                f"adapt_only is {config.adapt_only!r}, but the policy's parts are {', '.join(sorted(parts))}; "
                "choose one of them, or for 'context' a context_size of 1 or more."
            )
    if config.learn_lr != "no":
        layers = _layers(policy)
        counts = {"one": 1, "layer": int(layers.max()) + 1, "parameter": len(layers)}
        policy.register_parameter(LOG_LR_FACTORS, nn.Parameter(torch.zeros(counts[config.learn_lr])))


def _layers(policy: nn.Module) -> Tensor:
    """The number of the layer that each parameter belongs to, (P,), the factors of α themselves left out."""
    named = {name: p for name, p in policy.named_parameters() if name != LOG_LR_FACTORS}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in named))
    return torch.cat([torch.full((p.numel(),), layers.index(n.rpartition(".")[0])) for n, p in named.items()])


def step_sizes(policy: nn.Module, theta: Tensor, config: Config) -> Tensor | float:
    """α of every entry of θ, (P,), or one number for all; positive, and 0 where inner steps change nothing."""
    if config.learn_lr == "no" and config.adapt_only is None and config.log_std_lr is None:
        return config.inner_lr
    parameters = unflatten(policy, theta)
    log_factors = parameters.pop(LOG_LR_FACTORS, None)
    alphas: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        part, _, last = name.partition(".")[0], *name.rpartition(".")[1:]
        own = config.inner_lr if config.log_std_lr is None or last != "log_std" else config.log_std_lr
        adapted = config.adapt_only in (None, part)
        alphas[name] = theta.new_full((parameter.numel(),), own if adapted else 0.0)
    if log_factors is not None:
        factors = log_factors.exp()
        if config.learn_lr == "layer":
            factors = factors[_layers(policy).to(theta.device)]
        elif config.learn_lr == "one":
            factors = factors.expand(sum(map(len, alphas.values())))
        alphas = {
            name: alpha * factor
            for (name, alpha), factor in zip(
                alphas.items(), factors.split([len(alpha) for alpha in alphas.values()]), strict=True
            )
        }
        alphas[LOG_LR_FACTORS] = torch.zeros_like(log_factors)
    return torch.cat([alphas[name] for name, _ in policy.named_parameters()])


def adapt(
    policy: nn.Module, theta: Tensor, support: Rollouts, config: Config, lr_factor: float = 1.0
) -> tuple[Tensor, Distribution]:
    """One inner step on one task: θ' = θ - α ∇_θ L(θ). Batch it over tasks with `vmap`.

    Args:
        policy: The policy module.
        theta: The parameters that collected the rollouts, (P,).
        support: The task's rollouts, (K, H, ...), with advantages.
        config: Of it, the inner step's options.
        lr_factor: What α is multiplied by.

    Returns:
        θ', (P,), and π_θ at the support's observations, of tensors (K·H, ...); both differentiable in θ.
    """
    gradient, distribution = grad(inner_loss, argnums=1, has_aux=True)(policy, theta, support, config)
    return inner_update(policy, theta, gradient, config, lr_factor), distribution


def inner_update(
    policy: nn.Module, theta: Tensor, gradient: Tensor, config: Config, lr_factor: float = 1.0
) -> Tensor:
    """θ - α g of one task, (P,), for the gradient g of its inner loss."""
    if config.first_order:
        gradient = gradient.detach()  # ∂θ'/∂θ = I
    return theta - lr_factor * step_sizes(policy, theta, config) * gradient


def rollouts_through_adaptation(
    env: VectorFamily,
    policy: nn.Module,
    theta: Tensor,
    tasks: np.ndarray,
    lr_factors: Sequence[float],
    config: Config,
    seeds: np.random.SeedSequence,
) -> Iterator[Rollouts]:
    """Alternates K rollouts of each task with an adaptation step on them, and ends with rollouts.

    RL² takes no steps: it remembers. Its rollouts are the first, second, ... episode of K times the same task.

    Args:
        env: M·K environments.
        policy: The policy module.
        theta: θ, the same for all tasks at first, (P,); of the device that learns.
        tasks: (M, D).
        lr_factors: What α is multiplied by in each of S steps.
        config: The inner step's options, discount, λ, the chunk size, and how much may break down.
        seeds: The source of the streams of every phase.

    Yields:
        S + 1 batches of rollouts with advantages, (M, K, H, ...), on θ's device: the k-th one collected after k
        steps.

    Raises:
        UserError: If too many simulations broke down, and as `collect` does.
    """
    phases = seeds.spawn(len(lr_factors) + 1)
    thetas = theta.detach().expand(len(tasks), -1)
    memory = None
    if isinstance(policy, GRUPolicy):
        memory = no_memory(policy, len(tasks), env.num_envs // len(tasks))
    for k, phase in enumerate(phases):
        rollouts = collect(env, policy, thetas.cpu(), tasks, phase, config.observe_task, memory)
        _require_sound(rollouts, config.max_failed_share)
        rollouts = with_advantages(rollouts, config.discount, config.gae_lambda, config.normalise_advantages)
        rollouts = tree_map(lambda x: x.to(theta.device), rollouts)
        yield rollouts
        if k < len(lr_factors) and memory is None:
            step = partial(adapt, policy, config=config, lr_factor=lr_factors[k])
            thetas, _ = vmap(step, chunk_size=config.chunk_tasks)(thetas, rollouts)


def _require_sound(rollouts: Rollouts, max_share: float) -> None:
    failed = rollouts.outcomes.get("failed")
    if failed is not None and failed.float().mean() > max_share:
        raise UserError(
            f"The simulation broke down in {int(failed.sum())} of {failed.numel()} rollouts, more than the share "
            f"of {max_share:g} that max_failed_share allows; make tasks or actions milder, or allow more."
        )
