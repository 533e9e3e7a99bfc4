"""Meta-World's meta-learning benchmarks ML1, ML10 and ML45. They need the extra `metaworld`."""

import copy
import functools
import pickle
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

try:
    import metaworld
    from metaworld.sawyer_xyz_env import SawyerXYZEnv
except ImportError as error:
    raise ImportError("Meta-World is not installed; install it with `pip install 'maml_rl[metaworld]'`") from error

from .family import Array, checked_task, in_words
from .meta_world_fast import fast
from .opengl import opengl_chosen

# The longest vector that describes a first scene and its goal, and a bound of its numbers in metres and radians.
_LONGEST, _BOUND = 6, 2.0


def _place_hand(self: SawyerXYZEnv, steps: int = 50) -> None:
    mujoco.mj_forward(self.model, self.data)
    self.init_tcp = self.tcp_center


@functools.cache
def _benchmark(name: str, task_name: str | None, seed: int) -> Any:
    """Makes Meta-World's benchmark and draws its goals.

    Meta-World resets each manipulation 50 times for its 50 goals, and every reset simulates the hand on its way to
    its first place. The goals do not depend on the hand, so it stays where it is here. ML45 has the same goals in
    a fifth of the time.
    """
    kind, moving = getattr(metaworld, name), SawyerXYZEnv._reset_hand
    SawyerXYZEnv._reset_hand = _place_hand  # type: ignore[method-assign]
    try:
        return kind(seed=seed) if task_name is None else kind(task_name, seed=seed)
    finally:
        SawyerXYZEnv._reset_hand = moving  # type: ignore[method-assign]


