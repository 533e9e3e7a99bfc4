"""MAML on ants that walk to a given place, as in arXiv:1810.06784.

`python experiments/ant_goal.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/AntGoal-v0",
    run_dir=Path("runs/ant_goal"),
    iterations=150,
    num_tasks=10,
    initial_std=0.15,
    inner_lr=0.02,
    max_kl=0.1,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
