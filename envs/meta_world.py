"""Meta-World's meta-learning benchmarks ML1, ML10 and ML45, by way of the adapter; needs the extra `metaworld`."""

import functools
import pickle
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

try:
    import metaworld
except ImportError as error:
    raise ImportError("Meta-World is not installed; add it by `pip install 'maml_rl[metaworld]'`") from error

# The longest vector that describes an initial scene and goal, and a bound of its numbers, in metres and radians.
_LONGEST, _BOUND = 6, 2.0


@functools.cache
def _benchmark(name: str, task_name: str | None, seed: int) -> Any:
    """Meta-World's own benchmark with its goals drawn: 1 s for ML1, 9 s for ML10, half a minute for ML45."""
    kind = getattr(metaworld, name)
    return kind(seed=seed) if task_name is None else kind(task_name, seed=seed)


class MetaWorldEnv(gymnasium.Env):
    """A robot arm that manipulates objects; O = 39 with the goal's part zero, A = 4, H = 500.

    Source: Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning",
    arXiv:1910.10897; environments, rewards and success of the package `metaworld` in its version 3.

    * Task: the number of the manipulation in the benchmark's list of training and test manipulations, then
      the vector that places objects and goal, with zeros up to six numbers; D = 7.
    * p(T): the benchmark's own 50 tasks of each training manipulation. M tasks are spread over the
      manipulations as evenly as can be, in their order; where M is no multiple of their number, the first one
      is drawn.
    * Held-out tasks: the benchmark's own test tasks; ML1: other goals of the same manipulation, ML10 and
      ML45: five manipulations that training never sees.
    * `info["success"]` is Meta-World's; a rollout succeeds where it is true at any step.

    An environment takes some 22 MB, 100 ms to make and 0.5 ms to step. An environment whose task changes to
    another manipulation is made anew; with the same M, that never happens in training.

    Args:
        benchmark_seed: Seed of the benchmark's goals.
        render_mode: None or "rgb_array".
    """

    benchmark: ClassVar[str]
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, task_name: str | None = None, benchmark_seed: int = 0, render_mode: str | None = None):
        self.render_mode = render_mode
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
        """Number of the manipulation, and its vector, (7,)."""
        bound = np.full(1 + _LONGEST, _BOUND)
        bound[0] = len(self._classes) - 1
        return spaces.Box(np.append(0.0, -bound[1:]), bound, dtype=np.float64)

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """Whether a manipulation's number is none."""
        wrong = tasks[tasks[:, 0] % 1 != 0]
        return f"{wrong[0][0]} is no manipulation's number; choose a whole one." if len(wrong) else None

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Training tasks of the benchmark, (M, 7); see the class."""
        return self._sample(_benchmark(*self._arguments).train_tasks, num_tasks, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Test tasks of the benchmark, (M, 7); see the class."""
        return self._sample(_benchmark(*self._arguments).test_tasks, num_tasks, rng)

    def _sample(self, tasks: list[Any], num_tasks: int, rng: np.random.Generator) -> np.ndarray:
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
            vector = pickle.loads(task.data)["rand_vec"]  # written by Meta-World in this very process
            sampled[i, 0] = numbers[name]
            sampled[i, 1 : 1 + len(vector)] = vector
        return sampled

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; options {"task": task} puts a task (7,) in force."""
        super().reset(seed=seed)
        if options and "task" in options:
            self._set_task(np.asarray(options["task"]))
        elif self._inner is None:
            self._set_task(self.sample_tasks(1, np.random.default_rng(0))[0])
        return self._inner.reset()

    def _set_task(self, task: np.ndarray) -> None:
        name = list(self._classes)[int(task[0])]
        kind = self._classes[name]
        if type(self._inner) is not kind:
            self.close()
            self._inner = kind(render_mode=self.render_mode)
        length = self._inner._random_reset_space.low.size
        data = {"rand_vec": task[1 : 1 + length], "env_cls": kind, "partially_observable": True}
        self._inner.set_task(metaworld.Task(env_name=name, data=pickle.dumps(data)))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Steps the robot once."""
        observation, reward, terminated, truncated, info = self._inner.step(action)
        return observation, float(reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """A picture, (480, 480, 3) uint8, or None without a render mode."""
        return None if self.render_mode is None else self._inner.render()

    def close(self) -> None:
        """Closes Meta-World's environment."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None


class ML1Env(MetaWorldEnv):
    """One manipulation, other goals in tests; see `MetaWorldEnv`.

    Args:
        task_name: Meta-World's name of the manipulation, "reach-v3" or "pick-place-v3", say.
        benchmark_seed: Seed of the benchmark's goals.
        render_mode: None or "rgb_array".
    """

    benchmark = "ML1"

    def __init__(self, task_name: str = "reach-v3", benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(task_name, benchmark_seed, render_mode)


class ML10Env(MetaWorldEnv):
    """Ten manipulations in training, five others in tests; see `MetaWorldEnv`."""

    benchmark = "ML10"

    def __init__(self, benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(None, benchmark_seed, render_mode)


class ML45Env(MetaWorldEnv):
    """Forty-five manipulations in training, five others in tests; see `MetaWorldEnv`."""

    benchmark = "ML45"

    def __init__(self, benchmark_seed: int = 0, render_mode: str | None = None):
        super().__init__(None, benchmark_seed, render_mode)
