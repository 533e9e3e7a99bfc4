"""Processes that step some of a family's environments."""

import contextlib
import faulthandler
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
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from .family import Array
from .slots import Env, Slots, refusal


class Worker:
    """A process that steps some of the environments, and the connection to it.

    The process is a newly started Python. A fork would share open files, locks and random numbers, and
    `multiprocessing` would run the user's script a second time.

    Attributes:
        first: The slot of its first environment.
        num_envs: How many environments it has.
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
        self.first, self.num_envs = first, num_envs
        self._ending = threading.Lock()
        # These files have no name, so that nothing is left of them after a kill.
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the worker)
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as memory, theirs:
            memory.truncate(16)
            self.progress = _shared(memory.fileno())
            self.progress[1] = first
            files = theirs.fileno(), memory.fileno(), self._trace.fileno()
            paths = [path or os.getcwd() for path in sys.path if isinstance(path, str)]  # as Python does
            command = (
                f"import sys; sys.path[:] = {paths}; "
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
        with self._ending:  # several threads may end the same worker
            if self.ended:
                return
            if not at_once:
                self.connection.close()  # the process ends when it notices this
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1.0)
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.connection.close()
            self._trace.close()

    def kill(self) -> None:
        """Kills the process, unless it was ended. What waits for its answer then gets an error."""
        if not self.ended:
            self._signal(signal.SIGKILL)

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
            message = to_parent.recv_bytes()
            try:
                method, arguments = pickle.loads(message)
            except Exception as error:  # whatever importing the environment's module raises
                why = (
                    f"The environment cannot be made in another process ({error!r}); define its class and what "
                    "its arguments need in a module that can be imported, or set num_workers to 0."
                )
                answer = ForkingPickler.dumps(("refused", ((ValueError, why), traceback.format_exc())))
                to_parent.send_bytes(answer)
                continue
            try:
                # An environment may return what cannot be sent.
                answer = ForkingPickler.dumps(("done", getattr(slots, method)(*arguments)))
            except (Exception, SystemExit) as error:  # the parent reports every kind of error
                kind = refusal(method, error)
                what = (kind, str(error)) if kind else f"raised {error!r}"
                answer = ForkingPickler.dumps(("refused" if kind else "failed", (what, traceback.format_exc())))
            to_parent.send_bytes(answer)
    slots.close()
