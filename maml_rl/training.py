"""Meta-training: the loop, from top to bottom."""

import copy
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from . import perceptron
from .adaptation import rollouts_through_adaptation
from .allocator import keep_memory
from .config import Config
from .errors import UserError
from .evaluation import adaptation_curves, held_out_rollouts
from .outer import optimiser
from .plots import pixels, rollouts_figure, write_figure, write_results
from .policies import load
from .rl2 import rl2_step
from .rollouts import Rollouts, make_env
from .runs import State, close, learner_device, new_policy, open_run, save_checkpoint, tensorboard
from .streams import stream


def train(config: Config, policy: nn.Module | None = None) -> nn.Module:
    """Meta-trains a policy and evaluates it on held-out tasks.

    Everything is written into `config.run_dir`: config.json, checkpoint.pt, TensorBoard events,
    evaluation.json, adaptation.png, and rollouts.png where the family can draw its rollouts. On Linux, memory that
    the process frees stays with it from here on (`maml_rl.allocator`).

    Args:
        config: The options of the run.
        policy: A module of your own in place of a ready-made one, from flattened observations (N, O) to one of
            `maml_rl.distributions`; it is copied. Its parameters are those of the untrained policy.

    Returns:
        The policy, its parameters θ meta-trained.

    Raises:
        UserError: If something from outside is wrong; see its message.
        KeyboardInterrupt: On Ctrl-C, after a checkpoint of the last whole iteration was written.
    """
    keep_memory()
    device = learner_device(config)
    outer_step = rl2_step if config.rl2_episodes else optimiser(config)
    lr_factors = [1.0] * (config.rl2_episodes - 1 if config.rl2_episodes else config.num_steps)
    policy = new_policy(config, policy)
    state = open_run(config, policy)
    learner = copy.deepcopy(policy).to(device)
    env = make_env(config, config.num_tasks * config.num_rollouts)
    writer = tensorboard(config, state)
    progress = tqdm(total=config.iterations, initial=state.iteration, unit="it", dynamic_ncols=True)
    if config.outer == "trpo" and not perceptron.covers(policy):
        progress.write("This policy is differentiated automatically: slower than a ready-made MLP.", sys.stderr)
    try:
        for iteration in range(state.iteration, config.iterations):
            started = time.perf_counter()
            tasks = env.sample_tasks(
                config.num_tasks, np.random.default_rng(stream(config.seed, "tasks", iteration))
            )
            seeds = stream(config.seed, "rollouts", iteration)
            theta = state.theta.to(device)
            batches = [*rollouts_through_adaptation(env, learner, theta, tasks, lr_factors, config, seeds)]
            collected = time.perf_counter()
            theta, memory, info = outer_step(learner, theta, state.memory, batches, config)
            theta, memory = tree_map_only(Tensor, Tensor.cpu, (theta, memory))
            updated = time.perf_counter()
            if not torch.isfinite(theta).all():
                raise UserError(
                    f"The outer step of iteration {iteration + 1} made parameters that are not finite; lower "
                    "outer_lr, inner_lr or max_kl. The checkpoint is of the iteration before."
                )

            env_steps = state.env_steps + sum(int(batch.mask.sum()) for batch in batches)
            after = State(theta, state.untrained, memory, iteration + 1, env_steps)
            returns = log_iteration(writer, state, after, batches, info, collected - started, updated - collected)
            for failed in (batch.outcomes["failed"] for batch in batches if "failed" in batch.outcomes):
                count = f"{int(failed.sum())} of {failed.numel()}"
                progress.write(f"{count} simulations broke down and were ended", sys.stderr)
            progress.set_postfix_str(f"return {returns[0]:.2f} → {returns[-1]:.2f}")
            progress.update()
            last = after.iteration == config.iterations
            if last or (config.eval_every and after.iteration % config.eval_every == 0):
                log_evaluation(writer, policy, after, config)
            if last or after.iteration % config.checkpoint_every == 0:
                checkpoint(writer, config, policy, after)
            # Only now is the iteration done: interrupted before, it is done again as a whole.
            state = after
    except (KeyboardInterrupt, UserError):
        checkpoint(writer, config, policy, state)
        raise
    finally:
        progress.close()
        env.close()
        close(writer)
    if not config.iterations:
        save_checkpoint(config.run_dir, policy, state)
    load(policy, state.theta)
    write_results(config.run_dir, adaptation_curves(policy, config, state))
    return policy


def checkpoint(writer: SummaryWriter, config: Config, policy: nn.Module, state: State) -> None:
    """Saves the state, events first: a checkpoint must never be ahead of the curves."""
    writer.flush()
    save_checkpoint(config.run_dir, policy, state)


def log_iteration(
    writer: SummaryWriter,
    before: State,
    after: State,
    batches: Sequence[Rollouts],
    info: dict[str, float],
    collect_seconds: float,
    update_seconds: float,
) -> list[float]:
    """Writes an iteration's scalars; returns the mean returns after 0 ... S inner steps."""
    scalars = batch_scalars("train", batches)
    returns = [scalars[f"train/return_step_{k}"] for k in range(len(batches))]
    scalars["train/adaptation_gain"] = returns[-1] - returns[0]
    scalars |= {f"outer/{name}": value for name, value in info.items()}
    seconds = collect_seconds + update_seconds
    scalars["time/env_steps_per_second"] = (after.env_steps - before.env_steps) / seconds
    scalars["time/collect_seconds"] = collect_seconds
    scalars["time/update_seconds"] = update_seconds
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, after.env_steps)
    return returns


def batch_scalars(group: str, batches: Sequence[Rollouts]) -> dict[str, float]:
    """Mean returns, and the shares of rollouts with each outcome, after 0 ... S inner steps."""
    scalars = {}
    for k, batch in enumerate(batches):
        scalars[f"{group}/return_step_{k}"] = batch.returns().mean().item()
        for name, flags in batch.outcomes.items():
            scalars[f"{group}/{name}_step_{k}"] = flags.float().mean().item()
    return scalars


def log_evaluation(writer: SummaryWriter, policy: nn.Module, state: State, config: Config) -> None:
    """Evaluates on held-out tasks; writes the returns, and a picture where the family can draw one."""
    env, tasks, held_out = held_out_rollouts(policy, state.theta, config)
    batches = list(held_out)
    for tag, value in batch_scalars("eval", batches).items():
        writer.add_scalar(tag, value, state.env_steps)
    figure = rollouts_figure(env, tasks, batches)
    if figure is not None:
        writer.add_image("eval/rollouts", pixels(figure), state.env_steps, dataformats="HWC")
        write_figure(config.run_dir / "rollouts.png", figure)
