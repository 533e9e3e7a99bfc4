"""MAML on few-shot classification of Omniglot's characters, 5 ways and 1 shot, as in arXiv:1703.03400.

`python experiments/omniglot.py --env-kwargs root FOLDER`, where FOLDER is what torchvision's Omniglot
was downloaded to. The published training takes 60,000 iterations.
"""

import dataclasses
from pathlib import Path

import glyphs

from maml_rl.cli import run_experiment

CONFIG = dataclasses.replace(
    glyphs.CONFIG,
    env_id="maml_rl/Omniglot-v0",
    run_dir=Path("runs/omniglot"),
    iterations=60_000,
    hidden_sizes=(64,),
)

if __name__ == "__main__":
    run_experiment(CONFIG)
