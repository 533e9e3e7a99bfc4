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
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor, nn

from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .methods import adapts_to_examples, method_of
from .policies import flatten
from .policies.parameters import load as load_parameters
from .runs.evaluation import lr_factors
from .runs.folder import load_run
from .sampling.actors import Actor, TaskPolicies
from .sampling.examples import as_tensors, predict
from .sampling.families import make_env
from .sampling.rollouts import Rollouts
from .sampling.spaces import Array, action_map, encode
from .sampling.streams import torch_generator

AnyEnv = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]
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
            UserError: If the environment does not fit the run, or an observation or reward is not finite.
        """
        config, method = self.config, method_of(self.config)
        for name, value in (("num_steps", num_steps), ("num_rollouts", num_rollouts), ("seed", seed)):
            if value is not None and not isinstance(value, Integral):
                raise UserError(f"{name} is {value!r}, but must be a whole number.")
        if config.observe_task:
            raise UserError("The oracle is given its task and does not adapt; load a run without observe_task.")
        family = make_env(dataclasses.replace(config, num_workers=0), 1)  # for its spaces, in this process
        family.close()
        from_examples = adapts_to_examples(family, method)
        _require_kind(env, from_examples, num_rollouts)
        given = _GivenEnv(family if isinstance(env, tuple) else env, family)
        num_steps = max(method.num_adaptations, 1) if num_steps is None else num_steps
        one_per_env = method.independent_learners
        if num_steps < (least := int(one_per_env and given.num_envs > 1)):
            several = f" with {given.num_envs} environments" if least else ""
            raise UserError(f"num_steps is {num_steps}, but must be at least {least}{several}.")
        num_rollouts = _num_rollouts(num_rollouts, one_per_env, given.num_envs, config.num_rollouts)
        if seed is not None and seed < 0:
            raise UserError(f"seed is {seed}, but must be at least 0.")
        seeds = np.random.SeedSequence(seed)
        collecting, acting = seeds.spawn(2)
        given.seeded = seed is not None
        factors, theta = lr_factors(config, num_steps), flatten(self.policy)
        phases: Iterable[Rollouts]
        if isinstance(env, tuple):
            inputs, targets = as_tensors(family, np.asarray(env[0])[None], np.asarray(env[1])[None])
            phases = [predict(method.adapted(self.policy, theta, [], []), inputs, targets)] * num_steps
        else:
            phases = method.collect(given, self.policy, theta, given.tasks[:1], num_rollouts, collecting, factors)
        actor = method.adapted(self.policy, theta, list(islice(phases, num_steps)), factors)
        return AdaptedPolicy(actor, given, torch_generator(acting))


def _require_kind(env: object, from_examples: bool, num_rollouts: int | None) -> None:
    if from_examples != isinstance(env, tuple):
        raise UserError(
            f"This run learns from {'examples' if from_examples else 'rewards'}; call "
            f"{'adapt((inputs, targets))' if from_examples else 'adapt(env) with an environment'}."
        )
    if isinstance(env, tuple) and (len(env) != 2 or not np.size(env[1])):
        raise UserError("The examples must be a pair of inputs and targets, with at least one of each.")
    if isinstance(env, tuple) and num_rollouts is not None:
        raise UserError(
            f"num_rollouts is {num_rollouts}, but every step uses all examples; leave num_rollouts out."
        )
    if not isinstance(env, tuple | gymnasium.Env | VectorEnv):
        raise UserError(f"env is {env!r}, but must be an environment, for example from gymnasium.make.")


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

    def __init__(self, actor: Actor, env: "_GivenEnv", generator: torch.Generator):
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
                environment.
        """
        seen = encode(self._env.single_observation_space, self._env.as_rows(observation))
        if not self._env.batched and not torch.isfinite(seen).all():
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
        rewards = np.broadcast_to(np.asarray(0.0 if reward is None else reward, np.float32), shape)
        ends = np.broadcast_to(np.asarray(False if ended is None else ended, bool), shape)
        taken = ~self._resetting
        self._actor.observe(self._last, rewards, ends, taken)
        self._resetting = ends & taken & (self._env.autoreset == AutoresetMode.NEXT_STEP)


