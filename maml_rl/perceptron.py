"""The ready-made perceptron's derivatives through adaptation, written out.

What automatic differentiation makes of the network, without its graph: many tasks at once, in place, the
activations kept between products. What surrounds the network, the inner loss and the inner update, is narrow and
left to automatic differentiation. `covers` says for which policies; any other is differentiated as a whole in
`trust_region`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from .adaptation import inner_update, policy_gradient_loss
from .config import Config
from .distributions import Categorical, Distribution
from .policies import LOG_STD, as_made, normal, tanh, unflatten
from .rollouts import Rollouts

# Weight (m, out, in) and bias (m, out) of each linear layer, for m tasks; or tangents or cotangents of them.
Layers = list[tuple[Tensor, Tensor]]


class Pass(NamedTuple):
    """A forward pass of m tasks' own networks over N observations each.

    Attributes:
        layers: The networks.
        inputs: What went into each layer, (m, N, in): the observations, then the hidden features.
        slopes: tanh' at each hidden layer, (m, N, out).
        output: The last layer's, (m, N, A).
    """

    layers: Layers
    inputs: list[Tensor]
    slopes: list[Tensor]
    output: Tensor


def covers(policy: nn.Module) -> bool:
    """Whether a policy is a ready-made MLP of the observations alone."""
    return as_made(policy) and policy.context is None


def linearise(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> tuple[Distribution, Callable[[Tensor], Distribution], Callable[[Distribution], Tensor]]:
    """The adapted policies of m tasks, and products with their derivative J in θ.

    Args:
        policy: A policy that is covered.
        theta: θ, (P,).
        supports: For each of S inner steps, the tasks' rollouts (m, K, H, ...) with advantages.
        query: The rollouts of the adapted policies, (m, K, H, ...).
        config: Of it, the inner step's options.

    Returns:
        The policies at the query observations, of tensors (m, K·H, ...); t ↦ J t, from (P,) to tensors like them;
        and u ↦ Jᵀ u, the other way round.
    """
    num_tasks = len(query.mask)
    thetas = theta.detach().expand(num_tasks, -1)
    steps = []
    for support in supports:
        thetas, step_push, step_pull = inner_step(policy, thetas, support, config)
        steps.append((step_push, step_pull))
    layers, log_std = split(policy, thetas)
    passed = forward(layers, query.observations.flatten(1, 2))
    policies, head_push, head_pull = linear_maps(distribution, passed.output, *log_std)

    def push(tangent: Tensor) -> Distribution:
        tangents = tangent.expand(num_tasks, -1)
        for step_push, _ in steps:
            tangents = step_push(tangents)
        layers_t, log_std_t = split(policy, tangents)
        output_t, _ = push_forward(passed, layers_t)
        return head_push(output_t, *log_std_t)

    def pull(cotangent: Distribution) -> Tensor:
        output_c, *log_std_c = head_pull(cotangent)
        cotangents = join(policy, pull_back(passed, output_c)[0], log_std_c)
        for _, step_pull in reversed(steps):
            cotangents = step_pull(cotangents)
        return cotangents.sum(0)

    return policies, push, pull


def inner_step(
    policy: nn.Module, thetas: Tensor, support: Rollouts, config: Config
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """An inner step of m tasks, (m, P) to (m, P): the adapted parameters, t ↦ J t and u ↦ Jᵀ u.

    The step is a function of θ and of the loss's gradient g(θ), whose derivative is the symmetric Hessian H.
    """
    layers, log_std = split(policy, thetas)
    passed = forward(layers, support.observations.flatten(1, 2))

    def loss(support: Rollouts, *at: Tensor) -> Tensor:
        return policy_gradient_loss(distribution(*at), support, config)

    at = [x.clone().requires_grad_() for x in (passed.output, *log_std)]
    slopes = torch.autograd.grad(vmap(loss)(support, *at).sum(), at, create_graph=not config.first_order)
    first, *rest = [slope.detach() for slope in slopes]
    layers_g, outputs_c, features_c = pull_back(passed, first)
    gradient = join(policy, layers_g, rest)
    bent = None
    if not config.first_order:
        bent = bend(passed, outputs_c, features_c, num_products=2 * config.cg_iterations)

    def hessian(tangents: Tensor) -> Tensor:
        if bent is None:
            return torch.zeros_like(tangents)  # of which the update makes nothing
        layers_t, log_std_t = split(policy, tangents)
        output_t, features_t = push_forward(passed, layers_t)
        first, *rest = torch.autograd.grad(slopes, at, [output_t, *log_std_t], retain_graph=True)
        return join(policy, pull_back_bent(passed, bent, layers_t, features_t, first), rest)

    update = vmap(partial(inner_update, policy, config=config))
    adapted, update_push, update_pull = linear_maps(update, thetas, gradient)

    def push(tangents: Tensor) -> Tensor:
        return update_push(tangents, hessian(tangents))

    def pull(cotangents: Tensor) -> Tensor:
        direct, of_gradient = update_pull(cotangents)
        return direct + hessian(of_gradient)

    return adapted, push, pull


def linear_maps(f: Callable[..., Any], *at: Tensor) -> tuple[Any, Callable[..., Any], Callable[[Any], Any]]:
    """The value of f, and products with its derivative: t ↦ J t and u ↦ Jᵀ u.

    u ↦ Jᵀ u is linear, so that the reverse pass through it is its transpose.
    """
    value, pull = vjp(f, *at)[:2]
    transposed = vjp(pull, value)[1]
    return value, lambda *tangents: transposed(tangents)[0], pull


def distribution(output: Tensor, *log_std: Tensor) -> Distribution:
    """What the head makes of the network's output (..., N, A), and of log σ (..., A) where it has one."""
    return normal(output, *log_std) if log_std else Categorical(output)


