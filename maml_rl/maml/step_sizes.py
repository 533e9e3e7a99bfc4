"""α: the step size of the inner step for every parameter, fixed or learned, and 0 where nothing is adapted."""

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import UserError
from ..policies.parameters import ADVANTAGE_NETWORK, INNER_RULES, LOG_LR_FACTORS, NOT_IN_FORWARD, unflatten
from ..sampling.rollouts import Rollouts
from .rules import NUM_STATISTICS, evaluate_network, initial_network, num_features, statistics


def prepare(policy: nn.Module, config: Config, observation_size: int, action_size: int) -> None:
    """Makes what the inner step learns parameters of the policy. Only the outer step changes them.

    Args:
        policy: The policy module.
        config: The inner step's options are used.
        observation_size: O.
        action_size: A, or the number of logits.

    Raises:
        UserError: If the policy does not have the parameters that options name, or has learned rules of a training
            with other options.
    """
    names = [name for name, _ in policy.named_parameters()]
    adapted = [name for name in names if config.adapt_only in (None, name.partition(".")[0])]
    if config.log_std_lr is not None and not any(name.rpartition(".")[2] == "log_std" for name in adapted):
        raise UserError(
            f"log_std_lr is {config.log_std_lr}, but no parameter that adapts is a log_std; leave log_std_lr out."
        )
    if config.adapt_only is not None:
        parts = {name.partition(".")[0] for name in names if name not in NOT_IN_FORWARD}
        if config.adapt_only not in parts:
            raise UserError(
                f"adapt_only is {config.adapt_only!r}, but the policy's parts are {', '.join(sorted(parts))}; "
                "choose one of them. A ready-made policy has a context if context_size is 1 or more."
            )
    rules = {}
    if config.learn_lr != "no":
        layers = _layers(policy)
        num_layers = int(layers.max()) + 1
        initial = {
            "one": torch.zeros(1),
            "layer": torch.zeros(num_layers),
            "parameter": torch.zeros(len(layers)),
            "task": initial_network(NUM_STATISTICS, num_layers),
        }
        rules[LOG_LR_FACTORS] = initial[config.learn_lr]
    if config.inner_advantage == "learned":
        rules[ADVANTAGE_NETWORK] = initial_network(num_features(observation_size, action_size), 2)
    given = {name: rule for name, rule in policy.named_parameters() if name in INNER_RULES}
    for name, rule in given.items():
        if name not in rules or rules[name].shape != rule.shape:
            raise UserError(
                f"The policy given has learned {name} for other options of the inner step; pass a policy without "
                "it, or the options that it was trained with."
            )
    for name, initial_rule in rules.items():
        if name not in given:
            policy.register_parameter(name, nn.Parameter(initial_rule))


def _layers(policy: nn.Module) -> Tensor:
    """The number of the layer that each parameter belongs to, (P,), without those not used in forward passes."""
    named = {name: p for name, p in policy.named_parameters() if name not in NOT_IN_FORWARD}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in named))
    return torch.cat([torch.full((p.numel(),), layers.index(n.rpartition(".")[0])) for n, p in named.items()])


def all_alike(config: Config) -> bool:
    """Returns whether α is `inner_lr` for all parameters."""
    return not config.changed("learn_lr", "adapt_only", "log_std_lr", "inner_advantage")


def step_sizes(policy: nn.Module, theta: Tensor, support: Rollouts, config: Config) -> Tensor | float:
    """α of every entry of θ for one task, (P,), or one number for all. It is 0 where inner steps change nothing.

    Args:
        policy: The policy module.
        theta: θ, (P,).
        support: The task's rollouts, (K, H, ...), which α may depend on.
        config: The inner step's options are used.
    """
    if all_alike(config):
        return config.inner_lr
    parameters = unflatten(policy, theta)
    rules = {name: parameters.pop(name) for name in NOT_IN_FORWARD if name in parameters}
    alphas: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        part, last = name.partition(".")[0], name.rpartition(".")[2]
        own = config.inner_lr if config.log_std_lr is None or last != "log_std" else config.log_std_lr
        adapted = config.adapt_only in (None, part)
        alphas[name] = theta.new_full((parameter.numel(),), own if adapted else 0.0)
    if config.learn_lr != "no":
        factors = _factors(policy, rules[LOG_LR_FACTORS], support, config)
        sizes = [len(alpha) for alpha in alphas.values()]
        alphas = {
            name: alpha * factor
            for (name, alpha), factor in zip(alphas.items(), factors.split(sizes), strict=True)
        }
    alphas |= {name: theta.new_zeros(rule.numel()) for name, rule in rules.items()}
    return torch.cat([alphas[name] for name, _ in policy.named_parameters()])


def _factors(policy: nn.Module, learned: Tensor, support: Rollouts, config: Config) -> Tensor:
    """The learned factors on α of a task, for each parameter that forward passes use."""
    if config.learn_lr == "task":
        learned = evaluate_network(learned, statistics(support))
    layers = _layers(policy).to(learned.device)
    factors = learned.exp()
    return factors[layers] if config.learn_lr in ("layer", "task") else factors.expand(len(layers))
