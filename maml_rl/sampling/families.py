"""The environments of a run's task family."""

import importlib
import math
import os
import re

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from .. import ranks
from ..config import Config
from ..envs import BrokenEnvironmentError, VectorFamily, make_vec, num_cores
from ..errors import UserError
from .spaces import Array


def import_family(env_id: str) -> None:
    """Imports the module that `module:id` names, which registers the family. Other ids need nothing.

    Call this only for an id that the user gave, never for one from a file.

    Raises:
        UserError: If the module cannot be imported.
    """
    module = env_id.rpartition(":")[0]
    if module.startswith("."):
        raise UserError(f"Cannot make the task family {env_id!r}: {module!r} is relative; {_WHERE}.")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"Cannot import the module {module!r} of the task family {env_id!r}: {_reason(error)}. Give the "
                "name of a module that Python finds, and install what it imports."
            ) from error


def registered_id(env_id: str) -> str:
    """Returns the id alone of an id or `module:id`."""
    return env_id.rpartition(":")[2]


def is_registered(env_id: str) -> bool:
    """Returns whether the family of an id, or of `module:id`, is already registered."""
    return registered_id(env_id) in gymnasium.registry


def is_native(env_id: str) -> bool:
    """Returns whether a registered family steps all its environments together."""
    return gymnasium.spec(registered_id(env_id)).vector_entry_point is not None


def make_env(config: Config, num_envs: int, render_mode: str | None = None) -> VectorFamily:
    """Makes N environments of a run's family, which must already be registered.

    Args:
        config: The options of the family and of the machine are used.
        num_envs: N.
        render_mode: None or "rgb_array".

    Raises:
        UserError: If the id is unknown or not a task family, or if the family cannot be made or has no horizon.
    """
    workers = num_cores() if config.num_workers is None else config.num_workers
    try:
        env = make_vec(
            registered_id(config.env_id),
            num_envs,
            config.horizon,
            num_workers=workers,
            worker_timeout=config.worker_timeout,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
            **config.env_kwargs,
        )
    except BrokenEnvironmentError as error:
        raise UserError(str(error)) from error
    except SystemExit as error:
        raise UserError(f"The task family {config.env_id!r} called sys.exit while it was made; fix it.") from error
    except (NotImplementedError, TypeError, ValueError) as error:
        if render_mode is not None and not is_native(config.env_id) and "argument" in str(error):
            raise UserError(
                f"{config.env_id!r} cannot make pictures ({_reason(error)}); accept render_mode in its "
                "constructor, and return a picture, (height, width, 3) uint8, from render."
            ) from error
        given = f" with env_kwargs {config.env_kwargs}" if config.env_kwargs else ""
        advice = "; give the arguments that it takes" if config.env_kwargs else ""
        raise UserError(
            f"Cannot make the task family {config.env_id!r}{given}: {_reason(error)}{advice}."
        ) from error
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"Cannot make the task family {config.env_id!r} ({_reason(error)}); {_WHERE}.") from error
    if env.max_episode_steps is None:
        raise UserError(
            f"{config.env_id!r} has no horizon; register it with max_episode_steps, or set the option horizon."
        )
    require_actions(config.env_id, env.single_action_space)
    return env


def require_memory(env: VectorFamily, config: Config, *prefixes: str) -> None:
    """Refuses batches of rollouts that cannot fit into this machine's memory.

    Args:
        env: An environment of the family.
        config: The sizes are used.
        prefixes: Those of the options with the sizes: "" in training, "eval_" in evaluations.

    Raises:
        UserError: If a phase needs more memory than there is.
    """
    assert env.max_episode_steps is not None
    sizes = (spaces.flatdim(env.single_observation_space), 3 * spaces.flatdim(env.single_action_space), 8)
    memory = (
        1e-9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    )
    for prefix in prefixes:
        num_tasks, num_rollouts = (getattr(config, prefix + name) for name in ("num_tasks", "num_rollouts"))
        num_rollouts *= ranks.size(num_tasks)
        needed = 4e-9 * num_rollouts * env.max_episode_steps * sum(sizes)
        if needed > memory:
            raise UserError(
                f"{num_rollouts} rollouts of {env.max_episode_steps} steps need at least {needed:.0f} GB of "
                f"memory, but this machine has {memory:.0f} GB; lower {prefix}num_tasks, {prefix}num_rollouts or "
                "horizon."
            )


def sample_tasks(env: VectorFamily, num_tasks: int, rng: np.random.Generator, held_out: bool = False) -> Array:
    """Draws tasks with a family's own method, and checks what it returns.

    Args:
        env: Environments of the family.
        num_tasks: M.
        rng: The only source of randomness.
        held_out: Draw tasks for an evaluation.

    Returns:
        The tasks, (M, D).

    Raises:
        UserError: If the environment's method raises, or does not return M tasks of the task space.
    """
    draw = env.sample_test_tasks if held_out else env.sample_tasks
    try:
        tasks = draw(num_tasks, rng)
    except BrokenEnvironmentError as error:
        raise UserError(str(error)) from error
    return given_tasks(env, tasks, num_tasks, f"the result of {draw.__name__}")


def given_tasks(env: VectorFamily, tasks: object, num_tasks: int, source: str) -> Array:
    """Checks tasks that come from outside, (M, D). `source` says where from.

    Raises:
        UserError: If they are not M tasks of the task space.
    """
    try:
        return env.checked_tasks(tasks, num_tasks, source)
    except ValueError as error:
        raise UserError(_reason(error) + ".") from error
    except BrokenEnvironmentError as error:  # from the environment's `task_problem`
        raise UserError(str(error)) from error


def require_actions(env_id: str, space: spaces.Space[object]) -> None:
    """Refuses action spaces for which there is no action distribution."""
    if not isinstance(space, spaces.Discrete) and not (
        isinstance(space, spaces.Box | spaces.MultiDiscrete) and len(space.shape) == 1
    ):
        raise UserError(
            f"The action space of {env_id!r} is {space}, but there are action distributions only for "
            "Discrete, and for one-dimensional Box and MultiDiscrete; wrap the environment so that it has one of "
            "them."
        )


_WHERE = "`maml-rl families` lists the registered families, and module:id imports the module that registers yours"


def _reason(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rstrip(".")
