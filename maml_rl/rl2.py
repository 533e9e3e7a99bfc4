"""RL² (arXiv:1611.02779): a recurrent policy that adapts by its memory instead of an inner loop."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import one_hot
from torch.utils._pytree import tree_map

from .config import Config
from .envs import VectorFamily
from .errors import UserError
from .maml.objective import clipped_surrogate, mean_and_gradient, mean_kl, means
from .maml.outer import adam_epochs
from .policies import Distribution, flatten, initialise, unflatten
from .policies.ready_made import flat_size, is_image, make_head, require_fit
from .sampling.actors import Actor
from .sampling.advantages import with_advantages
from .sampling.collect import collect_rollouts
from .sampling.normalisation import normaliser
from .sampling.rollouts import Rollouts, known_success, map_steps
from .sampling.spaces import Array


class GRUPolicy(nn.Module):
    """A recurrent policy. Its inputs are the observation and the result of its last action.

    Args:
        observation_size: O.
        num_actions: A, or the number of values of a discrete action.
        memory_size: h.
        head: Maps the state to a distribution.

    Attributes:
        num_actions: A.
        recurrent: The GRU layer, whose state of size h is the memory.
        head: Maps the state to a distribution.
    """

    def __init__(self, observation_size: int, num_actions: int, memory_size: int, head: nn.Module):
        super().__init__()
        self.num_actions = num_actions
        # On the meta device, the global generator is not used. `initialise` draws the parameters.
        recurrent = nn.GRU(observation_size + num_actions + 2, memory_size, batch_first=True, device="meta")
        self.recurrent = recurrent.to_empty(device="cpu")
        self.head = head
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, inputs: Tensor, memory: Tensor | None = None) -> tuple[Distribution, Tensor]:
        """Acts on sequences.

        Args:
            inputs: Observation, last action (one-hot if discrete), last reward, and whether an episode has just
                ended, (N, T, O + A + 2).
            memory: The state before the first step, (N, h); 0 by default.

        Returns:
            The distributions of actions, of tensors (N, T, ...), and the states after each step, (N, T, h).
        """
        features, _ = self.recurrent(inputs, None if memory is None else memory.unsqueeze(0))
        return self.head(features), features


class RecurrentActor:
    """Acts step by step in M·K environments, each with its own memory. See `Actor`.

    Args:
        policy: The policy module with the parameters to use. It is not changed.
        state: The recurrent layer's states, (M, K, h), changed in place.
        last: Last action, reward, and whether an episode has just ended, (M, K, A + 2), changed in place.
    """

    remembers = True

    def __init__(self, policy: GRUPolicy, state: Tensor, last: Tensor):
        self.policy, self.state, self.last = policy, state, last
        self._normalise = normaliser(policy, flatten(policy).unsqueeze(0))

    def act(self, observations: Tensor) -> tuple[Tensor, Distribution]:
        """See `Actor`."""
        return self.see(self._normalise(observations))

    def see(self, observations: Tensor) -> tuple[Tensor, Distribution]:
        """Acts on observations (M, K, O) that are already normalised, if they are to be."""
        inputs = torch.cat([observations, self.last], dim=-1)
        distribution, state = self.policy(inputs.flatten(0, 1).unsqueeze(1), self.state.flatten(0, 1))
        self._next_state = state.squeeze(1).unflatten(0, inputs.shape[:2])
        return inputs, tree_map(lambda x: x.squeeze(1).unflatten(0, inputs.shape[:2]), distribution)

    def observe(self, actions: Tensor, rewards: Array, ended: Array, alive: Array) -> None:
        """See `Actor`."""
        shape = self.state.shape[:2]
        taken = actions if actions.is_floating_point() else one_hot(actions, self.policy.num_actions).float()
        consequences = torch.from_numpy(np.stack([rewards, ended], axis=1).astype(np.float32)).view(*shape, 2)
        valid = torch.from_numpy(alive).view(*shape, 1)
        self.state.copy_(torch.where(valid, self._next_state, self.state))
        self.last.copy_(torch.where(valid, torch.cat([taken, consequences], dim=-1), self.last))

    def rows(self, tasks: slice) -> "RecurrentActor":
        """See `Actor`."""
        return RecurrentActor(self.policy, self.state[tasks], self.last[tasks])


class RL2:
    """A GRU policy, trained by PPO, that remembers the episodes of a task. See `maml_rl.methods.Method`."""

    name = label = "rl2"
    unit = "episode"
    independent_learners = True

    def __init__(self, config: Config):
        _check_options(config)
        self.config = config
        self.num_adaptations = config.rl2_episodes - 1

    def make_policy(self, env: VectorFamily, generator: torch.Generator) -> nn.Module:
        """See `Method`."""
        if len(self.config.hidden_sizes) != 1:
            raise UserError(
                f"hidden_sizes is {self.config.hidden_sizes}, but RL² has one recurrent layer; choose one number."
            )
        observation_space, action_space = env.single_observation_space, env.single_action_space
        _require_actions(action_space)
        if is_image(observation_space):
            raise UserError(
                "RL² has no ready-made policy for images; leave rl2_episodes out, or pass a module of your own: "
                "train(config, policy=...), evaluate(run_dir, policy=...)."
            )
        width = self.config.hidden_sizes[0]
        head = make_head(action_space, width, self.config)
        size, num_actions = flat_size(observation_space), spaces.flatdim(action_space)
        policy = GRUPolicy(size, num_actions, width, head)
        initialise(policy, generator)
        return policy

    def prepare(self, policy: nn.Module, env: VectorFamily) -> None:
        """See `Method`."""
        if not isinstance(policy, GRUPolicy):
            raise UserError(
                f"The policy given is a {type(policy).__qualname__}, but RL² needs a maml_rl.rl2.GRUPolicy."
            )
        _require_actions(env.single_action_space)
        size = spaces.flatdim(env.single_observation_space) + policy.num_actions + 2
        with torch.no_grad():
            sequences, _ = policy(torch.zeros(2, 1, size))
        require_fit(tree_map(lambda x: x.squeeze(1), sequences), env.single_action_space)

    def collect(
        self,
        env: VectorFamily,
        policy: nn.Module,
        theta: Tensor,
        tasks: Array,
        num_rollouts: int,
        seeds: np.random.SeedSequence,
        lr_factors: Sequence[float] | None = None,
    ) -> Iterator[Rollouts]:
        """See `Method`. A phase is the next episode of K learners per task. Only the number of factors matters."""
        num_phases = 1 + (self.num_adaptations if lr_factors is None else len(lr_factors))
        actor = _without_memory(policy, theta, (len(tasks), num_rollouts))
        for phase in seeds.spawn(num_phases):
            yield collect_rollouts(env, actor, tasks, num_rollouts, phase).to(theta.device)

    def update(
        self, policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts]
    ) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
        """See `Method`. PPO maximises the return of all episodes of a trial together, through the memory."""
        return ppo_on_trials(policy, theta, optimiser_state, batches, self.config)

    def adapted(
        self, policy: nn.Module, theta: Tensor, batches: Sequence[Rollouts], lr_factors: Sequence[float]
    ) -> Actor:
        """See `Method`. The policies remember the episodes."""
        if not batches:
            return _without_memory(policy, theta, (1, 1))
        trials = as_trials(batches)
        actor = _without_memory(policy, theta, (len(trials.mask), trials.mask.shape[1]))
        with torch.no_grad():
            for t in range(trials.mask.shape[2]):
                alive = trials.mask[:, :, t].flatten().numpy()
                # The result of a step is part of the next step's input.
                size = actor.last.shape[-1]
                actor.last.copy_(
                    torch.where(trials.mask[:, :, t, None], trials.observations[:, :, t, -size:], actor.last)
                )
                actor.see(trials.observations[:, :, t, :-size])
                ended = np.zeros(len(alive))
                actor.observe(trials.actions[:, :, t], trials.rewards[:, :, t].flatten().numpy(), ended, alive)
        actor.last[..., -1] = 1.0  # an episode has just ended
        return actor


def _without_memory(policy: nn.Module, theta: Tensor, shape: tuple[int, int]) -> RecurrentActor:
    """Makes an actor with empty memory for M·K environments, for the start of a task's first episode."""
    own = copy.deepcopy(policy).cpu()
    assert isinstance(own, GRUPolicy)
    nn.utils.vector_to_parameters(theta.detach().cpu().clone(), own.parameters())
    state = torch.zeros(*shape, own.recurrent.hidden_size)
    return RecurrentActor(own, state, torch.zeros(*shape, own.num_actions + 2))


