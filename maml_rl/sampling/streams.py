"""Random streams: one for each purpose and index. No stream continues from one iteration to the next."""

import zlib

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..policies import Distribution, Normal
from .spaces import Array


def stream(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """Returns an independent random stream for each purpose and index.

    Every iteration has its own streams, so a resumed run does not need the state of a generator.
    """
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *index))


class TaskStreams(np.random.SeedSequence):
    """Streams of a batch of tasks, of which this process has only some.

    Every task has streams of its own, by its number in the whole batch. Splitting a batch changes none of them.

    Args:
        seeds: The streams of the whole batch.
        tasks: The tasks of the whole batch, (M, D).
        rows: Which of them this process has.
    """

    def __init__(self, seeds: np.random.SeedSequence, tasks: Array, rows: slice):
        super().__init__(seeds.entropy, spawn_key=seeds.spawn_key)
        self._seeds, self.tasks, self.rows = seeds, tasks, rows

    def spawn(self, n_children: int) -> "list[TaskStreams]":
        """Spawns streams for n phases of the same tasks."""
        return [TaskStreams(child, self.tasks, self.rows) for child in self._seeds.spawn(n_children)]


def own_share(tasks: Array, seeds: np.random.SeedSequence) -> tuple[Array, np.random.SeedSequence]:
    """Returns this rank's tasks of a batch (M, D), and their streams. Without torchrun, these are all."""
    rows = ranks.share(len(tasks))
    return tasks[rows], TaskStreams(seeds, tasks, rows)


def whole_batch(seeds: np.random.SeedSequence, tasks: Array) -> tuple[Array, slice]:
    """Returns the tasks of the whole batch that streams are for, (M, D), and the rows of the given ones in it."""
    return (seeds.tasks, seeds.rows) if isinstance(seeds, TaskStreams) else (tasks, slice(0, len(tasks)))


class ActionNoise:
    """Random numbers for the actions of M tasks in an episode. Each task has a stream of its own.

    Args:
        seeds: The streams of a batch.
        first: The number in the batch of the first of the M tasks.
        num_tasks: M.
        horizon: H. The numbers for all steps are drawn at once, which takes less time.
    """

    def __init__(self, seeds: np.random.SeedSequence, first: int, num_tasks: int, horizon: int):
        key = integer_seed(seeds)
        self._streams = [np.random.Generator(np.random.Philox(key=[key, first + i])) for i in range(num_tasks)]
        self._horizon, self._noise = horizon, torch.empty(0)
        self._steps = 0

    def draw(self, distribution: Distribution) -> Tensor:
        """Draws the actions of a step from distributions of tensors (M, K, ...)."""
        of_step = distribution[0]
        if not self._steps:
            noise = np.empty((len(of_step), self._horizon, *of_step.shape[1:]), np.float32)
            for stream, of_task in zip(self._streams, noise, strict=True):
                if isinstance(distribution, Normal):
                    stream.standard_normal(out=of_task, dtype=np.float32)
                else:
                    stream.random(out=of_task, dtype=np.float32)
            self._noise = torch.from_numpy(noise).to(of_step.dtype).movedim(1, 0).contiguous()
        self._steps += 1
        return distribution.sample_from(self._noise[self._steps - 1])


def integer_seed(seeds: np.random.SeedSequence) -> int:
    """Returns a seed of 62 bits from a stream, for torch and for native families."""
    return int(seeds.generate_state(1, np.uint64)[0] >> 2)


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Returns a NumPy generator at the beginning of a stream."""
    return np.random.default_rng(stream(seed, purpose, *index))


def torch_generator(seeds: np.random.SeedSequence) -> torch.Generator:
    """Returns a torch generator at the beginning of a stream."""
    return torch.Generator().manual_seed(integer_seed(seeds))