def split(policy: nn.Module, thetas: Tensor) -> tuple[Layers, list[Tensor]]:
    """Views of (m, P) as the layers, and as log σ (m, A) where the policy has one."""
    parameters = unflatten(policy, thetas)
    layers = [
        (parameter, parameters[name.removesuffix("weight") + "bias"])
        for name, parameter in parameters.items()
        if name.endswith("weight")
    ]
    return layers, [parameters[LOG_STD]] if LOG_STD in parameters else []


def join(policy: nn.Module, layers: Layers, log_std: list[Tensor]) -> Tensor:
    """The reverse of `split`, (m, P); 0 for parameters that are neither."""
    flat = iter([x.flatten(1) for pair in layers for x in pair])
    parts = []
    for name, parameter in policy.named_parameters():
        if name == LOG_STD:
            parts.append(log_std[0])
        elif name.endswith(("weight", "bias")):
            parts.append(next(flat))
        else:
            parts.append(layers[0][0].new_zeros(len(layers[0][0]), parameter.numel()))
    return torch.cat(parts, dim=1)


def forward(layers: Layers, observations: Tensor) -> Pass:
    """The networks' outputs at observations (m, N, O), and what derivatives need of the way."""
    inputs, slopes = [observations], []
    for weight, bias in layers[:-1]:
        features = tanh(affine(inputs[-1], weight, bias))
        inputs.append(features)
        slopes.append(1 - features.square())
    return Pass(layers, inputs, slopes, affine(inputs[-1], *layers[-1]))


def push_forward(passed: Pass, layers_t: Layers) -> tuple[Tensor, list[Tensor]]:
    """The tangents of the output (m, N, A) and of the hidden features (m, N, out) for those of the layers."""
    features_t: list[Tensor] = []
    for i, (weight_t, bias_t) in enumerate(layers_t):
        output_t = affine(passed.inputs[i], weight_t, bias_t)
        if i > 0:
            output_t.baddbmm_(features_t[-1], passed.layers[i][0].mT)
        if i < len(passed.slopes):
            features_t.append(output_t.mul_(passed.slopes[i]))
    return output_t, features_t


def pull_back(passed: Pass, cotangent: Tensor) -> tuple[Layers, list[Tensor], list[Tensor]]:
    """The cotangents of the layers for that of the output (m, N, A).

    Returns:
        Those of weights and biases, of each layer's output before tanh, and of the hidden features, (m, N, out).
    """
    layers_c, outputs_c, features_c = [], [cotangent], []
    for i in reversed(range(len(passed.layers))):
        layers_c.append((summed_outer(outputs_c[-1], passed.inputs[i]), outputs_c[-1].sum(1)))
        if i > 0:
            features_c.append(outputs_c[-1] @ passed.layers[i][0])
            outputs_c.append(features_c[-1] * passed.slopes[i - 1])
    return layers_c[::-1], outputs_c[::-1], features_c[::-1]


