"""Meta-training: the algorithm, from top to bottom."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from . import ranks
from .config import Config
from .methods import method_of
from .recording import Callback, open_run
from .runs.tensorboard import History
from .sampling.collect import trimmed
from .sampling.families import import_family, sample_tasks
from .sampling.normalisation import with_observations
from .sampling.streams import numpy_generator, own_share, stream


class Trained(NamedTuple):
    """What `train` returns.

    Attributes:
        policy: The policy, with its meta-trained parameters θ. With `normalise_observations`, it must be given
            normalised observations. What `maml_rl.load` returns normalises them itself.
        history: All scalars logged in this call. Each tag maps to a list of (environment steps, value).
    """

    policy: nn.Module
    history: History


@torch.inference_mode(False)  # whatever the caller has set
@torch.enable_grad()
def train(config: Config, policy: nn.Module | None = None, callbacks: Sequence[Callback] = ()) -> Trained:
    """Meta-trains a policy and evaluates it on held-out tasks.

    Everything is written into `config.run_dir`: config.json, checkpoint.pt, TensorBoard events, evaluation.json,
    adaptation.png, and rollouts.png if the family can draw its rollouts.

    Args:
        config: The options of the run. If `env_id` is `module:id`, the module is imported.
        policy: Your own module instead of a ready-made one. It maps flattened observations (N, O) to one of the
            distributions of `maml_rl.policies`. It is copied. Its parameters are the untrained θ; with
            `start_from`, those of the other run replace them.
        callbacks: Functions that are called after each iteration with the environment steps so far and all scalars
            of the iteration, by tag. If one returns False, this iteration is the last one: the run is evaluated
            and saved as a run of that many iterations.

    Returns:
        The policy and the history.

    Raises:
        UserError: If an option, environment, policy or run folder is wrong. The message says what to do.
        KeyboardInterrupt: On Ctrl-C, after a checkpoint of the last complete iteration was written.
    """
    import_family(config.env_id)  # a module may register a method, too
    method = method_of(config)
    with ranks.joined(config), open_run(config, method, policy, callbacks) as run:
        theta, optimiser_state = run.parameters()
        for iteration in range(run.state.iteration, config.iterations):
            tasks = sample_tasks(run.env, config.num_tasks, numpy_generator(config.seed, "tasks", iteration))
            tasks, seeds = own_share(tasks, stream(config.seed, "rollouts", iteration))
            phases = method.collect(run.env, run.learner, theta, tasks, config.num_rollouts, seeds)
            batches = [trimmed(rollouts) for rollouts in phases]
            run.collected(batches)
            theta, optimiser_state, metrics = method.update(run.learner, theta, optimiser_state, batches)
            theta = with_observations(run.learner, theta, batches)
            if not run.record(theta, optimiser_state, metrics):
                break
    return Trained(run.policy, run.history)
