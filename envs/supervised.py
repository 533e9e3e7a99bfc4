"""Supervised families: a task is a function, an episode shows one input and takes a prediction, H = 1."""

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .family import Array, BrokenEnvironmentError, Floats, in_words
from .native import TaskEnv, TaskVectorEnv


class ExamplesError(ValueError):
    """A family cannot draw the examples that were asked for. The message says what to ask for."""


class SupervisedFamily(TaskVectorEnv):
    """N environments that each show an input and take a prediction of its target.

    Supervised learning is the case H = 1 (Finn et al., arXiv:1703.03400, section 2.1): the observation is the
    input, the action is the prediction, and the reward is -L. As L is known, a learner need not estimate its
    gradient from rewards. It gets `examples`, inputs with their targets, and differentiates L.

    A subclass sets `task_space`, `single_observation_space`, `single_action_space` and `initial_noise`, and
    defines `example`. It also defines `examples` if those of a task depend on each other. A longer horizon shows
    the same input again. Arguments are those of `TaskVectorEnv`.

    L follows from the action space. For an unbounded Box, it is the squared error, averaged over the A numbers of
    a prediction. For Discrete actions, the classes, it is the cross-entropy. An environment takes a class, not
    probabilities, so its reward is -1 if the class is wrong, else 0.
    """

    def _resize(self, num_envs: int) -> None:
        super()._resize(num_envs)
        space = self.single_action_space
        unbounded = isinstance(space, spaces.Box) and not (space.bounded_below | space.bounded_above).any()
        numbers = unbounded and len(space.shape or ()) == 1
        if not numbers and not isinstance(space, spaces.Discrete):
            raise ValueError(
                f"{self.name}: the action space is {in_words(space)}, but predictions must be an unbounded, "
                "one-dimensional Box for the squared error, or Discrete for the cross-entropy."
            )

    def example(self, task: Array, noise: Floats) -> tuple[Array, Array]:
        """Returns an example of each of n tasks: inputs (n, ...), and targets (n, A), or (n,) if discrete.

        Args:
            task: (n, D).
            noise: The only source of randomness: uniform numbers on [0, 1), (n, `initial_noise`).
        """
        raise NotImplementedError

    def examples(self, tasks: Array, num_examples: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draws different examples of each task.

        Args:
            tasks: (M, D).
            num_examples: The number of examples N of a task: K for the support set, and then K for the query set.
            rng: The only source of randomness.

        Returns:
            Inputs (M, N, ...), and targets (M, N, A), or (M, N) if discrete.

        Raises:
            ExamplesError: If the family has no such examples.
        """
        noise = rng.random((len(tasks) * num_examples, self.initial_noise))
        inputs, targets = self.example(np.repeat(tasks, num_examples, axis=0), noise)
        shape = (len(tasks), num_examples)
        return inputs.reshape(*shape, *inputs.shape[1:]), targets.reshape(*shape, *targets.shape[1:])

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns examples as rows: the numbers of the input, then those of the target."""
        inputs, targets = self.example(task, noise)
        actions = self.single_action_space
        for name, values, space in (
            ("inputs", inputs, self.single_observation_space),
            ("targets", targets, actions),
        ):
            self._of_shape(f"example (its {name})", values, (len(task), *(space.shape or ())))
        if isinstance(actions, spaces.Discrete):
            classes = np.arange(actions.start, actions.start + actions.n)
            if not np.isin(targets, classes).all():
                raise BrokenEnvironmentError(
                    f"{self.name}: example returned targets that are not all classes of {actions}; fix the family."
                )
        return np.concatenate([inputs.reshape(len(task), -1), targets.reshape(len(task), -1)], axis=1)

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Returns the same examples."""
        return state.copy()

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns -L of the predictions, (n,)."""
        targets = state[:, self._input_size :]
        if isinstance(self.single_action_space, spaces.Discrete):
            return -np.asarray(action != targets[:, 0], np.float64)
        return -np.asarray(np.square(action - targets).mean(axis=1))

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the inputs."""
        space = self.single_observation_space
        inputs = state[:, : self._input_size].reshape(len(state), *(space.shape or ()))
        return inputs.astype(space.dtype)

    @property
    def _input_size(self) -> int:
        return int(np.prod(self.single_observation_space.shape or ()))


class SinusoidVectorEnv(SupervisedFamily):
    """Values of sine waves are predicted; D = 2, O = A = 1.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    arXiv:1703.03400, section 5.1.

    * Task: the amplitude a ~ U[0.1, 5] and the phase b ~ U[0, π], in radians.
    * Input: x ~ U[-5, 5]. Target: a sin(x - b), where the sign of b is that of the published program.
    * Loss: the squared error.
    """

    task_space = spaces.Box(np.array([0.1, 0.0]), np.array([5.0, np.pi]), dtype=np.float64)
    single_observation_space = spaces.Box(-5.0, 5.0, (1,), np.float32)
    single_action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    initial_noise = 1

    def value(self, task: Array, x: Array) -> Array:
        """Returns the waves (n, D) at x (n, ...), (n, ...)."""
        amplitude, phase = (task[:, i].reshape(-1, *[1] * (x.ndim - 1)) for i in (0, 1))
        return np.asarray(amplitude * np.sin(x - phase))

    def example(self, task: Array, noise: Floats) -> tuple[Array, Array]:
        """Returns x and a sin(x - b), both (n, 1)."""
        x = 10.0 * noise - 5.0
        return x, self.value(task, x)

    def frame(self, state: Array, task: Array) -> Array:
        """Draws the wave in grey and the example in red, (200, 200, 3) uint8."""
        image = Image.new("RGB", (200, 200), "white")
        draw = ImageDraw.Draw(image)
        x = np.linspace(-5.0, 5.0, 101)
        wave = np.stack([100 + 19 * x, 100 - 19 * self.value(task[None], x[None])[0]], axis=1)
        draw.line([*map(tuple, wave)], fill="grey")
        draw.circle((100 + 19 * state[0], 100 - 19 * state[1]), 4, fill="crimson")
        return np.array(image)


class SinusoidEnv(TaskEnv):
    """One input of a sine wave; see `SinusoidVectorEnv`."""

    vector_class = SinusoidVectorEnv
