"""MAML on few-shot regression of sine waves, as in section 5.1 of arXiv:1703.03400.

`python experiments/sinusoid.py`. Shots are examples of a task: 10 in training, 5 in evaluations. Adam takes longer
steps on more tasks than in the paper (0.001 on 25), and 20,000 of them instead of 70,000. Test steps after the
first are half as long, because a few tasks diverge otherwise.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/Sinusoid-v0",
    run_dir=Path("runs/sinusoid"),
    iterations=20_000,
    num_tasks=50,
    num_rollouts=10,
    hidden_sizes=(40, 40),
    activation="relu",
    inner_lr=0.01,
    outer="adam",
    outer_lr=0.003,
    eval_every=2000,
    eval_num_tasks=600,
    eval_num_rollouts=5,
    eval_num_steps=10,
    checkpoint_every=500,
    chunk_tasks=50,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
