"""Work on chunks of tasks, shared out among threads."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..config import Config
from ..envs import num_cores

S = TypeVar("S")
T = TypeVar("T")


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets each of torch's operations use so many threads, and restores the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pool_of_threads(size: int, count: int) -> ThreadPoolExecutor:
    """Makes a pool of threads in which each of torch's operations uses `count` threads.

    PyTorch keeps this number for each thread. Without it, a product in a new thread is shared out to all cores.
    """
    return ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(count,))


def in_threads(f: Callable[[S], T], items: Sequence[S], threads: int | None = None) -> list[T]:
    """Applies a function to items, which threads take from a list, and returns the results in order.

    The threads only wait for each other at the end. Threads inside torch's operations wait after each one, and as
    they spin while they wait, they are slow if another process needs their cores.

    Args:
        f: The function. It spends its time in torch's operations, during which other threads can run.
        items: Its arguments.
        threads: The number of threads; by default one per core. With fewer items than threads, those left over are
            shared out to the operations.
    """
    threads = threads or num_cores()
    count = max(1, threads // len(items))
    with torch_threads(count):
        if len(items) == 1 or threads == 1:
            return [f(item) for item in items]
        with pool_of_threads(min(threads, len(items)), count) as pool:
            return list(pool.map(f, items))


def map_chunks(f: Callable[[nn.Module, slice], T], policy: nn.Module, num_tasks: int, config: Config) -> list[T]:
    """Applies a function to chunks of tasks, in threads.

    The chunks do not depend on the number of threads, so neither do sums over them in order.

    Args:
        f: Takes a policy module that no other chunk has, because `functional_call` changes a module during the
            call, and the rows of a chunk.
        policy: The policy module.
        num_tasks: M.
        config: The chunk size and the number of threads are used.

    Returns:
        What `f` returns for each chunk, in order.
    """
    size = config.chunk_tasks
    chunks = [
        (
            copy.deepcopy(policy) if start else policy,
            slice(start, start + size) if size < num_tasks else slice(None),
        )
        for start in range(0, num_tasks, size)
    ]
    return in_threads(lambda chunk: f(*chunk), chunks, config.threads)


def rows_of(data: T, rows: slice) -> T:
    """Returns the rows of a chunk, of tensors (M, ...) or trees of them. All rows are the data itself."""
    if rows == slice(None):
        return data  # iterations on examples are so short that this matters
    chosen: T = tree_map(lambda x: x[rows], data)
    return chosen
