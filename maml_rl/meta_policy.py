"""A trained run, ready to adapt to an environment and act in it."""

import copy
import dataclasses
import logging
import os
from collections.abc import Iterable
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from .config import Config
from .errors import UserError
from .methods import adapts_to_examples, method_of
from .policies import flatten
from .policies.parameters import load as load_parameters
from .runs.evaluation import lr_factors
from .runs.folder import load_run
from .sampling.actors import Actor, TaskPolicies
from .sampling.collect import require_simulations
from .sampling.examples import as_tensors, predict
from .sampling.families import make_env
from .sampling.given_env import AnyEnv, GivenEnv
from .sampling.rollouts import Rollouts
from .sampling.spaces import Array, action_map, encode
from .sampling.streams import torch_generator

_log = logging.getLogger(__name__)


def load(run_dir: str | os.PathLike[str], policy: nn.Module | None = None, trust: bool = False) -> "MetaPolicy":
    """Loads a trained run. Loading never runs code from the folder.

    Args:
        run_dir: The run folder, or `zoo/NAME` for a policy that comes with the package.
        policy: Your own module, if the run was trained with one.
        trust: Import the module that registers the run's family, if config.json names one.

    Raises:
        UserError: If the folder holds no run or a damaged one, or if `trust` is needed but not set.
    """
    config, trained, _ = load_run(Path(run_dir), policy, trust)
    return MetaPolicy(config, trained)


class MetaPolicy:
    """A meta-trained policy with the options of its run.

    Args:
        config: The run's options.
        policy: The policy module, with its meta-trained parameters θ.
    """

    def __init__(self, config: Config, policy: nn.Module):
        self.config, self.policy = config, policy

    @torch.inference_mode(False)
    @torch.enable_grad()
    def adapt(
        self,
        env: AnyEnv | tuple[npt.ArrayLike, npt.ArrayLike],
        num_steps: int | None = None,
        num_rollouts: int | None = None,
        seed: int | None = None,
    ) -> "AdaptedPolicy":
        """Adapts to the current task of an environment. It collects rollouts and takes inner steps on them.

        Args:
            env: An environment from `gymnasium.make`, or a vector environment whose N environments all have the
                same task. It must have the same spaces as the run's family. Its task may be hidden. If the run has
                learned from examples: K inputs (K, ...) and their targets (K, A), or (K,) if discrete. The policy
                then takes any number of inputs (n, ...) at once, and every step uses all examples.
            num_steps: S, adaptation steps; for RL², episodes to remember. By default as in training, but at least
                1. With 0, the policy acts without adapting.
            num_rollouts: K, rollouts for each step, a multiple of N. By default as in training, rounded up. RL²
                always uses one rollout in each of the N environments.
            seed: Seed of the environment and of the actions. By default the actions are random, and the
                environment is reset without a seed.

        Returns:
            The adapted policy.

        Raises:
            UserError: If the environment does not fit the run, an observation or reward is not finite, or too many
                simulations broke down.
        """
        config, method = self.config, method_of(self.config)
        _require_integers(num_steps=num_steps, num_rollouts=num_rollouts, seed=seed)
        if config.observe_task:
            raise UserError("The oracle is given its task and does not adapt; load a run without observe_task.")
        family = make_env(dataclasses.replace(config, num_workers=0), 1)  # for its spaces, in this process
        family.close()
        from_examples = adapts_to_examples(family, method)
        _require_kind(env, from_examples, num_rollouts)
        given = GivenEnv(family if isinstance(env, tuple) else env, family)
        num_steps = max(method.num_adaptations, 1) if num_steps is None else num_steps
        one_per_env = method.independent_learners
        if num_steps < (least := int(one_per_env and given.num_envs > 1)):
            several = f" with {given.num_envs} environments" if least else ""
            raise UserError(f"num_steps is {num_steps}, but must be at least {least}{several}.")
        num_rollouts = _num_rollouts(num_rollouts, one_per_env, given.num_envs, config.num_rollouts)
        seeds = np.random.SeedSequence(seed)
        collecting, acting = seeds.spawn(2)
        given.seeded = seed is not None
        factors, theta = lr_factors(config, num_steps), flatten(self.policy)
        policy = copy.deepcopy(self.policy)  # adapting changes the module for moments, which other threads may see
        phases: Iterable[Rollouts]
        if isinstance(env, tuple):
            inputs, targets = as_tensors(family, *_of_one_task(env))
            phases = [predict(method.adapted(policy, theta, [], []), inputs, targets)] * num_steps
        else:
            phases = method.collect(given, policy, theta, given.tasks[:1], num_rollouts, collecting, factors)
        batches = list(islice(phases, num_steps))
        for batch in batches:
            require_simulations(int(batch.failed.sum()), batch.failed.numel(), config)
        actor = method.adapted(policy, theta, batches, factors)
        return AdaptedPolicy(actor, given, torch_generator(acting))


def _require_integers(seed: Any, **others: Any) -> None:
    for name, value in {"seed": seed, **others}.items():
        if value is not None and not isinstance(value, Integral):
            raise UserError(f"{name} is {value!r}, but must be a whole number.")
    if seed is not None and seed < 0:
        raise UserError(f"seed is {seed}, but must be at least 0.")


