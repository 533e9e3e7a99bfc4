"""MAML on one manipulation of Meta-World with other goals in tests (ML1, arXiv:1910.10897); the extra `metaworld`.

`python experiments/metaworld_ml1.py --env-kwargs task_name push-v3`

An iteration is 200,000 steps. metaworld_protocol.py evaluates a run by the benchmark's own protocol.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

if __name__ == "__main__":
    run_experiment(
        Config(
            env_id="maml_rl/ML1-v0",
            env_kwargs={"task_name": "reach-v3"},
            run_dir=Path("runs/metaworld_ml1"),
            iterations=100,
            num_tasks=20,
            num_rollouts=10,
            eval_num_tasks=20,
            eval_num_rollouts=5,
            eval_num_steps=2,
            eval_every=20,
        )
    )
