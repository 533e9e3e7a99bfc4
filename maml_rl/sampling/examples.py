"""Examples of supervised families, and predictions of their targets as rollouts of one step."""

from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..config import Config
from ..envs import ExamplesError, SupervisedFamily, VectorFamily, in_words
from ..errors import UserError
from ..policies import prediction_loss
from .actors import Actor
from .rollouts import Rollouts
from .spaces import Array, encode
from .streams import whole_batch


def learns_from_examples(env: VectorFamily, config: Config) -> TypeGuard[SupervisedFamily]:
    """Returns whether inner steps follow the gradient of the family's loss itself."""
    return isinstance(env, SupervisedFamily) and not config.policy_gradient


def example_sets(
    env: SupervisedFamily, tasks: Array, num_examples: int, seeds: np.random.SeedSequence
) -> list[tuple[Tensor, Tensor]]:
    """Draws two sets of K examples of each task, to adapt to and to be measured on.

    Returns:
        The support set and the query set, each as policy inputs (M, K, O) and targets (M, K, ...).

    Raises:
        UserError: As `as_tensors`, or if the family has no such sets.
    """
    whole, rows = whole_batch(seeds, tasks)
    try:
        drawn = env.examples(whole, 2 * num_examples, np.random.default_rng(seeds))
    except ExamplesError as error:
        raise UserError(str(error)) from error
    inputs, targets = as_tensors(env, *drawn, (len(whole), 2 * num_examples))
    inputs, targets = inputs[rows], targets[rows]
    halves = zip(inputs.split(num_examples, 1), targets.split(num_examples, 1), strict=True)
    return [(x.contiguous(), y.contiguous()) for x, y in halves]


def as_tensors(
    env: VectorFamily, inputs: Array, targets: Array, shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Checks K examples of M tasks, and converts them to policy inputs (M, K, O) and targets (M, K, ...).

    Args:
        env: The family.
        inputs: (M, K, ...).
        targets: (M, K, A), or (M, K) if discrete.
        shape: M and K, by default those of the inputs.

    Raises:
        UserError: If their shapes are not those of the family's spaces, or they are not finite numbers.
    """
    x, y = np.asarray(inputs), np.asarray(targets)
    shape = x.shape[:2] if shape is None else shape
    observations, actions = env.single_observation_space, env.single_action_space
    for name, values, space in (("inputs", x, observations), ("targets", y, actions)):
        expected = (*shape, *(space.shape or ()))
        if values.shape != expected:
            # Where there are as many tasks as there should be, the shapes are those of one task.
            first, of = (1, "a task") if values.shape[:1] == shape[:1] else (0, "the examples")
            raise UserError(
                f"The {name} of {of} have shape {values.shape[first:]}, but must have {expected[first:]}: a value "
                f"of {in_words(space)} for each example."
            )
        if values.dtype.kind not in "biuf":
            raise UserError(f"The {name} of examples are of type {values.dtype}, but must be real numbers.")
        wanted, found = (np.issubdtype(kind, np.integer) for kind in (space.dtype, values.dtype))
        if wanted and not found:
            raise UserError(
                f"The {name} of examples are {values.dtype} numbers, but must be integers of {in_words(space)}."
            )
        if not np.isfinite(values).all():
            raise UserError(f"The {name} of examples are not all finite; correct them.")
    encoded = encode(observations, x.reshape(-1, *x.shape[2:])).view(*shape, -1)
    if not encoded.isfinite().all():
        raise UserError(f"The inputs of examples are not all in {in_words(observations)}; correct them.")
    if y.ndim == 2:
        start, n = int(actions.start), int(actions.n)  # type: ignore[attr-defined]
        if not np.isin(y, np.arange(start, start + n)).all():
            raise UserError(f"The targets of examples are not all classes of {actions}; correct them.")
        return encoded, torch.from_numpy(y - start).long()
    return encoded, torch.from_numpy(np.asarray(y, np.float32))


def predict(actor: Actor, inputs: Tensor, targets: Tensor) -> Rollouts:
    """Predicts the targets of examples. The most probable actions are the predictions, and -L are the rewards.

    Args:
        actor: The policies, one for each task.
        inputs: (M, K, O), on the device of the actor.
        targets: (M, K, A), or classes (M, K), of which right predictions are a success. On the same device.

    Returns:
        Rollouts of one step, (M, K, 1, ...), with targets, on this device.
    """
    with torch.no_grad():
        seen, behaviour = actor.act(inputs)
        seen, behaviour, targets = tree_map(lambda x: x.unsqueeze(2), (seen, behaviour, targets))
        predictions, losses = behaviour.mode(), prediction_loss(behaviour, targets)
        success = losses.new_full(inputs.shape[:2], torch.nan)
        if not targets.is_floating_point():
            success = (predictions == targets).squeeze(2).float()
        return Rollouts(
            observations=seen,
            actions=predictions,
            rewards=-losses,
            mask=torch.ones_like(losses, dtype=torch.bool),
            behaviour=behaviour,
            log_probs=behaviour.log_prob(predictions),
            advantages=torch.zeros_like(losses),
            advantage_scale=losses.new_ones(len(losses)),
            success=success,
            failed=torch.zeros(losses.shape[:2], dtype=torch.bool, device=losses.device),
            targets=(targets,),
        )
