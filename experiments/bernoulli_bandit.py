"""MAML on bandits with five arms, the problem of section 3.1 of arXiv:1611.02779.

`python experiments/bernoulli_bandit.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/BernoulliBandit-v0",
    run_dir=Path("runs/bernoulli_bandit"),
    iterations=60,
    num_tasks=40,
    inner_lr=1.0,
    gae_lambda=1.0,
    eval_num_tasks=200,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