def as_trials(batches: Sequence[Rollouts]) -> Rollouts:
    """Joins E episodes of the same environments into trials. Steps that were taken come before masked ones.

    Args:
        batches: E batches of rollouts, (M, K, H, ...).

    Returns:
        Trials, (M, K, E·H, ...). A trial succeeded or failed if any of its episodes did.
    """
    order = torch.sort(~torch.cat([batch.mask for batch in batches], 2), dim=-1, stable=True).indices

    def joined(*steps: Tensor) -> Tensor:
        x = torch.cat(steps, 2)
        return x.gather(2, order.reshape(*order.shape, *[1] * (x.ndim - 3)).expand_as(x))

    success = known_success(torch.stack([batch.success for batch in batches])).amax(0)
    failed = torch.stack([batch.failed for batch in batches]).any(0)
    return Rollouts(
        **map_steps(joined, *batches), advantage_scale=batches[0].advantage_scale, success=success, failed=failed
    )


def ppo_on_trials(
    policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts], config: Config
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Takes several steps of PPO (arXiv:1707.06347) on whole trials. See `Method.update` for the arguments."""
    trials = with_advantages(as_trials(batches), config.discount, config.gae_lambda, config.normalise_advantages)

    def objective(policy: nn.Module, theta: Tensor, trials: Rollouts) -> tuple[Tensor, Tensor]:
        inputs = trials.observations.flatten(0, 1)
        sequences, _ = functional_call(policy, unflatten(policy, theta), (inputs,))
        # (m·K, T, ...) -> (m, K·T, ...)
        distribution = tree_map(lambda x: x.unflatten(0, trials.mask.shape[:2]).flatten(1, 2), sequences)

        def one(distribution: Distribution, trials: Rollouts) -> tuple[Tensor, Tensor]:
            return clipped_surrogate(distribution, trials, config.ppo_clip), mean_kl(distribution, trials)

        losses, kls = vmap(one)(distribution, trials)
        return losses, kls

    def losses(policy: nn.Module, theta: Tensor, trials: Rollouts) -> Tensor:
        return objective(policy, theta, trials)[0]

    theta, optimiser_state, metrics = adam_epochs(
        lambda theta: mean_and_gradient(losses, policy, theta, (trials,), config),
        theta,
        optimiser_state,
        config.outer_lr,
        config.ppo_epochs,
    )
    after, kl = means(objective, policy, theta, (trials,), config)
    return theta, optimiser_state, metrics | {"surrogate_after": after, "kl": kl}


def _require_actions(space: spaces.Space[Any]) -> None:
    if not isinstance(space, spaces.Discrete | spaces.Box):
        raise UserError(
            f"RL² takes no actions of {space}, only of a Box or Discrete space; choose another method."
        )


def _check_options(config: Config) -> None:
    """Refuses the options of the inner loop, and says what to choose instead."""
    if not config.rl2_episodes:
        raise UserError("rl2_episodes is 0, but RL² needs at least 1, and remembers episodes from 2 on.")
    inner = ("log_std_lr", "learn_lr", "inner_advantage", "adapt_only", "first_order", "estimator", "e_maml")
    for name in [*["num_steps"] * (config.num_steps > 0), *config.changed(*inner)]:
        raise UserError(
            f"{name} is {getattr(config, name)!r}, but RL² adapts by its memory and has no inner loop; choose "
            "num_steps 0 and none of the inner loop's options, or leave rl2_episodes out."
        )
    if config.outer != "ppo":
        raise UserError(f"outer is {config.outer!r}, but RL² is trained by PPO; choose outer ppo.")
    unused = (
        "activation",
        "network",
        "policy_gradient",
        "context_size",
        "observe_task",
        "kl_penalty",
        "max_kl",
        "cg_iterations",
        "cg_damping",
        "line_search_steps",
        "dice_lambda",
    )
    for name in config.changed(*unused):
        raise UserError(f"{name} is {getattr(config, name)!r}, but RL² does not use it; leave {name} out.")
