"""MAML with a learned step on 2D navigation, as in section 5.3 of arXiv:1703.03400.

`python experiments/navigation_2d.py`. Plain MAML is `--learn-lr no --max-kl 0.01`.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/Navigation2D-v0",
    run_dir=Path("runs/navigation_2d"),
    iterations=60,
    inner_lr=0.5,
    learn_lr="task",
    max_kl=0.06,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
