"""MAML on carts with other masses and poles of other lengths.

`python experiments/cart_pole_params.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/CartPoleParams-v0",
    run_dir=Path("runs/cart_pole_params"),
    iterations=20,
    num_tasks=10,
    num_rollouts=10,
    max_kl=0.05,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
