"""Ready-made policy networks from observations (N, O) to an action distribution.

Any `torch.nn.Module` that returns a distribution of `maml_rl.policies` is a policy.
"""

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .distributions import Categorical, Distribution, Normal

# exp(-13.8) = 1e-6. Below it, log-probabilities of float32 actions are meaningless.
MIN_LOG_STD = -13.8


class Linear(nn.Linear):
    """A linear layer whose parameters may have a leading task axis: weight (M, out, in), bias (M, out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., N, in) to (..., N, out)."""
        return input @ self.weight.mT + self.bias.unsqueeze(-2)


class GaussianHead(nn.Module):
    """A linear layer for the mean, and a standard deviation that does not depend on the observation.

    Args:
        num_features: F, the number of features.
        num_actions: A.
        std: The initial standard deviation, in units of half the action range.
    """

    def __init__(self, num_features: int, num_actions: int, std: float):
        super().__init__()
        self.mean = nn.utils.skip_init(Linear, num_features, num_actions)
        self.log_std = nn.Parameter(torch.full((num_actions,), math.log(std)))

    def forward(self, features: Tensor) -> Normal:
        """Returns the distribution of actions (..., N, A) for features (..., N, F)."""
        return normal(self.mean(features), self.log_std)


def normal(mean: Tensor, log_std: Tensor) -> Normal:
    """Returns normal distributions with mean (..., N, A) and the same log σ (..., A) for all N."""
    return Normal(mean, log_std.clamp(min=MIN_LOG_STD).unsqueeze(-2).expand_as(mean))


class CategoricalHead(nn.Module):
    """A linear layer for the logits.

    Args:
        num_features: F, the number of features.
        num_actions: The number of values of an action.
    """

    def __init__(self, num_features: int, num_actions: int):
        super().__init__()
        self.logits = nn.utils.skip_init(Linear, num_features, num_actions)

    def forward(self, features: Tensor) -> Categorical:
        """Returns the distribution of actions (..., N) for features (..., N, F)."""
        return Categorical(self.logits(features))


class MLP(nn.Module):
    """A multi-layer perceptron: a `body` and a `head`, with optional inputs that are parameters.

    Args:
        observation_size: The numbers of a flattened observation, O, plus D if the task is observed.
        hidden_sizes: Widths of the hidden layers.
        head: Maps the last layer's features to a distribution.
        context_size: C.
        activation: The class of the hidden layers' function.

    Attributes:
        body: The hidden layers.
        head: Maps the last layer's features to a distribution.
        context: Parameters that are extra inputs, (C,), initially 0 (Zintgraf et al.,
            arXiv:1810.03642). None if C is 0.
    """

    context: nn.Parameter | None

    def __init__(
        self,
        observation_size: int,
        hidden_sizes: tuple[int, ...],
        head: nn.Module,
        context_size: int = 0,
        activation: type[nn.Module] = nn.Tanh,
    ):
        super().__init__()
        self.register_parameter("context", nn.Parameter(torch.zeros(context_size)) if context_size else None)
        layers: list[nn.Module] = []
        for size, next_size in pairwise((observation_size + context_size, *hidden_sizes)):
            layers += [nn.utils.skip_init(Linear, size, next_size), activation()]
        self.body = nn.Sequential(*layers)
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations: Tensor) -> Distribution:
        """Returns the distribution of actions at observations (..., N, O)."""
        if self.context is not None:
            context = self.context.unsqueeze(-2).expand(*observations.shape[:-1], -1)
            observations = torch.cat([observations, context], dim=-1)
        return cast(Distribution, self.head(self.body(observations)))


class CNN(nn.Module):
    """Two convolutions of stride 2 and a hidden layer, for images. `body` and `head` are as in `MLP`.

    Args:
        shape: Channels, height and width. Observations are flattened images of this shape.
        num_features: Width of the hidden layer.
        head: Maps its features to a distribution.
        activation: The class of the hidden layers' function.
    """

    def __init__(
        self, shape: tuple[int, ...], num_features: int, head: nn.Module, activation: type[nn.Module] = nn.Tanh
    ):
        super().__init__()
        channels, height, width = shape
        self.shape = shape
        self.body = nn.Sequential(
            nn.utils.skip_init(nn.Conv2d, channels, 8, 3, stride=2, padding=1),
            activation(),
            nn.utils.skip_init(nn.Conv2d, 8, 16, 3, stride=2, padding=1),
            activation(),
            nn.Flatten(-3),
            nn.utils.skip_init(nn.Linear, 16 * -(-height // 4) * -(-width // 4), num_features),
            activation(),
        )
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations: Tensor) -> Distribution:
        """Returns the distribution of actions at flattened images (N, O)."""
        return cast(Distribution, self.head(self.body(observations.unflatten(-1, self.shape))))


class _Convolution(nn.Module):
    """A 3 × 3 convolution of stride 2 as one matrix product, scaled by its own statistics, then ReLU."""

    def __init__(self, channels: int, num_filters: int):
        super().__init__()
        self.filters = nn.utils.skip_init(nn.Linear, 9 * channels, num_filters, bias=False)
        self.scale = nn.Parameter(torch.ones(num_filters))
        self.shift = nn.Parameter(torch.zeros(num_filters))

    def forward(self, input: Tensor) -> Tensor:
        """Maps images (N, height, width, channels) to half their height and width, rounded up."""
        padded = nn.functional.pad(input, (0, 0, 1, 1, 1, 1))
        height, width = input.shape[1:3]
        patches = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
        x = self.filters(torch.cat(patches, dim=-1))
        variance, mean = torch.var_mean(x, dim=(0, 1, 2), correction=0)
        return torch.relu((x - mean) * (self.scale * torch.rsqrt(variance + 1e-5)) + self.shift)


class Conv4(nn.Module):
    """The network of few-shot classification: four convolutions of stride 2, averaged over all places.

    Every layer is normalised by the mean and variance over all images of a call, which are the support or the
    query set of a task, in tests as in training (Finn et al., arXiv:1703.03400, section 5.2). Predictions for an
    image therefore depend on the others. `body` and `head` are as in `MLP`.

    Args:
        shape: Channels, height and width. Observations are flattened images of this shape.
        num_filters: Filters of each convolution.
        head: Maps their means to a distribution.
    """

    def __init__(self, shape: tuple[int, ...], num_filters: int, head: nn.Module):
        super().__init__()
        self.shape = shape
        self.body = nn.Sequential(*(_Convolution(n, num_filters) for n in (shape[0], *[num_filters] * 3)))
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations: Tensor) -> Distribution:
        """Returns the distribution of actions at flattened images (N, O)."""
        images = observations.unflatten(-1, self.shape).movedim(-3, -1)
        return cast(Distribution, self.head(self.body(images).mean((-3, -2))))


def initialise(policy: nn.Module, generator: torch.Generator) -> None:
    """Draws all weight matrices from Glorot's uniform distribution and sets all biases to 0, in place.

    The weights of the last layer are 100 times smaller, so that the untrained policy is nearly the same for all
    observations and explores only by its noise (Andrychowicz et al., arXiv:2006.05990, section 3.2). With a last
    layer of full size, some seeds of 2D navigation start by walking away and never recover.
    """
    layers = [module for module in policy.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.RNNBase)]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if "weight" in name:
                gain = 0.01 if layer is layers[-1] else 1.0
                nn.init.xavier_uniform_(parameter, gain=gain, generator=generator)
            else:
                nn.init.zeros_(parameter)
