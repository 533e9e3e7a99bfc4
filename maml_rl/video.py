"""Videos of held-out tasks before and after adaptation, side by side."""

import dataclasses
import io
import math
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from .config import Config
from .envs import BrokenEnvironmentError, in_words
from .errors import UserError
from .evaluation import held_out_rollouts, held_out_seed
from .policies import flatten
from .rollouts import Rollouts, action_map, make_env
from .runs import write_atomically
from .streams import integer_seed, stream

_CAPTION = 32  # height in pixels; with the frame's, a multiple of 16, as video codecs like it
_MAX_FPS = 30


def adaptation_video(policy: nn.Module, config: Config, num_tasks: int) -> tuple[np.ndarray, int]:
    """Shows the first rollout of held-out tasks, a row each: before adaptation left, after all steps right.

    Args:
        policy: The policy, with the parameters θ to start from.
        config: The run's options; `eval_...` as in an evaluation, whose very rollouts these are.
        num_tasks: How many of the held-out tasks to show.

    Returns:
        The frames (T, height, width, 3) uint8, and how many to show a second.

    Raises:
        UserError: If the family cannot be rendered here; says what is missing.
    """
    env, tasks, held_out = held_out_rollouts(policy, flatten(policy), config)
    batches = list(held_out)
    num_tasks = min(num_tasks, len(tasks))
    last = len(batches) - 1
    columns = [
        _column(config, tasks[:num_tasks], batches[k], k, title)
        for k, title in ((0, "before adaptation"), (last, f"after {last} step{'s' * (last != 1)}"))
    ]
    env_fps = env.metadata["render_fps"]
    length = max(len(frames) for column in columns for frames in column)
    rows = [
        [np.stack(frames + frames[-1:] * (length - len(frames))) for frames in row]  # ended: stands still
        for row in zip(*columns, strict=True)
    ]
    stride = math.ceil(env_fps / _MAX_FPS)
    video = np.concatenate([np.concatenate(pair, axis=2) for pair in rows], axis=1)
    return video[::stride], round(env_fps / stride)


def _column(config: Config, tasks: np.ndarray, batch: Rollouts, phase: int, title: str) -> list[list[np.ndarray]]:
    """The first rollouts of the first tasks again, with a captioned frame of every step.

    Environments draw from their own seeds and take the actions as given, so that they do the same again.
    """
    phases = stream(held_out_seed(config), "held-out rollouts").spawn(config.eval_num_steps + 1)
    first_seed = integer_seed(phases[phase].spawn(2)[0])
    seeds = [first_seed + i * config.eval_num_rollouts for i in range(len(tasks))]
    returns = batch.rewards[:, 0].cumsum(-1).numpy()
    env = make_env(dataclasses.replace(config, num_workers=0), len(tasks), render_mode="rgb_array")
    to_env = action_map(env.single_action_space)
    column: list[list[np.ndarray]] = [[] for _ in tasks]
    try:
        env.reset(seed=seeds, options={"task": tasks})  # type: ignore[arg-type]
        for t in range(batch.mask.shape[-1]):
            _, rewards, *_ = env.step(to_env(batch.actions[: len(tasks), 0, t].numpy()))
            for i, task in enumerate(tasks):
                if batch.mask[i, 0, t]:
                    if not np.isclose(rewards[i], batch.rewards[i, 0, t], rtol=1e-4, atol=1e-4):
                        raise UserError(
                            f"{config.env_id} does not do the same again from the same seeds and actions, so that "
                            "its rollouts cannot be filmed; let reset(seed) seed all its chance."
                        )
                    caption = f"{title}: return {returns[i, t]:.1f}\ntask {in_words(np.round(task, 2))}"
                    column[i].append(_captioned(env.snapshot(i), caption))
    except (BrokenEnvironmentError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(f"{config.env_id} cannot be rendered here: {error}") from error
    finally:
        env.close()
    return column


def _captioned(frame: np.ndarray, caption: str) -> np.ndarray:
    height, width = (-(-size // 16) * 16 for size in frame.shape[:2])
    image = Image.new("RGB", (width, height + _CAPTION), "white")
    image.paste(Image.fromarray(frame), (0, _CAPTION))
    ImageDraw.Draw(image).multiline_text((6, 3), caption, fill="black", spacing=2)
    return np.array(image)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes an mp4 file atomically."""
    content = imageio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, codec="libx264")
    assert isinstance(content, bytes)
    write_atomically(path, content)


def add_video(writer: SummaryWriter, tag: str, frames: np.ndarray, fps: int, step: int) -> None:
    """Adds an animated picture to TensorBoard, which shows GIF files: every second frame, at half the size."""
    _, height, width, _ = frames.shape
    height, width = height // 2, width // 2
    first, *rest = [Image.fromarray(frame).resize((width, height)) for frame in frames[::2]]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=2000 // fps, loop=0)
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
