"""The recurrent policy of RL², and what it remembers from one episode of a task to the next."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils._pytree import tree_map

from .distributions import Distribution


class GRUPolicy(nn.Module):
    """A recurrent policy that remembers: its inputs are the observation, and what its last action led to.

    Attributes:
        num_actions: A.
        recurrent: The layer whose state is the memory, of size h.
        head: What makes a distribution of it.
    """

    def __init__(self, observation_size: int, num_actions: int, memory_size: int, head: nn.Module):
        super().__init__()
        self.num_actions = num_actions
        # Without drawing the first parameters from the global generator; `initialise` fills them in.
        recurrent = nn.GRU(observation_size + num_actions + 2, memory_size, batch_first=True, device="meta")
        self.recurrent = recurrent.to_empty(device="cpu")
        self.head = head

    def forward(self, inputs: Tensor, memory: Tensor | None = None) -> tuple[Distribution, Tensor]:
        """Acts on sequences.

        Args:
            inputs: Observation, last action (one-hot if discrete), last reward, whether an episode has just
                ended, (N, T, O + A + 2).
            memory: State before the first step, (N, h); 0 by default.

        Returns:
            The distribution of actions of tensors (N, T, ...), and the state after the last step, (N, h).
        """
        features, state = self.recurrent(inputs, None if memory is None else memory.unsqueeze(0))
        return self.head(features), state.squeeze(0)


class Memory(NamedTuple):
    """What the policy remembers in each of M·K environments; `remember` changes the tensors in place.

    Attributes:
        state: The recurrent layer's, (M, K, h).
        last: Last action, reward, and whether an episode has just ended, (M, K, A + 2).
    """

    state: Tensor
    last: Tensor


def no_memory(policy: GRUPolicy, num_tasks: int, num_rollouts: int) -> Memory:
    """The memory at the beginning of a task's first episode."""
    shape = (num_tasks, num_rollouts)
    return Memory(torch.zeros(*shape, policy.recurrent.hidden_size), torch.zeros(*shape, policy.num_actions + 2))


def acting(policy: GRUPolicy, theta: Tensor) -> Callable[[Tensor, Tensor], tuple[Distribution, Tensor]]:
    """The policy for many single steps.

    Args:
        policy: The policy module; not changed.
        theta: θ, (P,).

    Returns:
        A function from inputs (M, K, O + A + 2) and the memory's state (M, K, h) to distributions of tensors
        (M, K, ...) and the next state.
    """
    own = copy.deepcopy(policy).cpu()
    nn.utils.vector_to_parameters(theta.clone(), own.parameters())

    def act(inputs: Tensor, state: Tensor) -> tuple[Distribution, Tensor]:
        distribution, after = own(inputs.flatten(0, 1).unsqueeze(1), state.flatten(0, 1))
        shape = inputs.shape[:2]
        return tree_map(lambda x: x.squeeze(1).unflatten(0, shape), distribution), after.unflatten(0, shape)

    return act


def remember(
    memory: Memory, state: Tensor, actions: Tensor, rewards: np.ndarray, ended: np.ndarray, alive: np.ndarray
) -> None:
    """Notes a step, in place, where the episode was not over before it.

    Args:
        memory: Of M·K environments.
        state: The recurrent layer's state after the step, (M, K, h).
        actions: (M, K, A), or (M, K) if discrete.
        rewards: (M·K,).
        ended: Whether the episode ended with the step, (M·K,) bool.
        alive: Whether the step was taken, (M·K,) bool.
    """
    shape = memory.state.shape[:2]
    num_actions = memory.last.shape[-1] - 2
    taken = actions if actions.is_floating_point() else one_hot(actions, num_actions).float()
    consequences = torch.from_numpy(np.stack([rewards, ended], axis=1).astype(np.float32)).view(*shape, 2)
    valid = torch.from_numpy(alive).view(*shape, 1)
    memory.state.copy_(torch.where(valid, state, memory.state))
    memory.last.copy_(torch.where(valid, torch.cat([taken, consequences], dim=-1), memory.last))
