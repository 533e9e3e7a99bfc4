"""MAML on half-cheetahs that run forward or backward, as in section 5.3 of arXiv:1703.03400.

`python experiments/half_cheetah_dir.py`
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/HalfCheetahDir-v0",
    run_dir=Path("runs/half_cheetah_dir"),
    iterations=150,
    normalise_observations=True,
    initial_std=0.3,
    inner_lr=0.05,
    max_kl=0.1,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
