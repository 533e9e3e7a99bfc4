"""Evaluation: returns after 0 ... S adaptation steps on held-out tasks."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from .. import ranks
from ..config import Config
from ..envs import VectorFamily
from ..errors import UserError
from ..methods import Method, curve_name, method_of
from ..policies import flatten
from ..policies.parameters import layout
from ..sampling.collect import require_simulations
from ..sampling.families import given_tasks, is_native, make_env, require_memory, sample_tasks
from ..sampling.rollouts import Rollouts, known_success
from ..sampling.spaces import Array
from ..sampling.streams import TaskStreams, numpy_generator, stream
from .checkpoint import State
from .folder import load_run, new_policy, require_module


@torch.inference_mode(False)
@torch.enable_grad()
def evaluate(
    run_dir: str | os.PathLike[str],
    *,
    tasks: npt.ArrayLike | None = None,
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
    policy: nn.Module | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Evaluates a run and its untrained policy after 0 ... S adaptation steps on the same held-out tasks.

    Args:
        run_dir: The run folder, or `zoo/NAME` for a policy that comes with the package.
        tasks: Your own tasks, (M, D), instead of held-out ones.
        num_steps: S, adaptation steps. By default the run's `eval_num_steps`. The next three work the same way.
        num_tasks: M, held-out tasks, at least 2 for an interval.
        num_rollouts: K, rollouts of a task before and after each step.
        seed: Seed of the held-out tasks and rollouts.
        policy: Your own module, if the run was trained with one.
        trust: Import the module that registers the run's family, if config.json names one.

    Returns:
        The content of evaluation.json. Under "methods" it has the run's method and "random", the untrained policy
        with the same adaptation. Each has "returns" (undiscounted, averaged over K rollouts; S + 1 numbers for
        every task), their "mean" over tasks (S + 1), "ci95", the 95% confidence intervals of the mean by Student's
        t (S + 1 pairs), and "env_steps", the environment steps that a task's learner had seen before (S + 1). If
        the family reports success, "success", "success_mean" and "success_ci95" are the same for the share of a
        task's rollouts that succeeded at any step. "tasks" are the tasks (M, D), and "tasks_seen" is true if the
        family has so few tasks that training has seen them all.

    Raises:
        UserError: If an option is out of range, a task is not in the task space, or the folder holds no run.
    """
    config, trained, state = load_run(Path(run_dir), policy, trust)
    config = with_options(config, tasks, num_steps, num_tasks, num_rollouts, seed)
    return adaptation_curves(trained, config, state, tasks=tasks)


