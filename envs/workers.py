"""Single environments stepped one after the other, in this process or in worker processes."""

import contextlib
import faulthandler
import inspect
import logging
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation

from .family import Array, Bools
from .opengl import opengl_chosen

Env = gymnasium.Env[Any, Any]
_log = logging.getLogger(__name__)


def reset_with_task(env: Env, task: Array, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Resets an environment with a task (D,), set by `set_task` if it has that, or else by the option "task"."""
    if env.has_wrapper_attr("set_task"):
        env.get_wrapper_attr("set_task")(task)
        return env.reset(seed=seed)
    return env.reset(seed=seed, options={"task": task})


def make_flat(spec: EnvSpec | str, render_mode: str | None = None, **kwargs: Any) -> Env:
    """Makes an environment as `gymnasium.make` does, with observations of a one-dimensional Box or Discrete space.

    Raises:
        ValueError: If the observations cannot be flattened to a fixed number of numbers.
    """
    if render_mode is not None:  # not every class has this argument
        kwargs["render_mode"] = render_mode
    env: Env = gymnasium.make(spec, **kwargs)
    space = env.observation_space
    if not isinstance(space, spaces.Discrete) and not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        try:
            env = FlattenObservation(env)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(_NOT_FLAT.format(env.spec.id if env.spec else env, space)) from error
    flat = env.observation_space
    if not isinstance(flat, spaces.Discrete) and not (isinstance(flat, spaces.Box) and flat.shape[0]):
        raise ValueError(_NOT_FLAT.format(env.spec.id if env.spec else env, space))
    return env


_NOT_FLAT = (
    "{}: observations of {} cannot be flattened to a fixed number of numbers; wrap the environment so that they "
    "can, for example without texts and sequences"
)


# Errors of a constructor whose messages say which argument is wrong, or what is not installed.
_REFUSALS = (gymnasium.error.Error, ImportError, TypeError, ValueError)


class Description(NamedTuple):
    """What an environment says of its family.

    Attributes:
        task_space: Its attribute of that name, of any type, or None.
        all_tasks: Its attribute of that name, or None.
        observation_space: The space of its flat observations.
        action_space: The space of its actions.
        render_fps: Pictures per second.
        methods: Which of `OWN_METHODS` it has.
        takes_tasks: Whether its task can be set.
    """

    task_space: Any
    all_tasks: Any
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    render_fps: int
    methods: frozenset[str]
    takes_tasks: bool


OWN_METHODS = ("sample_tasks", "sample_test_tasks", "task_problem")


def refusal(method: str, error: BaseException) -> type[Exception] | None:
    """Returns the type of an error by which a constructor refuses its arguments, or None for other errors."""
    if method != "make":
        return None
    return next((kind for kind in _REFUSALS if isinstance(error, kind)), None)


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

    def describe(self) -> Description:
        """Returns what the first environment says of the family."""
        self.begin(0)
        env = self.envs[0]
        task_space, all_tasks = (
            env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
            for name in ("task_space", "all_tasks")
        )
        by_option = inspect.signature(env.unwrapped.reset).parameters.keys() & {"options", "kwargs"}
        return Description(
            task_space,
            all_tasks,
            env.observation_space,
            env.action_space,
            env.metadata.get("render_fps", 30),
            frozenset(filter(env.has_wrapper_attr, OWN_METHODS)),
            bool(by_option) or env.has_wrapper_attr("set_task"),
        )

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Draws tasks with the first environment's own method. Returns them, and the state of `rng` afterwards."""
        self.begin(0)
        return self.envs[0].get_wrapper_attr("sample_tasks")(num_tasks, rng), rng.bit_generator.state

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Draws held-out tasks in the same way."""
        self.begin(0)
        return self.envs[0].get_wrapper_attr("sample_test_tasks")(num_tasks, rng), rng.bit_generator.state

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D) with the first environment's own method."""
        self.begin(0)
        problem: str | None = self.envs[0].get_wrapper_attr("task_problem")(tasks)
        return problem

    def reset(self, seeds: Array, tasks: Array) -> tuple[Array]:
        """Resets all environments with seeds (n,), where -1 is none, and tasks (n, D)."""
        space = self.envs[0].observation_space
        observations = np.empty((len(self.envs), *(space.shape or ())), space.dtype)
        for row, env in enumerate(self.envs):
            self.begin(row)
            seed = None if seeds[row] < 0 else int(seeds[row])
            observation, _ = reset_with_task(env, tasks[row], seed)
            observations[row] = _checked(observation, observations)
        return (observations,)

    def step(self, actions: Array, alive: Bools, before: Array) -> tuple[Array, ...]:
        """Steps the environments that are alive; the others keep their observation from before."""
        observations = before.copy()
        rewards = np.zeros(len(alive))
        terminated, truncated, reported, success = np.zeros((4, len(alive)), dtype=bool)
        for row in np.flatnonzero(alive).tolist():
            self.begin(row)
            observation, reward, ended, cut, info = self.envs[row].step(actions[row])
            observations[row] = _checked(observation, observations)
            rewards[row] = reward if type(reward) is float else _number("reward", reward, "biuf")
            terminated[row] = ended if type(ended) is bool else _number("terminated", ended, "b")
            truncated[row] = cut if type(cut) is bool else _number("truncated", cut, "b")
            if "success" in info:
                reported[row], success[row] = True, bool(info["success"])
        return observations, rewards, terminated, truncated, reported, success

    def render(self, row: int) -> Array:
        """Renders one environment."""
        self.begin(row)
        with opengl_chosen():
            return np.asarray(self.envs[row].render())

    def close(self) -> None:
        """Closes all environments."""
        while self.envs:
            close(self.envs.pop())


def close(env: Env) -> None:
    """Closes an environment. If it fails, that is only logged, because its work is done."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        _log.warning("%s raised %r in close", env.spec.id if env.spec else env, error)


def _checked(observation: Any, observations: Array) -> Array:
    """Refuses an observation that NumPy would silently broadcast or convert to the observations' type."""
    array = np.asarray(observation)
    if array.shape != observations.shape[1:] or not np.can_cast(array.dtype, observations.dtype, "same_kind"):
        raise TypeError(
            f"the observation has shape {array.shape} and type {array.dtype}, but its space has shape "
            f"{observations.shape[1:]} and type {observations.dtype}"
        )
    return array


def _number(name: str, value: Any, kinds: str) -> Any:
    """Refuses values that NumPy would silently convert, such as the reward "1.5"."""
    array = np.asarray(value)
    if array.shape or array.dtype.kind not in kinds:
        raise TypeError(f"{name} is {value!r}, but must be a {'bool' if kinds == 'b' else 'number'}")
    return array[()]


class Worker:
    """A process that steps some of the environments, and the connection to it.

    The process is a newly started Python. A fork would share open files, locks and random numbers, and
    `multiprocessing` would run the user's script a second time.

    Attributes:
        first: The slot of its first environment.
        connection: Takes (a method of `Slots`, its arguments). Returns ("done", result), ("failed", (what
            happened, traceback)), or ("refused", ((type of error, message), traceback)) from `make`. The
            constructor sends the call of `make`.
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
        # These files have no name, so that nothing is left of them after a kill.
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the worker)
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as memory, theirs:
            memory.truncate(16)
            self.progress = _shared(memory.fileno())
            self.progress[1] = first
            files = theirs.fileno(), memory.fileno(), self._trace.fileno()
            command = (
                f"import sys; sys.path[:] = {[path or os.getcwd() for path in sys.path]}; "
                f"from maml_rl.envs.workers import start; start({os.getpid()}, {first}, *{files})"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                stdin=subprocess.DEVNULL,
                pass_fds=files,
                start_new_session=True,  # so that Ctrl-C reaches only the parent, which handles it
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(content)

    def send(self, method: str, *arguments: Any) -> None:
        """Requests a call. A process that has ended is noticed only when its answer is awaited."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((method, arguments))

    def trace(self) -> str:
        """Returns the Python stack of a process that hangs or has crashed, if it is available."""
        size = os.fstat(self._trace.fileno()).st_size
        if self.process.poll() is None:
            self._signal(signal.SIGUSR1)
            sizes = [0]
            while len(sizes) < 100 and not (sizes[-1] and sizes[-1] == sizes[-2]):  # until all is written
                time.sleep(0.02)
                sizes.append(size := os.fstat(self._trace.fileno()).st_size)
        # The worker writes at the position that reading would move.
        text = os.pread(self._trace.fileno(), size, 0).decode(errors="replace")
        return text or "(none: the process left no traceback)"

    def end(self, at_once: bool = False) -> None:
        """Ends the process and all that its environments have started, by force after a second or `at_once`."""
        if self.ended:
            return
        self.connection.close()  # the process ends when it notices this
        if not at_once:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._trace.close()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._trace.closed

    def _signal(self, number: int) -> None:
        """Sends a signal to the worker's process group, if it still runs."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, if it has ended
            os.killpg(self.process.pid, number)


def _shared(descriptor: int) -> Array:
    return np.frombuffer(mmap.mmap(descriptor, 16), np.int64)


def start(parent: int, first: int, connection: int, memory: int, trace: int) -> None:
    """Runs a worker process, and beside it one that ends it and all that it has started once the parent is gone.

    The second process is needed because an environment may hang where no other Python thread can run.

    Args:
        parent: The parent's process number.
        first: The slot of its first environment.
        connection: The file descriptor of the connection to the parent.
        memory: The file descriptor of `progress`.
        trace: The file descriptor of the file for tracebacks.
    """
    worker = os.fork()
    if not worker:
        work(first, connection, memory, trace)
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which asks the worker for its stack
    threading.Thread(target=_end_when_alone, args=(parent,), daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    time.sleep(0.05)  # a parent that dies closes the connection a moment before it is gone
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    if code < 0:  # a signal has ended it
        os.kill(os.getpid(), -code)
    os._exit(code)


def _end_when_alone(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(1.0)  # in which the worker may close its environments
    os.killpg(0, signal.SIGKILL)


def work(first: int, connection: int, memory: int, trace: int) -> None:
    """Answers calls of a worker's `Slots` until the parent closes the connection. Its arguments: see `start`."""
    to_parent: Connection[Any, Any] = Connection(connection)
    slots = Slots(first, _shared(memory))
    faulthandler.enable(trace, all_threads=False)
    faulthandler.register(signal.SIGUSR1, trace, all_threads=False)
    # Broken connections of the environments themselves are caught below and reported like other errors.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = to_parent.recv()
            try:
                # An environment may return what cannot be sent.
                answer = ForkingPickler.dumps(("done", getattr(slots, method)(*arguments)))
            except (Exception, SystemExit) as error:  # the parent reports every kind of error
                kind = refusal(method, error)
                what = (kind, str(error)) if kind else f"raised {error!r}"
                answer = ForkingPickler.dumps(("refused" if kind else "failed", (what, traceback.format_exc())))
            to_parent.send_bytes(answer)
    slots.close()
