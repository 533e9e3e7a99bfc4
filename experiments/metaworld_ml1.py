"""MAML with a learned step on one manipulation of Meta-World (ML1, arXiv:1910.10897).

`python experiments/metaworld_ml1.py --env-kwargs task_name push-v3`; the extra `metaworld`. Plain MAML is
`--learn-lr no --max-kl 0.01`.

The tasks, horizon, inner step, λ and budget of two million steps are those of the package metaworld-algorithms,
and the network is the paper's. Half as many rollouts in twice as many iterations reach more; see the lab notes.
metaworld_protocol.py evaluates a run by the benchmark's own protocol.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/ML1-v0",
    env_kwargs={"task_name": "reach-v3"},
    run_dir=Path("runs/metaworld_ml1"),
    iterations=40,
    num_tasks=10,
    num_rollouts=5,
    gae_lambda=1.0,
    hidden_sizes=(128, 128),
    learn_lr="task",
    max_kl=0.05,
    eval_num_tasks=20,
    eval_num_rollouts=10,
    eval_num_steps=2,
    eval_every=20,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
