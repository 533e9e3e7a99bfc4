"""Meta-reinforcement learning on task families.

`train(config)` meta-trains a policy, `load(run_dir)` gives a trained one back so that it can adapt and act, and
`evaluate(run_dir)` draws its adaptation curves. `maml_rl.envs` holds the task families.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0.dev0"

from . import envs as envs

if TYPE_CHECKING:
    from .config import Config as Config
    from .errors import UserError as UserError
    from .meta_policy import MetaPolicy as MetaPolicy
    from .meta_policy import load as load
    from .process import tune_process as tune_process
    from .runs.evaluation import evaluate as evaluate
    from .runs.evaluation import evaluate_policy as evaluate_policy
    from .runs.tensorboard import read_history as read_history
    from .training import Trained as Trained
    from .training import train as train

__all__ = [
    "Config",
    "MetaPolicy",
    "Trained",
    "UserError",
    "evaluate",
    "evaluate_policy",
    "load",
    "read_history",
    "train",
    "tune_process",
]

_MODULES = {
    "Config": "config",
    "MetaPolicy": "meta_policy",
    "Trained": "training",
    "UserError": "errors",
    "evaluate": "runs.evaluation",
    "evaluate_policy": "runs.evaluation",
    "load": "meta_policy",
    "read_history": "runs.tensorboard",
    "train": "training",
    "tune_process": "process",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that the families alone do not need torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
