"""What few-shot classification of letters gets without meta-training: `python experiments/glyphs_pretraining.py`.

* pre-training: the same network learns to name all training classes, by ordinary classification of as many images
  as MAML sees. Then its last layer is replaced by one of zeros, and it adapts to the examples of a task as MAML
  does, with any number of steps. It is evaluated and kept like every other run.
* nearest neighbour: an image has the label of the example whose pixels are nearest.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import reproduce
import torch
import tyro
from maml_rl.envs import make_vec
from torch import Tensor, nn

from maml_rl import Config, train
from maml_rl.cli import run
from maml_rl.policies import CategoricalHead, Conv4
from maml_rl.process import tune_process
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import load_config
from maml_rl.sampling.spaces import encode
from maml_rl.sampling.streams import numpy_generator, stream, torch_generator

BATCH = 128


def pretrained(config: Config) -> nn.Module:
    """The network after classification of all training classes, with a last layer of zeros for the N classes."""
    env = make_vec(config.env_id, 1, **config.env_kwargs)
    images, width = env.images, config.hidden_sizes[-1]
    num_images = int(images.sizes[: images.num_training].sum())
    x = encode(env.single_observation_space, images.pixels[:num_images])
    labels = torch.from_numpy(np.repeat(np.arange(images.num_training), images.sizes[: images.num_training]))
    generator = torch_generator(stream(config.seed, "pre-training"))
    policy = Conv4(env.single_observation_space.shape, width, CategoricalHead(width, images.num_training))
    policy.to(config.device)
    optimiser = torch.optim.Adam(policy.parameters(), lr=config.outer_lr)
    for _ in range(config.iterations * config.num_tasks * 2 * config.num_rollouts // BATCH):
        rows = torch.randint(num_images, (BATCH,), generator=generator)
        loss: Tensor = -policy(x[rows].to(config.device)).log_prob(labels[rows].to(config.device)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    policy.head = CategoricalHead(width, env.num_ways)
    for parameter in policy.head.parameters():
        nn.init.zeros_(parameter)
    return policy.cpu()


def nearest(config: Config) -> float:
    """The accuracy of the nearest example, over the tasks of an evaluation."""
    env = make_vec(config.env_id, 1, **config.env_kwargs)
    rng = numpy_generator(config.seed, "nearest neighbour")
    tasks = env.sample_test_tasks(config.eval_num_tasks, rng)
    right = []
    for task in tasks:
        pixels, labels = env.examples(task[None], 2 * config.eval_num_rollouts, rng)
        known, new = np.split(pixels[0].reshape(len(labels[0]), -1).astype(np.float64), 2)
        distances = np.square(new[:, None] - known).sum(-1)
        known_labels, new_labels = np.split(labels[0], 2)
        right.append(known_labels[distances.argmin(1)] == new_labels)
    return float(np.mean(right))


def main(
    families: tuple[str, ...] = tuple(reproduce.FEW_SHOT),
    seeds: tuple[int, ...] = (1, 2, 3),
    root: Path = Path("runs/reproduce"),
    device: str = Config.device,
) -> None:
    """Trains, evaluates and writes what is not there yet.

    Args:
        families: Families of reproduce.py.
        seeds: Seeds of each.
        root: Where the runs' folders are, as in reproduce.py. Other families in its nearest.json are kept.
        device: Device of the learner.
    """
    tune_process()
    path = root / "nearest.json"
    found: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    for family in families:
        for seed in seeds:
            config = reproduce.options(family, "maml", seed, root, device)
            folder = root / family / "pretraining" / f"seed{seed}"
            if not (folder / "evaluation.json").exists():
                steps = {"inner_lr": 0.1, "num_steps": 1, "eval_num_steps": 10, "iterations": 0, "run_dir": folder}
                train(dataclasses.replace(config, **steps), policy=pretrained(config))
        # Of all seeds that are there, so that those of earlier calls are kept.
        runs = sorted((root / family / "pretraining").glob("seed*/evaluation.json"))
        found[family] = [nearest(load_config(run.parent)) for run in runs]
        write_json(path, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
