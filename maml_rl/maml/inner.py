"""The inner loop of one task: the loss, and the step. `mlp` writes the same step out for many tasks at once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ..config import Config
from ..errors import UserError
from ..policies import Distribution, act, prediction_loss, unflatten
from ..policies.parameters import ADVANTAGE_NETWORK, LOG_LR_FACTORS, OBSERVATION_STATISTICS
from ..sampling.advantages import discounted_sums
from ..sampling.rollouts import Rollouts, masked_mean
from .rules import NUM_STATISTICS, learned_advantages, num_features, set_scales, statistics, step_features
from .step_sizes import step_sizes


def vpg(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """The log-probability of step t, as in the original MAML (arXiv:1703.03400, equation 5)."""
    return log_probs


def lvc(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """The ratio π_θ / π_old of step t: low-variance curvature (Rothfuss et al., arXiv:1810.06784, section 5)."""
    return torch.exp(log_probs - old)


def dice(log_probs: Tensor, old: Tensor, config: Config) -> Tensor:
    """The change of the episode's ratio so far at step t: unbiased in every derivative, but noisy.

    r_t Π_{s<t} r_s^(λ^(t-s)) - Π_{s<t} r_s^(λ^(t-s)), where r_s is the ratio π_θ / π_old of step s: DiCE (Foerster
    et al., arXiv:1802.05098) with advantages. λ < 1 trades bias for variance (Farquhar et al., arXiv:1909.10549,
    section 4). λ = 0 has the derivatives of `lvc`.
    """
    log_ratios = log_probs - old
    so_far = discounted_sums(log_ratios.flip(-1), config.dice_lambda).flip(-1)
    return torch.exp(so_far) - torch.exp(so_far - log_ratios)


# The weight w_t of every step's advantage in the inner loss. Its arguments are log π_θ(a_t | o_t) and log
# π_old(a_t | o_t) of the policy that drew the actions, both (K, H), and the options. At π_θ = π_old each has the
# gradient ∇ log π_θ.
ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Config], Tensor]] = {"vpg": vpg, "lvc": lvc, "dice": dice}


def inner_loss(
    policy: nn.Module, theta: Tensor, rollouts: Rollouts, config: Config
) -> tuple[Tensor, Distribution]:
    """L of a task's examples, or the surrogate -E[w_t Â_t] with the policy gradient (Williams, 1992).

    Args:
        policy: The policy module.
        theta: θ, (P,).
        rollouts: The task's rollouts, (K, H, ...), with advantages.
        config: The name of w_t in `ESTIMATORS` and its options are used.

    Returns:
        The loss, a scalar, and π_θ at the observations, of tensors (K·H, ...).
    """
    # Rollouts and steps become one axis, so that a batch of tasks is one batched matrix product.
    distribution = act(policy, theta, rollouts.observations.flatten(0, 1))
    network = unflatten(policy, theta)[ADVANTAGE_NETWORK] if config.inner_advantage == "learned" else None
    return loss_of(distribution, rollouts, config, network), distribution


def example_loss(distribution: Distribution, rollouts: Rollouts) -> Tensor:
    """The mean of L over a task's examples, a scalar, or over those of m tasks, (m,).

    Args:
        distribution: The policy at the inputs, of tensors (K·H, ...), or (m, K·H, ...).
        rollouts: The examples, (K, H, ...), or (m, K, H, ...).
    """
    (targets,), outputs = rollouts.targets, distribution[0]
    shape = outputs.shape if targets.is_floating_point() else outputs.shape[:-1]
    return prediction_loss(distribution, targets.reshape(shape)).mean(-1)


def loss_of(
    distribution: Distribution, rollouts: Rollouts, config: Config, network: Tensor | None = None
) -> Tensor:
    """`inner_loss` of π_θ at the observations, of tensors (K·H, ...), and of the network of learned advantages."""
    if rollouts.targets:
        return example_loss(distribution, rollouts)
    log_probs = distribution.log_prob(rollouts.actions.flatten(0, 1)).unflatten(0, rollouts.mask.shape)
    weights = ESTIMATORS[config.estimator](log_probs, rollouts.log_probs, config)
    if not isinstance(weights, Tensor) or weights.shape != log_probs.shape:
        found = f"a tensor of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise UserError(
            f"The estimator {config.estimator!r} returned {found}, but must return the weight of every step, "
            f"(K, H) = {tuple(log_probs.shape)}."
        )
    advantages = rollouts.advantages if network is None else learned_advantages(network, rollouts)
    return -masked_mean(weights * advantages, rollouts.mask)


def adapt(
    policy: nn.Module, theta: Tensor, support: Rollouts, config: Config, lr_factor: float = 1.0
) -> tuple[Tensor, Distribution]:
    """One inner step on one task: θ' = θ - α ∇_θ L(θ). Batch it over tasks with `vmap`.

    Args:
        policy: The policy module.
        theta: The parameters that collected the rollouts, (P,).
        support: The task's rollouts, (K, H, ...), with advantages.
        config: The inner step's options are used.
        lr_factor: A factor on α.

    Returns:
        θ', (P,), and π_θ at the support's observations, of tensors (K·H, ...). Both are differentiable in θ.
    """
    differentiate = grad(inner_loss, argnums=1, has_aux=True)
    gradient, distribution = differentiate(policy, theta, support, config)
    return inner_update(policy, theta, gradient, support, config, lr_factor), distribution


def inner_update(
    policy: nn.Module,
    theta: Tensor,
    gradient: Tensor,
    support: Rollouts,
    config: Config,
    lr_factor: float = 1.0,
) -> Tensor:
    """θ - α g of one task, (P,), where g is the gradient of its inner loss on its rollouts."""
    if config.first_order:
        gradient = gradient.detach()  # ∂θ'/∂θ = I
    return theta - lr_factor * step_sizes(policy, theta, support, config) * gradient


def with_scales(policy: nn.Module, theta: Tensor, support: Rollouts, config: Config) -> Tensor:
    """θ with the scales of the inputs of learned inner rules, which are those of the first batch of tasks.

    Until then, the networks see zeros. As their outputs are 0 too, this changes no policy. With
    `normalise_observations`, learned advantages take the second batch, the first one that is normalised.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        support: The rollouts before the first inner step, (M, K, H, ...), with advantages.
        config: The inner step's options are used.

    Returns:
        θ, (P,). It is not changed if the scales are set.
    """
    theta = theta.detach().clone()
    networks = unflatten(policy, theta)  # views
    observed = networks.get(OBSERVATION_STATISTICS)
    if config.inner_advantage == "learned" and (observed is None or observed[0, 0] > 0):
        num_inputs = num_features(support.observations.shape[-1], support.behaviour[0][0, 0, 0].numel())
        set_scales(networks[ADVANTAGE_NETWORK], num_inputs, lambda: vmap(step_features)(support)[support.mask])
    if config.learn_lr == "task":
        set_scales(networks[LOG_LR_FACTORS], NUM_STATISTICS, lambda: vmap(statistics)(support))
    return theta
