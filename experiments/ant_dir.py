"""MAML on ants that walk forward or backward, as in section 5.3 of arXiv:1703.03400.

`python experiments/ant_dir.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/AntDir-v0",
    run_dir=Path("runs/ant_dir"),
    iterations=300,
    num_tasks=10,
    normalise_observations=True,
    initial_std=0.15,
    inner_lr=0.05,
    max_kl=0.1,
    eval_num_rollouts=40,  # as in the paper, which has 20 everywhere else
)

if __name__ == "__main__":
    run_experiment(CONFIG)
