"""Any Gymnasium environment with tasks as a family: N of them in this process, or shared out among others."""

import contextlib
import faulthandler
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation

from .core import VectorFamily, in_words


class BrokenEnvironmentError(RuntimeError):
    """An environment raised, or its process died or hung; the message names the task and holds the traceback."""


def reset_with_task(env: gymnasium.Env, task: np.ndarray, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Puts a task (D,) in force by `set_task` where there is one, else by the option "task", and resets."""
    if env.has_wrapper_attr("set_task"):
        env.get_wrapper_attr("set_task")(task)
        return env.reset(seed=seed)
    return env.reset(seed=seed, options={"task": task})


def make_flat(spec: EnvSpec | str, **kwargs: Any) -> gymnasium.Env:
    """As `gymnasium.make`, but that observations are numbers: of Dict, Tuple, ... spaces, they are flattened."""
    env = gymnasium.make(spec, **kwargs)
    numbers = isinstance(env.observation_space, spaces.Box | spaces.Discrete)
    return env if numbers else FlattenObservation(env)


class AdaptedVectorEnv(VectorFamily):
    """N environments that are no batched functions, behind the interface of a family.

    The environment has a `task_space`, and either takes the task by `reset(options={"task": task})` or has a
    `set_task(task)`; a `sample_tasks(num_tasks, rng)` and a `sample_test_tasks(num_tasks, rng)` of its own are
    used where it has them. Environment i is seeded with s + i. Every reset says the task again. Observations of
    a Dict, Tuple, MultiDiscrete or MultiBinary space are flattened by Gymnasium's `FlattenObservation`, discrete
    parts one-hot: `single_observation_space` is always a Box or Discrete.

    An environment whose episode ended rests until the next `reset` (Gymnasium's mode `DISABLED`): it is not
    stepped, its observation stays, its reward is 0. `info["success"]`, (N,) bool, holds what the environments
    that were stepped report under that name.

    Args:
        spec: What `gymnasium.spec` returns.
        num_envs: N.
        max_episode_steps: H; by default the registered one.
        render_mode: None or "rgb_array".
        num_workers: Processes that the environments are shared out among; 0 for none but this. What the
            environments do does not depend on it.
        worker_timeout: Seconds that a single call of a single environment may take in a worker.
        **kwargs: Arguments of the environment.

    Raises:
        ValueError: If the environment has no task space, no way to set the task, or observations of no fixed size.
        BrokenEnvironmentError: If an environment raises, or its process dies or hangs, in `reset` and `step` too.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (typed by Gymnasium)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        num_workers: int = 0,
        worker_timeout: float = 60.0,
        **kwargs: Any,
    ):
        self._spec_id = spec.id
        if num_workers < 0:
            raise ValueError(f"{self.name}: num_workers is {num_workers}, but must be at least 0.")
        if num_workers and getattr(spec.entry_point, "__module__", None) == "__main__":
            raise ValueError(
                f"{self.name}: its class is defined in the script itself, where other processes cannot import it; "
                "move it into a module of its own, or set num_workers to 0."
            )
        if num_workers and os.name != "posix":
            raise ValueError(f"{self.name}: worker processes need a POSIX system; set num_workers to 0.")
        kwargs |= {"max_episode_steps": max_episode_steps, "render_mode": render_mode}
        make = partial(make_flat, spec, disable_env_checker=True, **kwargs)
        try:
            self._example = make()
        except (gymnasium.error.Error, ImportError, TypeError, ValueError):
            raise  # says itself what is wrong with the arguments, or not installed
        except Exception as error:
            raise BrokenEnvironmentError(
                f"{self.name}: an environment cannot be made, it raises {error!r}; mend it. Its traceback:\n"
                f"{traceback.format_exc().rstrip()}"
            ) from error
        self.metadata = {**self.metadata, "render_fps": self._example.metadata.get("render_fps", 30)}
        self.task_space = self._task_space()
        self.single_observation_space = self._observation_space()
        self.single_action_space = self._example.action_space
        steps = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
        super().__init__(num_envs, steps, render_mode)
        self._timeout = worker_timeout
        self._ended = np.ones(num_envs, dtype=bool)
        self._observations = np.empty(0)
        # Whole shares: the last workers may have one environment less.
        shares = [share for share in np.array_split(np.arange(num_envs), max(1, num_workers)) if share.size]
        self._bounds = [int(share[0]) for share in shares[1:]]
        self._workers: list[_Worker] = []
        if num_workers:
            self._workers = [_Worker(make, int(share[0]), len(share)) for share in shares]
            self._collect("make")
        else:
            self._slots = _Slots(0, np.zeros(2, np.int64))
            self._slots.make(make, num_envs)

    @property
    def name(self) -> str:
        """The registered id."""
        return self._spec_id

    def _task_space(self) -> spaces.Space:
        env = self._example
        space = env.get_wrapper_attr("task_space") if env.has_wrapper_attr("task_space") else None
        if not isinstance(space, spaces.Space):
            raise ValueError(
                f"{self.name}: the environment has no task_space, but a family needs one, a Gymnasium space that "
                "says what a task is; add the attribute."
            )
        options = inspect.signature(env.unwrapped.reset).parameters.keys() & {"options", "kwargs"}
        if not options and not env.has_wrapper_attr("set_task"):
            raise ValueError(
                f"{self.name}: there is no way to set the environment's task; give it reset(options={{'task': "
                "task}) or set_task(task)."
            )
        return space

    def _observation_space(self) -> spaces.Space:
        space = self._example.observation_space
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise ValueError(
                f"{self.name}: observations of {space} cannot be flattened to a fixed number of numbers; wrap the "
                "environment so that they can."
            )
        return space

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws tasks (M, D) as the environment does, else uniformly from a bounded `task_space`."""
        if self._example.has_wrapper_attr("sample_tasks"):
            return np.asarray(self._example.get_wrapper_attr("sample_tasks")(num_tasks, rng))
        return super().sample_tasks(num_tasks, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Draws held-out tasks (M, D) as the environment does, else as `sample_tasks`."""
        if self._example.has_wrapper_attr("sample_test_tasks"):
            return np.asarray(self._example.get_wrapper_attr("sample_test_tasks")(num_tasks, rng))
        return self.sample_tasks(num_tasks, rng)

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """What the environment's own `task_problem(tasks)` says, if it has one."""
        if self._example.has_wrapper_attr("task_problem"):
            return self._example.get_wrapper_attr("task_problem")(tasks)
        return None

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode in every environment; arguments and result as in `TaskVectorEnv.reset`."""
        tasks = self._checked_tasks(options["task"]) if options and "task" in options else self.tasks
        seeds = np.full(self.num_envs, -1) if seed is None else self._checked_seeds(seed)  # -1: none
        self.tasks = tasks
        (self._observations,) = self._call("reset", seeds, self.tasks)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return self._observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every environment whose episode has not ended; see the class."""
        if not self._observations.size:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before the first step.")
        actions = self._checked_actions(actions)
        observations, rewards, terminated, truncated, reported, success = self._call(
            "step", actions, ~self._ended, self._observations
        )
        self._ended |= terminated | truncated
        self._observations = observations
        info = {"success": success} if reported.any() else {}
        return observations.copy(), rewards, terminated, truncated, info

    def snapshot(self, index: int) -> np.ndarray:
        """A picture of one environment as it stands, (height, width, 3) uint8."""
        if not self._workers:
            return self._slots.render(index)
        number = int(np.searchsorted(self._bounds, index, side="right"))
        worker = self._workers[number]
        worker.send("render", index - worker.first)
        return self._receive(worker, "render")

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments, and ends the processes."""
        for worker in self._workers:
            worker.end()
        if not self._workers:
            self._slots.close()
        self._example.close()

    def _call(self, method: str, *arguments: np.ndarray) -> list[np.ndarray]:
        """Calls a method of all slots, each argument (N, ...) shared out; returns the results, (N, ...) each."""
        shares = list(zip(*(np.split(argument, self._bounds) for argument in arguments), strict=True))
        if self._workers:
            for worker, share in zip(self._workers, shares, strict=True):
                worker.send(method, *share)
            results = self._collect(method)
            return [np.concatenate(parts) for parts in zip(*results, strict=True)]
        try:
            return list(getattr(self._slots, method)(*shares[0]))
        except Exception as error:
            slot = int(self._slots.progress[1])
            raise self._failure(slot, method, f"raised {error!r}", traceback.format_exc()) from error

    def _collect(self, method: str) -> list[Any]:
        try:
            return [self._receive(worker, method) for worker in self._workers]
        except KeyboardInterrupt:
            # Answers still under way must not be taken for those of the next call.
            self._end_workers()
            raise

    def _receive(self, worker: "_Worker", method: str) -> Any:
        """Waits for a worker's answer as long as its environments come back one by one, and no longer."""
        calls = -1
        # At first, Python starts and imports the family's module, however quick its environments are.
        timeout = max(self._timeout, 60.0) if method == "make" else self._timeout
        while not worker.connection.poll(timeout):
            if calls == (calls := int(worker.progress[0])):
                self._stop(worker, method, f"has not come back for {timeout:g} s (worker_timeout)")
        try:
            kind, answer = worker.connection.recv()
        except (EOFError, OSError):
            self._stop(worker, method, f"ended its process (exit code {worker.process.wait()})")
        if kind == "failed":
            self._stop(worker, method, *answer)
        return answer

    def _stop(self, worker: "_Worker", method: str, what: str, trace: str | None = None) -> NoReturn:
        """Ends all workers, and raises."""
        slot = int(worker.progress[1])
        trace = worker.trace() if trace is None else trace
        self._end_workers()
        raise self._failure(slot, method, what, trace)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end(at_once=True)

    def _failure(self, slot: int, method: str, what: str, trace: str) -> BrokenEnvironmentError:
        return BrokenEnvironmentError(
            f"{self.name}: environment {slot} with task {in_words(self.tasks[slot])} {what} in {method}; mend the "
            f"environment. Its traceback:\n{trace.rstrip()}"
        )


class _Slots:
    """Environments of one process, stepped one after the other.

    Attributes:
        progress: [calls begun, slot of the latest one], written before each call.
    """

    def __init__(self, first: int, progress: Any):
        self.first, self.progress = first, progress
        self.envs: list[gymnasium.Env] = []

    def begin(self, row: int) -> None:
        self.progress[:] = self.progress[0] + 1, self.first + row

    def make(self, make: Callable[[], gymnasium.Env], num_envs: int) -> None:
        for row in range(num_envs):
            self.begin(row)
            self.envs.append(make())

    def reset(self, seeds: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, ...]:
        space = self.envs[0].observation_space
        observations = np.empty((len(self.envs), *(space.shape or ())), space.dtype)
        for row, env in enumerate(self.envs):
            self.begin(row)
            seed = None if seeds[row] < 0 else int(seeds[row])
            observations[row], _ = reset_with_task(env, tasks[row], seed)
        return (observations,)

    def step(self, actions: np.ndarray, alive: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, ...]:
        observations = before.copy()
        rewards = np.zeros(len(alive))
        terminated, truncated, reported, success = np.zeros((4, len(alive)), dtype=bool)
        for row in np.flatnonzero(alive).tolist():
            self.begin(row)
            observations[row], rewards[row], terminated[row], truncated[row], info = self.envs[row].step(
                actions[row]
            )
            if "success" in info:
                reported[row], success[row] = True, bool(info["success"])
        return observations, rewards, terminated, truncated, reported, success

    def render(self, row: int) -> np.ndarray:
        self.begin(row)
        return np.asarray(self.envs[row].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()


class _Worker:
    """A process with some of the environments, and the connection to it.

    It is a new Python, not a fork, which would share open files, locks and random numbers, nor started by
    `multiprocessing`, which would run the user's script once more in it.

    Attributes:
        connection: Takes (method of `_Slots`, its arguments), gives ("done", result) or ("failed", (what,
            traceback)); the call of `make` is on its way already.
        progress: As that of its `_Slots`, in memory shared with it.
    """

    def __init__(self, make: partial[gymnasium.Env], first: int, num_envs: int):
        try:
            content = ForkingPickler.dumps(("make", (make, num_envs)))
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ValueError(
                f"{make.args[0].id}: the environment cannot be made in another process ({error}); register its "
                "class in a module by a string, or set num_workers to 0."
            ) from error
        self.first = first
        self._folder = tempfile.TemporaryDirectory(prefix="maml_rl-worker-")
        self._trace_file = Path(self._folder.name) / "traceback"
        self._trace_file.touch()
        progress = Path(self._folder.name) / "progress"
        self.progress = np.memmap(progress, np.int64, "w+", shape=(2,))
        self.progress[1] = first
        ours, theirs = socket.socketpair()
        command = f"from maml_rl.envs.adapter import work; work({theirs.fileno()}, {self._folder.name!r}, {first})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(content)

    def send(self, method: str, *arguments: Any) -> None:
        """Asks for a call; whether the process is still there shows when its answer is waited for."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((method, arguments))

    def trace(self) -> str:
        """The Python stack of a process that hangs or crashed, as far as it can be had."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            sizes = [0]
            while len(sizes) < 100 and not (sizes[-1] and sizes[-1] == sizes[-2]):  # until all is written
                time.sleep(0.02)
                sizes.append(self._trace_file.stat().st_size)
        return self._trace_file.read_text(errors="replace") or "(none: the process left nothing)"

    def end(self, at_once: bool = False) -> None:
        if at_once:
            self.process.kill()
        self.connection.close()  # the process ends when it notices
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def work(descriptor: int, folder: str, first: int) -> None:
    """The life of a worker: answers calls of its `_Slots` until the other end closes."""
    connection = Connection(descriptor)
    slots = _Slots(first, np.memmap(Path(folder) / "progress", np.int64, "r+", shape=(2,)))
    with open(Path(folder) / "traceback", "w") as file:
        faulthandler.enable(file, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        # Around the connection alone: environments may have connections of their own that break.
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                method, arguments = connection.recv()
                try:
                    answer: Any = "done", getattr(slots, method)(*arguments)
                except Exception as error:  # whatever it is, the parent reports it
                    answer = "failed", (f"raised {error!r}", traceback.format_exc())
                connection.send(answer)
