"""MAML on random tabular MDPs, the problem of section 3.2 of arXiv:1611.02779.

`python experiments/tabular_mdp.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/TabularMDP-v0",
    run_dir=Path("runs/tabular_mdp"),
    iterations=150,
    num_tasks=40,
    inner_lr=1.0,
    max_kl=0.02,
    eval_num_tasks=200,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
