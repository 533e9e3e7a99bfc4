"""Task families: Gymnasium environments in which each episode has a task.

A family is registered like every Gymnasium environment. `gymnasium.make` and `gymnasium.make_vec` create it, and
`families()` lists it. This package does not depend on the learner.
"""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

if TYPE_CHECKING:
    from .adapter import AdaptedVectorEnv
    from .checks import check_family
    from .family import BrokenEnvironmentError, VectorFamily, in_words, num_cores
    from .few_shot import FewShotVectorEnv, Images
    from .making import make_vec
    from .native import TaskEnv, TaskVectorEnv
    from .supervised import ExamplesError, SupervisedFamily

__all__ = [
    "AdaptedVectorEnv",
    "BrokenEnvironmentError",
    "ExamplesError",
    "FewShotVectorEnv",
    "Images",
    "SupervisedFamily",
    "TaskEnv",
    "TaskVectorEnv",
    "VectorFamily",
    "check_family",
    "families",
    "in_words",
    "make_vec",
    "num_cores",
]

_NAMES = {
    "adapter": ("AdaptedVectorEnv",),
    "checks": ("check_family",),
    "few_shot": ("FewShotVectorEnv", "Images"),
    "family": ("BrokenEnvironmentError", "VectorFamily", "in_words", "num_cores"),
    "making": ("make_vec",),
    "native": ("TaskEnv", "TaskVectorEnv"),
    "supervised": ("ExamplesError", "SupervisedFamily"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a name on first use, so that registering the families takes no time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def _register(name: str, module: str, horizon: int, native: bool = True, **kwargs: Any) -> None:
    gymnasium.register(
        id=f"maml_rl/{name}-v0",
        entry_point=f"maml_rl.envs.{module}:{name}Env",
        vector_entry_point=f"maml_rl.envs.{module}:{name}VectorEnv" if native else None,
        max_episode_steps=horizon,
        kwargs=kwargs,
    )


def families() -> list[str]:
    """Lists the ids of all registered task families, whoever wrote them, in alphabetical order.

    A family is a `TaskVectorEnv`, or an environment whose class has a `task_space`. Environments whose package
    is not installed are left out, and so are Gymnasium's own.
    """
    return sorted(spec.id for spec in [*gymnasium.registry.values()] if _is_family(spec))


def _is_family(spec: EnvSpec) -> bool:
    from .native import TaskVectorEnv

    entry_point = spec.vector_entry_point or spec.entry_point
    if not isinstance(entry_point, str) or entry_point.startswith("gymnasium."):
        return False
    try:
        creator = load_env_creator(entry_point)
    except Exception:  # a broken or missing package must not keep the other families off the list
        return False
    if spec.vector_entry_point is not None:
        return isinstance(creator, type) and issubclass(creator, TaskVectorEnv)
    return isinstance(creator, type) and getattr(creator, "task_space", None) is not None


for _name in ("Navigation2D", "PixelNavigation2D", "CornerNavigation2D"):
    _register(_name, "navigation", horizon=100)
_register("SparseNavigation2D", "navigation", horizon=20)
_register("Sinusoid", "supervised", horizon=1)
for _name in ("Glyphs", "Omniglot", "ImageFolder"):
    _register(_name, "few_shot", horizon=1)
_register("BernoulliBandit", "bandit", horizon=10, num_arms=5)
_register("TabularMDP", "tabular", horizon=10, num_states=10, num_actions=5)
for _name in ("HalfCheetahVel", "HalfCheetahDir", "AntVel", "AntDir", "AntGoal"):
    _register(_name, "locomotion", horizon=100)
for _name in ("HumanoidDir", "HopperRandParams", "Walker2DRandParams"):
    _register(_name, "locomotion", horizon=200)
for _name in ("CartPoleParams", "PendulumParams"):
    _register(_name, "classic", horizon=200, native=False)
for _name in ("ML1", "ML10", "ML45"):
    _register(_name, "meta_world", horizon=500, native=False)
