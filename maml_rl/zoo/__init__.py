"""Trained policies that come with the package. `zoo/NAME` stands for the run folder of one.

Each folder has the run's config.json and checkpoint.pt, and a card.json about how it was trained and what it
reaches. `experiments/zoo.py` writes them from the committed results.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The names of all policies."""
    return sorted(path.parent.name for path in _HERE.glob("*/card.json"))


def card(name: str) -> dict[str, Any]:
    """What is known about a policy.

    Returns:
        Its family `env_id`, its `method`, `commit` and `command`, the `env_steps` and `minutes` of its training,
        and of its evaluation `num_tasks`, `num_rollouts`, `tasks_seen` (whether training has seen these tasks
        too), and the mean `returns` after 0, 1, ... steps with their 95% intervals `ci95`.
    """
    content: dict[str, Any] = json.loads((located(Path("zoo", name)) / "card.json").read_text())
    return content


def located(folder: Path) -> Path:
    """The folder of a policy if it is called `zoo/NAME` and no folder of the user has this name.

    Raises:
        UserError: If there is no policy of this name.
    """
    if folder.parts[:1] != ("zoo",) or len(folder.parts) != 2 or folder.exists():
        return folder
    if folder.name not in names():
        raise UserError(
            f"There is no policy {folder}; choose one of {', '.join(f'zoo/{name}' for name in names())}."
        )
    return _HERE / folder.name
