"""Families of single Gymnasium environments: N of them in this process, or divided among worker processes."""

import contextlib
import copy
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from .family import Array, Bools, BrokenEnvironmentError, Floats, VectorFamily, in_words
from .slots import Description, Slots, make_flat, refusal
from .workers import Worker

_log = logging.getLogger(__name__)
# Making an environment includes the time to start Python and to import the family's module.
_START_SECONDS = 60.0


class AdaptedVectorEnv(VectorFamily):
    """N single Gymnasium environments with the interface of a family.

    The environment needs a `task_space`, and either `reset(options={"task": task})` or `set_task(task)`. Its own
    `sample_tasks(num_tasks, rng)`, `sample_test_tasks(num_tasks, rng)`, `task_problem(tasks)` and `all_tasks` are
    used if it has them. Environment i gets the seed (s + i) % 2^31, because `np.random.RandomState` refuses larger
    ones. Every reset sets the task again. Observations other than those of a one-dimensional Box
    or Discrete space, images too, are flattened by Gymnasium's `FlattenObservation`, which encodes discrete parts
    one-hot. `single_observation_space` is therefore always a one-dimensional Box or Discrete.

    An environment whose episode ended is not stepped until the next `reset` (Gymnasium's mode `DISABLED`): its
    observation stays the same, and its reward is 0. `info["success"]`, (N,) bool, holds what the environments
    report under that name.

    Args:
        spec: The result of `gymnasium.spec`.
        num_envs: The number of environments N.
        max_episode_steps: The horizon H. None means the registered one.
        render_mode: None or "rgb_array".
        num_workers: The number of worker processes, or 0 to step the environments in this process.
        worker_timeout: How many seconds one call of one environment may take in a worker.
        **kwargs: Arguments of the environment.

    Raises:
        ValueError: If the environment has no task space, no way to set the task, or observations of varying size.
        BrokenEnvironmentError: If an environment raises an error, or its process dies or hangs. `reset` and `step`
            raise it too.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (typed by Gymnasium)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        num_workers: int = 0,
        worker_timeout: float = 60.0,
        **kwargs: Any,
    ):
        self._spec_id = spec.id
        if num_workers < 0:
            raise ValueError(f"{self.name}: num_workers is {num_workers}, but must be at least 0.")
        makers = [spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
        modules = [m.partition(":")[0] if isinstance(m, str) else getattr(m, "__module__", None) for m in makers]
        if num_workers and "__main__" in modules:
            raise ValueError(
                f"{self.name}: its class is defined in the script itself, where other processes cannot import it; "
                "move it into a module of its own, or set num_workers to 0."
            )
        if num_workers and os.name != "posix":
            raise ValueError(f"{self.name}: worker processes need a POSIX system; set num_workers to 0.")
        kwargs |= {"max_episode_steps": max_episode_steps, "render_mode": render_mode}
        make = partial(make_flat, spec, disable_env_checker=True, **kwargs)
        self._timeout = worker_timeout
        self._num_steps = 0  # in this episode, for messages
        self._shares: list[VectorFamily] = []
        self._workers: list[Worker] = []
        self._slots = Slots(0, np.zeros(2, np.int64))
        steps = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
        try:
            self._start(make, max(num_envs, 1), num_workers)
            self._describe()
            super().__init__(num_envs, steps, render_mode)
        except BaseException:
            self.close_extras()
            raise
        self._ended = np.ones(num_envs, dtype=bool)
        self._observations = np.empty(0)

    def _start(self, make: partial[gymnasium.Env[Any, Any]], num_envs: int, num_workers: int) -> None:
        """Makes the environments, in this process or in workers."""
        processes = max(1, min(num_workers, num_envs))
        firsts = [i * num_envs // processes for i in range(processes + 1)]
        log = _log.info if num_envs > 1 else _log.debug
        log("%s: making %d environments", self.name, num_envs)
        if num_workers:
            with self._interruptible():
                for first, end in pairwise(firsts):
                    self._workers.append(Worker(make, first, end - first))
                sizes = [self._receive(worker, "make") for worker in self._workers]
        else:
            sizes = self._answers("make", [(make, num_envs)])
        log("%s: the environments take %.0f MB of memory", self.name, sum(sizes) / 1e6)

    def _describe(self) -> None:
        """Sets what the first environment says of the family. Raises `ValueError` if it says too little."""
        family: Description
        [family] = self._answers("describe", [()])
        if not isinstance(family.task_space, spaces.Space):
            raise ValueError(
                f"{self.name}: the environment has no task_space, but a family needs one, a Gymnasium space that "
                "says what a task is; add the attribute."
            )
        if not family.takes_tasks:
            raise ValueError(
                f"{self.name}: there is no way to set the environment's task; give it reset(options={{'task': "
                "task}) or set_task(task)."
            )
        self.metadata = {**self.metadata, "render_fps": family.render_fps}
        self.task_space, self._own_methods = family.task_space, family.methods
        self.all_tasks = None if family.all_tasks is None else np.asarray(family.all_tasks)
        self.single_observation_space = family.observation_space
        self.single_action_space = family.action_space

    @property
    def name(self) -> str:
        """The registered id."""
        return self._spec_id

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws tasks (M, D) with the environment's own method, or else as `VectorFamily` does."""
        return self._sample("sample_tasks", super().sample_tasks, num_tasks, rng)

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws held-out tasks (M, D) with the environment's own method, or else as `VectorFamily` does."""
        return self._sample("sample_test_tasks", super().sample_test_tasks, num_tasks, rng)

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D) with the environment's own method, or else as `VectorFamily` does."""
        if "task_problem" not in self._own_methods:
            return super().task_problem(tasks)
        problem: str | None
        [problem] = self._answers("task_problem", [(tasks,)])
        return problem

    def _sample(
        self,
        method: str,
        default: Callable[[int, np.random.Generator], Array],
        num_tasks: int,
        rng: np.random.Generator,
    ) -> Array:
        if method not in self._own_methods:
            return default(num_tasks, rng)
        tasks: Array
        [(tasks, rng.bit_generator.state)] = self._answers(method, [(num_tasks, rng)])
        return tasks

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts a new episode in every environment; arguments and result as in `TaskVectorEnv.reset`."""
        tasks = self._given_tasks(options)
        # -1 means no seed. The learner's seeds have 62 bits, more than some environments accept.
        seeds = np.full(self.num_envs, -1) if seed is None else self._checked_seeds(seed) % 2**31
        self.tasks, self._num_steps = tasks, 0
        (self._observations,) = self._call("reset", seeds, self.tasks)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return self._observations.copy(), {}

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools, dict[str, Any]]:
        """Steps every environment whose episode has not ended; see the class."""
        if not self._observations.size:
            raise gymnasium.error.ResetNeeded(f"{self.name}: call reset before the first step.")
        actions = self._checked_actions(actions)
        self._num_steps += 1
        observations, rewards, terminated, truncated, reported, success = self._call(
            "step", actions, ~self._ended, self._observations
        )
        self._ended |= terminated | truncated
        self._observations = observations
        info = {"success": success} if reported.any() else {}
        return observations.copy(), rewards, terminated, truncated, info

    def shares(self, num_tasks: int) -> list[VectorFamily]:
        """Splits the workers into two halves. The policy can act in one while the other is stepped.

        Returns only itself if a task's environments would be separated, or if there is only one worker.
        """
        middle = len(self._workers) // 2
        if not middle or self._workers[middle].first % (self.num_envs // num_tasks):
            return [self]
        self._observations = np.empty(0)  # needs a reset
        if not self._shares:
            self._shares = [self._share(self._workers[:middle]), self._share(self._workers[middle:])]
        return self._shares

    def _share(self, workers: list[Worker]) -> "AdaptedVectorEnv":
        """Makes a family of the environments of some workers."""
        share = copy.copy(self)
        share._workers, share._shares = workers, []
        share._set_size(sum(worker.num_envs for worker in workers))
        share.tasks = self.tasks[share._first : share._first + share.num_envs]
        return share

    @property
    def _first(self) -> int:
        """The number of the first environment among those of all shares."""
        return self._workers[0].first if self._workers else 0

    @property
    def _bounds(self) -> list[int]:
        """Where the environments of each worker but the first begin."""
        return [worker.first - self._first for worker in self._workers[1:]]

    def snapshot(self, index: int) -> Array:
        """Renders one environment in its current state, (height, width, 3) uint8."""
        if not self._workers:
            [picture] = self._answers("render", [(index,)])
            return np.asarray(picture)
        number = int(np.searchsorted(self._bounds, index, side="right"))
        worker = self._workers[number]
        with self._interruptible():
            worker.send("render", index + self._first - worker.first)
            return np.asarray(self._receive(worker, "render"))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments, and ends the processes."""
        for worker in self._workers:
            worker.end()
        self._slots.close()

    def _call(self, method: str, *arguments: Array) -> list[Array]:
        """Calls a method of all `Slots` with their parts of the arguments (N, ...). Returns arrays (N, ...)."""
        shares = list(zip(*(np.split(argument, self._bounds) for argument in arguments), strict=True))
        results = self._answers(method, shares)
        return [np.concatenate(parts) for parts in zip(*results, strict=True)] if self._workers else list(*results)

    def _answers(self, method: str, shares: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a method of the first `Slots`, as many as there are tuples of arguments. Returns the results."""
        if not self._workers:
            try:
                return [getattr(self._slots, method)(*shares[0])]
            except (Exception, SystemExit) as error:
                if refusal(method, error) or isinstance(error, gymnasium.error.DependencyNotInstalled):
                    raise
                slot = int(self._slots.progress[1])
                raise self._failure(slot, method, f"raised {error!r}", traceback.format_exc()) from error
        if any(worker.ended for worker in self._workers):
            raise BrokenEnvironmentError(
                f"{self.name}: its worker processes have ended; make the environments again."
            )
        workers = self._workers[: len(shares)]
        with self._interruptible():
            for worker, share in zip(workers, shares, strict=True):
                worker.send(method, *share)
            return [self._receive(worker, method) for worker in workers]

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ends the workers after Ctrl-C. The next call must not receive answers that are still on their way."""
        try:
            yield
        except KeyboardInterrupt:
            self.abandon()
            raise

    def _receive(self, worker: Worker, method: str) -> Any:
        """Waits for a worker's answer, as long as no single environment takes longer than the timeout."""
        timeout = max(self._timeout, _START_SECONDS) if method == "make" else self._timeout
        calls, since = -1, 0.0
        while not worker.connection.poll(min(1.0, timeout / 10)):
            now = time.monotonic()
            if calls != worker.progress[0]:
                calls, since = int(worker.progress[0]), now
            elif now - since >= timeout:
                self._stop(worker, method, f"has not come back for {timeout:g} s (worker_timeout)")
        try:
            kind, answer = worker.connection.recv()
        except (EOFError, OSError):
            code = worker.process.wait()
            killed = " by SIGKILL, perhaps because memory ran out; with fewer environments it needs less"
            self._stop(worker, method, f"ended its process (exit code {code}{killed * (code == -signal.SIGKILL)})")
        if kind == "failed":
            self._stop(worker, method, *answer)
        if kind == "refused":
            self.abandon()
            (error, message), trace = answer
            refused = error(message)
            refused.add_note(f"In a worker process:\n{trace}")
            raise refused
        return answer

    def _stop(self, worker: Worker, method: str, what: str, trace: str | None = None) -> NoReturn:
        """Ends the workers and raises a `BrokenEnvironmentError`."""
        slot = int(worker.progress[1])
        trace = worker.trace() if trace is None else trace
        self.abandon()
        raise self._failure(slot, method, what, trace)

    def abandon(self) -> None:
        """Ends the processes at once. The environments cannot be used any more."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.end(at_once=True)

    def _failure(self, slot: int, method: str, what: str, trace: str) -> BrokenEnvironmentError:
        where = {"make": "__init__", "step": f"step {self._num_steps}"}.get(method, method)
        task = (
            f" with task {in_words(self.tasks[slot - self._first])}"
            if method in ("reset", "step", "render")
            else ""
        )
        return BrokenEnvironmentError(
            f"{self.name}: environment {slot}{task} {what} in {where}; fix the environment. Its traceback:\n"
            f"{trace.rstrip()}"
        )