class _GivenEnv(VectorFamily):
    """Wraps an environment, or a vector environment, whose task is already set. Resets do not change the task.

    Args:
        env: The environment.
        family: An environment of the run's family, for its spaces and horizon.

    Attributes:
        batched: Whether it is a vector environment.
        autoreset: How a vector environment resets itself.
        raw_space: The space of one observation.
        flattens: Whether observations are flattened, as those of the run's family were.
        seeded: Whether resets pass on the learner's seeds.

    Raises:
        UserError: If the environment's spaces differ from those of the family.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    task_space = spaces.Box(0.0, 0.0, (0,), np.float64)

    def __init__(self, env: AnyEnv, family: VectorFamily):
        self.batched, self.seeded = isinstance(env, VectorEnv), False
        if isinstance(env, VectorEnv):
            self.raw_space, num_envs = env.single_observation_space, env.num_envs
            self.single_action_space = env.single_action_space
        else:
            self.raw_space, num_envs = env.observation_space, 1
            self.single_action_space = env.action_space
        self._env, self._any_number = env, env is family  # of examples
        of_run = family.single_observation_space
        self.flattens = (type(self.raw_space), self.raw_space.shape) != (type(of_run), of_run.shape)
        self.single_observation_space = spaces.flatten_space(self.raw_space) if self.flattens else self.raw_space
        for name in ("single_observation_space", "single_action_space"):
            ours, wanted = getattr(self, name), getattr(family, name)
            if ours != wanted:
                what = name.removeprefix("single_").replace("_", " ")
                raise UserError(f"The environment's {what} is {ours}, but the run was trained with {wanted}.")
        inside = env.unwrapped
        if isinstance(inside, VectorFamily) and (inside.tasks != inside.tasks[0]).any():
            raise UserError(
                "The environments have different tasks, but a policy adapts to one; set the same task in each, as "
                "in env.reset(options={'task': [task] * num_envs})."
            )
        super().__init__(num_envs, family.max_episode_steps)
        self.autoreset = env.metadata.get("autoreset_mode") if self.batched else None
        # Families of this package rest until they are reset as a whole.
        rests = isinstance(inside, VectorFamily)
        self._reset_by_hand = self.autoreset == AutoresetMode.DISABLED and not rests
        self._ended, self._steps = np.zeros(num_envs, bool), 0

    @property
    def name(self) -> str:
        """The environment's name in messages."""
        return str(self._env)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. The option "task" is ignored."""
        # Environments that use RandomState accept seeds of at most 32 bits.
        observations, info = self._env.reset(seed=seed % 2**31 if self.seeded else None)
        self._ended, self._steps = np.zeros(self.num_envs, bool), 0
        return self.as_rows(observations), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps once. Arrays are (N, ...)."""
        if self.batched:
            if self._reset_by_hand and self._ended.any():
                self._env.reset(options={"reset_mask": self._ended.copy()})
            observations, rewards, terminated, truncated, _ = self._env.step(actions)
        else:
            observations, reward, *ends, _ = self._env.step(actions[0])
            rewards, (terminated, truncated) = np.array([reward]), np.array(ends, bool)[:, None]
        self._ended = np.asarray(terminated | truncated, bool)
        self._steps += 1
        truncated = truncated | (self._steps == self.max_episode_steps)  # the run's horizon may be shorter
        return self.as_rows(observations), rewards, terminated, truncated, {}

    def as_rows(self, observations: Any) -> Array:
        """Copies observations as numbers, (N, ...), flattened if the family's were.

        Raises:
            UserError: If they do not have the form of the observation space.
        """
        try:
            if self.flattens:
                batched = batch_space(self.raw_space, self.num_envs)
                several = iterate(batched, observations) if self.batched else [observations]
                rows = np.stack([np.array(spaces.flatten(self.raw_space, one)) for one in several])
            else:
                rows = np.array(observations)  # environments may reuse their arrays
                rows = rows if self.batched else rows[None]
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"An observation is {observations!r}, which is not in {self.raw_space} ({error}); pass what the "
                "environment returned."
            ) from error
        number = len(rows) if self._any_number else self.num_envs
        expected = (number, *(self.single_observation_space.shape or ()))
        if rows.shape != expected:
            of_each = f" for each of {self.num_envs} environments" * self.batched
            raise UserError(
                f"An observation has shape {rows.shape[not self.batched :]}, but must be in {self.raw_space}"
                f"{of_each}; pass what the environment returned."
            )
        return rows
