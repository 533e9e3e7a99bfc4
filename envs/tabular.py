"""Random tabular MDPs: transitions and rewards must both be found out."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw
from scipy.special import ndtri

from .core import TaskEnv, TaskVectorEnv

# How far the sum of a row of probabilities may be from 1.
_SUM_TOLERANCE = 1e-6


class TabularMDPVectorEnv(TaskVectorEnv):
    """N Markov decision processes with n states and k actions; D = n k n + n k.

    Source: Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
    arXiv:1611.02779, section 3.2.

    * Task: the transition probabilities p(s' | s, a) ~ Dirichlet(1, ..., 1), (n, k, n), then the mean
      rewards m(s, a) ~ N(1, 1), (n, k), flattened one after the other.
    * First state: 0. Observation: the state, discrete.
    * Reward: ~ N(m(s, a), 1), or with `reward_noise="none"` m(s, a) itself. Never terminated; H = 10.

    Departure from the source: mean rewards are clipped to [-9, 11], ten standard deviations from their
    mean, so that the task space is a bounded box.

    Args:
        num_states: n, at least 1.
        num_actions: k, at least 2.
        reward_noise: "gaussian" or "none".
        **kwargs: As in `TaskVectorEnv`.
    """

    step_noise = 2  # the next state, the reward

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
                f"reward_noise={reward_noise!r}, but needs at least 1 state, 2 actions, and 'gaussian' or 'none'."
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

    def tables(self, task: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The transition probabilities (m, n, k, n) and mean rewards (m, n, k) of tasks (m, D)."""
        shape = (len(task), self.num_states, self.num_actions)
        split = self.num_states * self.num_actions * self.num_states
        return task[:, :split].reshape(*shape, self.num_states), task[:, split:].reshape(shape)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws tasks (M, D): Dirichlet transitions, normal mean rewards."""
        pairs = (num_tasks, self.num_states * self.num_actions)
        transitions = rng.dirichlet(np.ones(self.num_states), size=pairs)
        rewards = np.clip(rng.normal(1.0, 1.0, size=pairs), -9.0, 11.0)
        return np.concatenate([transitions.reshape(num_tasks, -1), rewards], axis=1)

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """Transition probabilities must sum to 1."""
        error = np.abs(self.tables(tasks)[0].sum(axis=-1) - 1.0).max()
        if error > _SUM_TOLERANCE:
            return (
                f"the transition probabilities of a state and action sum to 1 up to {error:.2g}, but must do "
                f"so up to {_SUM_TOLERANCE}; normalise them."
            )
        return None

    def initial_state(self, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """State 0, (m,)."""
        return np.zeros(len(task), dtype=np.int64)

    def transition(self, state: np.ndarray, action: np.ndarray, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The next states, (m,), by inversion of their distribution function."""
        row = self.tables(task)[0][np.arange(len(task)), state, action]
        # Rounding may leave the last cumulated probability just under 1.
        return np.minimum((noise[:, :1] >= row.cumsum(axis=1)).sum(axis=1), self.num_states - 1)

    def reward(
        self,
        state: np.ndarray,
        action: np.ndarray,
        next_state: np.ndarray,
        task: np.ndarray,
        noise: np.ndarray,
    ) -> np.ndarray:
        """Rewards around the mean of state and action, (m,)."""
        mean = self.tables(task)[1][np.arange(len(task)), state, action]
        if self.reward_noise == "none":
            return mean
        # Noise is in [0, 1): at 0 the normal deviate would be infinite.
        return mean + ndtri(np.maximum(noise[:, 1], np.finfo(np.float64).tiny))

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The states, (m,)."""
        return state.copy()

    def frame(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The mean rewards as a table of grey cells, a row per state, the present one framed."""
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
