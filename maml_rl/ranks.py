"""Processes that share the tasks of a run: the ranks that torchrun starts. A run without torchrun has one rank.

Each rank collects the rollouts of its own tasks and differentiates their losses. Sums over all tasks, of P numbers
at most, are all that ranks exchange. All ranks get the same bits of each sum, so they take the same decisions.
"""

import contextlib
import io
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .errors import UserError

# Seconds that a failed rank has to say why, before it is taken for dead.
_LAST_WORDS = 5.0
_OTHER = "Another process of this run has stopped."
_log = logging.getLogger("maml_rl")
_size, _rank = 1, 0  # in the run that this process takes part in
_num_runs = 0  # that it has taken part in


def count() -> int:
    """The number of ranks."""
    return _size


def rank() -> int:
    """The number of this rank. Rank 0 writes the run folder."""
    return _rank


def under_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"


def restarted() -> bool:
    """Whether torchrun has started the ranks again after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launch() -> str:
    """Names the torchrun that started this process, the same for all its restarts. "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return str(os.getppid()) if name == "none" else name


def share(num_tasks: int) -> slice:
    """The rows of this rank's tasks among all M."""
    return slice(_rank * num_tasks // _size, (_rank + 1) * num_tasks // _size)


def size(num_tasks: int) -> int:
    """The number of this rank's tasks among all M."""
    rows = share(num_tasks)
    return int(rows.stop - rows.start)


def all_tasks(own: int, config: Config) -> int:
    """The number of tasks M of a meta-batch, of which this rank has some."""
    return own if _size == 1 else config.num_tasks


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all ranks."""
    if _size == 1:
        return x
    import torch.distributed as dist

    x = x.detach().clone(memory_format=torch.contiguous_format)
    with _failures():
        dist.all_reduce(x)
    return x


def gathered(x: Tensor, num_tasks: int) -> Tensor:
    """The rows of all M tasks, (M, ...), from those of each rank's own."""
    if _size == 1:
        return x
    rows = x.new_zeros(num_tasks, *x.shape[1:])
    rows[share(num_tasks)] = x
    return total(rows)


def from_first(value: Any) -> Any:
    """Returns rank 0's value on all ranks: tensors, numbers and strings in lists and dictionaries."""
    if _size == 1:
        return value
    import torch.distributed as dist

    buffer = io.BytesIO()
    torch.save(value, buffer)
    message = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    length = torch.tensor(len(message))
    with _failures():
        dist.broadcast(length, 0)
        message = message if _rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(message, 0)
    return torch.load(io.BytesIO(message.numpy().tobytes()), weights_only=True)


@contextlib.contextmanager
def joined(config: Config) -> Iterator[None]:
    """Connects the ranks of a run while it lasts. If one of them fails, the others stop and say which one.

    A rank that does not answer for five times `worker_timeout` has failed.

    Raises:
        UserError: If there are more ranks than tasks, or if another rank fails.
    """
    global _size, _rank, _num_runs
    if not under_torchrun():
        yield
        return
    import torch.distributed as dist

    # If torch.func imported this later, its default arguments would hold on to the process group. The threads of a
    # group that is never destroyed can abort the process when it exits.
    import torch.distributed.nn  # noqa: F401
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    number, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in ("num_tasks", "eval_num_tasks"):
        if getattr(config, name) < world_size:
            raise UserError(
                f"{name} is {getattr(config, name)}, but there are {world_size} processes, and each needs a task; "
                f"start fewer processes, or choose a larger {name}."
            )
    if dist.is_initialized():  # an earlier run has failed
        dist.destroy_process_group()
    if number:  # rank 0 speaks for all
        _log.setLevel(logging.WARNING)
    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    _num_runs += 1
    backend = "cpu:gloo,cuda:nccl" if config.device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=5 * config.worker_timeout)
    with _on_sigterm(signal.SIG_DFL):  # nothing is lost yet, and Python's handlers wait until torch has connected
        everything = TCPStore(*where, is_master=False, timeout=timedelta(seconds=60))
        store = PrefixStore(f"maml_rl {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} {_num_runs}", everything)
        dist.init_process_group(backend, store=store, rank=number, world_size=world_size, timeout=timeout)
    _size, _rank = world_size, number
    store.set(f"process {number}", f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
        with _failures():
            dist.barrier()  # until rank 0 has written everything
    except BaseException as error:
        # SIGTERM comes from torchrun now. RuntimeError comes from the store, which ends with torchrun.
        with _on_sigterm(signal.SIG_IGN), contextlib.suppress(RuntimeError):
            _exchange_causes(store, error)
        raise
    finally:
        _size, _rank = 1, 0
    dist.destroy_process_group()


@contextlib.contextmanager
def _on_sigterm(handler: signal.Handlers) -> Iterator[None]:
    """Handles SIGTERM in another way for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Raises the failure of another rank as a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(_OTHER) from error


def _exchange_causes(store: Any, error: BaseException) -> None:
    """Tells the other ranks why this one fails, or finds out which other one has failed."""
    if isinstance(error, UserError) and error.args[0] == _OTHER:
        error.args = (_cause(store),)
    elif isinstance(error, KeyboardInterrupt) and error.args:  # SIGTERM: so torchrun ends the others
        if (cause := _cause(store)) != _OTHER:
            _log.warning(cause)
    else:
        store.set(f"cause {_rank}", str(error) or type(error).__name__)


def _cause(store: Any) -> str:
    """Says which other rank has failed, and why. A rank that says nothing for seconds is dead or hangs."""
    store.set(f"alive {_rank}", "")
    others = [number for number in range(_size) if number != _rank]
    end = time.monotonic() + _LAST_WORDS
    while time.monotonic() < end:
        for number in others:
            if store.check([f"cause {number}"]):
                return f"Rank {number} stopped: {store.get(f'cause {number}').decode()}"
        time.sleep(0.1)
    for number in others:
        if not store.check([f"alive {number}"]):
            who = store.get(f"process {number}").decode()
            return f"Rank {number} ({who}) was killed, or it hangs."
    return _OTHER
