"""checkpoint.pt: everything that a run needs to continue."""

import hashlib
import io
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..policies import flatten
from ..policies.parameters import layout
from .files import write_atomically

_FORMAT = "maml_rl checkpoint 4"
_WITHOUT_CHECKSUM = "maml_rl checkpoint 3"  # files of this format have no checksum
_VERSION_0_1 = "maml_rl checkpoint 2"  # in these, the optimiser's state also has another name
_TAG = b"maml_rl sha256 "


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
    write_atomically(folder / "checkpoint.pt", with_checksum(buffer.getvalue()))


def with_checksum(archive: bytes) -> bytes:
    """Appends a checksum to a zip archive, as its comment. Every zip reader, `torch.load` too, ignores it."""
    length = len(_TAG) + 2 * hashlib.sha256().digest_size
    body = archive[:-2] + struct.pack("<H", length)  # an archive ends with the length of its comment, which is 0
    return body + _TAG + hashlib.sha256(body).hexdigest().encode()


def _layout(policy: nn.Module) -> list[list[Any]]:
    """Returns the policy's class, and the names and shapes of the parameters in θ."""
    return [[type(policy).__qualname__], *layout(policy)]


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
        content = content | {"format": _WITHOUT_CHECKSUM, "optimiser_state": content.get("memory")}
    if (
        not isinstance(content, dict)
        or content.get("format") not in (_FORMAT, _WITHOUT_CHECKSUM)
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
            f"{path} holds the parameters of another policy. The spaces of the family must be those of its run. "
            "If the run has a policy of your own, pass it again with the same buffers: train(config, policy=...) "
            "or evaluate(run_dir, policy=...)."
        )
    expected = flatten(policy)
    for theta in (state.theta, state.untrained):
        if (theta.shape, theta.dtype) != (expected.shape, expected.dtype) or not torch.isfinite(theta).all():
            raise UserError(f"{path} is damaged: parameters are missing or not finite; restore it from a copy.")
    return state


def _read(path: Path) -> Any:
    """Reads a checkpoint after its checksum, without running code.

    Raises:
        UserError: If the file is missing, cannot be read, or is damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; restore it from a copy, or start a new run.")
        file = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no checkpoint.pt yet; train it first.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable.") from error
    damaged = UserError(f"{path} is damaged or not a checkpoint; restore it from a copy, or start a new run.")
    body, tag, checksum = file.rpartition(_TAG)
    if tag and hashlib.sha256(body).hexdigest().encode() != checksum:
        raise damaged
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            # torch.load does not check the checksums of entries, which are all that older files have.
            if archive.testzip() is not None:
                raise damaged
        content = torch.load(io.BytesIO(file), weights_only=True)
    except Exception as error:  # a damaged file can make these libraries raise anything
        raise damaged from error
    if not tag and isinstance(content, dict) and content.get("format") == _FORMAT:
        raise damaged  # it has lost its checksum
    return content
