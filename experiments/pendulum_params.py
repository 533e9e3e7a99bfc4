"""MAML on pendulums with varied gravity and rods.

`python experiments/pendulum_params.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/PendulumParams-v0",
    run_dir=Path("runs/pendulum_params"),
    iterations=40,
    num_tasks=10,
    num_rollouts=10,
    max_kl=0.05,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
