"""Random tabular MDPs: the agent has to find out both transitions and rewards."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw
from scipy.special import ndtri

from .family import Array, Floats
from .native import TaskEnv, TaskVectorEnv

# The largest allowed difference between 1 and the sum of a row of probabilities.
_SUM_TOLERANCE = 1e-6


class TabularMDPVectorEnv(TaskVectorEnv):
    """Random Markov decision processes with n states and k actions; D = n k n + n k.

    Source: Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
    arXiv:1611.02779, section 3.2.

    * Task: the transition probabilities p(s' | s, a) ~ Dirichlet(1, ..., 1), (n, k, n), then the mean
      rewards m(s, a) ~ N(1, 1), (n, k). Both are flattened and concatenated.
    * First state: 0. Observation: the state, discrete.
    * Reward: ~ N(m(s, a), 1), or exactly m(s, a) with `reward_noise="none"`. Never terminated. H = 10.

    Difference from the source: mean rewards are clipped to [-9, 11], ten standard deviations from their
    mean, so that the task space is bounded.

    Args:
        num_states: The number of states n, at least 1.
        num_actions: The number of actions k, at least 2.
        reward_noise: "gaussian" or "none".
        **kwargs: As in `TaskVectorEnv`.
    """

    step_noise = 2  # one for the next state, one for the reward

    def __init__(
        self,
        num_envs: int = 1,
        num_states: int = 10,
        num_actions: int = 5,
        reward_noise: str = "gaussian",
        **kwargs: Any,
    ):
        if num_states < 1 or num_actions < 2 or reward_noise not in ("gaussian", "none"):
            raise ValueError(
                f"TabularMDP: got num_states={num_states}, num_actions={num_actions}, "
                f"reward_noise={reward_noise!r}, but needs at least 1 state and 2 actions, and "
                "reward_noise must be 'gaussian' or 'none'."
            )
        self.num_states, self.num_actions, self.reward_noise = num_states, num_actions, reward_noise
        probabilities, rewards = num_states * num_actions * num_states, num_states * num_actions
        self.task_space = spaces.Box(
            np.repeat([0.0, -9.0], [probabilities, rewards]),
            np.repeat([1.0, 11.0], [probabilities, rewards]),
            dtype=np.float64,
        )
        self.single_observation_space = spaces.Discrete(num_states)
        self.single_action_space = spaces.Discrete(num_actions)
        super().__init__(num_envs, **kwargs)

    def tables(self, task: Array) -> tuple[Array, Array]:
        """Returns the transition probabilities (m, n, k, n) and mean rewards (m, n, k) of tasks (m, D)."""
        shape = (len(task), self.num_states, self.num_actions)
        split = self.num_states * self.num_actions * self.num_states
        return task[:, :split].reshape(*shape, self.num_states), task[:, split:].reshape(shape)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws tasks (M, D) with Dirichlet transition probabilities and normal mean rewards."""
        pairs = (num_tasks, self.num_states * self.num_actions)
        transitions = rng.dirichlet(np.ones(self.num_states), size=pairs)
        rewards = np.clip(rng.normal(1.0, 1.0, size=pairs), -9.0, 11.0)
        return np.concatenate([transitions.reshape(num_tasks, -1), rewards], axis=1)

    def task_problem(self, tasks: Array) -> str | None:
        """Checks that transition probabilities sum to 1."""
        error = np.abs(self.tables(tasks)[0].sum(axis=-1) - 1.0).max()
        if error > _SUM_TOLERANCE:
            return (
                f"the sum of the transition probabilities of a state and action differs from 1 by {error:.2g}, "
                f"but may differ by at most {_SUM_TOLERANCE}; make them sum to 1."
            )
        return None

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns state 0, (m,)."""
        return np.zeros(len(task), dtype=np.int64)

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Draws the next states, (m,), by inverting their cumulative distribution."""
        row = self.tables(task)[0][np.arange(len(task)), state, action]
        # Because of rounding, the last cumulative probability may be slightly below 1.
        state = np.minimum((noise[:, :1] >= row.cumsum(axis=1)).sum(axis=1), self.num_states - 1)
        return np.asarray(state)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Draws rewards around the mean of state and action, (m,)."""
        mean: Floats = self.tables(task)[1][np.arange(len(task)), state, action]
        if self.reward_noise == "none":
            return mean
        # The noise may be 0, whose normal quantile is infinite.
        normal: Floats = ndtri(np.maximum(noise[:, 1], np.finfo(np.float64).tiny))
        return mean + normal

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the states, (m,)."""
        return state.copy()

    def frame(self, state: Array, task: Array) -> Array:
        """Draws the mean rewards as a table of grey cells, with a frame around the row of the current state."""
        _, rewards = self.tables(task[None])
        shades = np.clip(255 * (rewards[0] + 2.0) / 6.0, 0, 255).astype(np.uint8)
        image = Image.fromarray(shades).resize((200, 200), Image.Resampling.NEAREST).convert("RGB")
        height = 200 / self.num_states
        ImageDraw.Draw(image).rectangle(
            (0, int(state) * height, 199, (int(state) + 1) * height - 1), outline="crimson", width=2
        )
        return np.array(image)


class TabularMDPEnv(TaskEnv):
    """One tabular MDP; see `TabularMDPVectorEnv`."""

    vector_class = TabularMDPVectorEnv
