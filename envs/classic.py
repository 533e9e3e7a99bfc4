"""Gymnasium's classic control with physics that depend on the task.

These are examples of families without batched functions: ordinary single environments with a `task_space`, which
get their task from `reset(options={"task": task})`.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv

from .family import checked_task


class CartPoleParamsEnv(CartPoleEnv):
    """A cart balances a pole: Gymnasium's CartPole with other masses and lengths; O = 4, two discrete actions.

    * Task: half the pole's length ~ U[0.25, 1] (metres; Gymnasium: 0.5), the pole's mass ~ U[0.05, 0.5]
      (kilograms; 0.1), the cart's mass ~ U[0.5, 2] (kilograms; 1).
    * Everything else is as in CartPole-v1: the reward is 1 per step, and the episode is terminated when
      the pole leans more than 12 degrees or the cart is more than 2.4 metres from the centre. H = 200.
    """

    task_space = spaces.Box(np.array([0.25, 0.05, 0.5]), np.array([1.0, 0.5, 2.0]), dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. The options {"task": (length, pole mass, cart mass)} set the physics."""
        if options and "task" in options:
            task = checked_task("CartPoleParams", self.task_space, options["task"])
            self.length, self.masspole, self.masscart = task.tolist()
            self.total_mass = self.masspole + self.masscart
            self.polemass_length = self.masspole * self.length
        observation, info = super().reset(seed=seed)
        return observation, info


class PendulumParamsEnv(PendulumEnv):
    """A pendulum swings up: Gymnasium's Pendulum with other gravity and another rod; O = 3, A = 1.

    * Task: gravity ~ U[5, 15] (metres per second squared; Gymnasium: 10), the rod's mass ~ U[0.5, 1.5]
      (kilograms; 1), its length ~ U[0.5, 1.5] (metres; 1).
    * Everything else is as in Pendulum-v1. H = 200.
    """

    task_space = spaces.Box(np.array([5.0, 0.5, 0.5]), np.array([15.0, 1.5, 1.5]), dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. The options {"task": (gravity, mass, length)} set the physics."""
        if options and "task" in options:
            self.g, self.m, self.l = checked_task("PendulumParams", self.task_space, options["task"]).tolist()
        observation, info = super().reset(seed=seed)
        return observation, info
