"""The run folder: configuration, checkpoint and TensorBoard events."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from .adaptation import prepare
from .config import Config
from .distributions import Distribution
from .errors import UserError
from .policies import flatten, load, make_policy
from .recurrent import GRUPolicy
from .rollouts import make_env
from .streams import stream, torch_generator

_FORMAT = "maml_rl checkpoint 2"
# Options that a resumed run may change: they say how long, where, and how often, not what is computed.
_FREE = {
    "run_dir",
    "resume",
    "iterations",
    "eval_every",
    "checkpoint_every",
    "num_workers",
    "worker_timeout",
    "max_failed_share",
    "device",
}


def learner_device(config: Config) -> torch.device:
    """The device of the option of that name.

    Raises:
        UserError: If there is no such device here.
    """
    try:
        device = torch.device(config.device)
    except RuntimeError:
        device = torch.device("meta")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(
            f"device is {config.device!r}, but here there are only {', '.join(known)}; choose one of them."
        )
    return device


class State(NamedTuple):
    """All that a run needs in order to go on.

    Attributes:
        theta: θ, (P,).
        untrained: θ before training, (P,).
        memory: What the outer optimiser remembers; numbers, strings and tensors in lists and dictionaries.
        iteration: Meta-iterations done.
        env_steps: Environment steps taken in them, the x axis of TensorBoard.
    """

    theta: Tensor
    untrained: Tensor
    memory: dict[str, Any]
    iteration: int
    env_steps: int


def new_policy(config: Config, own: nn.Module | None = None) -> nn.Module:
    """The untrained policy of a run: the same for the same configuration, at any time.

    Args:
        config: The run's options.
        own: A module of the user's in place of a ready-made one; it is copied.

    Raises:
        UserError: If there is no ready-made policy for the family, or the policy lacks what options name.
    """
    env = make_env(config, 1)
    env.close()
    observations, actions = env.single_observation_space, env.single_action_space
    task_size = spaces.flatdim(env.task_space) if config.observe_task else 0
    if own is None:
        generator = torch_generator(stream(config.seed, "policy"))
        policy = make_policy(observations, actions, config, generator, task_size)
    else:
        if config.rl2_episodes and isinstance(actions, spaces.MultiDiscrete):
            raise UserError(f"The memory of RL² takes no actions of {actions}, only of a Box or Discrete space.")
        _require_policy(own, spaces.flatdim(observations) + task_size, config)
        policy = copy.deepcopy(own)
    prepare(policy, config)
    return policy


def _require_policy(own: nn.Module, size: int, config: Config) -> None:
    """Refuses a user's module that cannot be meta-trained as it is, with what to do."""
    if isinstance(own, GRUPolicy) != bool(config.rl2_episodes):
        raise UserError(
            f"rl2_episodes is {config.rl2_episodes} and the policy given is a {type(own).__qualname__}; RL² needs "
            "a maml_rl.recurrent.GRUPolicy, and a GRUPolicy needs rl2_episodes."
        )
    if not all(parameter.requires_grad for parameter in own.parameters()):
        raise UserError("The policy given has frozen parameters, but all are meta-trained; make them buffers.")
    if not torch.isfinite(flatten(own)).all():
        raise UserError("The policy given has parameters that are not finite; initialise them.")
    if not config.rl2_episodes:
        with torch.no_grad():
            result = own(torch.zeros(2, size))
        if not isinstance(result, Distribution):
            raise UserError(
                f"The policy given returns a {type(result).__qualname__}, but must return one of "
                "maml_rl.distributions: Normal, Categorical or MultiCategorical."
            )


def open_run(config: Config, policy: nn.Module) -> State:
    """Makes or reopens the run folder and returns the state to go on from.

    Args:
        config: The run's options.
        policy: The policy, as a run that starts afresh has it.

    Raises:
        UserError: If the folder cannot be written, holds a run and `resume` is not set, holds a run
            with other options, or holds something else.
    """
    folder = config.run_dir
    first = State(flatten(policy), flatten(policy), {}, 0, 0)
    if not (folder / "config.json").exists() and not (folder / "checkpoint.pt").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UserError(f"{folder} holds files, but no run; choose an empty or new --run-dir.")
        except OSError as error:
            raise UserError(
                f"Cannot make the run folder {folder} ({error.strerror}); choose another --run-dir."
            ) from error
        save_config(config)
        return first
    if not config.resume:
        raise UserError(f"{folder} already holds a run; go on with it by --resume, or choose another --run-dir.")
    before = load_config(folder)
    for field in dataclasses.fields(Config):
        old, new = getattr(before, field.name), getattr(config, field.name)
        if field.name not in _FREE and old != new:
            raise UserError(
                f"The run in {folder} has {field.name}={old}, but {new} was asked for; resume it with its own "
                "options, or choose another --run-dir."
            )
    state = first
    if (folder / "checkpoint.pt").exists():
        state = load_checkpoint(folder, policy)
    if state.iteration > config.iterations:
        raise UserError(
            f"The run in {folder} has done {state.iteration} iterations, but iterations is {config.iterations}; "
            "ask for more, or choose another --run-dir."
        )
    save_config(config)
    return state


