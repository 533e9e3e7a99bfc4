"""Trains what the tables in README.md show: `python experiments/reproduce.py --families ant_dir --methods maml`.

What is not there yet is trained, what was stopped goes on. Beside what `train` writes, each run folder gets a
training.json: the commit, what it took, and its learning curve.
"""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import ant_dir
import ant_goal
import ant_vel
import bernoulli_bandit
import cart_pole_params
import glyphs
import half_cheetah_dir
import half_cheetah_vel
import hopper_rand_params
import humanoid_dir
import metaworld_ml1
import metaworld_ml10
import navigation_2d
import pendulum_params
import sinusoid
import sparse_navigation_2d
import tabular_mdp
import torch
import tyro
import walker_2d_rand_params
from maml_rl.envs import num_cores

from maml_rl import Config, UserError, train
from maml_rl.cli import run
from maml_rl.runs.files import write_json
from maml_rl.runs.tensorboard import read_history, return_tags
from maml_rl.sweep import is_finished

PLAIN: dict[str, Any] = {"learn_lr": "no", "max_kl": Config.max_kl}
# What a family's methods have in common is plain MAML. Some scripts train another method by default.
BASES = {
    "navigation_2d": dataclasses.replace(navigation_2d.CONFIG, **PLAIN),
    "sparse_navigation_2d": sparse_navigation_2d.CONFIG,
    "half_cheetah_vel": dataclasses.replace(
        half_cheetah_vel.CONFIG, learn_lr="no", num_rollouts=20, iterations=200
    ),
    "half_cheetah_dir": half_cheetah_dir.CONFIG,
    "ant_vel": ant_vel.CONFIG,
    "ant_dir": ant_dir.CONFIG,
    "ant_goal": ant_goal.CONFIG,
    "humanoid_dir": humanoid_dir.CONFIG,
    "bernoulli_bandit": bernoulli_bandit.CONFIG,
    "tabular_mdp": tabular_mdp.CONFIG,
    "cart_pole_params": cart_pole_params.CONFIG,
    "pendulum_params": pendulum_params.CONFIG,
    "hopper_rand_params": hopper_rand_params.CONFIG,
    "walker_2d_rand_params": walker_2d_rand_params.CONFIG,
    "ml1_reach": dataclasses.replace(metaworld_ml1.CONFIG, **PLAIN),
    "ml1_push": dataclasses.replace(metaworld_ml1.CONFIG, **PLAIN, env_kwargs={"task_name": "push-v3"}),
    "ml1_pick_place": dataclasses.replace(
        metaworld_ml1.CONFIG, **PLAIN, env_kwargs={"task_name": "pick-place-v3"}
    ),
    "ml10": dataclasses.replace(metaworld_ml10.CONFIG, **PLAIN),
    "sinusoid": sinusoid.CONFIG,
    "glyphs_5_ways_1_shot": glyphs.CONFIG,
    "glyphs_5_ways_5_shots": glyphs.options(num_ways=5, num_shots=5, num_tasks=8),
    # The paper's numbers of tasks and steps.
    "glyphs_20_ways_1_shot": glyphs.options(
        num_ways=20, num_shots=1, num_tasks=16, num_steps=5, inner_lr=0.1, eval_num_steps=5, iterations=1000
    ),
}
FEW_SHOT = [family for family in BASES if family.startswith("glyphs")]
META_WORLD = [family for family in BASES if family.startswith("ml")]
SHORT = ["bernoulli_bandit", "tabular_mdp"]  # a task is ten steps long
WALKING = ["ant_vel", "ant_dir", "ant_goal", "humanoid_dir"]
PHYSICS = [family for family in BASES if family.endswith("_params")]  # tasks differ in their physics
PRETRAIN = {"num_steps": 0}
PPO = {"outer": "ppo", "outer_lr": 0.001, "ppo_epochs": 10, "max_kl": Config.max_kl}
ORACLE = {"num_steps": 0, "observe_task": True, "eval_num_steps": 0}
RL2 = {
    "rl2_episodes": 2,
    "num_steps": 0,
    "outer": "ppo",
    "outer_lr": 0.002,
    "ppo_epochs": 10,
    "hidden_sizes": (64,),
    "num_rollouts": 4,
    "eval_num_steps": 60,
}
# It remembers the ten episodes that other methods adapt on, with the network and λ of metaworld-algorithms.
# Each task has one learner; ten episodes are as many environment steps as two phases of five rollouts.
RL2_OF_TEN = {
    **RL2,
    "rl2_episodes": 10,
    "hidden_sizes": (256,),
    "gae_lambda": 0.95,
    "num_rollouts": 1,
    "eval_num_steps": 10,
}
# All that they remember is 100 steps, as in arXiv:1611.02779: 10 episodes, or in bandits 100 pulls.
RL2_OF_SHORT = {
    **RL2,
    "num_tasks": 40,
    "max_kl": Config.max_kl,
    "rl2_episodes": 10,
    "outer_lr": 0.005,
    "num_rollouts": 5,
    "iterations": 150,
    "eval_num_steps": 9,
}
# Without an inner step to estimate, half as many rollouts do.
OF_ROBOTS: dict[str, dict[str, object]] = {
    "maml": {},
    "learned_step": {"learn_lr": "task"},
    "learned_advantage": {"inner_advantage": "learned"},
    "pretrain": {**PRETRAIN, "num_rollouts": 10, "iterations": 100},
    "oracle": {**ORACLE, "num_rollouts": 10, "iterations": 300},
    "rl2": {**RL2, "num_tasks": 40, "max_kl": Config.max_kl, "eval_num_steps": 3, "iterations": 400},
}
# Each method's options that differ from its family's; that of a random initialisation is evaluated with each run.
METHODS: dict[str, dict[str, dict[str, object]]] = {
    "navigation_2d": {
        "maml": {},
        "learned_step": {"learn_lr": "task", "max_kl": 0.06},
        "maml_lvc": {"estimator": "lvc"},
        "promp": {"estimator": "lvc", "outer": "ppo", "outer_lr": 0.002},
        "e_maml": {"e_maml": 1 / 20},  # 1/K
        "fomaml": {"first_order": True},
        "meta_sgd": {"learn_lr": "parameter"},
        "anil": {"adapt_only": "head"},
        "pretrain": PRETRAIN,
        # Its episodes end at the goal, so that these are fewer environment steps than MAML has in 60 iterations.
        "oracle": {**ORACLE, "iterations": 1000},
        # As many episodes in training as the others have, in more and smaller iterations.
        "rl2": {**RL2, "num_tasks": 40, "iterations": 150},
        "scratch": {"iterations": 0, "eval_num_steps": 100, "inner_lr": 1.0, "eval_lr_factors": (1.0,)},
    },
    # Where a task is felt only near its goal, methods differ in how they explore.
    "sparse_navigation_2d": {
        "maml": {},
        "learned_step": {"learn_lr": "task", "max_kl": 0.06},
        "learned_advantage": {"inner_advantage": "learned"},
        "maml_lvc": {"estimator": "lvc"},
        "maml_dice": {"estimator": "dice", "dice_lambda": 0.8},
        "e_maml": {"e_maml": 1 / 20},  # 1/K
        "promp": {"estimator": "lvc", "outer": "ppo", "outer_lr": 0.002},
        "rl2": {**RL2, "num_tasks": 40, "iterations": 250},
    },
    **{family: {**OF_ROBOTS} for family in ("half_cheetah_vel", "half_cheetah_dir")},
    # Ants and humanoids go on learning for longer.
    **{
        family: {
            **OF_ROBOTS,
            "pretrain": {**PRETRAIN, "num_rollouts": 10, "iterations": 200},
            # More and smaller iterations train it in fewer steps.
            "oracle": {**ORACLE, "num_tasks": 20, "num_rollouts": 10, "iterations": 600},
            "promp": {**PPO, "estimator": "lvc"},
        }
        for family in WALKING
    },
    # Without an inner step, twice as many iterations are as many environment steps.
    **{
        family: {
            "maml": {},
            "learned_step": {"learn_lr": "task"},
            "promp": {"estimator": "lvc", "outer": "ppo", "outer_lr": 0.002, "max_kl": Config.max_kl},
            "pretrain": {**PRETRAIN, "iterations": 2 * BASES[family].iterations},
            # short_baselines.py computes the optimal policies of tabular MDPs. A trained oracle learns little
            # from a task's 550 numbers.
            **(
                {"oracle": {**ORACLE, "iterations": 2 * BASES[family].iterations}}
                if family != "tabular_mdp"
                else {}
            ),
            "rl2": RL2_OF_SHORT
            if family in SHORT
            else {
                **RL2,
                "max_kl": Config.max_kl,
                "ppo_epochs": 5,
                "eval_num_steps": 3,
                "iterations": 5 * BASES[family].iterations // 2,
            },
        }
        for family in [*SHORT, *PHYSICS]
    },
    **{
        family: {
            "maml": {},
            "learned_step": {"learn_lr": "task", "max_kl": 0.05},
            "pretrain": PRETRAIN,
            "rl2": RL2_OF_TEN,
        }
        for family in META_WORLD
    },
    "sinusoid": {
        "maml": {},
        "fomaml": {"first_order": True},
        "reptile": {"outer": "reptile", "outer_lr": 0.1, "num_steps": 5},
        "meta_sgd": {"learn_lr": "parameter"},
        "pretrain": PRETRAIN,
        "oracle": ORACLE,
    },
    **{
        family: {
            "maml": {},
            "fomaml": {"first_order": True},
            "anil": {"adapt_only": "head"},
            "meta_sgd": {"learn_lr": "parameter"},
            "reptile": {"outer": "reptile", "outer_lr": 0.1, "num_steps": 5},
        }
        for family in FEW_SHOT
    },
}
# With the estimator of low variance, more conjugate gradients pay. Without it, they end in a collapse.
LOW_VARIANCE = {"learn_lr": "task", "estimator": "lvc", "cg_iterations": 30}
# What a method's options have in some families only, and methods that only one family has.
EXCEPTIONS: dict[tuple[str, str], dict[str, object]] = {
    # Half as many rollouts in twice as many iterations are as many steps, and reach more; see the family's page.
    ("half_cheetah_vel", "learned_step"): {"num_rollouts": 10, "iterations": 400},
    ("half_cheetah_dir", "learned_step_lvc"): {**LOW_VARIANCE, "iterations": 250},
    # With a few extra inputs that adapt instead of all parameters, half as many rollouts do as well
    # in an outer step.
    ("half_cheetah_dir", "cavia"): {
        **LOW_VARIANCE,
        "adapt_only": "context",
        "context_size": 8,
        "inner_lr": 10.0,
        "num_rollouts": 10,
        "iterations": 500,
    },
    # As many rollouts of fewer tasks: it has only two.
    ("half_cheetah_dir", "rl2"): {"num_tasks": 16, "num_rollouts": 10},
    # A score is only as good as its oracle. Those of ants still improved after 600, 1200 and 1800 iterations,
    # and those of hoppers and walkers after 100.
    ("half_cheetah_vel", "oracle"): {"iterations": 900},
    ("half_cheetah_dir", "oracle"): {"iterations": 1000},
    ("ant_dir", "oracle"): {"iterations": 3000},
    # Once every pole stays up, larger steps only follow noise.
    ("cart_pole_params", "oracle"): {"max_kl": 0.02, "iterations": 100},
    ("hopper_rand_params", "oracle"): {"iterations": 400},
    ("walker_2d_rand_params", "oracle"): {"iterations": 600},
    # Without normalised observations, PPO trains them in fewer steps.
    ("ant_goal", "oracle"): {**PPO, "num_rollouts": 5},
    ("humanoid_dir", "oracle"): {**PPO, "num_rollouts": 5, "iterations": 400},
    ("ant_dir", "maml"): {"iterations": 900},
    # Late in training, more rollouts in a step help.
    ("ant_dir", "maml_continued"): {
        "start_from": "maml",  # the committed run of this method
        "num_rollouts": 40,
        "iterations": 290,
    },
    # Still improved after 400 iterations.
    ("ant_vel", "rl2"): {"iterations": 800},
    # Its network learns little from observations of other scales; other methods learn without.
    ("ant_goal", "rl2"): {"normalise_observations": True, "iterations": 250},
    # As many environment steps as MAML.
    ("humanoid_dir", "rl2"): {"normalise_observations": True, "iterations": 120},
    # One episode of ten pulls, for which the paper has figures too.
    ("bernoulli_bandit", "rl2_once"): {
        **RL2_OF_SHORT,
        "rl2_episodes": 1,
        "num_rollouts": 20,
        "eval_num_steps": 0,
    },
}
for (_family, _method), _changed in EXCEPTIONS.items():
    METHODS[_family][_method] = METHODS[_family].get(_method, {}) | _changed
