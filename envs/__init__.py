"""Task families: Gymnasium environments whose episodes are steered by a task.

A family is registered as every Gymnasium environment is, so `gymnasium.make` and
`gymnasium.make_vec` build it, and `families()` finds it. This package knows nothing of the learner.
"""

from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from .checks import check_family
from .core import TaskEnv, TaskVectorEnv, in_words

__all__ = ["TaskEnv", "TaskVectorEnv", "check_family", "families", "in_words"]


def _register(name: str, module: str, env: str, horizon: int, **kwargs: Any) -> None:
    gymnasium.register(
        id=f"maml_rl/{name}-v0",
        entry_point=f"maml_rl.envs.{module}:{env}Env",
        vector_entry_point=f"maml_rl.envs.{module}:{env}VectorEnv",
        max_episode_steps=horizon,
        kwargs=kwargs,
    )


def families() -> list[str]:
    """The ids of all registered task families, anyone's, in alphabetical order."""
    return sorted(
        spec.id
        for spec in gymnasium.registry.values()
        if isinstance(spec.vector_entry_point, str)
        and not spec.vector_entry_point.startswith("gymnasium.")
        and isinstance(creator := load_env_creator(spec.vector_entry_point), type)
        and issubclass(creator, TaskVectorEnv)
    )


_register("Navigation2D", "navigation", "Navigation2D", horizon=100)
_register("BernoulliBandit", "bandit", "BernoulliBandit", horizon=10, num_arms=5)
_register("TabularMDP", "tabular", "TabularMDP", horizon=10, num_states=10, num_actions=5)
for _name in ("HalfCheetahVel", "HalfCheetahDir", "AntVel", "AntDir", "AntGoal"):
    _register(_name, "locomotion", _name, horizon=100)
for _name in ("HumanoidDir", "HopperRandParams", "Walker2DRandParams"):
    _register(_name, "locomotion", _name, horizon=200)
