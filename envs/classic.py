"""Classic control with varied physics: Gymnasium's own environments, made families by a task.

The worked example of a family without native code: an ordinary single environment with a `task_space` that
takes its task at `reset(options={"task": task})`.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv


class CartPoleParamsEnv(CartPoleEnv):
    """Gymnasium's CartPole with a pole and cart of the task's own; O = 4, two discrete actions.

    * Task: half the pole's length ~ U[0.25, 1] (metres; Gymnasium: 0.5), the pole's mass ~ U[0.05, 0.5]
      (kilograms; 0.1), the cart's mass ~ U[0.5, 2] (kilograms; 1).
    * Everything else as in CartPole-v1: reward 1 a step, terminated when the pole leans more than 12 degrees or
      the cart is more than 2.4 metres away. H = 200.
    """

    task_space = spaces.Box(np.array([0.25, 0.05, 0.5]), np.array([1.0, 0.5, 2.0]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; options {"task": (length, mass of the pole, mass of the cart)} sets the physics."""
        if options and "task" in options:
            self.length, self.masspole, self.masscart = (float(number) for number in options["task"])
            self.total_mass = self.masspole + self.masscart
            self.polemass_length = self.masspole * self.length
        return super().reset(seed=seed)


class PendulumParamsEnv(PendulumEnv):
    """Gymnasium's Pendulum with gravity and a rod of the task's own; O = 3, A = 1.

    * Task: gravity ~ U[5, 15] (metres per second squared; Gymnasium: 10), the rod's mass ~ U[0.5, 1.5]
      (kilograms; 1), its length ~ U[0.5, 1.5] (metres; 1).
    * Everything else as in Pendulum-v1. H = 200.
    """

    task_space = spaces.Box(np.array([5.0, 0.5, 0.5]), np.array([15.0, 1.5, 1.5]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; options {"task": (gravity, mass, length)} sets the physics."""
        if options and "task" in options:
            self.g, self.m, self.l = (float(number) for number in options["task"])
        return super().reset(seed=seed)
