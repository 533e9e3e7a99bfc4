"""Families that do on purpose what goes wrong in real runs, at a given reset or always."""

import copy
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
from maml_rl.envs.bandit import BernoulliBanditEnv, BernoulliBanditVectorEnv
from maml_rl.envs.navigation import Navigation2DEnv, Navigation2DVectorEnv

# What the tests of every family leave out.
ON_PURPOSE = {"tests/NanAfterEnd-v0", "tests/NoWay-v0", "tests/Slow-v0", "tests/Mixed-v0"}
ON_PURPOSE |= {
    "tests/Stubborn-v0",
    "tests/Careless-v0",
    "tests/Deaf-v0",
    "tests/Forgetful-v0",
    "tests/Greedy-v0",
    "tests/Hanging-v0",
    "tests/Interrupting-v0",
}


class MisbehavingVectorEnv(Navigation2DVectorEnv):
    """Navigation; at reset number MISBEHAVE_AT (from 1) it does as MISBEHAVE says."""

    resets = 0

    def reset(self, **kwargs):
        type(self).resets += 1
        if any(map(self.misbehaves, ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"))):
            os.kill(os.getpid(), getattr(signal, os.environ["MISBEHAVE"]))
        if self.misbehaves("parent"):
            os.kill(os.getppid(), signal.SIGTERM)
        return super().reset(**kwargs)

    def misbehaves(self, how):
        return os.environ.get("MISBEHAVE") == how and self.resets == int(os.environ["MISBEHAVE_AT"])

    def reward(self, state, action, next_state, task, noise):
        reward = super().reward(state, action, next_state, task, noise)
        if self.misbehaves("reward"):
            reward[(self._steps == 3) & (np.arange(len(reward)) == 5)] = np.nan
        return reward

    def broken(self, state, task):
        """A slot in each batch of rollouts, at any reset."""
        broken = super().broken(state, task)
        if os.environ.get("MISBEHAVE") == "broken":
            broken[5:6] = self._steps[5] == 3  # it rests afterwards, and there are fewer rows
        return broken

    def observation(self, state, task):
        observation = super().observation(state, task)
        if self.misbehaves("observation"):
            observation[self._steps == 2] = np.inf
        return observation


class MisbehavingEnv(Navigation2DEnv):
    vector_class = MisbehavingVectorEnv


gymnasium.register(
    "tests/Misbehaving-v0",
    entry_point="misbehaving:MisbehavingEnv",
    vector_entry_point="misbehaving:MisbehavingVectorEnv",
    max_episode_steps=20,
)


class TwoArmsVectorEnv(BernoulliBanditVectorEnv):
    """Of two arms one always pays: the smallest problem that only adaptation solves."""

    def __init__(self, num_envs=1, **kwargs):
        super().__init__(num_envs, num_arms=2, **kwargs)

    def sample_tasks(self, num_tasks, rng):
        return np.eye(2)[rng.integers(2, size=num_tasks)]


class TwoArmsEnv(BernoulliBanditEnv):
    vector_class = TwoArmsVectorEnv


gymnasium.register(
    "tests/TwoArms-v0",
    entry_point="misbehaving:TwoArmsEnv",
    vector_entry_point="misbehaving:TwoArmsVectorEnv",
    max_episode_steps=5,
)


class NanAfterEndVectorEnv(Navigation2DVectorEnv):
    """Ends where it leaves a small square, and shows NaN from then on until it is reset."""

    def terminated(self, state, task):
        return np.abs(state).max(axis=1) > 0.15

    def observation(self, state, task):
        return np.where(self.terminated(state, task)[:, None], np.nan, state).astype(np.float32)


class NanAfterEndEnv(Navigation2DEnv):
    vector_class = NanAfterEndVectorEnv


class ShortLivedVectorEnv(Navigation2DVectorEnv):
    """Random in all it can be, and ends at random: every path through the base class is taken."""

    initial_noise = 2
    step_noise = 3

    def initial_state(self, task, noise):
        return noise - 0.5

    def transition(self, state, action, task, noise):
        return np.where(noise[:, :1] < 0.2, 9.0, super().transition(state, action, task, noise) + noise[:, 1:])

    def terminated(self, state, task):
        return state[:, 0] == 9.0


class ShortLivedEnv(Navigation2DEnv):
    vector_class = ShortLivedVectorEnv


for name in ("NanAfterEnd", "ShortLived"):
    gymnasium.register(
        f"tests/{name}-v0",
        entry_point=f"misbehaving:{name}Env",
        vector_entry_point=f"misbehaving:{name}VectorEnv",
        max_episode_steps=20,
    )


class TroubledEnv(gymnasium.Env):
    """A point on a line without native code; at step 3, where the task is above 0.9, `trouble` strikes."""

    task_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float64)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, trouble=None, render_mode=None):
        self.trouble, self.render_mode = trouble, render_mode
        self.task = np.zeros(1)

    def set_task(self, task):
        self.task = np.array(task)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.x = 0, self.np_random.normal()
        return np.array([self.x, 0.0]), {}

    def step(self, action):
        self.steps += 1
        noise = self.np_random if self.trouble != "global chance" else np.random
        self.x += float(action[0]) + 0.1 * noise.normal()
        if self.steps == 3 and self.task[0] > 0.9:
            if self.trouble == "raise":
                raise ZeroDivisionError("the friction is 0")
            if self.trouble == "connection":
                raise ConnectionResetError("the simulator has gone")
            if self.trouble == "die":
                os._exit(7)
            if self.trouble == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.trouble == "hang":
                signal.pause()
        reached = self.x > 2
        # An episode is over at 2; tasks above 0.5 count as a success near 1.
        info = {"success": float(self.task[0] > 0.5 and self.x > 1)}
        return np.array([self.x, self.steps]), -abs(self.x - self.task[0]), reached, False, info

    def render(self):
        if self.trouble == "no picture":
            return None
        return np.full((4, 6, 3), int(50 * self.task[0]), np.uint8)


