"""Derivatives of the ready-made MLP through adaptation, written out by hand.

They equal those of automatic differentiation without its graph: many tasks at once, in place, with the activations
kept between products. Only the network is written out. The inner loss and the inner update are cheap and use
automatic differentiation. Tangents (of Jacobian-vector products) end in `_dot`, cotangents (of vector-Jacobian
products) in `_bar`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from ..config import Config
from ..policies import Categorical, Distribution
from ..policies.batched import has_relu, tanh_
from ..policies.networks import normal
from ..sampling.rollouts import Rollouts
from .inner import example_loss, inner_update, loss_of
from .layers import Layers, add_context_vjp, split, split_jvp, split_vjp
from .objective import jacobian_products
from .step_sizes import all_alike


class ForwardPass(NamedTuple):
    """A forward pass of m tasks' own networks over N observations each.

    Attributes:
        layers: The networks.
        inputs: The inputs of each layer, (m, N, in): the observations, then the hidden features.
        output: The output of the last layer, (m, N, A).
        relu: Whether the activation is ReLU, which has no second derivative, and not tanh.
    """

    layers: Layers
    inputs: list[Tensor]
    output: Tensor
    relu: bool


def linearise(
    policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], query: Rollouts, config: Config
) -> tuple[Distribution, Callable[[Tensor], Distribution], Callable[[Distribution], Tensor]]:
    """Evaluates the adapted policies of m tasks, and prepares products with their Jacobian J in θ.

    Args:
        policy: A ready-made MLP, for which `as_made` is true.
        theta: θ, (P,).
        supports: For each of S inner steps, the tasks' rollouts (m, K, H, ...) with advantages.
        query: The rollouts of the adapted policies, (m, K, H, ...).
        config: The inner step's options are used.

    Returns:
        The policies at the query observations, of tensors (m, K·H, ...); v ↦ J v, from (P,) to tensors like them;
        and u ↦ Jᵀ u in the opposite direction.
    """
    num_tasks = len(query.mask)
    thetas = theta.detach().expand(num_tasks, -1)
    steps = []
    for support in supports:
        thetas, step_jvp, step_vjp = inner_step(policy, thetas, support, config)
        steps.append((step_jvp, step_vjp))
    layers, log_std, network = split(policy, thetas)
    at_query = forward(layers, query.observations.flatten(1, 2), has_relu(policy))
    policies, head_jvp, head_vjp = jacobian_products(distribution, at_query.output, *log_std)

    def jvp(tangent: Tensor) -> Distribution:
        tangents = tangent.expand(num_tasks, -1)
        for step_jvp, _ in steps:
            tangents = step_jvp(tangents)
        layers_dot, log_std_dot, _ = split_jvp(policy, thetas, tangents)
        output_dot, _ = layers_jvp(at_query, layers_dot)
        outputs_dot: Distribution = head_jvp(output_dot, *log_std_dot)
        return outputs_dot

    def vjp(cotangent: Distribution) -> Tensor:
        output_bar, *log_std_bar = head_vjp(cotangent)
        network_bar = [torch.zeros_like(x) for x in network]  # only inner losses depend on it
        layers_bar = layers_vjp(at_query, output_bar)[0]
        cotangents = split_vjp(policy, thetas, layers_bar, [*log_std_bar, *network_bar])
        for _, step_vjp in reversed(steps):
            cotangents = step_vjp(cotangents)
        return cotangents.sum(0, dtype=torch.float64)

    return policies, jvp, vjp


def inner_step(
    policy: nn.Module, thetas: Tensor, support: Rollouts, config: Config, lr_factor: float = 1.0
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """An inner step of m tasks, (m, P) to (m, P): the adapted parameters, v ↦ J v and u ↦ Jᵀ u.

    The step is a function of θ and of the loss's gradient g(θ), whose derivative is the symmetric Hessian H. For
    that, a network of learned advantages is a part of θ like any other, though its own step size is 0.
    """
    layers, log_std, network = split(policy, thetas)
    at_support = forward(layers, support.observations.flatten(1, 2), has_relu(policy))
    output, log_std, network = tree_map(
        lambda x: x.clone().requires_grad_(), (at_support.output, log_std, network)
    )
    at = [output] if support.targets else [output, *log_std, *network]  # L depends on the output alone
    total = inner_losses(support, config, output, log_std, network).sum()
    slopes = torch.autograd.grad(total, at, create_graph=not config.first_order)
    output_bar, *others_bar = [slope.detach() for slope in slopes]
    layers_bar, outputs_bar = layers_vjp(at_support, output_bar)
    gradient = split_vjp(policy, thetas, layers_bar, others_bar)

    @cache  # collecting needs no products
    def curvature() -> SecondOrder:
        return second_order(at_support, outputs_bar, num_products=2 * config.cg_iterations)

    def hvp(tangents: Tensor) -> Tensor:
        if config.first_order:
            return torch.zeros_like(tangents)
        layers_dot, log_std_dot, network_dot = split_jvp(policy, thetas, tangents)
        output_dot, features_dot = layers_jvp(at_support, layers_dot)
        tangents_at = [output_dot, *log_std_dot, *network_dot][: len(at)]
        first, *rest = torch.autograd.grad(slopes, at, tangents_at, retain_graph=True)
        layers_bar_dot = layers_vjp_jvp(at_support, curvature(), layers_dot, features_dot, first)
        bar_dot = split_vjp(policy, thetas, layers_bar_dot, rest)
        add_context_vjp(policy, tangents, layers_bar, bar_dot)  # W_c c has a second derivative
        return bar_dot

    if all_alike(config):

        def product(v: Tensor) -> Tensor:
            return v - lr_factor * config.inner_lr * hvp(v)  # which is its own transpose

        return inner_update(policy, thetas, gradient, support, config, lr_factor), product, product

    def update(thetas: Tensor, gradient: Tensor) -> Tensor:
        step = partial(inner_update, policy, config=config, lr_factor=lr_factor)
        updated: Tensor = vmap(step)(thetas, gradient, support)
        return updated

    adapted, update_jvp, update_vjp = jacobian_products(update, thetas, gradient)

    def jvp(tangents: Tensor) -> Tensor:
        adapted_dot: Tensor = update_jvp(tangents, hvp(tangents))
        return adapted_dot

    def vjp(cotangents: Tensor) -> Tensor:
        thetas_bar, gradient_bar = update_vjp(cotangents)
        return hvp(gradient_bar).add_(thetas_bar)

    return adapted, jvp, vjp


def inner_losses(
    support: Rollouts, config: Config, output: Tensor, log_std: list[Tensor], network: list[Tensor]
) -> Tensor:
    """The inner losses of m tasks, (m,), as a function of the network's output (m, N, A) and other parameters."""
    if support.targets:  # without vmap, which would take longer than the loss
        return example_loss(distribution(output, *log_std), support)

    def one(support: Rollouts, output: Tensor, log_std: list[Tensor], network: list[Tensor]) -> Tensor:
        return loss_of(distribution(output, *log_std), support, config, *network)

    losses: Tensor = vmap(one)(support, output, log_std, network)
    return losses


