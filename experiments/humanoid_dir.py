"""MAML on humanoids that walk, each in its own direction, as in arXiv:1810.06784.

`python experiments/humanoid_dir.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/HumanoidDir-v0",
    run_dir=Path("runs/humanoid_dir"),
    iterations=100,
    num_tasks=10,
    initial_std=0.15,
    inner_lr=0.05,
    max_kl=0.05,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
