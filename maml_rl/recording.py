"""Everything around the training loop that is not the algorithm: the run folder, environments and the log."""

import contextlib
import copy
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only
from tqdm import tqdm

from . import ranks, zoo
from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .methods import Method, require_update
from .policies import load
from .runs.checkpoint import State, save_checkpoint
from .runs.evaluation import adaptation_curves, curve, held_out
from .runs.folder import new_policy, open_folder, save_config
from .runs.tensorboard import Events, History
from .sampling.collect import require_simulations
from .sampling.families import make_env
from .sampling.normalisation import as_returned
from .sampling.rollouts import Rollouts

# Called after each iteration with the environment steps so far and the values that it logged, by tag. False ends
# the run.
Callback = Callable[[int, dict[str, float]], object]


@contextlib.contextmanager
def open_run(
    config: Config, method: Method, own: nn.Module | None = None, callbacks: Sequence[Callback] = ()
) -> Iterator["Run"]:
    """Opens the run folder, the environments and the log. Afterwards closes them and evaluates the run.

    If training stops early for any reason, the last complete iteration is saved first.

    Args:
        config: The run's options. The family must already be registered.
        method: The method that the options select.
        own: The user's own module instead of a ready-made policy.
        callbacks: Called after each iteration.

    Raises:
        UserError: If an option, the environment, the policy, the run folder or `callbacks` is wrong.
    """
    if callable(callbacks):
        raise UserError("callbacks is one function, not a list of them; pass callbacks=[function].")
    callbacks = tuple(callbacks)
    config = dataclasses.replace(config, run_dir=config.run_dir.absolute())  # environments may change the folder
    first = config.start_from and zoo.located(config.start_from).absolute()
    device = learner_device(config)
    policy = new_policy(config, own, for_training=True)
    with contextlib.ExitStack() as stack:
        events, state = None, None
        if not ranks.rank():
            state = stack.enter_context(open_folder(config, policy, first))
        state = State(**ranks.from_first(state and state._asdict()))
        env = make_env(config, ranks.size(config.num_tasks) * config.num_rollouts)
        stack.callback(env.close)
        if not ranks.rank():
            events = Events(config, state)
            stack.callback(events.close)
        progress = stack.enter_context(
            tqdm(total=config.iterations, initial=state.iteration, dynamic_ncols=True, disable=ranks.rank() > 0)
        )
        run = Run(config, method, policy, env, state, events, progress, device, callbacks)
        try:
            if config.eval_every and not state.iteration:
                run.evaluate_first()
            yield run
        except BaseException as error:
            try:
                if run.state.iteration:  # nothing is kept of a run that has trained nothing, so it can start anew
                    run.checkpoint(run.state)
            except UserError as second:
                error.add_note(str(second))
            raise
        config = run.finished()
    load(policy, run.state.theta)
    curves = adaptation_curves(policy, config, run.state, run.last_curve, run.untrained_curve)
    if not ranks.rank():
        from .results.plots import write_results  # Matplotlib takes a second, in which training can begin

        write_results(config.run_dir, curves)


def learner_device(config: Config) -> torch.device:
    """Returns the torch device that the option `device` names.

    Raises:
        UserError: If this machine has no such device.
    """
    try:
        device = torch.device(config.device)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda" and device.index is None and ranks.count() > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(
            f"device is {config.device!r}, but this machine only has {', '.join(known)}; choose one of them."
        )
    return device


