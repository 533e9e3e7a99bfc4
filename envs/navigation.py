"""2D navigation: a point in the plane walks to a goal it cannot see."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .core import TaskEnv, TaskVectorEnv

STEP = 0.1  # distance per unit of action and step
REACHED = 0.01  # both coordinates nearer to the goal than this: the goal is reached
SIZE = 16  # pixels along each side of the pictures that are observations


class Navigation2DVectorEnv(TaskVectorEnv):
    """N points in the plane, each with a goal of its own; D = O = A = 2.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    arXiv:1703.03400, section 5.3.

    * Task: the goal g ~ U[-0.5, 0.5]^2.
    * First state: the origin. Observation: the position x (unit: length).
    * Transition: x + 0.1 a with a clipped to [-1, 1]. The paper has actions in [-0.1, 0.1] that move the
      point by a; the unit is the only difference.
    * Reward: -|x' - g|, the Euclidean distance after the step (not squared, as in the published code).
    * Terminated: when both coordinates are within 0.01 of the goal. H = 100.
    """

    task_space = spaces.Box(-0.5, 0.5, (2,), np.float64)
    single_observation_space: spaces.Box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def initial_state(self, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The origin, (n, 2)."""
        return np.zeros((len(task), 2))

    def transition(self, state: np.ndarray, action: np.ndarray, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The position after a move of at most 0.1 in each direction, (n, 2)."""
        return state + STEP * np.clip(action, -1.0, 1.0)

    def reward(
        self,
        state: np.ndarray,
        action: np.ndarray,
        next_state: np.ndarray,
        task: np.ndarray,
        noise: np.ndarray,
    ) -> np.ndarray:
        """Minus the distance from the goal after the move, (n,)."""
        distance = next_state - task
        return -np.sqrt(np.einsum("ni,ni->n", distance, distance))

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the goal is reached, (n,)."""
        return np.abs(state - task).max(axis=1) < REACHED

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The position, (n, 2) float32."""
        return state.astype(np.float32)

    def frame(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The square [-1, 1]^2 with the goal in red and the point in blue, (200, 200, 3) uint8."""
        image = Image.new("RGB", (200, 200), "white")
        draw = ImageDraw.Draw(image)
        for (x, y), radius, colour in ((task, 6, "crimson"), (np.clip(state, -1, 1), 4, "royalblue")):
            draw.circle((100 + 100 * x, 100 - 100 * y), radius, fill=colour)
        return np.array(image)

    def plot_rollouts(self, axes: Any, task: np.ndarray, observations: np.ndarray, mask: np.ndarray) -> None:
        """Draws the paths of a task's rollouts and its goal.

        Args:
            axes: Matplotlib axes.
            task: The goal, (2,).
            observations: Positions, (K, H, 2 or more); what the policy saw beside them is not drawn.
            mask: Which steps were taken, (K, H) bool.
        """
        for path, taken in zip(observations, mask, strict=True):
            axes.plot(*path[taken, :2].T, color="royalblue", alpha=0.35, linewidth=0.8)
        axes.plot(0, 0, "o", color="black", markersize=3)
        axes.plot(*task, "*", color="crimson", markersize=11)
        axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect="equal", xticks=[], yticks=[])


class Navigation2DEnv(TaskEnv):
    """One point in the plane; see `Navigation2DVectorEnv`."""

    vector_class = Navigation2DVectorEnv


class PixelNavigation2DVectorEnv(Navigation2DVectorEnv):
    """N points in the plane, each seen in a picture of 16 x 16 grey pixels; D = A = 2.

    Source: the task of `Navigation2DVectorEnv`, H = 100 too; that it is seen in pictures is this package's own.

    * Observation: the square [-1, 1]^2 seen from above, black, with the point in it and the goal not, (1, 16, 16)
      uint8. The point's light is shared bilinearly by the four pixels around it, so that moves of less than a
      pixel show. A point beyond the square is drawn on its edge.
    """

    single_observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The pictures, (n, 1, 16, 16) uint8."""
        # Column and row, from 0 to 15; rows are counted from the top, where y is 1.
        pixel = (SIZE - 1) / 2 * (1 + np.clip(state, -1, 1) * (1, -1))
        columns, rows = np.maximum(0, 1 - np.abs(pixel.T[..., None] - np.arange(SIZE)))  # (n, 16) each
        return np.rint(255 * rows[:, None, :, None] * columns[:, None, None, :]).astype(np.uint8)

    def plot_rollouts(self, axes: Any, task: np.ndarray, observations: np.ndarray, mask: np.ndarray) -> None:
        """Draws as `Navigation2DVectorEnv`, from the pictures (K, H, 256 or more) in [0, 1]."""
        pictures = observations[..., : SIZE * SIZE].reshape(*mask.shape, SIZE, SIZE)
        # The light of a picture sums to 1, but for rounding: its centre is the point.
        middle = np.linspace(-1, 1, SIZE)
        positions = np.stack([pictures.sum(-2) @ middle, pictures.sum(-1) @ -middle], axis=-1)
        super().plot_rollouts(axes, task, positions, mask)


class PixelNavigation2DEnv(TaskEnv):
    """One point in the plane, seen in a picture; see `PixelNavigation2DVectorEnv`."""

    vector_class = PixelNavigation2DVectorEnv
