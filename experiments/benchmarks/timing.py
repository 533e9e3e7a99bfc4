"""Seconds of calls, taken in turns, because the speed of a shared machine drifts."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any


def seconds(f: Callable[[], Any]) -> float:
    """The wall time of a call."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def own_turns(parts: dict[str, Callable[[], float]], repetitions: int, warm_up: int = 1) -> list[dict[str, float]]:
    """What parts return that take their own time, turn after turn, without those to warm up."""
    return [{name: f() for name, f in parts.items()} for _ in range(warm_up + repetitions)][warm_up:]


def in_turns(parts: dict[str, Callable[[], Any]], repetitions: int) -> list[dict[str, float]]:
    """Seconds of each part, turn after turn, after two to warm up."""
    return own_turns({name: partial(seconds, f) for name, f in parts.items()}, repetitions, warm_up=2)
