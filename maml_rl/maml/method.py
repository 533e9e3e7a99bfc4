"""MAML and its relatives as a method."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from ..config import Config
from ..envs import SupervisedFamily, VectorFamily, in_words
from ..errors import UserError
from ..policies import act, flatten
from ..policies.batched import as_made
from ..policies.ready_made import make_policy, require_fit
from ..sampling.actors import TaskPolicies
from ..sampling.collect import collect_phase
from ..sampling.examples import example_sets, learns_from_examples, predict
from ..sampling.rollouts import Rollouts, supports_of
from ..sampling.spaces import Array, task_inputs
from ..sampling.threads import map_chunks, rows_of
from .inner import ESTIMATORS, with_scales
from .linearise import adapt_tasks
from .outer import OPTIMISERS
from .step_sizes import prepare


class MAML:
    """An inner loop of policy-gradient steps, and an outer optimiser. See `maml_rl.methods.Method`.

    Without inner steps it is pre-training. If the policy also observes the task, it is the oracle.
    """

    unit = "step"
    independent_learners = False

    def __init__(self, config: Config):
        _check_options(config)
        self.config = config
        self.num_adaptations = config.num_steps

    @property
    def name(self) -> str:
        """See `Method`."""
        if self.config.observe_task:
            return "oracle"
        return "maml" if self.config.num_steps else "pretrain"

    @property
    def label(self) -> str:
        """See `Method`."""
        config = self.config
        if self.name != "maml":
            return self.name
        names = {
            "reptile": config.outer == "reptile",
            "promp": (config.outer, config.estimator) == ("ppo", "lvc"),
            "fomaml": config.first_order,
            "e-maml": config.e_maml > 0,
            "meta-sgd": config.learn_lr == "parameter",
            "anil": config.adapt_only == "head",
            "cavia": config.adapt_only == "context",
        }
        found = [name for name, applies in names.items() if applies] or ["maml"]
        found += ["learned step"] * (config.learn_lr == "task")
        found += ["learned advantage"] * (config.inner_advantage == "learned")
        if "promp" not in found:
            found += [config.estimator] * (config.estimator != "vpg")
            found += [config.outer] * (config.outer in ("ppo", "adam"))
        return " + ".join(found)

    def make_policy(self, env: VectorFamily, generator: torch.Generator) -> nn.Module:
        """See `Method`."""
        observations, actions = env.single_observation_space, env.single_action_space
        return make_policy(observations, actions, self.config, generator, self._task_size(env))

    def prepare(self, policy: nn.Module, env: VectorFamily) -> None:
        """See `Method`. What the inner step learns becomes parameters of the policy."""
        _check_family(self.config, env)
        input_size = spaces.flatdim(env.single_observation_space) + self._task_size(env)
        try:
            with torch.no_grad():
                result = policy(torch.zeros(2, input_size))
        except RuntimeError as error:
            error.add_note(f"The policy gets float32 inputs of shape (N, {input_size}).")
            raise
        require_fit(result, env.single_action_space)
        if not as_made(policy):
            _require_vmap(policy, input_size)
            if env.max_episode_steps != 1:
                _require_separate_rows(policy, input_size)
        prepare(policy, self.config, input_size, result[0][0].numel())

    def _task_size(self, env: VectorFamily) -> int:
        return spaces.flatdim(env.task_space) if self.config.observe_task else 0

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
        """See `Method`. K rollouts of each task alternate with an inner step on them.

        Examples are drawn once: every step uses the K of the first phase, and all later phases are K others.
        """
        if lr_factors is None:
            lr_factors = [1.0] * self.num_adaptations
        thetas = theta.detach().expand(len(tasks), -1)
        sets = example_sets(env, tasks, num_rollouts, seeds) if learns_from_examples(env, self.config) else []
        sets = [(inputs.to(theta.device), targets.to(theta.device)) for inputs, targets in sets]
        where = theta.device if sets else torch.device("cpu")
        seen_tasks = task_inputs(env.task_space, tasks).to(where) if self.config.observe_task else None
        for k, phase in enumerate(seeds.spawn(len(lr_factors) + 1)):
            _require_finite(thetas, tasks)
            actor = TaskPolicies(policy, thetas.to(where), seen_tasks)
            if sets:
                rollouts = predict(actor, *sets[min(k, 1)])
            else:
                rollouts = collect_phase(env, actor, tasks, num_rollouts, phase, self.config, theta.device)
            yield rollouts
            if k == 0 or not sets:
                support = rollouts
            if k < len(lr_factors):
                thetas = self._inner_step(policy, thetas, support, lr_factors[k])

    def _inner_step(self, policy: nn.Module, thetas: Tensor, rollouts: Rollouts, lr_factor: float) -> Tensor:
        """Adapts each task's parameters (M, P) to its rollouts."""

        def chunk(policy: nn.Module, rows: slice) -> Tensor:
            return adapt_tasks(policy, thetas[rows], rows_of(rollouts, rows), self.config, lr_factor)

        return torch.cat(map_chunks(chunk, policy, len(thetas), self.config))

    def update(
        self, policy: nn.Module, theta: Tensor, optimiser_state: dict[str, Any], batches: Sequence[Rollouts]
    ) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
        """See `Method`."""
        if self.num_adaptations:
            theta = with_scales(policy, theta, batches[0], self.config)
        batches = [*supports_of(batches[:-1]), batches[-1]]
        try:
            return OPTIMISERS[self.config.outer](policy, theta, optimiser_state, batches, self.config)
        except RuntimeError as error:
            if "is not implemented" not in str(error) or as_made(policy):
                raise
            raise UserError(
                f"The policy given cannot be differentiated twice ({str(error).splitlines()[0]}). Attention can "
                "be, with the math kernel: train inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
            ) from error

    def adapted(
        self, policy: nn.Module, theta: Tensor, batches: Sequence[Rollouts], lr_factors: Sequence[float]
    ) -> TaskPolicies:
        """See `Method`."""
        thetas = theta.expand(len(batches[0].mask) if batches else 1, -1)
        for support, lr_factor in zip(supports_of(batches), lr_factors, strict=True):
            thetas = self._inner_step(policy, thetas, support, lr_factor)
        _require_finite(thetas, None)
        return TaskPolicies(policy, thetas)


