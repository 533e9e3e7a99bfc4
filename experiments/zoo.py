"""Puts the best committed runs into the package's zoo: `python experiments/zoo.py --families ant_vel`.

Copies config.json and checkpoint.pt of each run, and writes its card from evaluation.json and training.json.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import report
import tyro

from maml_rl.cli import run
from maml_rl.methods import curve_name
from maml_rl.results.comparison import label
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import load_config

# The best method of each family, by its returns after one step, and the seed. RL² has more than 100 kB.
CHOSEN = {
    "navigation_2d": ("learned_step", 1),
    "sparse_navigation_2d": ("promp", 3),
    "half_cheetah_vel": ("learned_step", 1),
    "half_cheetah_dir": ("cavia", 1),
    "ant_vel": ("maml", 1),
    "ant_dir": ("maml_continued", 1),
    "hopper_rand_params": ("learned_step", 1),
    "walker_2d_rand_params": ("learned_step", 1),
    "cart_pole_params": ("maml", 1),
    "pendulum_params": ("maml", 1),
    "bernoulli_bandit": ("promp", 1),
    "tabular_mdp": ("learned_step", 1),
    "sinusoid": ("maml", 1),
}


def card(folder: Path) -> dict[str, Any]:
    """The card of a run in experiments/results; see `maml_rl.zoo.card`."""
    family, method, _ = folder.parts[-3:]
    config = load_config(folder)
    evaluation, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("evaluation", "training"))
    curve = evaluation["methods"][curve_name(config)]
    return {
        "env_id": config.env_id,
        "method": label(config),
        "commit": record["commit"],
        "command": f"python experiments/reproduce.py --families {family} --methods {method} --seeds {config.seed}",
        "env_steps": record["env_steps"],
        "minutes": round(record["seconds"] / 60, 1),
        "num_tasks": evaluation["num_tasks"],
        "tasks_seen": evaluation.get("tasks_seen", False),
        "num_rollouts": evaluation["num_rollouts"],
        "returns": curve["mean"],
        "ci95": curve["ci95"],
    }


def main(
    families: tuple[Literal[*CHOSEN], ...] = tuple(CHOSEN),
    root: Path = Path("runs/reproduce"),
    zoo_folder: Path = report.ZOO,
) -> None:
    """Copies the runs and writes their cards.

    Args:
        families: Which families.
        root: The folder that reproduce.py trained into, for checkpoints that are not committed.
        zoo_folder: Where to write.
    """
    for family in families:
        method, seed = CHOSEN[family]
        source = report.RESULTS / family / method / f"seed{seed}"
        target = zoo_folder / family
        target.mkdir(exist_ok=True)
        shutil.copy(source / "config.json", target)
        with_checkpoint = source if (source / "checkpoint.pt").exists() else root / family / method / f"seed{seed}"
        shutil.copy(with_checkpoint / "checkpoint.pt", target)
        write_json(target / "card.json", card(source))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