class MetaWorldEnv(gymnasium.Env[Array, Array]):
    """A robot arm manipulates objects; O = 39 with the goal hidden by zeros, A = 4, H = 500.

    Source: Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning",
    arXiv:1910.10897; environments, rewards and success are those of version 3 of the package `metaworld`.

    * Task: the number of the manipulation in the benchmark's list of training and test manipulations, then
      the vector that places objects and goal, padded to six numbers with zeros; D = 7.
    * p(T): the benchmark's 50 tasks of each training manipulation. M tasks are divided among the manipulations
      as evenly as possible, in their order. If M is not a multiple of their number, the first manipulation is
      random.
    * Held-out tasks: the benchmark's test tasks. In ML1, they are different goals of one manipulation. In ML10
      and ML45, they are five manipulations that training does not use.
    * `info["success"]` is Meta-World's. A rollout succeeds if it is true at any step.

    Steps are faster than those of Meta-World's own classes, with the same numbers; see `meta_world_fast`. The
    first environment of a manipulation takes about 22 MB of memory in each process and 100 ms to make, because it
    loads the model. The others share it and take less than 1 MB. An environment is made again when its task
    changes to another manipulation. In training, this never
    happens if M is a multiple of the number of manipulations.

    Args:
        benchmark_seed: The seed of the benchmark's goals.
        render_mode: None or "rgb_array".
    """

    benchmark: ClassVar[str]
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, task_name: str | None = None, benchmark_seed: int = 0, render_mode: str | None = None):
        self.render_mode = render_mode
        # Each has a random generator of its own.
        self.observation_space, self.action_space = copy.deepcopy((self.observation_space, self.action_space))
        self._arguments = (self.benchmark, task_name, benchmark_seed)
        if task_name is None:
            lists = getattr(metaworld.env_dict, f"{self.benchmark}_V3")
            self._classes = {**lists["train"], **lists["test"]}
        elif task_name in metaworld.env_dict.ALL_V3_ENVIRONMENTS:
            self._classes = {task_name: metaworld.env_dict.ALL_V3_ENVIRONMENTS[task_name]}
        else:
            raise ValueError(
                f"Meta-World has no task {task_name!r}; choose one of {', '.join(metaworld.ML1.ENV_NAMES)}"
            )
        self._inner: Any = None

    @property
    def task_space(self) -> spaces.Box:
        """The number of the manipulation, and its vector, (7,)."""
        bound = np.full(1 + _LONGEST, _BOUND)
        bound[0] = len(self._classes) - 1
        return spaces.Box(np.append(0.0, -bound[1:]), bound, dtype=np.float64)

    def task_problem(self, tasks: Array) -> str | None:
        """Checks that the numbers of manipulations are whole."""
        wrong = tasks[tasks[:, 0] % 1 != 0]
        return f"{wrong[0][0]} is not the number of a manipulation; choose a whole number." if len(wrong) else None

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws training tasks of the benchmark, (M, 7); see the class."""
        return self._sample(_benchmark(*self._arguments).train_tasks, num_tasks, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws test tasks of the benchmark, (M, 7); see the class."""
        return self._sample(_benchmark(*self._arguments).test_tasks, num_tasks, rng)

    def _sample(self, tasks: list[Any], num_tasks: int, rng: np.random.Generator) -> Array:
        numbers = {name: number for number, name in enumerate(self._classes)}
        by_name: dict[str, list[Any]] = {}
        for task in tasks:
            by_name.setdefault(task.env_name, []).append(task)
        names = sorted(by_name, key=numbers.__getitem__)
        first = 0 if num_tasks % len(names) == 0 else int(rng.integers(len(names)))
        sampled = np.zeros((num_tasks, 1 + _LONGEST))
        for i in range(num_tasks):
            name = names[(first + i) % len(names)]
            task = by_name[name][rng.integers(len(by_name[name]))]
            vector = pickle.loads(task.data)["rand_vec"]  # safe: written by Meta-World in this process
            sampled[i, 0] = numbers[name]
            sampled[i, 1 : 1 + len(vector)] = vector
        return sampled

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts an episode. The options {"task": task} set the task, (7,).

        Raises:
            ValueError: If the manipulation has no such task.
        """
        super().reset(seed=seed)
        if options and "task" in options:
            task = checked_task(self.benchmark, self.task_space, options["task"])
            if problem := self.task_problem(task[None]):
                raise ValueError(f"{self.benchmark}: {problem}")
            self._set_task(task)
        elif self._inner is None:
            self._set_task(self.sample_tasks(1, np.random.default_rng(0))[0])
        observation, info = self._inner.reset()
        return observation, info

    def _set_task(self, task: Array) -> None:
        name = list(self._classes)[int(task[0])]
        kind = self._classes[name]
        inner = self._inner
        if not isinstance(inner, kind):
            inner = fast(kind)(render_mode=self.render_mode, camera_name="corner2")
        space = inner._random_reset_space
        vector, padding = np.split(task[1:], [space.low.size])
        if (vector < space.low).any() or (vector > space.high).any() or padding.any():
            raise ValueError(
                f"{self.benchmark}: the vector of {name} is {in_words(task[1:])}, but must be in "
                f"{in_words(space)}, with zeros behind it."
            )
        if inner is not self._inner:
            self.close()
            self._inner = inner
        data = {"rand_vec": vector, "env_cls": kind, "partially_observable": True}
        self._inner.set_task(metaworld.types.Task(env_name=name, data=pickle.dumps(data)))

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Steps the robot once."""
        observation, reward, terminated, truncated, info = self._inner.step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Array | None:
        """Renders a picture, (480, 480, 3) uint8. Returns None without a render mode."""
        if self.render_mode is None:
            return None
        viewer = self._inner.mujoco_renderer.viewer
        if viewer is not None:
            viewer.make_context_current()  # or it would draw with the meshes of another manipulation
        with opengl_chosen():
            picture: Array = self._inner.render()[::-1, ::-1]  # this camera hangs upside down
        return picture

    def close(self) -> None:
        """Closes Meta-World's environment."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None


class ML1Env(MetaWorldEnv):
    """A robot arm does one manipulation, with different goals in tests; see `MetaWorldEnv`.

    Args:
        task_name: Meta-World's name of the manipulation, for example "reach-v3" or "pick-place-v3".
        benchmark_seed: The seed of the benchmark's goals.
        render_mode: None or "rgb_array".
    """

    benchmark = "ML1"

    def __init__(self, task_name: str = "reach-v3", benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(task_name, benchmark_seed, render_mode)


class ML10Env(MetaWorldEnv):
    """A robot arm does ten manipulations in training and five others in tests; see `MetaWorldEnv`."""

    benchmark = "ML10"

    def __init__(self, benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(None, benchmark_seed, render_mode)


class ML45Env(MetaWorldEnv):
    """A robot arm does 45 manipulations in training and five others in tests; see `MetaWorldEnv`."""

    benchmark = "ML45"

    def __init__(self, benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(None, benchmark_seed, render_mode)
