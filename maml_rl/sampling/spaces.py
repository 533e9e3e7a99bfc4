"""Converts between an environment's spaces and the inputs and outputs of a policy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

Array = npt.NDArray[Any]


def encode(space: spaces.Space[Any], observations: Array) -> Tensor:
    """Converts observations of N environments to float32, (N, O): one-hot if discrete, images flat in [0, 1].

    A discrete observation outside the space becomes NaN, which is refused like any other that is not finite.
    """
    if isinstance(space, spaces.Discrete):
        index = torch.from_numpy(observations - space.start).long()
        inside = (index >= 0) & (index < int(space.n))
        numbers = torch.nn.functional.one_hot(index.where(inside, 0), int(space.n)).float()
        return numbers if inside.all() else numbers.where(inside.unsqueeze(-1), torch.nan)
    if isinstance(space, spaces.MultiDiscrete):
        each = [
            spaces.Discrete(int(n), start=int(s)) for n, s in zip(space.nvec.flat, space.start.flat, strict=True)
        ]
        columns = observations.reshape(len(observations), len(each)).T
        return torch.cat([encode(one, column) for one, column in zip(each, columns, strict=True)], dim=1)
    numbers = torch.from_numpy(np.asarray(observations, np.float32)).flatten(1)
    image = space.dtype == np.uint8 and isinstance(space, spaces.Box) and (space.high == 255).all()
    return numbers / 255 if image else numbers


def task_inputs(space: spaces.Space[Any], tasks: Array) -> Tensor:
    """Converts tasks (M, D) to float32 inputs of a policy: a bounded Box to [-1, 1], discrete tasks to one-hot."""
    if isinstance(space, spaces.Box) and _is_bounded(space):
        middle, half = _middle_and_half(space)
        tasks = (tasks - middle) / np.where(half > 0, half, 1)
    elif not isinstance(space, spaces.Box):
        tasks = np.stack([np.asarray(spaces.flatten(space, task)) for task in tasks])
    return torch.from_numpy(np.asarray(tasks, np.float32)).flatten(1)


def action_map(space: spaces.Space[Any]) -> Callable[[Array], Array]:
    """Returns a function from the policy's actions, (N, A) or (N,), to the environment's actions.

    The policy's range [-1, 1] covers the whole range of a bounded Box. Actions outside it are clipped only here,
    so that log-probabilities are those of the actions that were drawn. Those of a Box that is not bounded on all
    sides are only clipped, at the bounds that it has. Those of an integer Box are rounded.
    """
    # Of functions of the module, because adapted policies are pickled.
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return partial(_to_discrete, start=space.start, dtype=space.dtype)
    assert isinstance(space, spaces.Box)
    if not _is_bounded(space):
        return partial(_to_box, low=space.low, high=space.high, dtype=space.dtype)
    middle, half = _middle_and_half(space)
    low, high = space.low.astype(half.dtype), space.high.astype(half.dtype)
    return partial(_to_box, low=low, high=high, dtype=space.dtype, scale=(middle, half))


def _to_discrete(actions: Array, start: Any, dtype: Any) -> Array:
    return np.asarray(actions.astype(dtype) + start)


def _to_box(
    actions: Array, low: Array, high: Array, dtype: Any, scale: tuple[Array, Array] | None = None
) -> Array:
    if scale is not None:
        middle, half = scale
        actions = middle + half * actions
    # Clipped at the bounds themselves: middle ± half may be rounded to a number outside them.
    actions = np.minimum(np.maximum(actions, low), high)
    if np.issubdtype(dtype, np.integer):
        actions = np.rint(actions)
    return np.asarray(actions.astype(dtype, copy=False))


def _is_bounded(space: spaces.Box) -> bool:
    """Whether a Box is bounded on all sides. A bound near the largest number of its type stands for none."""
    largest = np.maximum(-space.low.astype(np.float64), space.high.astype(np.float64))
    # Of integers this large, float64 cannot tell neighbours apart.
    return bool((largest < (2.0**53 if np.issubdtype(space.dtype, np.integer) else 1e30)).all())


def _middle_and_half(space: spaces.Box) -> tuple[Array, Array]:
    """The middle of a Box and half of its width. Sums of small integers and large floats would overflow."""
    kind = np.float64 if np.issubdtype(space.dtype, np.integer) else space.dtype
    low, high = space.low.astype(kind), space.high.astype(kind)
    return high / 2 + low / 2, high / 2 - low / 2
