"""Creates N environments of any family, native or adapted."""

from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from .adapter import AdaptedVectorEnv
from .family import VectorFamily


def make_vec(
    env_id: str,
    num_envs: int,
    max_episode_steps: int | None = None,
    *,
    num_workers: int = 0,
    worker_timeout: float = 60.0,
    render_mode: str | None = None,
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    **kwargs: Any,
) -> VectorFamily:
    """Makes N environments of a registered family. Without a vector entry point, the family is adapted.

    Args:
        env_id: The registered id.
        num_envs: The number of environments N.
        max_episode_steps: The horizon H. None means the registered one.
        num_workers: As for `AdaptedVectorEnv`. Native families ignore it.
        worker_timeout: As for `AdaptedVectorEnv`. Native families ignore it.
        render_mode: None or "rgb_array".
        autoreset_mode: What a native family does after the end of an episode: `NEXT_STEP` begins a new one,
            `DISABLED` rests until the next `reset`, which saves its simulation. Adapted families always rest.
        **kwargs: Arguments of the family.

    Raises:
        ValueError: If the id does not belong to a family, or if the mode is not one of the two.
    """
    if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        raise ValueError(f"{env_id}: autoreset_mode is {autoreset_mode}, but must be NEXT_STEP or DISABLED.")
    spec = gymnasium.spec(env_id)
    if spec.vector_entry_point is None:
        return AdaptedVectorEnv(
            spec,
            num_envs,
            max_episode_steps,
            render_mode,
            num_workers=num_workers,
            worker_timeout=worker_timeout,
            **kwargs,
        )
    steps = spec.max_episode_steps if max_episode_steps is None else max_episode_steps
    kwargs |= {"max_episode_steps": steps, "render_mode": render_mode}
    env: gymnasium.vector.VectorEnv[Any, Any, Any] = gymnasium.make_vec(
        env_id, num_envs, "vector_entry_point", **kwargs
    )
    if not isinstance(env, VectorFamily):
        raise ValueError(
            f"{env_id} is not a task family: its class has no task_space, a Gymnasium space that says what a task "
            "is, and its vector entry point is not a maml_rl.envs.TaskVectorEnv."
        )
    env.metadata = {**env.metadata, "autoreset_mode": autoreset_mode}
    return env
