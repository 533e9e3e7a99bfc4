"""Writes files completely or not at all, and keeps two processes from training in one folder."""

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

if os.name == "posix":
    import fcntl

LOCK = ".lock"
_log = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file in one step, once its new content is safely on disk.

    The content is first written to a new file with a random name, never through a link.

    Raises:
        UserError: If the file cannot be written, or if there is something else than a file. Whatever is there is
            then unchanged.
    """
    # Unlike the methods of a Path, these functions do not raise for a path that cannot be examined.
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"Cannot write '{path}', because it is not a file; choose the name of a file.")
    if not os.path.exists(path.parent):
        raise UserError(f"Cannot write {path}, because there is no folder {path.parent}; make it first.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"Cannot write {path} ({error.strerror}). The previous file is unchanged. Make room or choose a "
            "writable folder, then run the command again (training continues with --resume)."
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder, unless it is there.

    Raises:
        UserError: If that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {folder} ({error.strerror}); choose another one.") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process. The system releases it when the process ends, even if it is killed.

    Raises:
        UserError: If the folder cannot be written, or if another process holds it.
    """
    try:
        lock = open(folder / LOCK, "a")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"Cannot write into {folder} ({error.strerror}); choose another --run-dir.") from error
    with lock:
        if os.name == "posix":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"Another process is training in {folder}; wait until it ends, or choose another --run-dir."
                ) from error
            except OSError as error:  # some network file systems have no locks
                _log.warning("%s cannot be locked (%s); do not train there twice at once", folder, error.strerror)
        yield
