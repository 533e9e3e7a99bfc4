"""MAML on walkers with random parameters, as in arXiv:1810.06784.

`python experiments/walker_2d_rand_params.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/Walker2DRandParams-v0",
    run_dir=Path("runs/walker_2d_rand_params"),
    iterations=50,
    num_rollouts=10,
    initial_std=0.5,
    max_kl=0.05,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