@torch.inference_mode(False)
@torch.enable_grad()
def evaluate_policy(
    policy: nn.Module,
    config: Config,
    *,
    untrained: nn.Module | None = None,
    tasks: npt.ArrayLike | None = None,
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Evaluates a module that is in memory. It is not changed.

    Args:
        policy: The meta-trained module.
        config: The options that it was trained with. The family must be registered: import its module first.
        untrained: The module before training. By default the one that the options make. Pass it for a run with
            `start_from`, whose untrained policy is that of the other run.
        tasks: As for `evaluate`, like the next four.
        num_steps: S.
        num_tasks: M.
        num_rollouts: K.
        seed: Seed of the held-out tasks and rollouts.

    Returns:
        The same as `evaluate`.

    Raises:
        UserError: If an option is out of range, or the two modules have different parameters.
    """
    require_module(policy)
    first = new_policy(config, untrained)
    trained, before = layout(policy), layout(first)
    if trained != before:
        different = {entry[0] for entry in trained + before if entry not in trained or entry not in before}
        named = ", ".join(sorted(different)) or "their order"
        raise UserError(
            f"The trained and the untrained policy differ in parameters ({named}); pass the options of the "
            "training, and for a policy of your own evaluate_policy(..., untrained=it)."
        )
    state = State(flatten(policy).cpu(), flatten(first), {}, config.iterations, 0)
    config = with_options(config, tasks, num_steps, num_tasks, num_rollouts, seed)
    return adaptation_curves(policy, config, state, tasks=tasks)


def with_options(
    config: Config,
    tasks: npt.ArrayLike | None = None,
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
) -> Config:
    """Returns a run's options with those given to `evaluate` in place of its `eval_...`.

    Raises:
        UserError: If one is out of range, or both tasks and their number were given.
    """
    if tasks is not None:
        if num_tasks is not None:
            raise UserError("Both tasks and num_tasks were given; leave num_tasks out.")
        # A 0-dimensional array has a length by its type, but none in fact.
        num_tasks = len(tasks) if isinstance(tasks, Sized) and getattr(tasks, "shape", None) != () else 0
        if num_tasks < 2:
            raise UserError("tasks must be an array of at least two tasks, (M, D); an interval needs two.")
    given: dict[str, Any] = {
        "eval_num_steps": num_steps,
        "eval_num_tasks": num_tasks,
        "eval_num_rollouts": num_rollouts,
        "eval_seed": seed,
    }
    try:
        return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    except UserError as error:
        raise UserError(str(error).replace("eval_", "")) from error  # as the caller named it


@contextlib.contextmanager
def held_out(
    policy: nn.Module, theta: Tensor, config: Config, tasks: npt.ArrayLike | None = None
) -> Iterator[tuple[VectorFamily, Array, Iterator[Rollouts]]]:
    """Adapts to held-out tasks. They are drawn from a stream that training never uses.

    Families that step single environments are evaluated in rounds. A round has as many tasks as training has
    environments for, and at least one.

    Args:
        policy: The policy module.
        theta: θ to start from on every task, (P,); not changed.
        config: The options of the family and those named `eval_...` are used.
        tasks: Tasks to use instead, (M, D).

    Yields:
        The environments, which are closed afterwards, the tasks (M, D), and S + 1 batches of rollouts (M, K, H,
        ...), each collected only when it is requested.

    Raises:
        UserError: If too many simulations of a batch broke down.
    """
    seed, num_rollouts = held_out_seed(config), config.eval_num_rollouts
    rows, own = ranks.share(config.eval_num_tasks), ranks.size(config.eval_num_tasks)
    at_once = own
    if not is_native(config.env_id):  # its environments may be large and slow, and training has room for this many
        at_once = min(at_once, max(1, ranks.size(config.num_tasks) * config.num_rollouts // num_rollouts))
    env = make_env(config, at_once * num_rollouts)
    try:
        chosen = held_out_tasks(env, config, tasks)
        factors = lr_factors(config, config.eval_num_steps)
        collect = partial(method_of(config).collect, env, policy, theta)
        # The last round is filled up with tasks whose results are not used.
        rounds = [slice(first, first + at_once) for first in range(rows.start, rows.stop, at_once)]
        filled = np.resize(chosen, (max(len(chosen), rounds[-1].stop), *chosen.shape[1:]))
        # Streams of its own for each round, because spawning from streams changes them.
        seeds = [TaskStreams(stream(seed, "held-out rollouts"), filled, some) for some in rounds]
        parts = [collect(filled[of.rows], num_rollouts, of, factors) for of in seeds]
        yield env, chosen, _checked(parts[0] if len(parts) == 1 else _joined(parts, own), config)
    finally:
        env.close()


def _checked(batches: Iterator[Rollouts], config: Config) -> Iterator[Rollouts]:
    """Refuses phases in which too many simulations broke down."""
    for batch in batches:
        failed, number = ranks.total(torch.tensor([int(batch.failed.sum()), batch.failed.numel()])).tolist()
        require_simulations(failed, number, config)
        yield batch


def held_out_tasks(env: VectorFamily, config: Config, tasks: npt.ArrayLike | None = None) -> Array:
    """Returns the held-out tasks of a run, or checks those that are given instead, (M, D)."""
    if tasks is not None:
        return given_tasks(env, tasks, config.eval_num_tasks, "tasks")
    generator = numpy_generator(held_out_seed(config), "held-out tasks")
    return sample_tasks(env, config.eval_num_tasks, generator, held_out=True)


def _joined(rounds: list[Iterator[Rollouts]], num_tasks: int) -> Iterator[Rollouts]:
    """Joins the phases of rounds, in which the same environments have different tasks."""
    quiet = ranks.rank() > 0
    with tqdm(total=len(rounds), desc="evaluating", unit="round", leave=False, disable=quiet) as progress:
        collected = []
        for of_round in rounds:  # one round after the other
            collected.append([*of_round])
            progress.update()
    for of_phase in zip(*collected, strict=True):
        joined: Rollouts = tree_map(lambda *x: torch.cat(x)[:num_tasks], *of_phase)
        yield joined


def held_out_seed(config: Config) -> int:
    """Returns the seed of the held-out tasks. Their streams differ from training's even with the same seed."""
    return config.seed if config.eval_seed is None else config.eval_seed


def lr_factors(config: Config, num_steps: int) -> list[float]:
    """Returns the factors on α for `num_steps` adaptation steps outside training."""
    last = len(config.eval_lr_factors) - 1
    return [config.eval_lr_factors[min(k, last)] for k in range(num_steps)]


def adaptation_curves(
    policy: nn.Module,
    config: Config,
    state: State,
    trained: dict[str, Any] | None = None,
    untrained: dict[str, Any] | None = None,
    tasks: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Computes the result of `evaluate` for a run in a given state.

    Args:
        policy: The policy module.
        config: The run's options.
        state: The run's state.
        trained: The curve of the trained policy, if it is already known.
        untrained: That of the untrained policy.
        tasks: Tasks to use instead of held-out ones, (M, D).
    """
    method = method_of(config)
    name = curve_name(config)
    wanted = {name: (state.theta, trained), "random": (state.untrained, untrained)}
    if name == "scratch":  # which is the untrained policy itself
        del wanted["random"]
    with contextlib.closing(make_env(config, 1)) as env:
        require_memory(env, config, "eval_")
        chosen = held_out_tasks(env, config, tasks)
        listed = env.all_tasks is not None and VectorFamily.task_problem(env, chosen) is None
    methods: dict[str, Any] = {}
    for title, (theta, known) in wanted.items():
        if known is None:
            with held_out(policy, theta, config, chosen) as (_, _, batches):
                known = curve(batches, chosen, method)
        methods[title] = known
    return {
        "env_id": config.env_id,
        "iterations": state.iteration,
        "num_steps": config.eval_num_steps,
        "num_tasks": config.eval_num_tasks,
        "num_rollouts": config.eval_num_rollouts,
        "seed": held_out_seed(config),
        "unit": method.unit,
        "tasks_seen": listed and config.is_trained,  # by this run, or perhaps by that which it starts from
        "tasks_given": tasks is not None,
        "tasks": chosen.tolist(),
        "methods": methods,
    }


def curve(batches: Iterable[Rollouts], tasks: Array, method: Method) -> dict[str, Any]:
    """Computes one policy's part of `evaluate`'s result, from its phases (M, K, H, ...) on tasks (M, D)."""
    returns, success, seen = [], [], [0.0]
    for batch in batches:
        returns.append(ranks.gathered(batch.returns().double(), len(tasks)).numpy())
        success.append(ranks.gathered(batch.success.double().mean(-1), len(tasks)))
        learners = batch.mask.shape[1] if method.independent_learners else 1
        new = int(ranks.total(batch.mask.sum())) / len(tasks) / learners
        seen.append(
            seen[1] if batch.targets and len(seen) > 1 else seen[-1] + new
        )  # all steps use the same examples
    result: dict[str, Any] = {"env_steps": seen[:-1]}
    succeeded = known_success(torch.stack(success, dim=1)).numpy()
    for prefix, by_task in (("", np.stack(returns, axis=1)), ("success_", succeeded)):
        if not np.isnan(by_task).any():
            mean, ci95 = mean_and_interval(by_task, tasks)
            result |= {
                prefix.strip("_") or "returns": by_task.tolist(),
                f"{prefix}mean": mean,
                f"{prefix}ci95": ci95,
            }
    return result


def mean_and_interval(values: Array, tasks: Array) -> tuple[list[float], list[list[float]]]:
    """Computes the mean over tasks of values (M, S + 1), (S + 1), and its 95% interval by Student's t, (S + 1, 2).

    If every task occurs at least twice, tasks are treated as `strata`. The interval is then that of the mean over
    exactly these tasks, and the differences between them do not widen it.
    """
    from scipy.special import stdtrit  # takes half a second, in which training can begin

    group, counts = strata(tasks)
    variances = np.stack([values[group == g].var(0, ddof=1) for g in range(len(counts))])
    error = np.sqrt((counts[:, None] * variances).sum(0)) / len(values)
    mean, half = values.mean(0), stdtrit(len(values) - len(counts), 0.975) * error
    return mean.tolist(), np.stack([mean - half, mean + half], axis=1).tolist()


def strata(tasks: Array) -> tuple[Array, Array]:
    """Groups equal tasks (M, D), if every task occurs at least twice. Otherwise, all are one group.

    Returns:
        The number of each task's group, (M,), and the number of tasks in each group.
    """
    _, group, counts = np.unique(tasks.reshape(len(tasks), -1), axis=0, return_inverse=True, return_counts=True)
    if (counts < 2).any():
        return np.zeros(len(tasks), int), np.array([len(tasks)])
    return group.ravel(), counts
