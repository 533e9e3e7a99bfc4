"""The parameters of a ready-made MLP as layers, (m, P) for m tasks, and back. `mlp` differentiates the layers."""

from torch import Tensor, nn

from ..policies.parameters import ADVANTAGE_NETWORK, LOG_STD, unflatten

# Weight (m, out, in) and bias (m, out) of each linear layer of m tasks, or their tangents or cotangents.
Layers = list[tuple[Tensor, Tensor]]


def split(policy: nn.Module, thetas: Tensor) -> tuple[Layers, list[Tensor], list[Tensor]]:
    """Parameters (m, P) as layers, and log σ and the network of learned advantages if there are any.

    The layers' inputs are the observations alone. A context c, with the weights W_c, adds W_c c to the first bias.
    """
    layers, log_std, network = views(policy, thetas)
    if (own := context_of(policy, thetas)) is not None:
        layers[0] = layers[0][0], layers[0][1] + times(*own)
    return layers, log_std, network


def split_jvp(policy: nn.Module, thetas: Tensor, tangents: Tensor) -> tuple[Layers, list[Tensor], list[Tensor]]:
    """The tangents of `split` for those of the parameters, (m, P)."""
    layers_dot, log_std_dot, network_dot = views(policy, tangents)
    own, own_dot = context_of(policy, thetas), context_of(policy, tangents)
    if own is not None and own_dot is not None:
        bias_dot = layers_dot[0][1] + times(own[0], own_dot[1]) + times(own_dot[0], own[1])
        layers_dot[0] = layers_dot[0][0], bias_dot
    return layers_dot, log_std_dot, network_dot


def split_vjp(policy: nn.Module, thetas: Tensor, layers_bar: Layers, others_bar: list[Tensor]) -> Tensor:
    """The cotangent of the parameters, (m, P), for those of `split`. It is 0 for what `split` does not return."""
    thetas_bar = thetas.new_zeros(thetas.shape)
    layers, log_std, network = views(policy, thetas_bar)
    places = [*(x for pair in layers for x in pair), *log_std, *network]
    bars = [*(x for pair in layers_bar for x in pair), *others_bar]
    for place, bar in zip(places, bars, strict=False):  # an inner loss may depend on the layers alone
        place.copy_(bar)
    add_context_vjp(policy, thetas, layers_bar, thetas_bar)
    return thetas_bar


def add_context_vjp(policy: nn.Module, at: Tensor, layers_bar: Layers, thetas_bar: Tensor) -> None:
    """Adds the cotangents of W_c and c to those of all parameters, (m, P), for W_c and c in `at`, (m, P)."""
    own, own_bar = context_of(policy, at), context_of(policy, thetas_bar)
    if own is not None and own_bar is not None:
        bias_bar = layers_bar[0][1]
        own_bar[0].add_(bias_bar.unsqueeze(-1) * own[1].unsqueeze(-2))
        own_bar[1].add_(times(own[0].mT, bias_bar))


def context_of(policy: nn.Module, thetas: Tensor) -> tuple[Tensor, Tensor] | None:
    """Views of W_c (m, out, C) and c (m, C) in parameters (m, P). None if the policy has no context."""
    if policy.context is None:
        return None
    parameters = unflatten(policy, thetas)
    weight = next(parameter for name, parameter in parameters.items() if name.endswith("weight"))
    context = parameters["context"]
    return weight[..., weight.shape[-1] - context.shape[-1] :], context


def views(policy: nn.Module, thetas: Tensor) -> tuple[Layers, list[Tensor], list[Tensor]]:
    """Views of parameters (m, P) as `split` returns them, without what a context adds."""
    parameters = unflatten(policy, thetas)
    layers = [
        (parameter, parameters[name.removesuffix("weight") + "bias"])
        for name, parameter in parameters.items()
        if name.endswith("weight")
    ]
    if policy.context is not None:
        size = layers[0][0].shape[-1] - parameters["context"].shape[-1]
        layers[0] = layers[0][0][..., :size], layers[0][1]
    log_std, network = ([parameters[name]] if name in parameters else [] for name in (LOG_STD, ADVANTAGE_NETWORK))
    return layers, log_std, network


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Each task's matrix times its vector, (m, a, b) and (m, b) -> (m, a)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