class Bent(NamedTuple):
    """What the second derivative of u · output in the layers needs, at a fixed u, (m, N, A).

    Attributes:
        outputs_c: u pulled back to the outputs before tanh of those layers, by number, where sums over n are taken
            in every product, (m, N, out).
        bends: u pulled back to each layer's hidden features, times tanh''/tanh', (m, N, out).
        mixed: The second derivative in the weights of the first layer, bias included, and of the second, which is
            bilinear: Σ_n (outputs_c of the second)_nb (tanh' of the first)_na (o_n, 1)_o, (m, a, b, O + 1). None
            where taking the sum over n again in every product is cheaper, or needs less memory.
    """

    outputs_c: dict[int, Tensor]
    bends: list[Tensor]
    mixed: Tensor | None


def bend(passed: Pass, outputs_c: list[Tensor], features_c: list[Tensor], num_products: int) -> Bent:
    """Prepares `pull_back_bent` for about so many products."""
    bends = [-2 * features * c for features, c in zip(passed.inputs[1:], features_c, strict=True)]
    from_rows = dict(enumerate(outputs_c[1:], start=1))
    if not bends:
        return Bent(from_rows, bends, None)
    _, num_rows, width = outputs_c[1].shape
    size = passed.inputs[0].shape[-1] + 1
    # A column of `mixed` costs one product over all rows, and a Hessian product without it two more than with it.
    # It must not be larger than a layer's features either.
    if size > num_products or size * width > num_rows:
        return Bent(from_rows, bends, None)
    second = from_rows.pop(1)
    columns = [*passed.inputs[0].split(1, dim=-1), passed.inputs[0].new_ones(1)]
    sums = [(passed.slopes[0] * column).mT @ second for column in columns]  # one at a time: it is large
    return Bent(from_rows, bends, torch.stack(sums, dim=-1))


def pull_back_bent(
    passed: Pass, bent: Bent, layers_t: Layers, features_t: list[Tensor], cotangent: Tensor
) -> Layers:
    """The tangents of `pull_back`'s layers, along those of the layers and of its argument, (m, N, A)."""
    layers_c = []
    for i in reversed(range(len(passed.layers))):
        weight_c = summed_outer(cotangent, passed.inputs[i])
        if i in bent.outputs_c:
            weight_c = weight_c + summed_outer(bent.outputs_c[i], features_t[i - 1])
        layers_c.append((weight_c, cotangent.sum(1)))
        if i > 0:
            of_features = cotangent @ passed.layers[i][0]
            if i in bent.outputs_c:
                of_features.baddbmm_(bent.outputs_c[i], layers_t[i][0])
            cotangent = of_features.mul_(passed.slopes[i - 1]).addcmul_(bent.bends[i - 1], features_t[i - 1])
    layers_c.reverse()
    if bent.mixed is not None:
        (weight_c, bias_c), (second_c, second_bias_c) = layers_c[:2]
        first_t, second_t = torch.cat([layers_t[0][0], layers_t[0][1].unsqueeze(-1)], dim=-1), layers_t[1][0]
        first_c = torch.einsum("mabo,mba->mao", bent.mixed, second_t)
        layers_c[0] = weight_c + first_c[..., :-1], bias_c + first_c[..., -1]
        layers_c[1] = second_c + torch.einsum("mabo,mao->mba", bent.mixed, first_t), second_bias_c
    return layers_c


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each task's layer on its own rows, (m, N, in) -> (m, N, out)."""
    return torch.bmm(inputs, weight.mT).add_(bias.unsqueeze(1))


def summed_outer(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_n right_nᵀ, (m, N, a) and (m, N, b) -> (m, a, b)."""
    # With few columns on the right, this product takes three times as long as its transpose.
    return left.mT @ right if left.shape[-1] <= right.shape[-1] else (right.mT @ left).mT
