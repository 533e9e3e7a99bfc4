"""Bernoulli bandits: the agent has to find out which arm pays best."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .family import Array, Bools, Floats
from .native import TaskEnv, TaskVectorEnv


class BernoulliBanditVectorEnv(TaskVectorEnv):
    """Bandits with `num_arms` arms, one of which is pulled in each step; D = A = num_arms.

    Source: Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
    arXiv:1611.02779, section 3.1.

    * Task: the probability that each arm pays, ~ U[0, 1].
    * There is no state. The observation is the constant 1.
    * Reward: 1 with the probability of the pulled arm, else 0. Never terminated. H is the number of pulls, by
      default 10.

    Difference from the source: there, a recurrent policy observes the previous actions and rewards. Here, the
    policy learns from them when it adapts.

    Args:
        num_arms: The number of arms, at least 2.
        **kwargs: As in `TaskVectorEnv`.
    """

    step_noise = 1
    single_observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def __init__(self, num_envs: int = 1, num_arms: int = 5, **kwargs: Any):
        if num_arms < 2:
            raise ValueError(f"BernoulliBandit: num_arms is {num_arms}, but must be at least 2.")
        self.task_space = spaces.Box(0.0, 1.0, (num_arms,), np.float64)
        self.single_action_space = spaces.Discrete(num_arms)
        super().__init__(num_envs, **kwargs)

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns the constant 1, (n, 1)."""
        return np.ones((len(task), 1))

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Returns the constant 1, (n, 1)."""
        return state.copy()

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the rewards of the pulled arms, 0 or 1, (n,)."""
        paid: Bools = noise[:, 0] < task[np.arange(len(task)), action]
        return paid.astype(np.float64)

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the constant 1, (n, 1) float32."""
        return state.astype(np.float32)

    def frame(self, state: Array, task: Array) -> Array:
        """Draws a bar for each arm, as high as its probability, (200, 200, 3) uint8."""
        image = Image.new("RGB", (200, 200), "white")
        draw = ImageDraw.Draw(image)
        width = 180 / len(task)
        for arm, probability in enumerate(task):
            left = 10 + arm * width
            draw.rectangle((left + 2, 190 - 180 * probability, left + width - 2, 190), fill="royalblue")
        return np.array(image)


class BernoulliBanditEnv(TaskEnv):
    """One bandit; see `BernoulliBanditVectorEnv`."""

    vector_class = BernoulliBanditVectorEnv
