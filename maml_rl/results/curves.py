"""The results of methods on their held-out tasks as curves, and what is computed from them for tables."""

from typing import NamedTuple

import numpy as np

from ..sampling.spaces import Array
from . import published


class Curves(NamedTuple):
    """The results of one method's runs on their held-out tasks.

    Attributes:
        returns: For each seed, (tasks, S + 1).
        eval_seeds: The seed of the tasks of each.
        episodes: The number of episodes of a task that a learner had seen before each of the S + 1 phases.
        remembers: Whether each rollout is a learner of its own, as in RL².
        env_steps: The environment steps in these episodes, mean over seeds.
        middle: The interquartile mean of the returns, (S + 1,).
        interval: Its 95% interval, (S + 1, 2).
        success: The share of rollouts with success, mean over tasks and seeds, (S + 1,), and its 95% interval,
            (S + 1, 2). None if a run does not have it.
    """

    returns: list[Array]
    eval_seeds: list[int]
    episodes: Array
    remembers: bool
    env_steps: Array
    middle: Array
    interval: Array
    success: tuple[Array, Array] | None


def at_episodes(curves: Curves, episodes: Array) -> Array:
    """Returns the indices of a method's last points after at most the given numbers of episodes."""
    return np.searchsorted(curves.episodes, episodes, side="right") - 1


def columns(methods: dict[str, Curves]) -> dict[str, Array]:
    """Returns the indices of up to four points of each method's curve.

    In each column, methods have seen at most the same number of episodes of a task. That is the number of the
    method with the most adaptation steps or, if no method takes steps, of the run of RL² with the most episodes.
    """
    episodes = _longest(methods).episodes[:4]
    return {name: at_episodes(curves, episodes) for name, curves in methods.items()}


def means_in_columns(methods: dict[str, Curves]) -> dict[str, Array]:
    """Returns each method's mean over all tasks and seeds in the `columns`, (up to 4,)."""
    at = columns(methods)
    return {name: _mean_over(curves, {*curves.eval_seeds})[at[name]] for name, curves in methods.items()}


def scores(methods: dict[str, Curves]) -> dict[str, Array]:
    """Returns each method's scores in the `columns`, (up to 4,), if "random" and "oracle" are among the methods.

    A score compares means over the same tasks, which are those of all seeds that the three share. A method that
    shares no seed with the two has no score.
    """
    if not {"random", "oracle"} <= methods.keys():
        return {}
    at, found = columns(methods), {}
    for name in methods:
        three = {which: methods[which] for which in (name, "random", "oracle")}
        shared = set.intersection(*(set(curves.eval_seeds) for curves in three.values()))
        if shared:
            mean = {which: _mean_over(curves, shared)[at[which]] for which, curves in three.items()}
            found[name] = published.score(mean[name], mean["random"], mean["oracle"][0])
    return found


def _mean_over(curves: Curves, eval_seeds: set[int]) -> Array:
    """The mean over the tasks of some seeds, (S + 1,)."""
    pairs = zip(curves.returns, curves.eval_seeds, strict=True)
    mean: Array = np.concatenate([returns for returns, seed in pairs if seed in eval_seeds]).mean(0)
    return mean


def _longest(methods: dict[str, Curves]) -> Curves:
    return max(methods.values(), key=lambda c: (len(c.episodes) > 1 and not c.remembers, len(c.episodes)))


def unit(methods: dict[str, Curves]) -> str:
    """What the `columns` are numbered by."""
    return "episode" if _longest(methods).remembers else "step"
