"""Collecting rollouts in all environments at once, each task with its own policy."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import as_completed
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._pytree import tree_map

from ..config import Config
from ..envs import BrokenEnvironmentError, VectorFamily, in_words
from ..errors import UserError
from ..policies import Distribution
from .actors import Actor
from .advantages import with_advantages
from .rollouts import Rollouts, known_success, map_steps
from .spaces import Array, action_map, encode
from .streams import ActionNoise, integer_seed, whole_batch
from .threads import pool_of_threads, torch_threads


def collect_phase(
    env: VectorFamily,
    actor: Actor,
    tasks: Array,
    num_rollouts: int,
    seeds: np.random.SeedSequence,
    config: Config,
    device: torch.device,
) -> Rollouts:
    """Collects one phase of a batch, ready to learn from: with advantages, and on the learner's device.

    Args:
        env: As for `collect_rollouts`, like the next four.
        actor: The policies, one for each task.
        tasks: (M, D).
        num_rollouts: K.
        seeds: The source of the streams.
        config: The options of advantages are used.
        device: Where the learner computes.

    Raises:
        UserError: As `collect_rollouts`.
    """
    rollouts = collect_rollouts(env, actor, tasks, num_rollouts, seeds)
    rollouts = with_advantages(rollouts, config.discount, config.gae_lambda, config.normalise_advantages)
    return rollouts.to(device)


def trimmed(rollouts: Rollouts) -> Rollouts:
    """Leaves out the steps after the end of the longest episode, which the learner would compute in vain.

    Args:
        rollouts: (M, K, H, ...).

    Returns:
        The rollouts, (M, K, T, ...) with T ≤ H.
    """
    horizon, longest = rollouts.mask.shape[2], int(rollouts.mask.any(0).any(0).sum())
    if longest == horizon:
        return rollouts
    return rollouts._replace(**map_steps(lambda x: x[:, :, :longest].contiguous(), rollouts))


def require_simulations(failed: int, num_rollouts: int, config: Config) -> None:
    """Refuses rollouts of which too many have a simulation that broke down.

    Raises:
        UserError: If more than the share `max_failed_share` have.
    """
    if failed > config.max_failed_share * num_rollouts + 1e-6:  # 0.29 · 100 is less than 29
        raise UserError(
            f"The simulation broke down in {failed} of {num_rollouts} rollouts, more than the share of "
            f"{config.max_failed_share:g} that max_failed_share allows; make tasks or actions milder, or allow "
            "more."
        )


def collect_rollouts(
    env: VectorFamily, actor: Actor, tasks: Array, num_rollouts: int, seeds: np.random.SeedSequence
) -> Rollouts:
    """Collects K rollouts of each task.

    An environment whose episode ends before the horizon is masked from then on. No episode is cut, counted twice
    or over-represented.

    Args:
        env: N = M·K environments with horizon H. Task i gets environments i·K to (i+1)·K - 1. For a single task, N
            may be a divisor of K: the rollouts are then collected in K/N rounds.
        actor: The policies, one for each task.
        tasks: (M, D).
        num_rollouts: K.
        seeds: The source of the streams of environments and actions.

    Returns:
        The rollouts, without advantages.

    Raises:
        UserError: If an observation or reward is not finite (the message names family, task and step), or if an
            environment raises or its process dies or hangs (the message names the task and has the traceback).
    """
    rounds, rest = divmod(len(tasks) * num_rollouts, env.num_envs)
    if rest or (rounds > 1 and len(tasks) > 1) or not rounds:
        raise ValueError(
            f"{len(tasks)} tasks with {num_rollouts} rollouts each do not fit {env.num_envs} environments."
        )
    # Torch's helper threads spin for milliseconds after each operation, on cores that physics or worker processes
    # need between two steps of the policy. Two cores stepped 800 half-cheetahs at 0.6 of the speed of bare physics
    # with them, and at 0.75 without.
    with torch_threads(1):
        if rounds == 1:
            rollouts = _collect_once(env, actor, tasks, seeds)
        else:
            parts = [_collect_once(env, actor, tasks, part) for part in seeds.spawn(rounds)]
            success, failed = (torch.cat([getattr(p, name) for p in parts], 1) for name in ("success", "failed"))
            steps = map_steps(lambda *x: torch.cat(x, 1), *parts)
            rollouts = parts[0]._replace(**steps, success=success, failed=failed)
    return rollouts._replace(success=known_success(rollouts.success))


def _collect_once(env: VectorFamily, actor: Actor, tasks: Array, seeds: np.random.SeedSequence) -> Rollouts:
    """Collects one rollout in every environment."""
    env_seeds, action_seeds = seeds.spawn(2)
    num_rollouts = env.num_envs // len(tasks)
    first_task = whole_batch(seeds, tasks)[1].start
    first_seed = integer_seed(env_seeds) + first_task * num_rollouts
    shares = env.shares(len(tasks))
    if len(shares) == 1:
        rollouts = _episodes(env, actor, tasks, first_seed, action_seeds, first_task)
    else:
        firsts = np.cumsum([0] + [share.num_envs for share in shares]).tolist()
        with pool_of_threads(len(shares), 1) as threads:
            try:
                episodes = []
                for share, (first, end) in zip(shares, pairwise(firsts), strict=True):
                    rows = slice(first // num_rollouts, end // num_rollouts)
                    seed, task = first_seed + first, first_task + rows.start
                    arguments = share, actor.rows(rows), tasks[rows], seed, action_seeds, task
                    episodes.append(threads.submit(_episodes, *arguments))
                for episode in as_completed(episodes):
                    episode.result()  # raises the first error, without waiting for the other share
            except BaseException:
                env.abandon()
                raise
        rollouts = tree_map(lambda *x: torch.cat(x), *(episode.result() for episode in episodes))
    _require_finite(env, tasks, rollouts)
    return rollouts


def _episodes(
    env: VectorFamily,
    actor: Actor,
    tasks: Array,
    first_seed: int,
    action_seeds: np.random.SeedSequence,
    first_task: int,
) -> Rollouts:
    """Runs one episode in every environment. The first gets the seed `first_seed` and the batch's `first_task`."""
    horizon, num_envs, shape = env.max_episode_steps, env.num_envs, (len(tasks), env.num_envs // len(tasks))
    assert horizon is not None
    noise = ActionNoise(action_seeds, first_task, len(tasks), horizon)
    to_env = action_map(env.single_action_space)
    steps: list[tuple[Tensor, Tensor, Distribution]] = []
    rewards = np.zeros((horizon, num_envs), np.float32)
    mask = np.zeros((horizon, num_envs), bool)
    alive, failed = np.ones(num_envs, bool), np.zeros(num_envs, bool)
    success = np.full(num_envs, np.nan, np.float32)
    tasks_of_envs = np.repeat(tasks, shape[1], axis=0)
    with torch.no_grad(), _environment_failures():
        observation, _ = env.reset(seed=first_seed, options={"task": tasks_of_envs})
        for t in range(horizon):
            o_t = encode(env.single_observation_space, observation)
            if not alive.all():
                # After its end, an environment may return anything, even NaN. The policy must not get it.
                o_t = torch.where(torch.from_numpy(alive)[:, None], o_t, 0.0)
            o_t, pi_t = actor.act(o_t.view(*shape, -1))
            a_t = noise.draw(pi_t)
            observation, reward, terminated, truncated, info = env.step(to_env(a_t.flatten(0, 1).numpy()))
            steps.append((o_t, a_t, pi_t))
            mask[t] = alive
            rewards[t] = np.where(alive, reward, 0.0)
            if "success" in info:
                success = np.fmax(success, alive & info["success"])  # ignores NaN
            if "failed" in info:
                failed |= alive & info["failed"]
            ended = terminated | truncated
            actor.observe(a_t, reward, ended, alive)
            alive &= ~ended
            if not alive.any():
                break
        # If all episodes ended early, the last step is repeated up to H, masked.
        steps += steps[-1:] * (horizon - len(steps))
        return _as_rollouts(steps, rewards, mask, success, failed, shape)


def _as_rollouts(
    steps: list[tuple[Tensor, Tensor, Distribution]],
    rewards: Array,
    mask: Array,
    success: Array,
    failed: Array,
    shape: tuple[int, int],
) -> Rollouts:
    """Converts H steps of M·K environments to rollouts. Arrays are (H, M·K) and (M·K,)."""
    observations, actions, behaviour = tree_map(lambda *x: torch.stack(x, dim=2), *steps)

    def by_task(x: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x.T)).unflatten(0, shape)

    return Rollouts(
        observations=observations,
        actions=actions,
        rewards=by_task(rewards),
        mask=by_task(mask),
        behaviour=behaviour,
        log_probs=behaviour.log_prob(actions),
        advantages=torch.zeros(*shape, len(rewards)),
        advantage_scale=torch.ones(shape[0]),
        success=by_task(success),
        failed=by_task(failed),
    )