def _require_kind(env: object, from_examples: bool, num_rollouts: int | None) -> None:
    if from_examples != isinstance(env, tuple):
        raise UserError(
            f"This run learns from {'examples' if from_examples else 'rewards'}; call "
            f"{'adapt((inputs, targets))' if from_examples else 'adapt(env) with an environment'}."
        )
    if isinstance(env, tuple) and num_rollouts is not None:
        raise UserError(
            f"num_rollouts is {num_rollouts}, but every step uses all examples; leave num_rollouts out."
        )
    if not isinstance(env, tuple | gymnasium.Env | VectorEnv):
        raise UserError(f"env is {env!r}, but must be an environment, for example from gymnasium.make.")


def _of_one_task(examples: tuple[npt.ArrayLike, ...]) -> tuple[Array, Array]:
    """Returns inputs (1, K, ...) and targets (1, K, ...)."""
    try:
        arrays = [np.asarray(part)[None] for part in examples]
    except (TypeError, ValueError) as error:
        raise UserError(f"The examples are not arrays ({error}); pass one value for each example.") from error
    if len(arrays) != 2 or not arrays[1].size:
        raise UserError("The examples must be a pair of inputs and targets, with at least one of each.")
    return arrays[0], arrays[1]


def _num_rollouts(given: int | None, one_per_env: bool, num_envs: int, default: int) -> int:
    if one_per_env:
        if given not in (None, num_envs):
            raise UserError(
                f"num_rollouts is {given}, but this method remembers one rollout in each of {num_envs} "
                "environments; leave num_rollouts out."
            )
        return num_envs
    if given is None:
        return -(-default // num_envs) * num_envs  # rounded up
    if given < 1 or given % num_envs:
        raise UserError(
            f"num_rollouts is {given}, but must be positive and divisible by the {num_envs} environments."
        )
    return given


class AdaptedPolicy:
    """A policy that has adapted to a task. It acts in the environment's own units.

    `MetaPolicy.adapt` creates it.
    """

    def __init__(self, actor: Actor, env: GivenEnv, generator: torch.Generator):
        self._actor, self._env, self._generator = actor, env, generator
        self._to_env = action_map(env.single_action_space)
        self._last: Tensor | None = None
        self._told = False
        # Environments that only reset themselves at the step after an end: that step leads to nothing.
        self._resetting = np.zeros(env.num_envs, bool)

    def __call__(
        self, observation: Any, deterministic: bool = False, *, reward: Any = None, ended: Any = None
    ) -> Any:
        """Chooses an action.

        Args:
            observation: The environment's observation. For a vector environment, the observations of all N.
            deterministic: Take the most probable action instead of drawing one.
            reward: The reward of the last action. Only a policy that remembers (RL²) uses it.
            ended: Whether the last action ended the episode. Only a policy that remembers uses it. Then this
                observation begins a new episode; or, if a vector environment resets itself at the next step, the
                next one does.

        Returns:
            The action for `env.step`. For a vector environment, the actions of all N.

        Raises:
            UserError: If the observation does not fit the observation space, or if it is not finite in a single
                environment or an example. If the policy remembers and the rewards are not N finite numbers.
        """
        seen = encode(self._env.single_observation_space, self._env.as_rows(observation))
        if self._env.must_be_finite and not torch.isfinite(seen).all():
            raise UserError(f"The observation {observation!r} is not finite, or not in its space; correct it.")
        self._remember(reward, ended)
        with torch.no_grad():
            _, distribution = self._actor.act(seen.unsqueeze(0))
            self._last = distribution.mode() if deterministic else distribution.sample(self._generator)
        actions = self._to_env(self._last[0].numpy())
        return actions if self._env.batched else actions[0]

    @property
    def policy(self) -> nn.Module:
        """A copy of the policy module with the adapted parameters θ′, for example to save its `state_dict`.

        Raises:
            UserError: If the policy adapts with a memory (RL²) and not with its parameters.
        """
        if not isinstance(self._actor, TaskPolicies):
            raise UserError("This policy adapts with its memory, so it has no adapted parameters to copy.")
        policy = copy.deepcopy(self._actor.policy)
        load_parameters(policy, self._actor.thetas[0])
        return policy

    def _remember(self, reward: Any, ended: Any) -> None:
        """Tells the actor the result of the last action."""
        if self._last is None:
            return
        if self._actor.remembers and reward is None and not self._told:
            self._told = True
            _log.warning(
                "This policy remembers rewards, but was not given any; call it with reward=... and ended=.... "
                "It assumes a reward of 0."
            )
        shape = (self._env.num_envs,)
        rewards = self._checked_rewards(reward, shape)
        ends = np.broadcast_to(np.asarray(False if ended is None else ended, bool), shape)
        taken = ~self._resetting
        self._actor.observe(self._last, rewards, ends, taken)
        self._resetting = ends & taken & (self._env.autoreset == AutoresetMode.NEXT_STEP)

    def _checked_rewards(self, reward: Any, shape: tuple[int]) -> Array:
        """Returns rewards (N,), of which a policy that remembers would never forget a wrong one."""
        try:
            rewards = np.broadcast_to(np.asarray(0.0 if reward is None else reward, np.float32), shape)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"reward is {reward!r}, but must be {shape[0]} numbers; pass what the environment returned."
            ) from error
        if self._actor.remembers and not np.isfinite(rewards).all():
            raise UserError(f"The reward {reward!r} is not finite; correct it.")
        return rewards
