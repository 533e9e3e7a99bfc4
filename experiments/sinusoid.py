"""MAML on few-shot regression of sine waves, as in section 5.1 of arXiv:1703.03400.

`python experiments/sinusoid.py`. Shots are examples of a task: 10 in training, 5 in evaluations. The published
training takes 70,000 iterations.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/Sinusoid-v0",
    run_dir=Path("runs/sinusoid"),
    iterations=20_000,
    num_tasks=25,
    num_rollouts=10,
    hidden_sizes=(40, 40),
    activation="relu",
    inner_lr=0.01,
    outer="adam",
    outer_lr=0.001,
    eval_every=2000,
    eval_num_tasks=600,
    eval_num_rollouts=5,
    eval_num_steps=10,
    eval_lr_factors=(1.0,),
    checkpoint_every=500,
    chunk_tasks=25,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
