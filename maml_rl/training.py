"""Meta-training: the loop, from top to bottom."""

import time

import numpy as np
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .adaptation import rollouts_through_adaptation
from .config import Config
from .evaluation import evaluate, held_out_rollouts
from .outer import OuterInfo, trpo_step
from .plots import pixels, rollouts_figure, write_figure, write_results
from .policies import flatten, load
from .rollouts import Rollouts, make_env
from .runs import State, new_policy, open_run, save_checkpoint, stream, tensorboard


def train(config: Config) -> nn.Module:
    """Meta-trains a policy and evaluates it on held-out tasks.

    Everything is written into `config.run_dir`: config.json, checkpoint.pt, TensorBoard events,
    evaluation.json, adaptation.png, and rollouts.png where the family can draw its rollouts.

    Args:
        config: The options of the run.

    Returns:
        The policy, its parameters θ meta-trained.

    Raises:
        UserError: If something from outside is wrong; see its message.
        KeyboardInterrupt: On Ctrl-C, after a checkpoint was written.
    """
    env = make_env(config.env_id, config.num_tasks * config.num_rollouts, config.horizon)
    policy = new_policy(config)
    state = open_run(config, flatten(policy))
    writer = tensorboard(config, state)
    progress = tqdm(total=config.iterations, initial=state.iteration, unit="it", dynamic_ncols=True)
    try:
        for iteration in range(state.iteration, config.iterations):
            started = time.perf_counter()
            tasks = env.sample_tasks(
                config.num_tasks, np.random.default_rng(stream(config.seed, "tasks", iteration))
            )
            *supports, query = rollouts_through_adaptation(
                env,
                policy,
                state.theta,
                tasks,
                [config.inner_lr] * config.num_steps,
                config,
                stream(config.seed, "rollouts", iteration),
            )
            collected = time.perf_counter()
            theta, info = trpo_step(policy, state.theta, tuple(supports), query, config)
            updated = time.perf_counter()

            steps = sum(int(batch.mask.sum()) for batch in (*supports, query))
            state = State(theta, iteration + 1, state.env_steps + steps)
            seconds = (collected - started, updated - collected)
            log_iteration(writer, state.env_steps, (*supports, query), steps, info, seconds)
            returns = [batch.returns().mean().item() for batch in (*supports, query)]
            progress.set_postfix_str(f"return {returns[0]:.2f} → {returns[-1]:.2f}")
            progress.update()
            last = state.iteration == config.iterations
            if last or (config.eval_every and state.iteration % config.eval_every == 0):
                log_evaluation(writer, policy, state, config)
            if last or state.iteration % config.checkpoint_every == 0:
                # Events first: a checkpoint must never be ahead of the curves.
                writer.flush()
                save_checkpoint(config.run_dir, state)
    except KeyboardInterrupt:
        save_checkpoint(config.run_dir, state)
        raise
    finally:
        progress.close()
        writer.close()
        env.close()
    load(policy, state.theta)
    write_results(config.run_dir, evaluate(policy, config))
    return policy


def log_iteration(
    writer: SummaryWriter,
    env_steps: int,
    batches: tuple[Rollouts, ...],
    steps: int,
    info: OuterInfo,
    seconds: tuple[float, float],
) -> None:
    """Writes an iteration's scalars."""
    returns = [batch.returns().mean().item() for batch in batches]
    for k, value in enumerate(returns):
        writer.add_scalar(f"train/return_step_{k}", value, env_steps)
    writer.add_scalar("train/adaptation_gain", returns[-1] - returns[0], env_steps)
    for name, value in info._asdict().items():
        writer.add_scalar(f"outer/{name}", value, env_steps)
    writer.add_scalar("time/env_steps_per_second", steps / sum(seconds), env_steps)
    writer.add_scalar("time/collect_seconds", seconds[0], env_steps)
    writer.add_scalar("time/update_seconds", seconds[1], env_steps)


def log_evaluation(writer: SummaryWriter, policy: nn.Module, state: State, config: Config) -> None:
    """Evaluates on held-out tasks; writes the returns, and a picture where the family can draw one."""
    env, tasks, batches = held_out_rollouts(policy, state.theta, config)
    for k, batch in enumerate(batches):
        writer.add_scalar(f"eval/return_step_{k}", batch.returns().mean().item(), state.env_steps)
    figure = rollouts_figure(env, tasks, batches)
    if figure is not None:
        writer.add_image("eval/rollouts", pixels(figure), state.env_steps, dataformats="HWC")
        write_figure(config.run_dir / "rollouts.png", figure)