def _require_vmap(policy: nn.Module, input_size: int) -> None:
    """Refuses a module that cannot be applied to several tasks at once, whose errors would be torch's own."""
    thetas, inputs = flatten(policy).expand(2, -1), torch.zeros(2, 2, input_size)
    own = copy.deepcopy(policy)
    try:
        with torch.no_grad():
            vmap(partial(act, own))(thetas, inputs)
    except RuntimeError as error:
        raise UserError(
            "The policy given does not run under torch.func.vmap, which applies it to several tasks at once "
            f"({str(error).strip().splitlines()[0]}). Remove dropout, running statistics of BatchNorm, and "
            "branches that depend on data."
        ) from error
    kept = dict(policy.named_buffers())
    changed = [name for name, buffer in own.named_buffers() if name not in kept or not _equal(buffer, kept[name])]
    changed += [name for module in own.modules() for name, value in vars(module).items() if _is_of_vmap(value)]
    if changed:
        raise UserError(
            f"The policy given keeps a tensor from its forward pass, {changed[0]!r}. Copies of it act for several "
            "tasks, so it would be lost; remove this."
        )


def _is_of_vmap(value: object) -> bool:
    return isinstance(value, Tensor) and is_batchedtensor(value)


def _equal(buffer: Tensor, before: Tensor) -> bool:
    return not is_batchedtensor(buffer) and torch.equal(buffer, before)


def _require_separate_rows(policy: nn.Module, input_size: int) -> None:
    """Refuses a module that mixes the rows of a batch: acting and learning would see different distributions."""
    inputs = torch.ones(4, input_size)
    inputs[0] = 0.0
    with torch.no_grad():
        together, apart = tree_leaves(policy(inputs)), tree_leaves(policy(inputs[:2]))
    if not all(torch.allclose(x[:2], y, rtol=1e-3, atol=1e-4) for x, y in zip(together, apart, strict=True)):
        raise UserError(
            "The distribution of the policy given depends on the other observations of a batch, or on random "
            "numbers. Acting and learning have different batches, so learning would fail. Use layers that treat "
            "each row alone, for example LayerNorm instead of BatchNorm, and no randomness."
        )


def _require_finite(thetas: Tensor, tasks: Array | None) -> None:
    if not torch.isfinite(thetas).all():
        where = ""
        if tasks is not None:
            where = f" on task {in_words(tasks[int((~torch.isfinite(thetas)).any(1).nonzero()[0])])}"
        raise UserError(
            f"An inner step made parameters{where} that are not finite; lower inner_lr, or take fewer steps."
        )