def distribution(output: Tensor, *log_std: Tensor) -> Distribution:
    """The distribution that the head makes of the output (..., N, A), and of log σ (..., A) if it has one."""
    return normal(output, *log_std) if log_std else Categorical(output)


def forward(layers: Layers, observations: Tensor, relu: bool = False) -> ForwardPass:
    """Evaluates the networks at observations (m, N, O), keeping what derivatives need."""
    inputs = [observations]
    for weight, bias in layers[:-1]:
        before = affine(inputs[-1], weight, bias)
        inputs.append(before.relu_() if relu else tanh_(before))
    return ForwardPass(layers, inputs, affine(inputs[-1], *layers[-1]), relu)


def times_slope(x: Tensor, at: ForwardPass, i: int) -> Tensor:
    """Multiplies x (m, N, out) in place by the activation's derivative in hidden layer i."""
    features, aten = at.inputs[i + 1], torch.ops.aten  # aten's operations take one pass and no memory
    if at.relu:
        aten.threshold_backward.grad_input(x, features, 0, grad_input=x)  # x (features > 0)
    else:
        aten.tanh_backward.grad_input(x, features, grad_input=x)  # x (1 - features²)
    return x


def layers_jvp(at: ForwardPass, layers_dot: Layers) -> tuple[Tensor, list[Tensor]]:
    """The tangents of the output (m, N, A) and of the hidden features (m, N, out) for those of the layers."""
    features_dot: list[Tensor] = []
    for i, (weight_dot, bias_dot) in enumerate(layers_dot):
        output_dot = affine(at.inputs[i], weight_dot, bias_dot)
        if i > 0:
            add_bmm(output_dot, features_dot[-1], at.layers[i][0].mT)
        if i + 1 < len(layers_dot):
            features_dot.append(times_slope(output_dot, at, i))
    return output_dot, features_dot


def layers_vjp(at: ForwardPass, output_bar: Tensor) -> tuple[Layers, list[Tensor]]:
    """The cotangents of the layers for that of the output (m, N, A).

    Returns:
        Those of weights and biases, and of each layer's output before the activation, (m, N, out).
    """
    layers_bar, outputs_bar = [], [output_bar]
    for i in reversed(range(len(at.layers))):
        layers_bar.append((summed_outer(outputs_bar[-1], at.inputs[i]), outputs_bar[-1].sum(1)))
        if i > 0:
            outputs_bar.append(times_slope(bmm(outputs_bar[-1], at.layers[i][0]), at, i - 1))
    return layers_bar[::-1], outputs_bar[::-1]


