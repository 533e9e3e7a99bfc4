"""MAML on few-shot classification of letters of many scripts, 5 ways and 1 shot; nothing is downloaded.

`python experiments/glyphs.py`. With 20 ways:
`python experiments/glyphs.py --env-kwargs num_ways 20 --num-rollouts 20 --eval-num-rollouts 20`.

Options are those of Omniglot in arXiv:1703.03400, appendix A.1, with half as many filters and fewer iterations.
"""

import dataclasses
from pathlib import Path
from typing import Any

from maml_rl import Config
from maml_rl.cli import run_experiment

CONFIG = Config(
    env_id="maml_rl/Glyphs-v0",
    env_kwargs={"num_ways": 5},
    run_dir=Path("runs/glyphs"),
    iterations=500,
    num_tasks=32,
    num_rollouts=5,
    network="conv4",
    hidden_sizes=(32,),
    inner_lr=0.4,
    outer="adam",
    outer_lr=0.001,
    eval_every=100,
    eval_num_tasks=600,
    eval_num_rollouts=5,
    eval_num_steps=3,
    eval_lr_factors=(1.0,),
    checkpoint_every=100,
    chunk_tasks=16,
)


def options(num_ways: int, num_shots: int, **changed: Any) -> Config:
    """The options with other numbers of classes and of examples of each, and further changes."""
    num_examples = num_ways * num_shots
    return dataclasses.replace(
        CONFIG,
        env_kwargs={"num_ways": num_ways},
        num_rollouts=num_examples,
        eval_num_rollouts=num_examples,
        **changed,
    )


if __name__ == "__main__":
    run_experiment(CONFIG)
