"""Families of single Gymnasium environments: N of them in this process, or divided among worker processes."""

import inspect
import os
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from .family import Array, Bools, Floats, VectorFamily, in_words
from .workers import Slots, Worker, close, make_flat


class BrokenEnvironmentError(RuntimeError):
    """An environment raised an error, or its process died or hung. The message has the task and the traceback."""


class AdaptedVectorEnv(VectorFamily):
    """N single Gymnasium environments with the interface of a family.

    The environment needs a `task_space`, and either `reset(options={"task": task})` or `set_task(task)`. Its own
    `sample_tasks(num_tasks, rng)`, `sample_test_tasks(num_tasks, rng)`, `task_problem(tasks)` and `all_tasks` are
    used if it has them. Environment i gets the seed (s + i) % 2^31, because `np.random.RandomState` refuses larger
    ones. Every reset sets the task again. Observations of a Dict, Tuple, MultiDiscrete or MultiBinary space are
    flattened by Gymnasium's `FlattenObservation`, which encodes discrete parts one-hot. `single_observation_space`
    is therefore always a Box or Discrete.

    An environment whose episode ended is not stepped until the next `reset` (Gymnasium's mode `DISABLED`): its
    observation stays the same, and its reward is 0. `info["success"]`, (N,) bool, holds what the environments
    report under that name.

    Args:
        spec: The result of `gymnasium.spec`.
        num_envs: The number of environments N.
        max_episode_steps: The horizon H. None means the registered one.
        render_mode: None or "rgb_array".
        num_workers: The number of worker processes, or 0 to step the environments in this process. The results
            do not depend on it.
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
        if num_workers and getattr(spec.entry_point, "__module__", None) == "__main__":
            raise ValueError(
                f"{self.name}: its class is defined in the script itself, where other processes cannot import it; "
                "move it into a module of its own, or set num_workers to 0."
            )
        if num_workers and os.name != "posix":
            raise ValueError(f"{self.name}: worker processes need a POSIX system; set num_workers to 0.")
        kwargs |= {"max_episode_steps": max_episode_steps, "render_mode": render_mode}
        make = partial(make_flat, spec, disable_env_checker=True, **kwargs)
        try:
            self._example = make()
        except (gymnasium.error.Error, ImportError, TypeError, ValueError):
            raise  # the message already says which argument is wrong or what is not installed
        except (Exception, SystemExit) as error:
            raise BrokenEnvironmentError(
                f"{self.name}: an environment cannot be made, it raises {error!r}; fix it. Its traceback:\n"
                f"{traceback.format_exc().rstrip()}"
            ) from error
        self.metadata = {**self.metadata, "render_fps": self._example.metadata.get("render_fps", 30)}
        self.task_space = self._task_space()
        all_tasks = self._own("all_tasks")
        self.all_tasks = None if all_tasks is None else np.asarray(all_tasks)
        self.single_observation_space = self._example.observation_space
        self.single_action_space = self._example.action_space
        steps = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
        super().__init__(num_envs, steps, render_mode)
        self._timeout = worker_timeout
        self._ended = np.ones(num_envs, dtype=bool)
        self._observations = np.empty(0)
        self._num_steps = 0  # in this episode, for messages
        self._start(make, num_workers)

    def _start(self, make: partial[gymnasium.Env[Any, Any]], num_workers: int) -> None:
        """Makes the environments, in this process or in workers."""
        # If the numbers do not divide evenly, the last workers have one environment less.
        split = np.array_split(np.arange(self.num_envs), max(1, num_workers))
        shares = [share for share in split if share.size]
        self._bounds = [int(share[0]) for share in shares[1:]]
        self._workers: list[Worker] = []
        if num_workers:
            self._workers = [Worker(make, int(share[0]), len(share)) for share in shares]
            self._collect("make")
        else:
            self._slots = Slots(0, np.zeros(2, np.int64))
            self._slots.make(make, self.num_envs)

    @property
    def name(self) -> str:
        """The registered id."""
        return self._spec_id

    def _own(self, name: str) -> Any:
        """Returns an attribute of the environment, or None if it has none of that name."""
        return self._example.get_wrapper_attr(name) if self._example.has_wrapper_attr(name) else None

    def _task_space(self) -> spaces.Space[Any]:
        space = self._own("task_space")
        if not isinstance(space, spaces.Space):
            raise ValueError(
                f"{self.name}: the environment has no task_space, but a family needs one, a Gymnasium space that "
                "says what a task is; add the attribute."
            )
        options = inspect.signature(self._example.unwrapped.reset).parameters.keys() & {"options", "kwargs"}
        if not options and not self._example.has_wrapper_attr("set_task"):
            raise ValueError(
                f"{self.name}: there is no way to set the environment's task; give it reset(options={{'task': "
                "task}) or set_task(task)."
            )
        return space

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws tasks (M, D) with the environment's own method, or else as `VectorFamily` does."""
        drawn: Array = self._ask("sample_tasks", super().sample_tasks)(num_tasks, rng)
        return drawn

    def sample_test_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws held-out tasks (M, D) with the environment's own method, or else as `VectorFamily` does."""
        drawn: Array = self._ask("sample_test_tasks", super().sample_test_tasks)(num_tasks, rng)
        return drawn

    def task_problem(self, tasks: Array) -> str | None:
        """Checks tasks (n, D) with the environment's own method, or else as `VectorFamily` does."""
        problem: str | None = self._ask("task_problem", super().task_problem)(tasks)
        return problem

    def _ask(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the environment's own method with its errors reported, or the default if it has none."""
        own = self._own(name)
        if own is None:
            return default

        def asked(*arguments: Any) -> Any:
            try:
                return own(*arguments)
            except (Exception, SystemExit) as error:
                raise BrokenEnvironmentError(
                    f"{self.name}: {name} raised {error!r}; fix the environment. Its traceback:\n"
                    f"{traceback.format_exc().rstrip()}"
                ) from error

        return asked

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts a new episode in every environment; arguments and result as in `TaskVectorEnv.reset`."""
        tasks = self.checked_tasks(options["task"], self.num_envs) if options and "task" in options else self.tasks
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

    def snapshot(self, index: int) -> Array:
        """Renders one environment in its current state, (height, width, 3) uint8."""
        if not self._workers:
            return self._slots.render(index)
        number = int(np.searchsorted(self._bounds, index, side="right"))
        worker = self._workers[number]
        worker.send("render", index - worker.first)
        return np.asarray(self._receive(worker, "render"))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments, and ends the processes."""
        for worker in self._workers:
            worker.end()
        if not self._workers:
            self._slots.close()
        close(self._example)

    def _call(self, method: str, *arguments: Array) -> list[Array]:
        """Calls a method of all `Slots` with their parts of the arguments (N, ...). Returns arrays (N, ...)."""
        if any(worker.ended for worker in self._workers):
            raise BrokenEnvironmentError(
                f"{self.name}: its worker processes have ended; make the environments again."
            )
        shares = list(zip(*(np.split(argument, self._bounds) for argument in arguments), strict=True))
        if self._workers:
            for worker, share in zip(self._workers, shares, strict=True):
                worker.send(method, *share)
            results = self._collect(method)
            return [np.concatenate(parts) for parts in zip(*results, strict=True)]
        try:
            return list(getattr(self._slots, method)(*shares[0]))
        except (Exception, SystemExit) as error:
            slot = int(self._slots.progress[1])
            raise self._failure(slot, method, f"raised {error!r}", traceback.format_exc()) from error

    def _collect(self, method: str) -> list[Any]:
        try:
            return [self._receive(worker, method) for worker in self._workers]
        except KeyboardInterrupt:
            # The next call must not receive answers that are still on their way.
            self._end_workers()
            raise

    def _receive(self, worker: Worker, method: str) -> Any:
        """Waits for a worker's answer, as long as no single environment takes longer than the timeout."""
        # The call of `make` includes the time to start Python and to import the family's module.
        timeout = max(self._timeout, 60.0) if method == "make" else self._timeout
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
        return answer

    def _stop(self, worker: Worker, method: str, what: str, trace: str | None = None) -> NoReturn:
        """Ends all workers and raises a `BrokenEnvironmentError`."""
        slot = int(worker.progress[1])
        trace = worker.trace() if trace is None else trace
        self._end_workers()
        raise self._failure(slot, method, what, trace)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end(at_once=True)

    def _failure(self, slot: int, method: str, what: str, trace: str) -> BrokenEnvironmentError:
        where = f"step {self._num_steps}" if method == "step" else method
        return BrokenEnvironmentError(
            f"{self.name}: environment {slot} with task {in_words(self.tasks[slot])} {what} in {where}; fix the "
            f"environment. Its traceback:\n{trace.rstrip()}"
        )