gymnasium.register("tests/Troubled-v0", entry_point="misbehaving:TroubledEnv", max_episode_steps=20)


class HangingEnv(TroubledEnv):
    """Hangs at step 3 where the task is above 0.9, and raises at step 5 where it is below 0.1."""

    def __init__(self, render_mode=None):
        super().__init__("hang", render_mode)

    def step(self, action):
        if self.steps == 4 and self.task[0] < 0.1:
            raise ZeroDivisionError("the friction is 0")
        return super().step(action)


class InterruptingEnv(TroubledEnv):
    """Interrupts a process, as Ctrl-C does, at step 3 where the task is above 0.9, and hangs."""

    def __init__(self, process=None, render_mode=None):
        super().__init__("hang", render_mode)
        self.process = process

    def step(self, action):
        if self.steps == 2 and self.task[0] > 0.9:
            os.kill(self.process, signal.SIGINT)
        return super().step(action)


class OldGeneratorEnv(TroubledEnv):
    """Draws its first state from NumPy's old generator, which refuses seeds of more than 32 bits."""

    def reset(self, *, seed=None, options=None):
        if seed is not None or not hasattr(self, "generator"):
            self.generator = np.random.RandomState(seed)
        super().reset(seed=seed)
        self.x = self.generator.uniform(-9, -8)  # far from the end
        return np.array([self.x, 0.0]), {}


class ThreeTasksEnv(TroubledEnv):
    all_tasks = [[0.25], [0.5], [0.75]]  # noqa: RUF012


for _name in ("Hanging", "Interrupting", "OldGenerator", "ThreeTasks"):
    gymnasium.register(f"tests/{_name}-v0", entry_point=f"misbehaving:{_name}Env", max_episode_steps=20)


class NoTaskSpaceEnv(TroubledEnv):
    task_space = None


class NoWayEnv(gymnasium.Env):
    task_space = TroubledEnv.task_space
    observation_space = TroubledEnv.observation_space
    action_space = TroubledEnv.action_space

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None):
        return np.zeros(2), {}


for _name in ("NoTaskSpace", "NoWay"):
    gymnasium.register(f"tests/{_name}-v0", entry_point=f"misbehaving:{_name}Env", max_episode_steps=20)


class SlowEnv(TroubledEnv):
    def step(self, action):
        time.sleep(0.1)
        return super().step(action)


gymnasium.register("tests/Slow-v0", entry_point="misbehaving:SlowEnv", max_episode_steps=20)