def _check_family(config: Config, env: VectorFamily) -> None:
    """Refuses options that do not fit how the family is learned: from examples, or from rewards."""
    if config.network == "conv4" and env.max_episode_steps != 1:
        raise UserError(
            f"network is 'conv4', which normalises over all images of a call, but {config.env_id} has episodes of "
            f"{env.max_episode_steps} steps, so that acting on single steps and learning from whole episodes "
            "would differ; leave network out."
        )
    if config.policy_gradient and not isinstance(env, SupervisedFamily):
        raise UserError(
            f"policy_gradient is on, but {config.env_id} is no supervised family and has no other gradient; leave "
            "policy_gradient out."
        )
    if not learns_from_examples(env, config):
        if env.max_episode_steps == 1 and config.num_rollouts == 1:
            raise UserError(
                f"num_rollouts is 1 and an episode of {config.env_id} has 1 step, but a single reward has nothing "
                "to be compared with; take more rollouts."
            )
        return
    instead = "or learn it from rewards with policy_gradient."
    if config.outer in ("trpo", "ppo"):
        raise UserError(
            f"outer is {config.outer!r}, but {config.env_id} is learned from examples, without probabilities of "
            f"actions; choose outer adam or reptile, {instead}"
        )
    if env.max_episode_steps != 1:
        raise UserError(
            f"horizon is {env.max_episode_steps}, but an example of {config.env_id} is one step; leave horizon "
            f"out, {instead}"
        )
    for name in config.changed(
        *("estimator", "e_maml", "inner_advantage", "log_std_lr", "initial_std"),
        *("discount", "gae_lambda", "normalise_advantages"),
    ):
        raise UserError(
            f"{name} is {getattr(config, name)!r}, but {config.env_id} is learned from examples, which do not use "
            f"it; leave {name} out, {instead}"
        )


def _check_options(config: Config) -> None:
    """Refuses options that contradict each other, and says what to choose instead."""
    if config.estimator not in ESTIMATORS:
        raise UserError(f"estimator is {config.estimator!r}, but must be one of {', '.join(ESTIMATORS)}.")
    if config.outer not in OPTIMISERS:
        raise UserError(f"outer is {config.outer!r}, but must be one of {', '.join(OPTIMISERS)}.")
    # What options are only used with. An outer optimiser of the user's own may use any of them.
    own = config.outer not in ("trpo", "ppo", "adam", "reptile")
    trust_region, ppo = own or config.outer == "trpo", own or config.outer == "ppo"
    _only_with(config, trust_region, "outer trpo", "max_kl", "cg_iterations", "cg_damping", "line_search_steps")
    _only_with(config, ppo, "outer ppo", "ppo_epochs", "ppo_clip")
    _only_with(config, ppo and config.num_steps > 0, "outer ppo and inner steps", "kl_penalty")
    _only_with(config, config.outer != "trpo", "outer ppo, adam or reptile", "outer_lr")
    _only_with(config, config.estimator == "dice", "estimator dice", "dice_lambda")
    _only_with(config, config.network is None, "the MLP and the small CNN", "activation")
    second = ("estimator", "inner_advantage")  # a first-order gradient does not reach the network of advantages
    _only_with(config, not config.first_order, "second derivatives (without first_order)", *second)
    inner = config.changed("estimator", "e_maml", "first_order", "learn_lr", "inner_advantage")
    if config.outer == "reptile":
        if config.num_steps == 0:
            raise UserError(
                "outer is 'reptile', which moves towards adapted parameters; choose num_steps 1 or more."
            )
        if inner:
            raise UserError(
                f"{inner[0]} is {getattr(config, inner[0])!r}, but Reptile takes no derivative of an outer loss, "
                f"and cannot use it; choose outer trpo, ppo or adam, or leave {inner[0]} out."
            )
    if config.num_steps == 0 and inner:
        raise UserError(
            f"{inner[0]} is {getattr(config, inner[0])!r}, but with num_steps 0 training has no inner step that "
            f"could use it; choose num_steps 1 or more, or leave {inner[0]} out."
        )
    if config.e_maml and config.num_tasks < 2:
        raise UserError(
            f"e_maml is {config.e_maml} and num_tasks is 1, but e_maml compares a task with the others; choose "
            "num_tasks 2 or more, or leave e_maml out."
        )
    if config.observe_task and config.num_steps:
        raise UserError(
            f"observe_task is on and num_steps is {config.num_steps}, but a policy that sees the task has "
            "nothing to adapt to; choose num_steps 0, or leave observe_task out."
        )


def _only_with(config: Config, used: bool, condition: str, *names: str) -> None:
    for name in config.changed(*names):
        if not used:
            raise UserError(
                f"{name} is {getattr(config, name)!r}, but is only used with {condition}; choose that, or leave "
                f"{name} out."
            )
