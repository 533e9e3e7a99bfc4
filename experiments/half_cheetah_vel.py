"""MAML with a learned step on half-cheetahs that run at a given speed, as in section 5.3 of arXiv:1703.03400.

`python experiments/half_cheetah_vel.py`. Plain MAML is `--learn-lr no`. Its committed runs have 200 iterations of
20 rollouts, which are as many environment steps.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/HalfCheetahVel-v0",
    run_dir=Path("runs/half_cheetah_vel"),
    iterations=400,
    num_rollouts=10,
    initial_std=0.5,
    inner_lr=0.01,
    learn_lr="task",
    normalise_advantages=False,
    max_kl=0.1,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
