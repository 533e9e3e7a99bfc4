"""Random streams: one for each purpose, none carried from one iteration to the next."""

import zlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """An independent random stream for each purpose and index.

    As every iteration opens its own, a resumed run needs no generator's state.
    """
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *index))


def integer_seed(seeds: np.random.SeedSequence) -> int:
    """A stream as the one number that environments and torch take, of 62 bits."""
    return int(seeds.generate_state(1, np.uint64)[0] >> 2)


def torch_generator(seeds: np.random.SeedSequence) -> torch.Generator:
    """A generator at the beginning of a stream."""
    return torch.Generator().manual_seed(integer_seed(seeds))
