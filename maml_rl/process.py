"""Settings that the command line changes in its own process. Library users can opt in."""

import contextlib
import ctypes
import io
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

from threadpoolctl import threadpool_limits

from .envs import VectorFamily
from .errors import UserError

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def tune_process() -> None:
    """Changes how this process keeps memory, which makes training faster, and where MuJoCo's warnings go.

    The command line calls this function. `import maml_rl` and `train` do not. Without it, training computes the
    same numbers but may take 50% longer because of page faults. Call it before torch is imported.

    * On Linux, the GNU C library keeps freed memory. An iteration allocates and frees the same hundreds of
      megabytes many times. By default, large blocks go back to the system each time, and every page of the next
      block costs a page fault. These page faults took half of the time of an outer step.
    * All threads share one arena of memory. By default, each thread has its own and keeps what it frees there. The
      peak of 2D navigation was 870 megabytes instead of 640.
    * Torch allocates large tensors on huge pages, so that their first use costs far fewer page faults.
      (Linearising the outer objective of 2D navigation took 0.15 s instead of 0.24 s.) Torch reads this setting
      once.
    * Each of NumPy's matrix products uses one thread, because there are threads around them.
    * OpenMP's threads spin only briefly before they sleep, if they wait for each other. By default they spin for
      milliseconds, even for a thread that has lost its core to another process. An iteration with a single chunk
      of tasks took two and a half times as long beside two other trainings. OpenMP reads this setting once.
    * MuJoCo's warnings go to the log at level DEBUG. By default, MuJoCo prints them and writes MUJOCO_LOG.TXT
      into the working folder when a simulation breaks down.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_ARENA_MAX, 1)
    threadpool_limits(1, user_api="blas")
    VectorFamily.quiet = True


def prepare_process() -> None:
    """Prepares a process of the command line for the signals, streams and settings that it may meet.

    * SIGTERM and SIGHUP, which clusters and closed terminals send, stop a run like Ctrl-C: a checkpoint is
      written, and worker processes end. As they often come together, further ones are ignored for five seconds.
      A signal that the caller ignores stays ignored.
    * A full or closed standard error does not stop a run. Characters that the output cannot show become "?".
    * Pictures are drawn without a window, whatever MPLBACKEND says.
    * Messages of this package, for example the number of environments, go to standard error.
    """
    global _last_interrupt
    _last_interrupt = None  # an earlier command of this process may have been interrupted
    os.environ["MPLBACKEND"] = "agg"
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
        sys.stdout = _Stream(sys.stdout, _output_lost)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Stream(sys.stderr, lambda error: None)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("maml_rl").setLevel(logging.INFO)
    for number in _STOPPING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def end_process() -> None:
    """Lets SIGTERM and SIGHUP end this process at once, because a run that has ended needs no checkpoint."""
    for number in _STOPPING:
        if signal.getsignal(number) == _stop:
            signal.signal(number, signal.SIG_DFL)


_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


_last_stop = -math.inf
_last_interrupt: KeyboardInterrupt | None = None


def _stop(number: int, frame: FrameType | None) -> None:
    global _last_stop, _last_interrupt
    before, _last_stop = _last_stop, time.monotonic()
    if _last_stop - before > 5.0:
        _last_interrupt = KeyboardInterrupt(number)
        raise _last_interrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _last_interrupt
    _last_interrupt = KeyboardInterrupt()
    raise _last_interrupt


def raise_lost_interrupt(env_steps: int, scalars: dict[str, float]) -> None:
    """A callback of `train` that stops a run whose signal was lost.

    Python discards what a signal raises in a destructor or in the callback of a weak reference.
    """
    if _last_interrupt is not None:
        raise _last_interrupt


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Raises the KeyboardInterrupt of a signal again if a library has turned it into another error.

    NumPy does so if the signal comes while it compares structured arrays, for example in `numpy.unique`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _last_interrupt is None:
            raise
        raise _last_interrupt from error


def exit_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code after a signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    # If KeyboardInterrupt has left an `exec`, Python ends itself by SIGINT, unless a later one has ended normally.
    # Importing a module with dataclasses or named tuples uses `exec`.
    exec("pass")
    return 128 + int(error.args[0] if error.args else signal.SIGINT)


class _Stream:
    """A standard stream that may be full or closed."""

    def __init__(self, stream: TextIO, failure: Callable[[OSError], object]):
        self._stream, self._failure = stream, failure

    def write(self, text: str) -> int:
        with self._checked():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._checked():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure(error)


def _output_lost(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError):  # whoever reads has seen enough
        raise error
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it at exit)
    raise UserError(f"Cannot write the output ({error.strerror}); make room, or send it elsewhere.") from error
