"""MAML with a learned step on ten manipulations of Meta-World, tested on five others (ML10, arXiv:1910.10897).

`python experiments/metaworld_ml10.py`; the extra `metaworld`. An iteration is 100,000 steps, and the budget of 20
million is the published one. Twenty tasks are two of each training manipulation, and four of each test
manipulation. See metaworld_ml1.py for the other options and for the benchmark's own evaluation.
"""

import dataclasses
from pathlib import Path

import metaworld_ml1

from maml_rl.cli import run_experiment

CONFIG = dataclasses.replace(
    metaworld_ml1.CONFIG,
    env_id="maml_rl/ML10-v0",
    env_kwargs={},
    run_dir=Path("runs/metaworld_ml10"),
    iterations=200,
    num_tasks=20,
    eval_every=40,
)

if __name__ == "__main__":
    run_experiment(CONFIG)
