"""Writes files completely or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file in one step, once its new content is safely on disk.

    Raises:
        UserError: If the file cannot be written. The old file is then unchanged.
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
            f"Cannot write {path} ({error.strerror}). The previous file is unchanged. Make room or choose a "
            "writable folder, then run the command again (training continues with --resume)."
        ) from error