# Points of a learning curve in training.json.
POINTS = 1000
# All names of methods, each once.
_NAMES = dict.fromkeys(name for methods in METHODS.values() for name in methods)


def options(family: str, method: str, seed: int, root: Path, device: str = Config.device) -> Config:
    """All options of a run; evaluated at the end only, which changes nothing but how long it takes."""
    changed = {**METHODS[family][method], "run_dir": root / family / method / f"seed{seed}", "seed": seed}
    if first := changed.get("start_from"):
        changed["start_from"] = Path("experiments/results", family, first, f"seed{seed}")
    return dataclasses.replace(BASES[family], eval_every=0, device=device, **changed)  # type: ignore[arg-type]


def commit() -> str:
    """The commit of this checkout, with "-dirty" behind it where code was changed since.

    Raises:
        UserError: If this is no checkout.
    """
    here = Path(__file__).parent
    code = ["--", "../maml_rl", "../envs", ":(glob)*.py"]
    try:
        outputs = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=9", "HEAD"], ["status", "--porcelain", "-uno", *code])
        ]
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            "Cannot read the commit, which is recorded with every run; install git, and run this in a clone; or "
            "run the family's own script."
        ) from error
    return outputs[0] + "-dirty" * bool(outputs[1])


def training_record(config: Config, trained_by: str) -> dict[str, object]:
    """Makes training.json: the last commit, the cores available, the time and steps taken, and the curves."""
    history = read_history(config.run_dir)
    device = torch.device(config.device)
    names = return_tags(history)
    steps = [step for step, _ in history[names[0]]] if names else []
    every = max(1, -(-len(steps) // POINTS))
    at = steps[::every]
    curves = {t.removeprefix("train/"): [round(value, 3) for _, value in history[t][::every]] for t in names}
    timed = ("time/collect_seconds", "time/update_seconds") * bool(steps)
    spent = [value for tag in timed for _, value in history[tag]]
    if config.start_from:  # whose steps are counted too
        spent.append(json.loads((config.start_from / "training.json").read_text())["seconds"])
    return {
        "commit": trained_by,
        "cores": num_cores(),
        **({"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "env_steps": steps[-1] if steps else 0,
        "seconds": round(sum(spent)),
        "curves": {"env_steps": at, **curves},
    }


def main(
    families: tuple[Literal[*BASES], ...] = tuple(BASES),
    methods: tuple[Literal[*_NAMES], ...] = tuple(_NAMES),
    seeds: tuple[int, ...] = (1, 2, 3),
    root: Path = Path("runs/reproduce"),
    device: str = Config.device,
) -> None:
    """Trains what is not there yet, and goes on with what was stopped or is to have more iterations.

    Args:
        families: Which families.
        methods: The methods. A family skips those that it does not have in METHODS.
        seeds: Which seeds.
        root: Where the runs' folders are, one for each family, method and seed.
        device: Device of the learner. What was trained on another one is not trained again.
    """
    trained_by = commit()
    chosen = [(family, method) for family in families for method in METHODS[family] if method in methods]
    if not chosen:
        has = "; ".join(f"{family} has {', '.join(METHODS[family])}" for family in families)
        raise UserError(f"There is nothing to train: {has or 'no families are given'}.")
    for family, method in chosen:
        for seed in seeds:
            config = options(family, method, seed, root, device)
            record = config.run_dir / "training.json"
            if not (record.exists() and is_finished(config)):
                train(dataclasses.replace(config, resume=True))
                write_json(record, training_record(config, trained_by))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