@contextlib.contextmanager
def _environment_failures() -> Iterator[None]:
    """Raises failures of an environment as a `UserError`."""
    try:
        yield
    except BrokenEnvironmentError as error:
        raise UserError(str(error)) from error
    except SystemExit as error:
        raise UserError("An environment called sys.exit; fix it so that it raises an error instead.") from error


def _require_finite(env: VectorFamily, tasks: Array, rollouts: Rollouts) -> None:
    if torch.isfinite(rollouts.observations.sum() + rollouts.rewards.sum()):
        return
    finite: dict[str, Any] = {
        "observation": torch.isfinite(rollouts.observations).all(-1),
        "reward": torch.isfinite(rollouts.rewards),
    }
    bad = [
        (step, name, task)
        for name, fine in finite.items()
        for task, _, step in (~fine & rollouts.mask).nonzero().tolist()
    ]
    if bad:
        step, name, task = min(bad)  # the earliest one is the cause
        family = env.spec.id if env.spec else env.name
        before = step + (name == "reward")  # an observation comes before its action
        if not torch.isfinite(rollouts.actions[task, :, :before]).all():
            raise UserError(
                f"{family}: an action of the policy on task {in_words(tasks[task])} is not finite; correct the "
                "policy, or lower its step sizes."
            )
        outside = ", or outside its space" if isinstance(env.single_observation_space, spaces.Discrete) else ""
        raise UserError(
            f"{family}: the {name} at step {step} of task {in_words(tasks[task])} is not finite in "
            f"float32{outside}; fix the environment, or keep tasks and actions in the range where it is stable."
        )
