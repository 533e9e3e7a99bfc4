"""2D navigation: a point moves in the plane to a goal that it does not observe."""

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .family import Array, Bools, Floats
from .native import TaskEnv, TaskVectorEnv

STEP = 0.1  # distance that an action of 1 moves the point in one step
REACHED = 0.01  # the goal is reached when both coordinates are closer to it than this
NEAR = 0.2  # with sparse rewards, the goal is felt within this distance
START = 0.2  # with goals in the corners, the largest coordinate of a first state
SILENT = 0.5  # with goals in the corners, there is no reward within this distance (in the 1-norm) of the middle
SIZE = 16  # width and height of the observed pictures, in pixels


class Navigation2DVectorEnv(TaskVectorEnv):
    """Points move in the plane, each to its own goal; D = O = A = 2.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    arXiv:1703.03400, section 5.3.

    * Task: the goal g ~ U[-0.5, 0.5]^2.
    * First state: the origin. Observation: the position x, in units of length.
    * Transition: x + 0.1 a with a clipped to [-1, 1]. In the paper, actions in [-0.1, 0.1] move the point
      by a, so only the unit differs.
    * Reward: -|x' - g|, the Euclidean distance after the step. As in the published code, it is not squared.
    * Terminated: when both coordinates are within 0.01 of the goal. H = 100.
    """

    task_space = spaces.Box(-0.5, 0.5, (2,), np.float64)
    single_observation_space: spaces.Box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    extent = 0.75  # of the plane in pictures of rollouts

    def goals(self, task: Array) -> Array:
        """Returns the goals of tasks (n, D), (n, 2)."""
        return task

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns the origin, (n, 2)."""
        return np.zeros((len(task), 2))

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Moves the points by at most 0.1 along each axis, (n, 2)."""
        return state + STEP * np.clip(action, -1.0, 1.0)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns minus the distance from the goal after the move, (n,)."""
        difference = next_state - task
        distance: Floats = np.sqrt(np.einsum("ni,ni->n", difference, difference))
        return -distance

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns whether the goal is reached, (n,)."""
        reached: Bools = np.abs(state - task).max(axis=1) < REACHED
        return reached

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the position, (n, 2) float32."""
        return state.astype(np.float32)

    def frame(self, state: Array, task: Array) -> Array:
        """Draws the goal in red and the point in blue, (200, 200, 3) uint8.

        The picture shows the square [-1, 1]^2, or more of the plane if goals are further away.
        """
        image = Image.new("RGB", (200, 200), "white")
        draw = ImageDraw.Draw(image)
        goal = self.goals(np.atleast_2d(task))[0]
        for place, radius, colour in ((goal, 6, "crimson"), (state, 4, "royalblue")):
            x, y = np.clip(place / max(1.0, self.extent), -1, 1)
            draw.circle((100 + 100 * x, 100 - 100 * y), radius, fill=colour)
        return np.array(image)

    def plot_rollouts(self, axes: Any, task: Array, observations: Array, mask: Array) -> None:
        """Draws the paths of a task's rollouts, and its goal.

        Args:
            axes: Matplotlib axes.
            task: The task, (D,).
            observations: The policy's inputs, (K, H, 2 or more). Only the first two, the position, are drawn.
            mask: Whether each step was taken, (K, H) bool.
        """
        for path, taken in zip(observations, mask, strict=True):
            axes.plot(*path[taken, :2].T, color="royalblue", alpha=0.35, linewidth=0.8)
        axes.plot(0, 0, "o", color="black", markersize=3)
        axes.plot(*self.goals(np.atleast_2d(task))[0], "*", color="crimson", markersize=11)
        limits = (-self.extent, self.extent)
        axes.set(xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[])


class Navigation2DEnv(TaskEnv):
    """One point in the plane; see `Navigation2DVectorEnv`."""

    vector_class = Navigation2DVectorEnv


class SparseNavigation2DVectorEnv(Navigation2DVectorEnv):
    """Points move in the plane and feel their goal only when they are near it; D = 1, O = A = 2.

    Source: the sparse 2D navigation of Rakelly et al., "Efficient Off-Policy Meta-Reinforcement Learning via
    Probabilistic Context Variables", arXiv:1903.08254, with the constants of the published program. There, the
    reward is sparse only at test time, and meta-training sees -|x' - g| everywhere.

    * Task: an angle ~ U[0, π]. The goal is on the unit circle at this angle.
    * First state, observation and transition: as in `Navigation2DVectorEnv`.
    * Reward: 1 - |x' - g| within 0.2 of the goal, and 0 elsewhere.
    * Terminated: never. H = 20.
    """

    task_space = spaces.Box(0.0, np.pi, (1,), np.float64)
    extent = 1.3

    def goals(self, task: Array) -> Array:
        """Returns the points of the unit circle, (n, 2)."""
        return np.concatenate([np.cos(task), np.sin(task)], axis=1)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns 1 minus the distance where that is at most 0.2, and 0 elsewhere, (n,)."""
        distance = np.linalg.norm(next_state - self.goals(task), axis=1)
        return np.where(distance <= NEAR, 1.0 - distance, 0.0)

    terminated = TaskVectorEnv.terminated  # never


