"""Evaluation: returns after 0 ... S adaptation steps on held-out tasks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit
from torch import Tensor, nn

from .adaptation import rollouts_through_adaptation
from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .policies import flatten
from .rollouts import Rollouts, make_env
from .runs import State, load_run, new_policy
from .streams import stream


def held_out_rollouts(
    policy: nn.Module, theta: Tensor, config: Config
) -> tuple[VectorFamily, np.ndarray, Iterator[Rollouts]]:
    """Adapts to held-out tasks, drawn from a stream that training never uses.

    Args:
        policy: The policy module.
        theta: θ to start from on every task, (P,); not changed.
        config: Of it, the family and the options named `eval_...`.

    Returns:
        The environments, the tasks (M, D), and S + 1 batches of rollouts (M, K, H, ...), each collected only when
        it is asked for, so that a thousand steps need no more memory than one.
    """
    seed = held_out_seed(config)
    env = make_env(config, config.eval_num_tasks * config.eval_num_rollouts)
    tasks = env.sample_test_tasks(config.eval_num_tasks, np.random.default_rng(stream(seed, "held-out tasks")))
    last = len(config.eval_lr_factors) - 1
    lr_factors = [config.eval_lr_factors[min(k, last)] for k in range(config.eval_num_steps)]

    def batches() -> Iterator[Rollouts]:
        try:
            yield from rollouts_through_adaptation(
                env, policy, theta, tasks, lr_factors, config, stream(seed, "held-out rollouts")
            )
        finally:
            env.close()

    return env, tasks, batches()


def held_out_seed(config: Config) -> int:
    """The seed of the held-out tasks: its streams differ from training's even where the seed is the same."""
    return config.seed if config.eval_seed is None else config.eval_seed


def evaluate(
    source: Path | str | nn.Module,
    config: Config | None = None,
    *,
    policy: nn.Module | None = None,
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Draws adaptation curves of a meta-trained policy and of the untrained one, on the same held-out tasks.

    Args:
        source: A run folder, or a policy module, which is not changed.
        config: The run's options; needed with a module, read from a folder.
        policy: With a run folder, the module of your own that it was trained with, if it was; with a module, the
            untrained policy, by default as the configuration makes it.
        num_steps: S, adaptation steps; by default the configuration's `eval_num_steps`, and so on.
        num_tasks: Held-out tasks, at least 2 for an interval.
        num_rollouts: K, rollouts of a task before and after each step.
        seed: Seed of the held-out tasks and rollouts.

    Returns:
        What evaluation.json holds: for each method under "methods" - that of the run, and "random", the untrained
        policy under the same adaptation - "returns" (undiscounted, averaged over K rollouts; for every task S + 1
        numbers), their "mean" over tasks (S + 1), "ci95", the 95% confidence intervals of the mean by Student's t
        over tasks (S + 1 pairs), and "env_steps", the environment steps that a task's learner had seen before
        (S + 1). Where the family reports success, "success", "success_mean" and "success_ci95" beside them: the
        share of a task's rollouts that succeeded at any step.

    Raises:
        UserError: If an option is out of range, or the folder holds no run.
    """
    given: dict[str, Any] = {
        "num_steps": num_steps,
        "num_tasks": num_tasks,
        "num_rollouts": num_rollouts,
        "seed": seed,
    }
    given = {f"eval_{name}": value for name, value in given.items() if value is not None}
    if isinstance(source, nn.Module):
        if config is None:
            raise UserError("evaluate needs the policy's Config beside a policy; pass evaluate(policy, config).")
        untrained = flatten(new_policy(config) if policy is None else policy)
        policy, state = source, State(flatten(source), untrained, {}, config.iterations, 0)
        if len(state.theta) != len(untrained):
            raise UserError("The policy's untrained version has other parameters; pass evaluate(..., policy=it).")
    elif config is not None:
        raise UserError("A run folder has its own Config; pass evaluate(run_dir) without one.")
    else:
        config, policy, state = load_run(Path(source), policy)
    return adaptation_curves(policy, dataclasses.replace(config, **given), state)


def adaptation_curves(policy: nn.Module, config: Config, state: State) -> dict[str, Any]:
    """What `evaluate` returns, of a run at a state."""
    methods = {config.method: curve(policy, state.theta, config)}
    if config.method != "scratch":  # which is the untrained policy itself
        methods["random"] = curve(policy, state.untrained, config)
    return {
        "env_id": config.env_id,
        "iterations": state.iteration,
        "num_steps": config.eval_num_steps,
        "num_tasks": config.eval_num_tasks,
        "num_rollouts": config.eval_num_rollouts,
        "seed": held_out_seed(config),
        "methods": methods,
    }


def curve(policy: nn.Module, theta: Tensor, config: Config) -> dict[str, Any]:
    """One method's part of `evaluate`'s result, from θ (P,)."""
    _, _, batches = held_out_rollouts(policy, theta, config)
    returns, success, seen = [], [], [0.0]
    for batch in batches:
        returns.append(batch.returns().double().numpy())
        success.append(
            batch.outcomes["success"].double().mean(-1).numpy() if "success" in batch.outcomes else None
        )
        # Each of RL²'s K rollouts of a task is a learner of its own; an inner step learns from all K.
        learners = config.eval_num_rollouts if config.rl2_episodes else 1
        seen.append(seen[-1] + int(batch.mask.sum()) / len(batch.mask) / learners)
    by_task = np.stack(returns, axis=1)
    mean, ci95 = mean_and_interval(by_task)
    result: dict[str, Any] = {"returns": by_task.tolist(), "mean": mean, "ci95": ci95, "env_steps": seen[:-1]}
    rates = [rate for rate in success if rate is not None]
    if len(rates) == len(returns):
        by_task = np.stack(rates, axis=1)
        mean, ci95 = mean_and_interval(by_task)
        result |= {"success": by_task.tolist(), "success_mean": mean, "success_ci95": ci95}
    return result


def mean_and_interval(values: np.ndarray) -> tuple[list[float], list[list[float]]]:
    """The mean over tasks of values (M, S + 1), and its 95% interval by Student's t: (S + 1) and (S + 1, 2)."""
    mean, half = values.mean(0), stdtrit(len(values) - 1, 0.975) * values.std(0, ddof=1) / len(values) ** 0.5
    return mean.tolist(), np.stack([mean - half, mean + half], axis=1).tolist()
