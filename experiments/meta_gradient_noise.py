"""Signal and noise of each meta-gradient at a run's last θ: `python experiments/meta_gradient_noise.py RUN_DIR`.

Draws batches of tasks and rollouts as training does and prints a table: the norm of an estimator's mean over
batches, corrected for what noise adds to it, the standard deviation of one batch's estimate, and the cosine
between its mean and that of `vpg`. Where a signal is 0, so many batches do not show it.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from maml_rl import Config
from maml_rl.maml.objective import (
    exploration_credits,
    exploration_loss,
    mean_and_gradient,
    outer_loss,
    over_tasks,
    through_adaptation,
)
from maml_rl.methods import method_of
from maml_rl.runs.folder import load_run
from maml_rl.sampling.families import make_env
from maml_rl.sampling.rollouts import Rollouts
from maml_rl.sampling.streams import numpy_generator, stream

ESTIMATORS: dict[str, dict[str, object]] = {
    "vpg": {"estimator": "vpg"},
    "lvc": {"estimator": "lvc"},
    **{f"dice, λ = {x}": {"estimator": "dice", "dice_lambda": x} for x in (0.5, 0.8, 0.9, 0.95, 1.0)},
}


def main(run_dir: tyro.conf.Positional[Path], batches: int = 24) -> None:
    """Measures and prints.

    Args:
        run_dir: A run with inner steps.
        batches: How many.
    """
    config, policy, state = load_run(run_dir)
    config = dataclasses.replace(config, dice_lambda=1.0, estimator="vpg", e_maml=0.0)
    env = make_env(config, config.num_tasks * config.num_rollouts)
    gradients: dict[str, list[Tensor]] = {name: [] for name in (*ESTIMATORS, "E-MAML's term")}

    def exploration(policy: nn.Module, theta: Tensor, supports: tuple[Rollouts, ...], credit: Tensor) -> Tensor:
        _, before_each = through_adaptation(policy, theta, supports, config)
        return exploration_loss(before_each, supports, credit)

    for batch in range(batches):
        tasks = env.sample_tasks(config.num_tasks, numpy_generator(batch, "noise tasks"))
        seeds = stream(batch, "noise rollouts")
        *before_each, query = method_of(config).collect(
            env, policy, state.theta, tasks, config.num_rollouts, seeds
        )
        supports, credits = tuple(before_each), exploration_credits(query)
        for name, options in ESTIMATORS.items():
            own = dataclasses.replace(config, **options)  # type: ignore[arg-type]

            def losses(policy: nn.Module, theta: Tensor, *data: Any, own: Config = own) -> Tensor:
                return over_tasks(partial(outer_loss, config=own))(policy, theta, *data)[0]

            data = (supports, query, credits)
            gradients[name].append(mean_and_gradient(losses, policy, state.theta, data, config)[1])
        _, slope = mean_and_gradient(over_tasks(exploration), policy, state.theta, (supports, credits), config)
        gradients["E-MAML's term"].append(slope)
    env.close()
    print("| estimator | signal | noise of a batch | cosine to vpg |\n|---|---|---|---|")
    reference = torch.stack(gradients["vpg"]).mean(0)
    for name, samples in gradients.items():
        stacked = torch.stack(samples)
        mean = stacked.mean(0)
        noise = stacked.var(0).sum().sqrt()
        signal = (mean.square().sum() - noise**2 / batches).clamp(min=0).sqrt()
        cosine = torch.cosine_similarity(mean, reference, dim=0)
        print(f"| {name} | {signal:.3f} | {noise:.3f} | {cosine:.2f} |")


if __name__ == "__main__":
    tyro.cli(main)