class SparseNavigation2DEnv(TaskEnv):
    """One point in the plane with sparse rewards; see `SparseNavigation2DVectorEnv`."""

    vector_class = SparseNavigation2DVectorEnv


class CornerNavigation2DVectorEnv(Navigation2DVectorEnv):
    """Points move in the plane, and each has to find out which of four corners is its goal; D = O = A = 2.

    Source: Rothfuss et al., "ProMP: Proximal Meta-Policy Search", arXiv:1810.06784, with the constants
    of the published program. There, actions in [-0.2, 0.2] move the point by a.

    * Task: a corner of [-2, 2]^2. There are four tasks, and training sees all of them.
    * First state: x ~ U[-0.2, 0.2]^2. Observation: x.
    * Transition: x + 0.2 a with a clipped to [-1, 1].
    * Reward: |x - g| - |x' - g|, the way made towards the goal, where g is the nearest of the corners and x' is at
      least 0.5 from the middle in the 1-norm. 0 elsewhere: near the start and near other corners nothing is felt.
    * Terminated: never. H = 100.
    """

    task_space = spaces.Box(-2.0, 2.0, (2,), np.float64)
    all_tasks = 2.0 * np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])
    initial_noise = 2
    extent = 2.5

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns points around the middle, (n, 2)."""
        return START * (2 * noise - 1)

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Moves the points by at most 0.2 along each axis, (n, 2)."""
        return state + 2 * STEP * np.clip(action, -1.0, 1.0)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the way made towards the goal where it is felt, (n,)."""
        distance = np.linalg.norm(next_state - task, axis=1)
        to_corners = np.linalg.norm(next_state[:, None] - self.all_tasks, axis=2)
        felt = (distance == to_corners.min(axis=1)) & (np.abs(next_state).sum(axis=1) >= SILENT)
        return np.where(felt, np.linalg.norm(state - task, axis=1) - distance, 0.0)

    terminated = TaskVectorEnv.terminated  # never


class CornerNavigation2DEnv(TaskEnv):
    """One point that has to find its corner; see `CornerNavigation2DVectorEnv`."""

    vector_class = CornerNavigation2DVectorEnv


class PixelNavigation2DVectorEnv(Navigation2DVectorEnv):
    """Points move in the plane, each observed as a picture of 16 x 16 grey pixels; D = A = 2.

    Source: `Navigation2DVectorEnv`, also with H = 100. The pictures are an addition of this package.

    * Observation: the square [-1, 1]^2 from above, (1, 16, 16) uint8: a white point on black, without the goal.
      The point's brightness is divided bilinearly among the four pixels around it, so that moves of less than a
      pixel are visible. A point outside the square is drawn on its edge.
    """

    single_observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)

    def observation(self, state: Array, task: Array) -> Array:
        """Draws the pictures, (n, 1, 16, 16) uint8."""
        # Column and row, from 0 to 15; rows are counted from the top, where y is 1.
        pixel = (SIZE - 1) / 2 * (1 + np.clip(state, -1, 1) * (1, -1))
        columns, rows = np.maximum(0, 1 - np.abs(pixel.T[..., None] - np.arange(SIZE)))  # (n, 16) each
        light: Floats = np.rint(255 * rows[:, None, :, None] * columns[:, None, None, :])
        return light.astype(np.uint8)

    def plot_rollouts(self, axes: Any, task: Array, observations: Array, mask: Array) -> None:
        """Draws the same as `Navigation2DVectorEnv`, from pictures (K, H, 256 or more) in [0, 1]."""
        pictures = observations[..., : SIZE * SIZE].reshape(*mask.shape, SIZE, SIZE)
        # Except for rounding, a picture sums to 1, so that its centre of brightness is the point.
        middle = np.linspace(-1, 1, SIZE)
        positions = np.stack([pictures.sum(-2) @ middle, pictures.sum(-1) @ -middle], axis=-1)
        super().plot_rollouts(axes, task, positions, mask)


class PixelNavigation2DEnv(TaskEnv):
    """One point in the plane, observed as a picture; see `PixelNavigation2DVectorEnv`."""

    vector_class = PixelNavigation2DVectorEnv
