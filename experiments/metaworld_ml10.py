"""MAML on ten manipulations of Meta-World, tested on five others (ML10, arXiv:1910.10897); the extra `metaworld`.

`python experiments/metaworld_ml10.py`

Twenty tasks are two of each training manipulation, and four of each test manipulation. See metaworld_ml1.py
for its length and for the benchmark's own evaluation.
"""

from pathlib import Path

from maml_rl import Config
from maml_rl.cli import run_experiment

if __name__ == "__main__":
    run_experiment(
        Config(
            env_id="maml_rl/ML10-v0",
            run_dir=Path("runs/metaworld_ml10"),
            iterations=100,
            num_tasks=20,
            num_rollouts=10,
            eval_num_tasks=20,
            eval_num_rollouts=5,
            eval_num_steps=2,
            eval_every=20,
        )
    )
