"""Random streams: one for each purpose and index. No stream continues from one iteration to the next."""

import zlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """Returns an independent random stream for each purpose and index.

    Every iteration has its own streams, so a resumed run does not need the state of a generator.
    """
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *index))


def integer_seed(seeds: np.random.SeedSequence) -> int:
    """Returns a seed of 62 bits from a stream, for torch and for native families."""
    return int(seeds.generate_state(1, np.uint64)[0] >> 2)


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Returns a NumPy generator at the beginning of a stream."""
    return np.random.default_rng(stream(seed, purpose, *index))


def torch_generator(seeds: np.random.SeedSequence) -> torch.Generator:
    """Returns a torch generator at the beginning of a stream."""
    return torch.Generator().manual_seed(integer_seed(seeds))
