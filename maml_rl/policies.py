"""Policies: stateless modules from observations (N, O) to an action distribution.

A policy's parameters θ are one flat tensor of P numbers; the module sees them unflattened at the call
only. Any `torch.nn.Module` that returns a distribution of `maml_rl.distributions` is a policy.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .config import Config
from .distributions import Categorical, Distribution, Normal
from .errors import UserError
from .recurrent import GRUPolicy

# exp(-13.8) = 1e-6: below it, log-probabilities of float32 actions mean nothing.
MIN_LOG_STD = -13.8


# The name of the parameters that α is multiplied by the exponentials of, where it is learned.
LOG_LR_FACTORS = "log_lr_factors"
# The name of log σ in a policy under a ready-made head.
LOG_STD = "head.log_std"


class Linear(nn.Linear):
    """A linear layer whose parameters may have a leading task axis: weight (M, out, in), bias (M, out)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., N, in) to (..., N, out)."""
        return input @ self.weight.mT + self.bias.unsqueeze(-2)


class GaussianHead(nn.Module):
    """A linear layer for the mean, and a standard deviation that does not depend on the state."""

    def __init__(self, num_features: int, num_actions: int, std: float):
        super().__init__()
        self.mean = nn.utils.skip_init(Linear, num_features, num_actions)
        self.log_std = nn.Parameter(torch.full((num_actions,), math.log(std)))

    def forward(self, features: Tensor) -> Normal:
        """The distribution of actions (..., N, A) for features (..., N, F)."""
        return normal(self.mean(features), self.log_std)


def normal(mean: Tensor, log_std: Tensor) -> Normal:
    """Normal distributions of mean (..., N, A) with the same log σ (..., A) everywhere."""
    return Normal(mean, log_std.clamp(min=MIN_LOG_STD).unsqueeze(-2).expand_as(mean))


class CategoricalHead(nn.Module):
    """A linear layer for the logits."""

    def __init__(self, num_features: int, num_actions: int):
        super().__init__()
        self.logits = nn.utils.skip_init(Linear, num_features, num_actions)

    def forward(self, features: Tensor) -> Categorical:
        """The distribution of actions (..., N) for features (..., N, F)."""
        return Categorical(self.logits(features))


class MLP(nn.Module):
    """A multi-layer perceptron: a tanh `body` under a `head`, with optional inputs that are parameters.

    Attributes:
        body: The hidden layers.
        head: What makes a distribution of the last layer's features.
        context: Parameters that are inputs beside the observation, (C,), 0 at first (Zintgraf et al.,
            arXiv:1810.03642); None if C is 0.
    """

    context: nn.Parameter | None

    def __init__(
        self, observation_size: int, hidden_sizes: tuple[int, ...], head: nn.Module, context_size: int = 0
    ):
        super().__init__()
        self.register_parameter("context", nn.Parameter(torch.zeros(context_size)) if context_size else None)
        layers: list[nn.Module] = []
        for size, next_size in pairwise((observation_size + context_size, *hidden_sizes)):
            layers += [nn.utils.skip_init(Linear, size, next_size), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations: Tensor) -> Distribution:
        """The distribution of actions at observations (..., N, O)."""
        if self.context is not None:
            context = self.context.unsqueeze(-2).expand(*observations.shape[:-1], -1)
            observations = torch.cat([observations, context], dim=-1)
        return self.head(self.body(observations))


class CNN(nn.Module):
    """Two convolutions of stride 2 and a hidden layer, for images; `body` and `head` as in `MLP`.

    Args:
        shape: Channels, height and width; the observations are such images, flattened.
        num_features: Width of the hidden layer.
        head: What makes a distribution of its features.
    """

    def __init__(self, shape: tuple[int, ...], num_features: int, head: nn.Module):
        super().__init__()
        channels, height, width = shape
        self.shape = shape
        self.body = nn.Sequential(
            nn.utils.skip_init(nn.Conv2d, channels, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.utils.skip_init(nn.Conv2d, 8, 16, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(-3),
            nn.utils.skip_init(nn.Linear, 16 * -(-height // 4) * -(-width // 4), num_features),
            nn.Tanh(),
        )
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations: Tensor) -> Distribution:
        """The distribution of actions at flattened images (N, O)."""
        return self.head(self.body(observations.unflatten(-1, self.shape)))


def tanh(x: Tensor) -> Tensor:
    """Tanh without derivatives; on a CPU, NumPy's takes a fifth of the time of torch's."""
    return torch.from_numpy(np.tanh(x.detach().numpy())) if x.device.type == "cpu" else torch.tanh(x)


class Tanh(nn.Module):
    """`tanh` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Tanh x."""
        return tanh(x)


def initialise(policy: nn.Module, generator: torch.Generator) -> None:
    """Draws all weight matrices from Glorot's uniform distribution and sets all biases to 0, in place.

    The last layer's are 100 times smaller, so that the first policy is the same everywhere: what it does
    at first comes from its noise (Andrychowicz et al., arXiv:2006.05990, section 3.2). With a last layer
    of full size, some seeds of 2D navigation start on a path to nowhere and never find back.
    """
    layers = [module for module in policy.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.GRU)]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if "weight" in name:
                gain = 0.01 if layer is layers[-1] else 1.0
                nn.init.xavier_uniform_(parameter, gain=gain, generator=generator)
            else:
                nn.init.zeros_(parameter)


def make_policy(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    config: Config,
    generator: torch.Generator,
    task_size: int = 0,
) -> nn.Module:
    """A new policy for the spaces of a single environment.

    Args:
        observation_space: A Box of O numbers, Discrete with O values (seen one-hot), or a Box of images
            (channels, height, width).
        action_space: A Box of A numbers (Gaussian policy) or Discrete with A values (categorical policy).
        config: Of it, the options of the policy.
        generator: The source of the first parameters.
        task_size: D, if the policy sees the task after the observation.

    Raises:
        UserError: If there is no ready-made policy for these spaces and options.
    """
    image = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 3
    fits = image or isinstance(observation_space, spaces.Discrete)
    if not fits and not (isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1):
        raise UserError(
            f"There is no ready-made policy for the observation space {observation_space}, only for a "
            "one-dimensional Box, an image Box (channels, height, width) and Discrete; give a module of "
            "your own: train(config, policy=...), evaluate(run_dir, policy=...)."
        )
    if image and (task_size or config.context_size or config.rl2_episodes):
        raise UserError(
            "observe_task, context_size and rl2_episodes have no ready-made policy for images; leave them out, or "
            "give train a module of your own: train(config, policy=...), evaluate(run_dir, policy=...)."
        )
    channels = observation_space.shape[::2] if image else ()  # type: ignore[index]
    if image and channels[1] in (1, 3, 4) and channels[0] not in (1, 3, 4):
        raise UserError(
            f"The observation space {observation_space} looks like images with their channels last; put them "
            "first, (channels, height, width), by gymnasium.wrappers.TransformObservation."
        )
    size = spaces.flatdim(observation_space) + task_size
    width = config.hidden_sizes[-1] if config.hidden_sizes else size + config.context_size
    if config.rl2_episodes and len(config.hidden_sizes) != 1:
        raise UserError(
            f"hidden_sizes is {config.hidden_sizes}, but the memory of RL² is one layer; choose one number."
        )
    head: nn.Module
    if isinstance(action_space, spaces.Discrete):
        num_actions = int(action_space.n)
        head = CategoricalHead(width, num_actions)
    elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        num_actions = action_space.shape[0]
        head = GaussianHead(width, num_actions, config.initial_std)
    else:
        raise UserError(
            f"There is no ready-made policy for the action space {action_space}, only for a one-dimensional Box "
            "and Discrete; give a module of your own: train(config, policy=...), evaluate(run_dir, policy=...)."
        )
    policy: nn.Module
    if config.rl2_episodes:
        policy = GRUPolicy(size, num_actions, width, head)
    elif image:
        policy = CNN(observation_space.shape, width, head)  # type: ignore[arg-type]
    else:
        policy = MLP(size, config.hidden_sizes, head, config.context_size)
    initialise(policy, generator)
    return policy


def flatten(policy: nn.Module) -> Tensor:
    """The parameters of a module as one tensor, (P,)."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def load(policy: nn.Module, theta: Tensor) -> None:
    """Copies θ (P,) into the module's own parameters, in place."""
    nn.utils.vector_to_parameters(theta.clone(), policy.parameters())


