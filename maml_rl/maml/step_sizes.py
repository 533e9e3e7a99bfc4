"""α: the step size of the inner step for every parameter, fixed or learned, and 0 where nothing is adapted."""

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import UserError
from ..policies.parameters import LOG_LR_FACTORS, unflatten


def prepare(policy: nn.Module, config: Config) -> None:
    """Makes the factors on α parameters of the policy, if they are learned. Only the outer step changes them.

    Raises:
        UserError: If the policy does not have the parameters that options name.
    """
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
    """The number of the layer that each parameter belongs to, (P,), without the factors on α."""
    named = {name: p for name, p in policy.named_parameters() if name != LOG_LR_FACTORS}
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in named))
    return torch.cat([torch.full((p.numel(),), layers.index(n.rpartition(".")[0])) for n, p in named.items()])


def step_sizes(policy: nn.Module, theta: Tensor, config: Config) -> Tensor | float:
    """α of every entry of θ, (P,), or one number for all. It is 0 where inner steps change nothing."""
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
        sizes = [len(alpha) for alpha in alphas.values()]
        alphas = {
            name: alpha * factor
            for (name, alpha), factor in zip(alphas.items(), factors.split(sizes), strict=True)
        }
        alphas[LOG_LR_FACTORS] = torch.zeros_like(log_factors)
    return torch.cat([alphas[name] for name, _ in policy.named_parameters()])
