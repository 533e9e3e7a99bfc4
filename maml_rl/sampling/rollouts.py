"""Rollouts of many tasks as one named tuple of tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..policies import Distribution


class Rollouts(NamedTuple):
    """K rollouts of each of M tasks. Under `vmap` over tasks, the first axis is absent.

    Attributes:
        observations: o_t, (M, K, H, O): the flat inputs of the policy. Discrete observations are one-hot vectors
            and images are scaled to [0, 1]. If the policy also sees the task or its last action, they come last.
        actions: a_t as drawn from the policy, (M, K, H, A), or (M, K, H) int64 if discrete.
        rewards: r_t, (M, K, H); 0 after the end of an episode.
        mask: (M, K, H) bool: whether the step was taken. An episode's steps come first, so it has `mask.sum(-1)`
            of them. Entries after them have no meaning.
        behaviour: The distribution that each action was drawn from, of tensors (M, K, H, ...).
        log_probs: log π(a_t | o_t) under `behaviour`, (M, K, H).
        advantages: Â_t, (M, K, H); 0 until `with_advantages` is called.
        advantage_scale: The number that a task's advantages were divided by, (M,); 1 until then.
        success: Whether a rollout succeeded at any step, (M, K): 1 or 0, or NaN if the family does not report it.
        failed: Whether the simulation of a rollout broke down, (M, K) bool.
        targets: What the loss compares predictions with, one tensor (M, K, H, A), or (M, K, H) if discrete. Empty
            unless a supervised family is learned from its examples.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    behaviour: Distribution
    log_probs: Tensor
    advantages: Tensor
    advantage_scale: Tensor
    success: Tensor
    failed: Tensor
    targets: tuple[Tensor, ...] = ()

    def returns(self) -> Tensor:
        """Returns the undiscounted sums of rewards, averaged over the K rollouts, (M,)."""
        return self.rewards.sum(-1).mean(-1)

    def to(self, device: torch.device) -> "Rollouts":
        """Returns the rollouts, which are on the CPU, on a device."""
        if device.type == "cpu":
            return self  # iterations on examples are so short that copying the tree would take a part of them
        moved: Rollouts = tree_map(lambda x: x.to(device), self)
        return moved


# The fields without an axis of steps.
_OF_ROLLOUTS = {"advantage_scale", "success", "failed"}


def known_success(success: Tensor) -> Tensor:
    """Returns success with 0 in place of NaN, or all NaN if the family does not report it.

    Some environments report success, but never failure. In some parts of a batch, none of them succeeds.
    """
    return success if success.isnan().all() else success.nan_to_num()


def map_steps(function: Callable[..., Tensor], *batches: Rollouts) -> dict[str, Any]:
    """Applies a function to every tensor with an axis of steps, of all batches together.

    Args:
        function: Takes a tensor (M, K, H, ...) of each batch.
        *batches: The rollouts.

    Returns:
        The results, by field.
    """
    return {
        name: tree_map(function, *(getattr(batch, name) for batch in batches))
        for name in Rollouts._fields
        if name not in _OF_ROLLOUTS
    }


def supports_of(batches: Sequence[Rollouts]) -> list[Rollouts]:
    """Returns what each inner step uses: the rollouts of the phase before it, but of examples always the first."""
    return [batches[0]] * len(batches) if batches and batches[0].targets else list(batches)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the valid entries of x, of any shape."""
    return x.where(mask, 0.0).sum() / mask.sum()