def unflatten(policy: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Views of θ (..., P) under the names and in the shapes of the module's parameters."""
    parameters = dict(policy.named_parameters())
    parts = theta.split([parameter.numel() for parameter in parameters.values()], dim=-1)
    return {
        name: part.unflatten(-1, parameter.shape)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def act(policy: nn.Module, theta: Tensor, observations: Tensor) -> Distribution:
    """π_θ: the distribution of actions at observations (N, O) under parameters θ (P,)."""
    return functional_call(policy, unflatten(policy, theta), (observations,))


def as_made(policy: nn.Module) -> bool:
    """Whether a policy is an MLP under a ready-made head, with nothing exchanged, added or hooked on since."""
    if type(policy) is not MLP:
        return False
    body, head = policy.get_submodule("body"), policy.get_submodule("head")
    layers = [type(layer) for layer in body.children()]
    linear = {
        name for name, module in policy.named_modules() if type(module) is Linear and module.bias is not None
    }
    others = {"context", LOG_STD, LOG_LR_FACTORS}
    return (
        type(body) is nn.Sequential
        and layers == [Linear, nn.Tanh] * (len(layers) // 2)
        and type(head) in (GaussianHead, CategoricalHead)
        and all(name.rpartition(".")[0] in linear or name in others for name, _ in policy.named_parameters())
        and not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())
    )


def per_task(policy: nn.Module, theta: Tensor) -> Callable[[Tensor], Distribution]:
    """Each task's own policy, for many calls.

    Args:
        policy: The policy module.
        theta: Each task's own parameters, (M, P).

    Returns:
        A function from each task's own observations (M, N, O) to distributions of tensors (M, N, ...).
    """
    parameters = unflatten(policy, theta)
    if not as_made(policy):
        # A copy of its own: functional_call changes the module for the time of the call, and the halves of a
        # MuJoCo family are collected at the same time.
        own = copy.deepcopy(policy).cpu()
        batched = vmap(lambda parameters, observations: functional_call(own, parameters, (observations,)))
        return partial(batched, parameters)
    # Layers that take a task axis themselves need half of vmap's time, which counts at every step.
    bound = copy.deepcopy(policy).cpu()
    for name, parameter in parameters.items():
        module, _, attribute = name.rpartition(".")
        delattr(bound.get_submodule(module), attribute)
        setattr(bound.get_submodule(module), attribute, parameter)
    bound.body = nn.Sequential(
        *(Tanh() if isinstance(layer, nn.Tanh) else layer for layer in bound.get_submodule("body").children())
    )
    return bound