class SecondOrder(NamedTuple):
    """What second derivatives of u · output in the layers need, at a fixed cotangent u, (m, N, A).

    Attributes:
        outputs_bar: The cotangents of the outputs before the activation, by number of the layer, for those layers
            whose sums over n are taken in every product, (m, N, out).
        tanh_terms: The cotangents of each layer's hidden features, times tanh''/tanh', (m, N, out). None for ReLU.
        cross_block: The second derivative in the weights of the first layer, bias included, and of the second. It
            is bilinear: Σ_n (outputs_bar of the second)_nb (tanh' of the first)_na (o_n, 1)_o, (m, a, O + 1, b).
            None if taking the sum over n again in every product is cheaper, or needs less memory.
    """

    outputs_bar: dict[int, Tensor]
    tanh_terms: list[Tensor]
    cross_block: Tensor | None


def second_order(at: ForwardPass, outputs_bar: list[Tensor], num_products: int) -> SecondOrder:
    """Prepares `layers_vjp_jvp` for about so many products."""
    pairs = [] if at.relu else zip(at.inputs[1:], outputs_bar[1:], at.layers[1:], strict=True)
    tanh_terms = [bmm(bar, weight).mul_(features).mul_(-2) for features, bar, (weight, _) in pairs]
    in_products = dict(enumerate(outputs_bar[1:], start=1))
    if len(at.layers) == 1:
        return SecondOrder(in_products, tanh_terms, None)
    _, num_rows, width = outputs_bar[1].shape
    size = at.inputs[0].shape[-1] + 1
    # A column of the block costs one product over all rows, and a Hessian product without the block costs two more
    # than with it. The block must not be larger than a layer's features either.
    if size > num_products or size * width > num_rows:
        return SecondOrder(in_products, tanh_terms, None)
    second = in_products.pop(1)
    columns = [*at.inputs[0].split(1, dim=-1), torch.ones_like(at.inputs[0][..., :1])]
    # One at a time, to save memory.
    sums = [times_slope(column.expand_as(at.inputs[1]).contiguous(), at, 0).mT @ second for column in columns]
    return SecondOrder(in_products, tanh_terms, torch.stack(sums, dim=2))


def layers_vjp_jvp(
    at: ForwardPass, curvature: SecondOrder, layers_dot: Layers, features_dot: list[Tensor], output_bar_dot: Tensor
) -> Layers:
    """The tangents of the layers' cotangents from `layers_vjp`.

    Args:
        at: The forward pass.
        curvature: From `second_order`.
        layers_dot: The tangents of the layers.
        features_dot: The tangents of the hidden features, from `layers_jvp`.
        output_bar_dot: The tangent of the output's cotangent, (m, N, A).
    """
    result, bar_dot = [], output_bar_dot
    for i in reversed(range(len(at.layers))):
        weight_bar_dot = summed_outer(bar_dot, at.inputs[i])
        if i in curvature.outputs_bar:
            weight_bar_dot = weight_bar_dot + summed_outer(curvature.outputs_bar[i], features_dot[i - 1])
        result.append((weight_bar_dot, bar_dot.sum(1)))
        if i > 0:
            features_bar_dot = bmm(bar_dot, at.layers[i][0])
            if i in curvature.outputs_bar:
                add_bmm(features_bar_dot, curvature.outputs_bar[i], layers_dot[i][0])
            bar_dot = times_slope(features_bar_dot, at, i - 1)
            if curvature.tanh_terms:
                bar_dot.addcmul_(curvature.tanh_terms[i - 1], features_dot[i - 1])
    result.reverse()
    if curvature.cross_block is not None:
        (weight_1, bias_1), (weight_2, bias_2) = result[:2]
        first_dot = torch.cat([layers_dot[0][0], layers_dot[0][1].unsqueeze(-1)], dim=-1)
        first = (curvature.cross_block * layers_dot[1][0].mT.unsqueeze(2)).sum(3)
        result[0] = weight_1 + first[..., :-1], bias_1 + first[..., -1]
        result[1] = weight_2 + (curvature.cross_block * first_dot.unsqueeze(3)).sum(2).mT, bias_2
    return result


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each task's layer on its own rows, (m, N, in) -> (m, N, out)."""
    return bmm(inputs, weight.mT).add_(bias.unsqueeze(1))


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """Each task's left @ right, (m, a, b) and (m, b, c) -> (m, a, c)."""
    if narrow(left, right):
        return torch.from_numpy(left.numpy() @ right.contiguous().numpy())
    return torch.bmm(left, right)


def add_bmm(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Adds `bmm` to a total (m, a, c) in place."""
    return total.add_(bmm(left, right)) if narrow(left, right) else total.baddbmm_(left, right)


def narrow(left: Tensor, right: Tensor) -> bool:
    """Returns whether NumPy's product is faster than torch's: on a CPU, for long and narrow matrices."""
    sizes = *left.shape[-2:], right.shape[-1]
    return left.device.type == "cpu" and min(sizes) <= 8 and max(sizes) >= 256


def summed_outer(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_n right_nᵀ, (m, N, a) and (m, N, b) -> (m, a, b)."""
    # With few columns on the right, this product takes three times as long as its transpose.
    return bmm(left.mT, right) if left.shape[-1] <= right.shape[-1] else bmm(right.mT, left).mT
