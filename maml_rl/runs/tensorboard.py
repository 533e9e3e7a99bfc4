"""TensorBoard events of a run, and the same numbers as plain lists."""

import contextlib
import dataclasses
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ..config import Config
from ..errors import UserError
from .checkpoint import State

# Maps each tag to its points, (environment steps, value).
History = dict[str, list[tuple[int, float]]]


class Events:
    """Writes the events of a run. If the run is resumed from a state, later points of the stopped run are dropped.

    A new run's events begin with its options, as text and for the HPARAMS tab, and with one chart of the returns
    after 0 ... S steps for CUSTOM SCALARS.

    Args:
        config: The run's options.
        state: The state from which the run begins or continues.

    Attributes:
        history: All scalars that were added.

    Raises:
        UserError: If events cannot be written. The other methods raise it too.
    """

    def __init__(self, config: Config, state: State):
        self.history: History = {}
        self._folder = config.run_dir
        with self._failures():
            _date_back(config.run_dir, int(time.time()))
            purge = state.env_steps + 1 if state.iteration else 0
            # A signal may come while TensorBoard's queue wakes its thread. The thread then sleeps until the next
            # flush, and `close` waits for it.
            self._writer = SummaryWriter(str(config.run_dir), purge_step=purge, flush_secs=2)
            if not state.iteration:
                _add_options(self._writer, config)

    def add(self, scalars: dict[str, float], env_steps: int) -> None:
        """Adds a point to the curve of each tag."""
        with self._failures():
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, env_steps)
                self.history.setdefault(tag, []).append((env_steps, float(value)))

    def add_image(self, tag: str, pixels: npt.NDArray[np.uint8], env_steps: int) -> None:
        """Adds a picture, (height, width, 3)."""
        with self._failures():
            self._writer.add_image(tag, pixels, env_steps, dataformats="HWC")

    def flush(self) -> None:
        """Waits until all events are in the file."""
        with self._failures():
            self._writer.flush()

    def close(self) -> None:
        """Closes the file. A full disk fails again here, but it was already reported."""
        with contextlib.suppress(OSError):
            self._writer.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Cannot write TensorBoard events into {self._folder} ({error.strerror or error}); make room, "
                "then continue with --resume."
            ) from error


def _date_back(folder: Path, now: int) -> None:
    """Renames event files from the future, so that a new one comes last. TensorBoard reads them in order of name.

    Their names begin with the time. It is in the future if the clock was set back since, or on another machine.
    """
    files = sorted(path for path in folder.glob("events.out.tfevents.*") if path.name.split(".")[3].isdigit())
    if files and int(files[-1].name.split(".")[3]) >= now:
        for age, path in zip(range(len(files), 0, -1), files, strict=True):
            tail = path.name.split(".", 4)[4]
            renamed = path.with_name(f"events.out.tfevents.{now - age:010d}.{tail}")
            if not renamed.exists():
                path.rename(renamed)


def _add_options(writer: SummaryWriter, config: Config) -> None:
    """Writes all options as text. HPARAMS gets those that differ from the defaults, and the seed."""
    options = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in ("run_dir", "resume")
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in options.items())
    changed = {"seed", *config.changed(*options)}
    options = {name: value for name, value in options.items() if name in changed}
    writer.add_text("config", f"| option | value |\n|---|---|\n{table}", 0)
    layout = {group: ["Multiline", [rf"^{group}/return_step_\d+$"]] for group in ("train", "eval")}
    writer.add_custom_scalars({"returns": layout})
    metrics = dict.fromkeys((f"eval/return_step_{k}" for k in range(config.eval_num_steps + 1)), 0.0)
    for summary in hparams(options, metrics):
        # Like add_hparams, but writes into the run's own folder instead of a subfolder.
        writer._get_file_writer().add_summary(summary, 0)


def read_history(folder: str | os.PathLike[str]) -> History:
    """Reads all scalars of a run from its TensorBoard events, whichever calls of `train` wrote them.

    Args:
        folder: The run folder.

    Returns:
        A list of (environment steps, value) for each tag. It is empty if the folder has no events.

    Raises:
        UserError: If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {folder}; give the folder of a run.")
    # Imported here, because training does not read events.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logging.getLogger("tensorboard")
    log.addFilter(_unexpected)
    try:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()  # 0 is all of them
    finally:
        log.removeFilter(_unexpected)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _unexpected(record: logging.LogRecord) -> bool:
    """Whether a message of TensorBoard's is news. A resumed run replaces the steps after its checkpoint."""
    return "out of order event.step" not in record.getMessage()


def return_tags(tags: Iterable[str]) -> list[str]:
    """Returns the tags of mean returns in training, in the order of the phases that they are of."""
    of_returns = [tag for tag in tags if re.fullmatch(r"(train/)?return_step_\d+", tag)]
    return sorted(of_returns, key=lambda tag: int(tag.rpartition("_")[2]))
