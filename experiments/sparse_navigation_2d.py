"""MAML on 2D navigation with rewards only near the goal: `python experiments/sparse_navigation_2d.py`."""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/SparseNavigation2D-v0",
    run_dir=Path("runs/sparse_navigation_2d"),
    iterations=100,
    inner_lr=0.5,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
