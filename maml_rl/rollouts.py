"""Rollouts of all M·K environments in lock step, each task under its own parameters."""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from .config import Config
from .distributions import Distribution
from .envs import BrokenEnvironmentError, VectorFamily, in_words, make_vec, num_cores
from .errors import UserError
from .policies import per_task
from .recurrent import GRUPolicy, Memory, acting, remember
from .streams import integer_seed, torch_generator


class Rollouts(NamedTuple):
    """K rollouts of each of M tasks. Under `vmap` over tasks, the first axis is absent.

    Attributes:
        observations: o_t, (M, K, H, O): what the policy was given, flat. A one-hot vector if discrete; images are
            scaled to [0, 1]; where the policy sees the task or remembers, what it sees of them comes behind.
        actions: a_t as drawn from the policy, (M, K, H, A), or (M, K, H) int64 if discrete (A of them: with A).
        rewards: r_t, (M, K, H); 0 after the end of an episode.
        mask: (M, K, H) bool: whether the step was taken. An episode's steps come first, so that it has
            `mask.sum(-1)` of them; what stands behind them means nothing.
        terminated: (M, K, H) bool: whether the step led to a terminal state. An episode that is not
            terminated was cut at the horizon, or by the environment.
        behaviour: The distribution each action was drawn from, of tensors (M, K, H, ...).
        log_probs: log π(a_t | o_t) under `behaviour`, (M, K, H).
        advantages: Â_t, (M, K, H); 0 until `with_advantages`.
        advantage_scale: What a task's advantages were divided by, (M,).
        outcomes: What the environment reported of whole rollouts, (M, K) bool each: "success", whether at any
            step, where it knows success; "failed", whether the simulation broke down, where any did.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    terminated: Tensor
    behaviour: Distribution
    log_probs: Tensor
    advantages: Tensor
    advantage_scale: Tensor
    outcomes: dict[str, Tensor]

    def returns(self) -> Tensor:
        """The undiscounted sums of rewards, averaged over the K rollouts, (M,)."""
        return self.rewards.sum(-1).mean(-1)


def make_env(config: Config, num_envs: int, render_mode: str | None = None) -> VectorFamily:
    """N environments of a run's family.

    Args:
        config: Of it, the family and how it is made and stepped.
        num_envs: N.
        render_mode: None or "rgb_array".

    Raises:
        UserError: If the id is unknown, is no task family, cannot be made, or has no horizon.
    """
    module, _, name = config.env_id.rpartition(":")
    workers = num_cores() if config.num_workers is None else config.num_workers
    try:
        if module:
            importlib.import_module(module)
        env = make_vec(
            name,
            num_envs,
            config.horizon,
            num_workers=workers if num_envs > 1 else 0,
            worker_timeout=config.worker_timeout,
            render_mode=render_mode,
            **config.env_kwargs,
        )
    except BrokenEnvironmentError as error:
        raise UserError(str(error)) from error
    except (gymnasium.error.Error, ImportError, NotImplementedError, TypeError, ValueError) as error:
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rstrip(".")
        if isinstance(error, NotImplementedError | TypeError | ValueError):  # it is there, but not so
            raise UserError(f"Cannot make the task family {config.env_id!r}: {reason}.") from error
        raise UserError(
            f"Cannot make the task family {config.env_id!r} ({reason}); `maml-rl families` lists those there are, "
            "and module:id imports the module that registers yours."
        ) from error
    if env.max_episode_steps is None:
        raise UserError(
            f"{config.env_id!r} has no horizon; register it with max_episode_steps, or set the option horizon."
        )
    actions = env.single_action_space
    if not isinstance(actions, spaces.Discrete | spaces.MultiDiscrete) and not (
        isinstance(actions, spaces.Box) and len(actions.shape) == 1
    ):
        raise UserError(
            f"The action space of {config.env_id!r} is {actions}, but there are action distributions only for a "
            "one-dimensional Box, Discrete and MultiDiscrete; wrap the environment so that it has one of them."
        )
    return env


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to this thread.

    Its helpers spin for milliseconds after each operation, in case of another: on cores that physics or other
    processes need between two steps of the policy. Two cores stepped 800 half-cheetahs at 0.6 of the speed of
    bare physics with them, and at 0.75 without.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def collect(
    env: VectorFamily,
    policy: nn.Module,
    theta: Tensor,
    tasks: np.ndarray,
    seeds: np.random.SeedSequence,
    observe_task: bool = False,
    memory: Memory | None = None,
) -> Rollouts:
    """Collects K rollouts of each task, the same number in every environment slot.

    A slot whose episode ends before the horizon is masked from then on: no episode is cut, counted twice
    or over-represented.

    Args:
        env: N = M·K environments with horizon H; task i gets environments i·K to (i+1)·K - 1.
        policy: The policy module.
        theta: Each task's own parameters, (M, P).
        tasks: (M, D).
        seeds: The source of the streams of environments and actions.
        observe_task: Append the task to what the policy is given.
        memory: Of a recurrent policy, which then has one θ for all tasks; changed in place.

    Returns:
        The rollouts, without advantages.

    Raises:
        UserError: If an observation or reward is not finite (names family, task and step), or if an
            environment raises or its process dies or hangs (names the task, and shows the traceback).
    """
    num_tasks, num_envs = len(tasks), env.num_envs
    num_rollouts = num_envs // num_tasks
    if len(theta) != num_tasks or num_tasks * num_rollouts != num_envs:
        raise ValueError(
            f"{len(theta)} parameter vectors and {num_tasks} tasks do not fit {num_envs} environments."
        )
    if not torch.isfinite(theta).all():
        diverged = tasks[int((~torch.isfinite(theta)).any(1).nonzero()[0])]
        raise UserError(
            f"The policy's parameters on task {in_words(diverged)} are not finite; lower inner_lr or outer_lr."
        )
    env_seeds, action_seeds = seeds.spawn(2)
    first_seed = integer_seed(env_seeds)
    shares = env.shares(num_tasks)

    def episodes(share: VectorFamily, rows: slice, first: int, seeds: np.random.SeedSequence) -> Rollouts:
        remembered = memory and Memory(*(x[rows] for x in memory))  # views
        generator = torch_generator(seeds)
        return _episodes(
            share, policy, theta[rows], tasks[rows], first_seed + first, generator, observe_task, remembered
        )

    with one_thread():
        if len(shares) == 1:
            rollouts = episodes(env, slice(None), 0, action_seeds)
        else:
            firsts = np.cumsum([0] + [share.num_envs for share in shares])
            of_tasks = [slice(i // num_rollouts, j // num_rollouts) for i, j in pairwise(firsts.tolist())]
            with ThreadPoolExecutor(len(shares)) as threads:
                parts = threads.map(episodes, shares, of_tasks, firsts.tolist(), action_seeds.spawn(len(shares)))
                rollouts = _joined(list(parts))
    _require_finite(env, tasks, rollouts)
    return rollouts


def _joined(parts: list[Rollouts]) -> Rollouts:
    """Rollouts of some tasks and of others as those of all of them."""
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in Rollouts._fields
        if name not in ("behaviour", "outcomes")
    }
    behaviours = [part.behaviour for part in parts]
    return Rollouts(
        **tensors,
        behaviour=type(behaviours[0])(*(torch.cat(fields) for fields in zip(*behaviours, strict=True))),
        outcomes={
            name: torch.cat([part.outcomes.get(name, torch.zeros_like(part.mask[..., 0])) for part in parts])
            for name in {name for part in parts for name in part.outcomes}
        },
    )


def _episodes(
    env: VectorFamily,
    policy: nn.Module,
    theta: Tensor,
    tasks: np.ndarray,
    first_seed: int,
    generator: torch.Generator,
    observe_task: bool,
    memory: Memory | None,
) -> Rollouts:
    """An episode in every environment, the first one seeded with `first_seed`; else as `collect`."""
    num_tasks, num_envs, horizon = len(tasks), env.num_envs, env.max_episode_steps
    assert horizon is not None
    num_rollouts = num_envs // num_tasks
    if memory is None:
        policies = per_task(policy, theta)
    else:
        assert isinstance(policy, GRUPolicy)
        recurrent = acting(policy, theta[0])
    seen_tasks = _task_inputs(env.task_space, tasks) if observe_task else None
    to_env = action_map(env.single_action_space)
    shape = (num_tasks, num_rollouts)

    seen, behaviours, taken = [], [], []
    rewards = np.zeros((horizon, num_envs), np.float32)
    mask = np.zeros((horizon, num_envs), bool)
    terminated = np.zeros((horizon, num_envs), bool)
    alive = np.ones(num_envs, bool)
    outcomes: dict[str, np.ndarray] = {}
    tasks_in_slots = np.repeat(tasks, num_rollouts, axis=0)
    with torch.no_grad(), _environment_failures():
        observation, _ = env.reset(seed=first_seed, options={"task": tasks_in_slots})
        for t in range(horizon):
            o_t = _encode(env.single_observation_space, observation)
            if not alive.all():
                # Whatever an environment shows after its end, a NaN even, must reach no product.
                o_t = torch.where(torch.from_numpy(alive)[:, None], o_t, 0.0)
            o_t = o_t.view(*shape, -1)
            if seen_tasks is not None:
                o_t = torch.cat([o_t, seen_tasks.unsqueeze(1).expand(-1, num_rollouts, -1)], dim=-1)
            if memory is None:
                pi_t = policies(o_t)
            else:
                o_t = torch.cat([o_t, memory.last], dim=-1)
                pi_t, state = recurrent(o_t, memory.state)
            a_t = pi_t.sample(generator)
            observation, reward, ended, cut, info = env.step(to_env(a_t.flatten(0, 1).numpy()))
            seen.append(o_t)
            behaviours.append(pi_t)
            taken.append(a_t)
            mask[t] = alive
            rewards[t] = np.where(alive, reward, 0.0)
            np.logical_and(ended, alive, out=terminated[t])
            for name in info.keys() & {"success", "failed"}:
                flags = alive & info[name]
                if name == "success" or flags.any():
                    outcomes.setdefault(name, np.zeros(num_envs, bool))[flags] = True
            if memory is not None:
                remember(memory, state, a_t, reward, ended | cut, alive)
            alive &= ~(ended | cut)
            if not alive.any():
                break

        def by_task(steps: list[Tensor]) -> Tensor:
            # Where all episodes ended early, the last step is repeated up to H, masked.
            return torch.stack(steps + steps[-1:] * (horizon - len(steps)), dim=2)

        def from_numpy(steps: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(steps.T)).unflatten(0, shape)

        observations, actions = by_task(seen), by_task(taken)
        behaviour = type(behaviours[0])(*(by_task(list(parts)) for parts in zip(*behaviours, strict=True)))
        return Rollouts(
            observations=observations,
            actions=actions,
            rewards=from_numpy(rewards),
            mask=from_numpy(mask),
            terminated=from_numpy(terminated),
            behaviour=behaviour,
            log_probs=behaviour.log_prob(actions),
            advantages=torch.zeros(*shape, horizon),
            advantage_scale=torch.ones(num_tasks),
            outcomes={name: torch.from_numpy(flags).view(shape) for name, flags in outcomes.items()},
        )


@contextlib.contextmanager
def _environment_failures() -> Iterator[None]:
    """What an environment did wrong is for the user to mend."""
    try:
        yield
    except BrokenEnvironmentError as error:
        raise UserError(str(error)) from error


def _encode(space: spaces.Space, observation: np.ndarray) -> Tensor:
    """Observations of N environments as float32, (N, O): discrete ones one-hot, images flat and in [0, 1]."""
    if isinstance(space, spaces.Discrete):
        return torch.nn.functional.one_hot(torch.from_numpy(observation - space.start), int(space.n)).float()
    numbers = torch.from_numpy(np.asarray(observation, np.float32)).flatten(1)
    image = space.dtype == np.uint8 and isinstance(space, spaces.Box) and (space.high == 255).all()
    return numbers / 255 if image else numbers


def _task_inputs(space: spaces.Space, tasks: np.ndarray) -> Tensor:
    """Tasks (M, D) as a policy sees them, float32: of a bounded Box scaled to [-1, 1], discrete ones one-hot."""
    if isinstance(space, spaces.Box) and space.is_bounded():
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        tasks = (tasks - middle) / np.where(half > 0, half, 1)
    elif not isinstance(space, spaces.Box):
        tasks = np.stack([np.asarray(spaces.flatten(space, task)) for task in tasks])
    return torch.from_numpy(np.asarray(tasks, np.float32)).flatten(1)


def action_map(space: spaces.Space) -> Callable[[np.ndarray], np.ndarray]:
    """The map from the policy's actions, (N, A) or (N,), to those that the environment takes.

    The policy's [-1, 1] is the whole range of a bounded Box, whatever its unit; actions beyond it are
    clipped here, and only here, so that log-probabilities are those of what was drawn.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return lambda actions: actions + space.start
    assert isinstance(space, spaces.Box)
    if not space.is_bounded():
        return lambda actions: actions
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return lambda actions: middle + half * np.minimum(np.maximum(actions, -1.0), 1.0)


def _require_finite(env: VectorFamily, tasks: np.ndarray, rollouts: Rollouts) -> None:
    if torch.isfinite(rollouts.observations.sum() + rollouts.rewards.sum()):
        return
    finite = {
        "observation": torch.isfinite(rollouts.observations).all(-1),
        "reward": torch.isfinite(rollouts.rewards),
    }
    bad = [
        (step, name, task)
        for name, fine in finite.items()
        if not fine.all()
        for task, _, step in (~fine & rollouts.mask).nonzero().tolist()
    ]
    if bad:
        step, name, task = min(bad)  # the earliest is where it began
        family = env.spec.id if env.spec else env.name
        raise UserError(
            f"{family}: the {name} at step {step} of task {in_words(tasks[task])} is not finite; mend the "
            "environment, or keep tasks and actions in the range where it is stable."
        )
