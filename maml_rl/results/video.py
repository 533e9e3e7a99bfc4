"""Videos of held-out tasks before and after adaptation, side by side."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Literal

import gymnasium
import imageio.v3 as imageio
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.tensorboard import SummaryWriter

from ..config import Config
from ..envs import BrokenEnvironmentError, in_words
from ..errors import UserError
from ..methods import method_of
from ..policies import flatten
from ..runs.evaluation import held_out, held_out_seed
from ..runs.files import write_atomically
from ..sampling.families import make_env
from ..sampling.rollouts import Rollouts
from ..sampling.spaces import Array, action_map
from ..sampling.streams import integer_seed, stream

_CAPTION = 32  # height in pixels; together with the frame, a multiple of 16, which video codecs need
_MAX_FPS = 30


def adaptation_video(policy: nn.Module, config: Config, num_tasks: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Films the first rollout of held-out tasks, one row per task: before adaptation left, after all steps right.

    Args:
        policy: The policy, with the parameters θ to start from.
        config: The run's options. The rollouts are those of an evaluation with these `eval_...` options and
            `num_tasks` tasks.
        num_tasks: The number of held-out tasks to show.

    Returns:
        The frames (T, height, width, 3) uint8, and the number of frames per second.

    Raises:
        UserError: If the family cannot be rendered here. The message says why.
    """
    shown = max(2, num_tasks)  # an evaluation has at least two tasks; these are all in one round
    config = dataclasses.replace(
        config, eval_num_tasks=shown, num_tasks=shown, num_rollouts=config.eval_num_rollouts
    )
    with held_out(policy, flatten(policy), config) as (env, tasks, phases):
        num_tasks = min(num_tasks, len(tasks))
        batches = [tree_map(lambda x: x[:num_tasks], batch) for batch in phases]
        env_fps = env.metadata["render_fps"]
    if batches[0].targets:
        raise UserError(f"This run of {config.env_id} learns from examples, and has no episodes to film.")
    last, unit = len(batches) - 1, method_of(config).unit
    stride = math.ceil(env_fps / _MAX_FPS)
    columns = [
        _column(config, tasks[:num_tasks], batches[k], k, title, stride)
        for k, title in ((0, "before adaptation"), (last, f"after {last} {unit}{'s' * (last != 1)}"))
    ]
    length = max(len(frames) for column in columns for frames in column)
    rows = [
        [
            np.stack(frames + frames[-1:] * (length - len(frames))) for frames in row
        ]  # after its end, a rollout shows its last frame
        for row in zip(*columns, strict=True)
    ]
    video = np.concatenate([np.concatenate(pair, axis=2) for pair in rows], axis=1)
    return video, round(env_fps / stride)


def _column(
    config: Config, tasks: Array, batch: Rollouts, phase: int, title: str, stride: int
) -> list[list[Array]]:
    """Repeats the first rollout of each task, with a captioned frame of every `stride` steps.

    The same seeds and actions give the same rollouts.
    """
    phases = stream(held_out_seed(config), "held-out rollouts").spawn(config.eval_num_steps + 1)
    first_seed = integer_seed(phases[phase].spawn(2)[0])
    seeds = [first_seed + i * config.eval_num_rollouts for i in range(len(tasks))]
    returns = batch.rewards[:, 0].cumsum(-1).numpy()
    env = make_env(dataclasses.replace(config, num_workers=0), len(tasks), render_mode="rgb_array")
    to_env = action_map(env.single_action_space)
    column: list[list[Array]] = [[] for _ in tasks]
    try:
        env.reset(seed=seeds, options={"task": tasks})  # type: ignore[arg-type]
        for t in range(batch.mask.shape[-1]):
            _, rewards, *_ = env.step(to_env(batch.actions[:, 0, t].numpy()))
            for i, task in enumerate(tasks):
                if batch.mask[i, 0, t]:
                    if not np.isclose(rewards[i], batch.rewards[i, 0, t], rtol=1e-4, atol=1e-4):
                        raise UserError(
                            f"{config.env_id} does not repeat itself with the same seeds and actions, so its "
                            "rollouts cannot be filmed; let reset(seed=...) seed all of its randomness."
                        )
                    if t % stride == 0:
                        caption = f"{title}: return {returns[i, t]:.1f}\ntask {in_words(np.round(task, 2))}"
                        column[i].append(_captioned(env.snapshot(i), caption))
    except (BrokenEnvironmentError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(f"{config.env_id} cannot be rendered here: {error}") from error
    finally:
        env.close()
    return column


def _captioned(frame: Array, caption: str) -> Array:
    height, width = (-(-size // 16) * 16 for size in frame.shape[:2])
    image = Image.new("RGB", (width, height + _CAPTION), "white")
    image.paste(Image.fromarray(frame), (0, _CAPTION))
    ImageDraw.Draw(image).multiline_text((6, 3), caption, fill="black", spacing=2)
    return np.array(image)


def write_video(path: Path, frames: Array, fps: int) -> None:
    """Writes an mp4 file atomically."""
    content = imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, codec="libx264")
    assert isinstance(content, bytes)
    write_atomically(path, content)


def animation(frames: Array, fps: int, smaller: int, kind: Literal["GIF", "WEBP"]) -> bytes:
    """Returns an animated image that shows every second frame, a number of times smaller, at the video's pace."""
    first, *rest = [Image.fromarray(frame).reduce(smaller) for frame in frames[::2]]
    content = io.BytesIO()
    # The last two options are WebP's alone.
    first.save(
        content, kind, save_all=True, append_images=rest, duration=2000 // fps, loop=0, quality=60, method=6
    )
    return content.getvalue()


def add_video(folder: Path, tag: str, frames: Array, fps: int, step: int) -> None:
    """Adds an animated GIF of half the size to the TensorBoard events of a run."""
    height, width = (size // 2 for size in frames.shape[1:3])  # both are even
    content = animation(frames, fps, 2, "GIF")
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    with SummaryWriter(str(folder)) as writer:
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