def save_config(config: Config) -> None:
    """Writes config.json; the folder's own name is not part of it, so that a run can be moved."""
    options = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("run_dir", "resume")
    }
    write_json(config.run_dir / "config.json", options)


def load_config(folder: Path) -> Config:
    """Reads config.json back.

    Raises:
        UserError: If it is missing or not a configuration.
    """
    path = folder / "config.json"
    try:
        options = json.loads(path.read_text())
        lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        return Config(**{**options, **lists}, run_dir=folder)
    except OSError as error:
        raise UserError(f"{folder} holds no run: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, UserError) as error:
        raise UserError(
            f"{path} is no configuration of this version of maml_rl ({error}); start a new run."
        ) from error


def load_run(folder: Path, own: nn.Module | None = None) -> tuple[Config, nn.Module, State]:
    """A run as its last checkpoint left it: its options, its policy with θ, and its state.

    Args:
        folder: The run folder.
        own: The user's own module that it was trained with, if it was.

    Raises:
        UserError: If the folder holds no run, or a damaged one.
    """
    config = load_config(folder)
    policy = new_policy(config, own)
    state = load_checkpoint(folder, policy)
    load(policy, state.theta)
    return config, policy, state


def save_checkpoint(folder: Path, policy: nn.Module, state: State) -> None:
    """Writes checkpoint.pt so that at every moment either the old or the new one is there, whole."""
    buffer = io.BytesIO()
    content = {"format": _FORMAT, "layout": _layout(policy), "buffers": dict(policy.named_buffers())}
    torch.save(content | state._asdict(), buffer)
    write_atomically(folder / "checkpoint.pt", buffer.getvalue())


def _layout(policy: nn.Module) -> list[list[Any]]:
    """The class of the policy, and the names and shapes of the parameters that θ is made of."""
    parameters = [[name, *parameter.shape] for name, parameter in policy.named_parameters()]
    return [[type(policy).__qualname__], *parameters]


def load_checkpoint(folder: Path, policy: nn.Module) -> State:
    """Reads checkpoint.pt, running no code from it.

    Args:
        folder: The run folder.
        policy: The policy whose parameters it should hold.

    Raises:
        UserError: If it is missing, damaged, or of another program or policy.
    """
    path = folder / "checkpoint.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not look at the checksums.
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        content = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no checkpoint.pt yet; train it first.") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, OSError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or no checkpoint; restore it from a copy, or start a new run."
        ) from error
    kinds = {"theta": Tensor, "untrained": Tensor, "memory": dict, "iteration": int, "env_steps": int}
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or not all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    ):
        raise UserError(f"{path} is no checkpoint of this version of maml_rl; start a new run.")
    state = State(**{name: content[name] for name in kinds})
    buffers = content.get("buffers")
    if content.get("layout") != _layout(policy) or not (
        isinstance(buffers, dict)
        and all(name in buffers and torch.equal(buffer, buffers[name]) for name, buffer in policy.named_buffers())
    ):
        raise UserError(
            f"{path} holds the parameters of another policy than this one; a policy of your own must be given "
            "again, with the same buffers: train(config, policy=...) or evaluate(run_dir, policy=...)."
        )
    if state.theta.shape != flatten(policy).shape or not torch.isfinite(state.theta).all():
        raise UserError(f"{path} is damaged: not all parameters are there and finite; restore it from a copy.")
    return state


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file in one step, once its new content is safely on disk.

    Raises:
        UserError: If it cannot be written; the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"Cannot write {path} ({error.strerror}); what was there before is untouched; make room or choose "
            "a writable --run-dir, then go on with --resume."
        ) from error


def tensorboard(config: Config, state: State) -> SummaryWriter:
    """Opens the run's event writer at a state: points past it, from a run that was cut off, are dropped.

    A new run's begins with its options, as text and for the HPARAMS tab, which sets those of several runs beside
    their returns after adaptation; and with the charts of returns after 0 ... S steps in one, for CUSTOM SCALARS.
    """
    purge = state.env_steps + 1 if state.iteration else 0
    writer = SummaryWriter(str(config.run_dir), purge_step=purge)
    if not state.iteration:
        options = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in dataclasses.asdict(config).items()
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in options.items())
        writer.add_text("config", f"| option | value |\n|---|---|\n{table}", 0)
        writer.add_custom_scalars(
            {"returns": {group: ["Multiline", [rf"^{group}/return_step_\d+$"]] for group in ("train", "eval")}}
        )
        metrics = dict.fromkeys((f"eval/return_step_{k}" for k in range(config.eval_num_steps + 1)), 0.0)
        for summary in hparams(options, metrics):  # as add_hparams does, but into this run itself
            writer._get_file_writer().add_summary(summary, 0)
    return writer


def close(writer: SummaryWriter) -> None:
    """Closes the event writer.

    A full disk shows again here, after whatever stopped the run; that first error is the one to report.
    """
    with contextlib.suppress(OSError):
        writer.close()
