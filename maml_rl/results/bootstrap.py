"""Means over the tasks of several seeds, with bootstrap intervals."""

from collections.abc import Callable

import numpy as np

from ..runs.evaluation import strata
from ..sampling.spaces import Array

_RESAMPLES, _BATCH = 2000, 100


def interquartile_mean(returns: list[Array], tasks: list[Array]) -> tuple[Array, Array]:
    """Returns the mean of the middle half of the tasks of all seeds, with its 95% interval.

    The interval is a percentile bootstrap in two stages. It draws seeds with replacement, and then tasks within
    each seed, because every seed has its own tasks. (Agarwal et al., arXiv:2108.13264, section 4.1, draw seeds
    within each task.) With a single seed it only shows how tasks differ.

    If every task of a seed occurs at least twice, adaptations are only drawn among those to the same task. Then
    the differences between tasks do not widen the interval, as in `maml_rl.evaluate`.

    Args:
        returns: For each seed, (M, S + 1).
        tasks: For each seed, (M, D).

    Returns:
        (S + 1,) and (S + 1, 2).
    """
    return _with_interval(returns, tasks, _mean_of_middle_half)


def mean_with_interval(by_seed: list[Array], tasks: list[Array]) -> tuple[Array, Array]:
    """Returns the mean over the tasks of all seeds, with an interval as that of `interquartile_mean`."""
    return _with_interval(by_seed, tasks, lambda values: values.mean(-2))


def _with_interval(
    by_seed: list[Array], tasks: list[Array], statistic: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Computes a statistic of values (..., n, S + 1) over n, with the interval of `interquartile_mean`."""
    rng = np.random.default_rng(0)
    num_tasks = min(len(of_seed) for of_seed in by_seed)
    # (seeds, M, S + 1). Resampling takes most of the time, and float32 is sorted three times as fast.
    values = np.stack([of_seed[:num_tasks] for of_seed in by_seed]).astype(np.float32)
    order, starts, counts = np.stack([_by_stratum(of_seed[:num_tasks]) for of_seed in tasks], axis=1)
    resampled = []
    for _ in range(_RESAMPLES // _BATCH):
        seeds = rng.integers(len(values), size=(_BATCH, len(values), 1))
        places = (rng.random((_BATCH, len(values), num_tasks)) * counts[seeds[..., 0]]).astype(int)
        drawn = values[seeds, order[seeds, starts[seeds[..., 0]] + places]]
        resampled.append(statistic(drawn.reshape(_BATCH, -1, values.shape[-1])))
    interval = np.percentile(np.concatenate(resampled), [2.5, 97.5], axis=0)
    return statistic(np.concatenate(by_seed)), interval.T


def _by_stratum(tasks: Array) -> Array:
    """Orders the rows of M tasks so that those of a stratum are neighbours.

    Returns:
        The order, and for each of its places, where its stratum begins and how many rows that has, (3, M).
    """
    stratum, counts = strata(tasks)
    starts = np.cumsum(counts) - counts
    return np.stack([np.argsort(stratum, kind="stable"), *np.repeat([starts, counts], counts, axis=1)])


def _mean_of_middle_half(values: Array) -> Array:
    """`scipy.stats.trim_mean` with 0.25, of (..., n, S + 1) over n. Sorting in order of memory is much faster."""
    ordered = np.sort(np.ascontiguousarray(values.swapaxes(-1, -2)))
    cut = ordered.shape[-1] // 4
    middle: Array = ordered[..., cut : ordered.shape[-1] - cut].mean(-1)
    return middle
