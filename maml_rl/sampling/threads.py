"""Work on chunks of tasks, shared out among threads."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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


@contextlib.contextmanager
def thread_map(num_items: int, threads: int | None = None) -> Iterator[Callable[..., list[Any]]]:
    """Starts threads for any number of maps over `num_items` items.

    A map applies a function to items, which the threads take from a list, and returns the results in order. The
    threads only wait for each other at the end. Threads inside torch's operations wait after each one, and as they
    spin while they wait, they are slow if another process needs their cores.

    Args:
        num_items: The number of items of each map.
        threads: The number of threads; by default one per core. With fewer items than threads, those left over are
            shared out to the operations.

    Yields:
        `map_(f, items)`. The function f spends its time in torch's operations, during which other threads can run.
    """
    threads = threads or num_cores()
    count = max(1, threads // num_items)
    with torch_threads(count):
        if num_items == 1 or threads == 1:
            yield lambda f, items: [f(item) for item in items]
        else:
            with pool_of_threads(min(threads, num_items), count) as pool:
                yield lambda f, items: list(pool.map(f, items))


def in_threads(f: Callable[[S], T], items: Sequence[S], threads: int | None = None) -> list[T]:
    """Applies a function to items in threads, once; see `thread_map`."""
    with thread_map(len(items), threads) as map_:
        return map_(f, items)


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
