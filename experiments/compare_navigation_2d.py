"""Every method on 2D navigation, several seeds each: `python experiments/compare_navigation_2d.py`.

Trains what is not there yet, or goes on with what was stopped, and compares. One method or seed alone, so that
several can run at the same time: `--methods promp --seeds 2`.
"""

import dataclasses
from pathlib import Path

import tyro

from maml_rl import Config, UserError, train
from maml_rl.cli import compare, run
from maml_rl.runs import load_config

BASE = Config(env_id="maml_rl/Navigation2D-v0", iterations=60, inner_lr=0.5, eval_every=0)
METHODS: dict[str, dict[str, object]] = {
    "maml": {},
    "maml_lvc": {"estimator": "lvc"},
    "promp": {"estimator": "lvc", "outer": "ppo", "outer_lr": 0.002},
    "e_maml": {"e_maml": 1 / 20},  # 1/K
    "fomaml": {"first_order": True},
    "meta_sgd": {"learn_lr": "parameter"},
    "anil": {"adapt_only": "head"},
    "pretrain": {"num_steps": 0},
    "oracle": {"num_steps": 0, "observe_task": True, "eval_num_steps": 0},
    # As many environment steps in training as the others have, in more and smaller iterations.
    "rl2": {
        "rl2_episodes": 2,
        "num_steps": 0,
        "outer": "ppo",
        "outer_lr": 0.002,
        "ppo_epochs": 10,
        "hidden_sizes": (64,),
        "num_tasks": 40,
        "num_rollouts": 4,
        "iterations": 150,
        "eval_num_steps": 60,
    },
    "scratch": {"iterations": 0, "eval_num_steps": 100, "inner_lr": 1.0, "eval_lr_factors": (1.0,)},
}


def main(
    run_dir: Path = Path("runs/compare_navigation_2d"),
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (1, 2, 3),
    iterations: int | None = None,
) -> None:
    """Trains and compares.

    Args:
        run_dir: Folder of the runs, one for each method and seed; the picture is written there.
        methods: Which methods.
        seeds: Which seeds.
        iterations: Meta-iterations in place of each method's own.
    """
    unknown = set(methods) - METHODS.keys()
    if unknown:
        raise UserError(f"There is no method {', '.join(sorted(unknown))}, only {', '.join(METHODS)}.")
    folders = []
    for method in methods:
        for seed in seeds:
            folder = run_dir / method / f"seed{seed}"
            options = {**METHODS[method], "run_dir": folder, "seed": seed}
            if iterations is not None and method != "scratch":
                options["iterations"] = iterations
            config = dataclasses.replace(BASE, **options)  # type: ignore[arg-type]
            if not (folder / "evaluation.json").exists() or load_config(folder) != config:
                train(dataclasses.replace(config, resume=True))
            folders.append(folder)
    compare(tuple(folders), picture=run_dir / "comparison.png")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
