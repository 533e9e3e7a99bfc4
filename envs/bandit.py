"""Bernoulli bandits: which arm pays best must be found out by pulling."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .core import TaskEnv, TaskVectorEnv


class BernoulliBanditVectorEnv(TaskVectorEnv):
    """N bandits with `num_arms` arms each; D = A = num_arms, one pull a step.

    Source: Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
    arXiv:1611.02779, section 3.1.

    * Task: the arms' probabilities of paying, each ~ U[0, 1].
    * State and observation: none; the observation is the constant 1.
    * Reward: 1 with the pulled arm's probability, else 0. Never terminated; H is the number of pulls, by
      default 10.

    Departure from the source: there, what was pulled and paid is fed to a recurrent policy; here the
    policy learns it through its adaptation.

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

    def initial_state(self, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The constant 1, (n, 1)."""
        return np.ones((len(task), 1))

    def transition(self, state: np.ndarray, action: np.ndarray, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The constant 1, (n, 1)."""
        return state.copy()

    def reward(
        self,
        state: np.ndarray,
        action: np.ndarray,
        next_state: np.ndarray,
        task: np.ndarray,
        noise: np.ndarray,
    ) -> np.ndarray:
        """What the pulled arms pay, 0 or 1, (n,)."""
        return (noise[:, 0] < task[np.arange(len(task)), action]).astype(np.float64)

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The constant 1, (n, 1) float32."""
        return state.astype(np.float32)

    def frame(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """A bar per arm, as high as its probability, (200, 200, 3) uint8."""
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
