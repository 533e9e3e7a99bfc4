"""checkpoint.pt: everything that a run needs to continue."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..policies import flatten
from .files import write_atomically

_FORMAT = "maml_rl checkpoint 3"
_VERSION_0_1 = "maml_rl checkpoint 2"  # the same, with the optimiser's state under another name


class State(NamedTuple):
    """Everything that a run needs to continue.

    Attributes:
        theta: θ, (P,).
        untrained: θ before training, (P,).
        optimiser_state: What the last update returned: numbers, strings and tensors in lists and dictionaries.
        iteration: Meta-iterations done.
        env_steps: Environment steps taken in them, the x axis of TensorBoard.
    """

    theta: Tensor
    untrained: Tensor
    optimiser_state: dict[str, Any]
    iteration: int
    env_steps: int


def save_checkpoint(folder: Path, policy: nn.Module, state: State) -> None:
    """Writes checkpoint.pt. At any time, either the complete old file or the complete new one is there."""
    buffer = io.BytesIO()
    content = {"format": _FORMAT, "layout": _layout(policy), "buffers": dict(policy.named_buffers())}
    torch.save(content | state._asdict(), buffer)
    write_atomically(folder / "checkpoint.pt", buffer.getvalue())


def _layout(policy: nn.Module) -> list[list[Any]]:
    """Returns the policy's class, and the names and shapes of the parameters in θ."""
    parameters = [[name, *parameter.shape] for name, parameter in policy.named_parameters()]
    return [[type(policy).__qualname__], *parameters]


def load_checkpoint(folder: Path, policy: nn.Module) -> State:
    """Reads checkpoint.pt. It never runs code from the file.

    Args:
        folder: The run folder.
        policy: The policy whose parameters the file should hold.

    Raises:
        UserError: If the file is missing, damaged, or from another program or policy.
    """
    path = folder / "checkpoint.pt"
    content = _read(path)
    kinds = {"theta": Tensor, "untrained": Tensor, "optimiser_state": dict, "iteration": int, "env_steps": int}
    if isinstance(content, dict) and content.get("format") == _VERSION_0_1:
        content = content | {"format": _FORMAT, "optimiser_state": content.get("memory")}
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or not all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    ):
        raise UserError(f"{path} is not a checkpoint of this version of maml_rl; start a new run.")
    state = State(**{name: content[name] for name in kinds})
    buffers = content.get("buffers")
    if content.get("layout") != _layout(policy) or not (
        isinstance(buffers, dict)
        and all(name in buffers and torch.equal(buffer, buffers[name]) for name, buffer in policy.named_buffers())
    ):
        raise UserError(
            f"{path} holds the parameters of another policy. If the run has a policy of your own, pass it again "
            "with the same buffers: train(config, policy=...) or evaluate(run_dir, policy=...)."
        )
    if state.theta.shape != flatten(policy).shape or not torch.isfinite(state.theta).all():
        raise UserError(f"{path} is damaged: parameters are missing or not finite; restore it from a copy.")
    return state


def _read(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not check the checksums.
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        return torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no checkpoint.pt yet; train it first.") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, OSError, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint; restore it from a copy, or start a new run."
        ) from error
