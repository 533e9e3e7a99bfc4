"""Task families: Gymnasium environments whose episodes are steered by a task.

A family is registered as every Gymnasium environment is, so `gymnasium.make` and
`gymnasium.make_vec` build it, and `families()` finds it. This package knows nothing of the learner.
"""

from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from .adapter import AdaptedVectorEnv, BrokenEnvironmentError
from .checks import check_family
from .core import TaskEnv, TaskVectorEnv, VectorFamily, in_words, num_cores
from .making import make_vec

__all__ = [
    "AdaptedVectorEnv",
    "BrokenEnvironmentError",
    "TaskEnv",
    "TaskVectorEnv",
    "VectorFamily",
    "check_family",
    "families",
    "in_words",
    "make_vec",
    "num_cores",
]


def _register(name: str, module: str, horizon: int, native: bool = True, **kwargs: Any) -> None:
    gymnasium.register(
        id=f"maml_rl/{name}-v0",
        entry_point=f"maml_rl.envs.{module}:{name}Env",
        vector_entry_point=f"maml_rl.envs.{module}:{name}VectorEnv" if native else None,
        max_episode_steps=horizon,
        kwargs=kwargs,
    )


def families() -> list[str]:
    """The ids of all registered task families, anyone's, in alphabetical order.

    A family is a `TaskVectorEnv`, or an environment whose class has a `task_space`. Environments whose package
    is not installed are left out, and so are Gymnasium's own.
    """
    return sorted(spec.id for spec in [*gymnasium.registry.values()] if _is_family(spec))


def _is_family(spec: EnvSpec) -> bool:
    entry_point = spec.vector_entry_point or spec.entry_point
    if not isinstance(entry_point, str) or entry_point.startswith("gymnasium."):
        return False
    try:
        creator = load_env_creator(entry_point)
    except Exception:  # someone else's module, not installed or broken: no reason to list nothing at all
        return False
    if spec.vector_entry_point is not None:
        return isinstance(creator, type) and issubclass(creator, TaskVectorEnv)
    return isinstance(creator, type) and getattr(creator, "task_space", None) is not None


for _name in ("Navigation2D", "PixelNavigation2D"):
    _register(_name, "navigation", horizon=100)
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
