"""Single environments stepped one after the other, in this process or in worker processes."""

import contextlib
import faulthandler
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
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation

from .family import Array, Bools

Env = gymnasium.Env[Any, Any]


def reset_with_task(env: Env, task: Array, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Resets an environment with a task (D,), set by `set_task` if it has that, or else by the option "task"."""
    if env.has_wrapper_attr("set_task"):
        env.get_wrapper_attr("set_task")(task)
        return env.reset(seed=seed)
    return env.reset(seed=seed, options={"task": task})


def make_flat(spec: EnvSpec | str, **kwargs: Any) -> Env:
    """Makes an environment as `gymnasium.make` does, and flattens observations of Dict, Tuple, ... spaces."""
    env: Env = gymnasium.make(spec, **kwargs)
    numbers = isinstance(env.observation_space, spaces.Box | spaces.Discrete)
    return env if numbers else FlattenObservation(env)


class Slots:
    """Environments of one process, stepped one after the other.

    Attributes:
        progress: [number of calls begun, slot of the latest call], written before each call.
    """

    def __init__(self, first: int, progress: Array):
        self.first, self.progress = first, progress
        self.envs: list[Env] = []

    def begin(self, row: int) -> None:
        """Notes that a call of the environment in a row begins."""
        self.progress[:] = self.progress[0] + 1, self.first + row

    def make(self, make: Callable[[], Env], num_envs: int) -> None:
        """Makes the environments."""
        for row in range(num_envs):
            self.begin(row)
            self.envs.append(make())

    def reset(self, seeds: Array, tasks: Array) -> tuple[Array]:
        """Resets all environments with seeds (n,), where -1 is none, and tasks (n, D)."""
        space = self.envs[0].observation_space
        observations = np.empty((len(self.envs), *(space.shape or ())), space.dtype)
        for row, env in enumerate(self.envs):
            self.begin(row)
            seed = None if seeds[row] < 0 else int(seeds[row])
            observations[row], _ = reset_with_task(env, tasks[row], seed)
        return (observations,)

    def step(self, actions: Array, alive: Bools, before: Array) -> tuple[Array, ...]:
        """Steps the environments that are alive; the others keep their observation from before."""
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

    def render(self, row: int) -> Array:
        """Renders one environment."""
        self.begin(row)
        return np.asarray(self.envs[row].render())

    def close(self) -> None:
        """Closes all environments."""
        for env in self.envs:
            env.close()


class Worker:
    """A process that steps some of the environments, and the connection to it.

    The process is a newly started Python. A fork would share open files, locks and random numbers, and
    `multiprocessing` would run the user's script a second time.

    Attributes:
        first: The slot of its first environment.
        connection: Takes (a method of `Slots`, its arguments). Returns ("done", result) or ("failed", (what
            happened, traceback)). The constructor sends the call of `make`.
        progress: The `progress` of the worker's `Slots`, in shared memory.
    """

    def __init__(self, make: partial[Env], first: int, num_envs: int):
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
        command = f"from maml_rl.envs.workers import work; work({theirs.fileno()}, {self._folder.name!r}, {first})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # so that Ctrl-C reaches only the parent, which handles it
        )
        theirs.close()
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(content)

    def send(self, method: str, *arguments: Any) -> None:
        """Requests a call. A process that has ended is noticed only when its answer is awaited."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((method, arguments))

    def trace(self) -> str:
        """Returns the Python stack of a process that hangs or has crashed, if it is available."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            sizes = [0]
            while len(sizes) < 100 and not (sizes[-1] and sizes[-1] == sizes[-2]):  # until all is written
                time.sleep(0.02)
                sizes.append(self._trace_file.stat().st_size)
        return self._trace_file.read_text(errors="replace") or "(none: the process left no traceback)"

    def end(self, at_once: bool = False) -> None:
        """Ends the process, by force if it takes more than a second or must be `at_once`."""
        if at_once:
            self.process.kill()
        self.connection.close()  # the process ends when it notices this
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def work(descriptor: int, folder: str, first: int) -> None:
    """Runs a worker process: answers calls of its `Slots` until the parent closes the connection."""
    connection: Connection[Any, Any] = Connection(descriptor)
    slots = Slots(first, np.memmap(Path(folder) / "progress", np.int64, "r+", shape=(2,)))
    with open(Path(folder) / "traceback", "w") as file:
        faulthandler.enable(file, all_threads=False)
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        # Broken connections of the environments themselves are caught below and reported like other errors.
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                method, arguments = connection.recv()
                try:
                    answer: Any = "done", getattr(slots, method)(*arguments)
                except Exception as error:  # the parent reports every kind of error
                    answer = "failed", (f"raised {error!r}", traceback.format_exc())
                connection.send(answer)
