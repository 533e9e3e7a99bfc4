"""The ready-made policy for the spaces of an environment."""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from ..config import Config
from ..errors import UserError
from .distributions import Categorical, Distribution, MultiCategorical, Normal
from .networks import CNN, MLP, CategoricalHead, Conv4, GaussianHead, initialise

_OWN = "pass a module of your own: train(config, policy=...), evaluate(run_dir, policy=...)"


def make_policy(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    config: Config,
    generator: torch.Generator,
    task_size: int = 0,
) -> nn.Module:
    """Makes an MLP, or a CNN or `Conv4` for images, for the spaces of a single environment.

    Args:
        observation_space: A Box of O numbers, Discrete with O values (seen one-hot), or a Box of images
            (channels, height, width).
        action_space: A Box of A numbers (Gaussian policy) or Discrete with A values (categorical policy).
        config: The policy's options are used.
        generator: The source of the initial parameters.
        task_size: D, if the policy sees the task after the observation.

    Raises:
        UserError: If there is no ready-made policy for these spaces and options.
    """
    image = is_image(observation_space)
    if image and (task_size or config.context_size):
        raise UserError(
            "There is no ready-made policy for images with observe_task or context_size; leave these options out, "
            f"or {_OWN}."
        )
    if image and len(config.hidden_sizes) != 1 and config.changed("hidden_sizes"):
        raise UserError(
            f"hidden_sizes is {config.hidden_sizes}, but the ready-made networks for images take one number; "
            f"choose one, or {_OWN}."
        )
    if config.network == "conv4" and not image:
        raise UserError(
            f"network is 'conv4', but the observation space {observation_space} is not an image Box (channels, "
            "height, width); leave network out."
        )
    size = flat_size(observation_space) + task_size
    width = config.hidden_sizes[-1] if config.hidden_sizes else size + config.context_size
    head = make_head(action_space, width, config)
    policy: nn.Module
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[config.activation]
    if config.network == "conv4":
        policy = Conv4(cast(spaces.Box, observation_space).shape, width, head)
    elif image:
        policy = CNN(cast(spaces.Box, observation_space).shape, width, head, activation)
    else:
        policy = MLP(size, config.hidden_sizes, head, config.context_size, activation)
    initialise(policy, generator)
    return policy


def is_image(space: spaces.Space[Any]) -> bool:
    """Returns whether observations are images, (channels, height, width).

    Raises:
        UserError: If they look like images whose channels come last.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    if space.shape[2] in (1, 3, 4) and space.shape[0] not in (1, 3, 4):
        raise UserError(
            f"The observation space {space} looks like images with their channels last; put them "
            "first, (channels, height, width), with gymnasium.wrappers.TransformObservation."
        )
    return True


def flat_size(space: spaces.Space[Any]) -> int:
    """Returns O, the number of inputs that a policy gets for an observation.

    Raises:
        UserError: If there is no ready-made policy for the space.
    """
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and not (
        isinstance(space, spaces.Box) and len(space.shape) in (1, 3)
    ):
        raise UserError(
            f"There is no ready-made policy for the observation space {space}, only for a one-dimensional Box, an "
            f"image Box (channels, height, width), Discrete and MultiDiscrete; {_OWN}."
        )
    return spaces.flatdim(space)


def make_head(action_space: spaces.Space[Any], width: int, config: Config) -> GaussianHead | CategoricalHead:
    """Makes the last layer of a policy, for features of the given width.

    Raises:
        UserError: If there is no ready-made head for the space, or if an option does not fit it.
    """
    if isinstance(action_space, spaces.Discrete):
        if config.changed("initial_std"):
            raise UserError(
                f"initial_std is {config.initial_std}, but the actions {action_space} have no standard deviation; "
                "leave initial_std out."
            )
        return CategoricalHead(width, int(action_space.n))
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        return GaussianHead(width, action_space.shape[0], config.initial_std)
    raise UserError(
        f"There is no ready-made policy for the action space {action_space}, only for a one-dimensional Box and "
        f"Discrete; {_OWN}."
    )


def require_fit(result: object, action_space: spaces.Space[Any]) -> None:
    """Refuses a policy whose distributions are not over the actions of an environment.

    Args:
        result: What the policy returns for N observations.
        action_space: That of a single environment.

    Raises:
        UserError: The message says what the policy must return.
    """
    if not isinstance(result, Distribution):
        raise UserError(
            f"The policy given returns a {type(result).__module__}.{type(result).__qualname__}, but must return a "
            "Normal, Categorical or MultiCategorical of maml_rl.policies."
        )
    wanted: tuple[type, tuple[int, ...]]
    if isinstance(action_space, spaces.Discrete):
        wanted = Categorical, (int(action_space.n),)
    elif isinstance(action_space, spaces.MultiDiscrete):
        wanted = MultiCategorical, (len(action_space.nvec), int(action_space.nvec.max()))
    else:
        wanted = Normal, action_space.shape or ()
    if isinstance(result, Normal) and result.log_std.shape != result.mean.shape:
        raise UserError(
            f"The policy given returns a Normal whose mean has shape {tuple(result.mean.shape)} and whose log_std "
            f"has shape {tuple(result.log_std.shape)}, but both must have the same; use log_std.expand_as(mean)."
        )
    found = type(result), tuple(result[0].shape[1:])
    if found != wanted:
        is_, needed = (
            f"{kind.__name__} with tensors (N, {', '.join(map(str, shape))})" for kind, shape in (found, wanted)
        )
        raise UserError(
            f"For N observations, the policy given returns a {is_}, but the action space {action_space} needs a "
            f"{needed}; change its last layer."
        )
    if isinstance(result, MultiCategorical) and isinstance(action_space, spaces.MultiDiscrete):
        exists = (
            torch.arange(result.logits.shape[-1]) < torch.from_numpy(action_space.nvec.astype(np.int64))[:, None]
        )
        if (torch.softmax(result.logits, -1)[:, ~exists] > 0).any():
            raise UserError(
                f"The policy given may choose actions that {action_space} does not have; set the logits of values "
                "that do not exist to -1e9."
            )