class SuccessOnceEnv(TroubledEnv):
    """Success at step 2 alone, where the task is above 0.5; never says no. Tests are on one task of their own."""

    def sample_test_tasks(self, num_tasks, rng):
        return np.full((num_tasks, 1), 0.75)

    def step(self, action):
        *step, _ = super().step(action)
        return *step, {"success": True} if self.steps == 2 and self.task[0] > 0.5 else {}


gymnasium.register("tests/SuccessOnce-v0", entry_point="misbehaving:SuccessOnceEnv", max_episode_steps=20)


class MixedEnv(gymnasium.Env):
    """No ready-made policy fits: two actions, one of 2 and one of 3 values, pay where they are near the task.

    Observations are drawn from a space of one of five kinds, none of them an array.
    """

    task_space = gymnasium.spaces.Box(0.0, 2.0, (2,), np.float64)
    action_space = gymnasium.spaces.MultiDiscrete([2, 3], start=[0, 5])
    observation_spaces = {  # noqa: RUF012
        "dict": gymnasium.spaces.Dict(
            place=gymnasium.spaces.Discrete(3), speed=gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        ),
        "tuple": gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), gymnasium.spaces.MultiBinary(2)]),
        "multi-discrete": gymnasium.spaces.MultiDiscrete([2, 3]),
        "multi-binary": gymnasium.spaces.MultiBinary(3),
        "sequence": gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)),
    }

    def __init__(self, kind="dict", render_mode=None):
        self.observation_space, self.task = copy.deepcopy(self.observation_spaces[kind]), np.ones(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.task = (options or {}).get("task", self.task)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        reward = -np.abs(action - self.action_space.start - self.task).sum()
        return self.observation_space.sample(), float(reward), False, False, {}


gymnasium.register("tests/Mixed-v0", entry_point="misbehaving:MixedEnv", max_episode_steps=20)


class StubbornEnv(TroubledEnv):
    """Starts a process in its first step, and writes the numbers of all into a pipe. It may never come back."""

    def __init__(self, folder=".", how="sleep", render_mode=None):
        super().__init__(render_mode=render_mode)
        self.folder, self.how = folder, how

    def step(self, action):
        pipe = pathlib.Path(self.folder) / "processes"
        if pipe.exists():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            pipe.write_text(f"{os.getppid()} {os.getpid()} {child.pid}")
            pipe.unlink()
        while self.how == "spin":
            pass
        if self.how == "hold":  # not even other threads of Python can run
            ctypes.PyDLL(None).sleep(600)
        time.sleep(0 if self.how == "idle" else 600)  # if idle, it comes back, and the parent stays busy
        return super().step(action)


gymnasium.register("tests/Stubborn-v0", entry_point="misbehaving:StubbornEnv", max_episode_steps=20)


class GreedyEnv(TroubledEnv):
    """Takes the array of its task as its own, and changes it."""

    def set_task(self, task):
        self.task = task

    def step(self, action):
        self.task *= 0.5
        return super().step(action)


gymnasium.register("tests/Greedy-v0", entry_point="misbehaving:GreedyEnv", max_episode_steps=20)


class CarelessEnv(TroubledEnv):
    """Returns what NumPy would silently take for something else."""

    results = {  # noqa: RUF012 (what each trouble returns)
        "text reward": (np.zeros(2), "1.5", False, False, {}),
        "no reward": (np.zeros(2), None, False, False, {}),
        "array reward": (np.zeros(2), np.zeros(1), False, False, {}),
        "no terminated": (np.zeros(2), 0.0, None, False, {}),
        "text terminated": (np.zeros(2), 0.0, "no", False, {}),
        "text truncated": (np.zeros(2), 0.0, False, "no", {}),
        "short observation": (np.zeros(1), 0.0, False, False, {}),
        "deep observation": (np.zeros((1, 2)), 0.0, False, False, {}),
        "no observation": (None, 0.0, False, False, {}),
        "complex observation": (np.zeros(2, complex), 0.0, False, False, {}),
        "four results": (np.zeros(2), 0.0, False, {}),
        "no results": None,
    }

    def step(self, action):
        return self.results[self.trouble]


class BadlyMadeEnv(TroubledEnv):
    """Fails in a method beside step and reset."""

    def __init__(self, trouble=None, render_mode=None):
        super().__init__(trouble, render_mode)
        self.do("init")

    def do(self, where):
        if self.trouble == f"{where} raises":
            raise OSError(f"no {where} today")
        if self.trouble == f"{where} exits":
            sys.exit(0)
        if self.trouble == f"{where} hangs":
            signal.pause()

    def close(self):
        self.do("close")

    def reset(self, **kwargs):
        self.do("reset")
        return super().reset(**kwargs)

    def sample_tasks(self, num_tasks, rng):
        self.do("sample_tasks")
        tasks = rng.uniform(size=(num_tasks, 1))
        wrong = {
            "None": None,
            "a string": "tasks",
            "too few": tasks[1:],
            "too many": np.concatenate([tasks, tasks]),
            "two numbers each": np.concatenate([tasks, tasks], 1),
            "not a number": np.where(tasks == tasks[0], np.nan, tasks),
            "outside": tasks + 1.5,
            "what cannot be sent": (task for task in tasks),
        }
        return wrong.get(self.trouble, tasks) if num_tasks > 1 else tasks

    def task_problem(self, tasks):
        if len(tasks) > 1:
            self.do("task_problem")


for _name in ("Careless", "BadlyMade"):
    gymnasium.register(f"tests/{_name}-v0", entry_point=f"misbehaving:{_name}Env", max_episode_steps=20)


class HeavyEnv(TroubledEnv):
    """Takes 20 MB of memory."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.memory = np.ones(20_000_000, np.uint8)


gymnasium.register("tests/Heavy-v0", entry_point="misbehaving:HeavyEnv", max_episode_steps=20)


class MissionSpace(gymnasium.Space):
    """A space of texts that Gymnasium cannot flatten, as MiniGrid has one."""

    def sample(self, mask=None, probability=None):
        return "go"


class NewcomerEnv(gymnasium.Env):
    """An environment as people have it: no argument render_mode, and spaces of a given kind."""

    observations = {  # noqa: RUF012
        "table": gymnasium.spaces.Box(-1.0, 1.0, (5, 7), np.float32),
        "number": gymnasium.spaces.Box(-1.0, 1.0, (), np.float32),
        "picture": gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "text": gymnasium.spaces.Dict(
            mission=MissionSpace(), picture=gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
        ),
        "nothing": gymnasium.spaces.Dict(),
        "no numbers": gymnasium.spaces.Box(-1.0, 1.0, (0,), np.float32),
    }
    tasks = {  # noqa: RUF012
        "discrete": gymnasium.spaces.Discrete(3, start=2),
        "negative": gymnasium.spaces.Discrete(3, start=-1),
        "multi-discrete": gymnasium.spaces.MultiDiscrete([2, 3], start=[1, 0]),
        "integers": gymnasium.spaces.Box(-1, 2, (1,), np.int64),
        "dict": gymnasium.spaces.Dict(gravity=gymnasium.spaces.Box(0.0, 1.0)),
        "unbounded": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
    }

    def __init__(self, see="table", task="discrete", listens=True):
        self.observation_space, self.task_space = copy.deepcopy(self.observations[see]), self.tasks[task]
        self.action_space, self.listens, self.task = gymnasium.spaces.Discrete(2), listens, 0.0

    def set_task(self, task):
        assert self.task_space.contains(task)
        self.task = np.sum(task) if self.listens else 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action * self.task), False, False, {}


class ForgetfulEnv(TroubledEnv):
    """Has its first task again at every reset that is not told another. Its `sample_tasks` returns a list."""

    told = np.zeros(1)

    def set_task(self, task):
        self.told = np.array(task)

    def reset(self, *, seed=None, options=None):
        self.task, self.told = self.told, np.zeros(1)
        return super().reset(seed=seed)

    def sample_tasks(self, num_tasks, rng):
        return rng.uniform(size=(num_tasks, 1)).tolist()


gymnasium.register("tests/Forgetful-v0", entry_point="misbehaving:ForgetfulEnv", max_episode_steps=5)
gymnasium.register("tests/Newcomer-v0", entry_point="misbehaving:NewcomerEnv", max_episode_steps=5)
for _kind in ("integers", "negative"):
    gymnasium.register(
        f"tests/{_kind.title()}-v0",
        entry_point="misbehaving:NewcomerEnv",
        max_episode_steps=5,
        kwargs={"task": _kind},
    )
gymnasium.register(
    "tests/Deaf-v0", entry_point="misbehaving:NewcomerEnv", max_episode_steps=5, kwargs={"listens": False}
)
