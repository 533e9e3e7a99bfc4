"""Random streams: one for each purpose and index. None is carried from one iteration to the next."""

import zlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """An independent random stream for each purpose and index.

    Every iteration opens its own, so a resumed run does not need the state of a generator.
    """
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *index))


def integer_seed(seeds: np.random.SeedSequence) -> int:
    """A stream as one number of 62 bits, for torch and for native families."""
    return int(seeds.generate_state(1, np.uint64)[0] >> 2)


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A NumPy generator at the beginning of a stream."""
    return np.random.default_rng(stream(seed, purpose, *index))


def torch_generator(seeds: np.random.SeedSequence) -> torch.Generator:
    """A torch generator at the beginning of a stream."""
    return torch.Generator().manual_seed(integer_seed(seeds))