class Run:
    """A run in training: its environments, its state, and its log.

    Attributes:
        env: M·K environments of the family.
        policy: The policy module on the CPU. It gets its meta-trained parameters when the run ends.
        learner: A copy of the policy on the learner's device.
        state: The state after the last complete iteration.
        history: All scalars logged since the run was opened. A tag maps to a list of (environment steps, value).
        last_curve: The adaptation curve of the current state, or None if it was not evaluated.
        untrained_curve: That of the untrained policy, or None if it was not evaluated since the run was opened.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        policy: nn.Module,
        env: VectorFamily,
        state: State,
        events: Events | None,
        progress: "tqdm[Any]",
        device: torch.device,
        callbacks: Sequence[Callback],
    ):
        self.env, self.policy, self.state = env, policy, state
        self.learner = copy.deepcopy(policy).to(device)
        self.history: History = events.history if events else {}
        self.last_curve: dict[str, Any] | None = None
        self.untrained_curve: dict[str, Any] | None = None
        self._config, self._method, self._callbacks = config, method, callbacks
        self._events, self._progress, self._device = events, progress, device
        self._started = self._collected = time.perf_counter()

    def parameters(self) -> tuple[Tensor, dict[str, Any]]:
        """Returns copies of θ, (P,), on the learner's device, and of the optimiser's state."""
        state = tree_map_only(Tensor, torch.clone, self.state.optimiser_state)
        return self.state.theta.to(self._device, copy=True), state

    def evaluate_first(self) -> None:
        """Evaluates the policy before training: the first point of the curves."""
        self._evaluate(self.state)
        if self._config.start_from is None:
            self.untrained_curve = self.last_curve
        self._started = time.perf_counter()

    def collected(self, batches: Sequence[Rollouts]) -> None:
        """Notes that all phases of an iteration have been collected, (M, K, H, ...).

        Raises:
            UserError: If too many simulations broke down.
        """
        self._sums = phase_sums(batches)
        for phase in self._sums:
            require_simulations(int(phase.failed), int(phase.rollouts), self._config)
        self._collected = time.perf_counter()

    def record(self, theta: Tensor, optimiser_state: dict[str, Any], metrics: dict[str, float]) -> bool:
        """Logs an iteration. Evaluates and saves if the options ask for it in this iteration.

        Args:
            theta: θ after the iteration, (P,).
            optimiser_state: The optimiser's state after the iteration.
            metrics: Numbers that the update returned for the log.

        Returns:
            Whether to go on. If not, a callback has returned False.

        Raises:
            UserError: If θ is not finite, or if a result of the update cannot be used.
        """
        updated = time.perf_counter()
        config, before = self._config, self.state
        require_update(self._method.name, before.theta, theta, optimiser_state, metrics)
        # Copies, because the next update may work in place and be interrupted.
        theta, optimiser_state = tree_map_only(
            Tensor, lambda x: x.detach().to("cpu", copy=True), (theta, optimiser_state)
        )
        if not torch.isfinite(theta).all():
            lower = ("max_kl" if config.outer == "trpo" else "outer_lr") + " or inner_lr" * bool(config.num_steps)
            saved = " The checkpoint is from the iteration before." if before.iteration else ""
            raise UserError(
                f"The outer step of iteration {before.iteration + 1} made parameters that are not finite; lower "
                f"{lower}.{saved}"
            )
        new_steps = int(sum(phase.steps for phase in self._sums))
        after = State(theta, before.untrained, optimiser_state, before.iteration + 1, before.env_steps + new_steps)
        scalars = phase_scalars("train", self._sums)
        returns = [scalars[f"train/return_step_{k}"] for k in range(len(self._sums))]
        scalars["train/adaptation_gain"] = returns[-1] - returns[0]
        scalars |= {f"outer/{name}": float(value) for name, value in metrics.items()}
        scalars["time/env_steps_per_second"] = new_steps / (updated - self._started)
        scalars["time/collect_seconds"] = self._collected - self._started
        scalars["time/update_seconds"] = updated - self._collected
        self._add(scalars, after.env_steps)
        for phase in self._sums:
            if phase.failed and not ranks.rank():
                count = f"{int(phase.failed)} of {int(phase.rollouts)}"
                self._progress.write(f"{count} simulations broke down and were ended", sys.stderr)
        self._progress.set_postfix_str(f"return {returns[0]:.2f} → {returns[-1]:.2f}")
        self._progress.update()
        self.last_curve = None
        last = after.iteration == config.iterations
        if last or (config.eval_every and after.iteration % config.eval_every == 0):
            scalars |= self._evaluate(after)
        # Only now is the iteration done. If it is interrupted before, all of it is repeated.
        self.state = after
        if last or after.iteration % config.checkpoint_every == 0:
            self.checkpoint(after)
        results = [callback(after.env_steps, scalars) for callback in self._callbacks]
        stops = [isinstance(result, bool | np.bool_) and not result for result in results]
        self._started = time.perf_counter()
        return not ranks.total(torch.tensor(sum(stops)))  # ranks stop together

    def finished(self) -> Config:
        """Ends the run. One that a callback ended early is evaluated and saved as a run of so many iterations.

        Returns:
            The options, with the number of iterations that were done.
        """
        config = dataclasses.replace(self._config, iterations=self.state.iteration)
        if config != self._config and self.last_curve is None:
            self._evaluate(self.state)
        if config != self._config or not config.iterations:
            self.checkpoint(self.state)
            if not ranks.rank():
                save_config(config)
        return config

    def checkpoint(self, state: State) -> None:
        """Saves a state. Events are written first, so that a checkpoint is never ahead of the curves."""
        if self._events:
            self._events.flush()
            save_checkpoint(self._config.run_dir, self.policy, state)

    def _add(self, scalars: dict[str, float], env_steps: int) -> None:
        if self._events:
            self._events.add(scalars, env_steps)

    def _evaluate(self, state: State) -> dict[str, float]:
        """Evaluates on held-out tasks. Logs the returns, and a picture if the family can draw one."""
        from .results.plots import SHOWN_TASKS, rollouts_figure, write_figure

        config = self._config
        phases = []
        with held_out(self.policy, state.theta, config) as (env, tasks, batches):
            for batch in batches:
                # Keep all data only for the tasks in the picture. The curves need less.
                kept = {name: getattr(batch, name) for name in ("rewards", "mask", "success", "failed")}
                phases.append(tree_map(lambda x: x[:SHOWN_TASKS].clone(), batch)._replace(**kept))
            self.last_curve = curve(phases, tasks, self._method)
            scalars = phase_scalars("eval", phase_sums(phases))
            self._add(scalars, state.env_steps)
            figure = None
            if self._events:
                shown = as_returned(self.policy, state.theta, phases)
                figure = rollouts_figure(env, tasks, shown, self._method.unit)
        if self._events and figure is not None:
            picture = write_figure(config.run_dir / "rollouts.png", figure)
            self._events.add_image("eval/rollouts", picture, state.env_steps)
        return scalars


class PhaseSums(NamedTuple):
    """Sums over the tasks of a phase, over those of all ranks: of returns, numbers of things, and successes."""

    returns: float
    tasks: float
    successes: float
    judged: float  # rollouts whose success is known
    failed: float
    rollouts: float
    steps: float


def phase_sums(batches: Sequence[Rollouts]) -> list[PhaseSums]:
    """Computes what is logged of phases (M, K, H, ...), with one exchange between ranks."""
    rows = []
    for batch in batches:
        known = ~batch.success.isnan()
        sums = (batch.returns().sum(), batch.success.nan_to_num().sum(), known.sum(), batch.failed.sum())
        returns, successes, judged, failed = (x.item() for x in sums)
        steps = batch.mask.sum().item()
        rows.append([returns, len(batch.mask), successes, judged, failed, batch.failed.numel(), steps])
    return [PhaseSums(*row) for row in ranks.total(torch.tensor(rows, dtype=torch.float64)).tolist()]


def phase_scalars(group: str, sums: Sequence[PhaseSums]) -> dict[str, float]:
    """Computes mean returns after 0 ... S steps, success if it is reported, and failures if there are any."""
    scalars = {}
    for k, phase in enumerate(sums):
        scalars[f"{group}/return_step_{k}"] = phase.returns / phase.tasks
        if phase.judged:
            scalars[f"{group}/success_step_{k}"] = phase.successes / phase.rollouts
        if phase.failed:
            scalars[f"{group}/failed_step_{k}"] = phase.failed / phase.rollouts
    return scalars
