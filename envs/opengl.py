"""Finds OpenGL to render with, with a display or without one."""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator

NO_OPENGL = (
    "MuJoCo finds no OpenGL to render with; install EGL or OSMesa (on Debian and Ubuntu: `apt install libegl1 "
    "libgl1-mesa-dri` or `apt install libosmesa6`), or set MUJOCO_GL to one that works."
)


@functools.cache
def opengl_backend() -> str | None:
    """Returns a value of MUJOCO_GL that works here, or None if there is none. Tries once per process."""
    for backend in ("glfw", "egl", "osmesa") if os.environ.get("DISPLAY") else ("egl", "osmesa"):
        # It is tried in another process, because a failed attempt binds PyOpenGL to the wrong platform.
        attempt = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            check=False,
        )
        if attempt.returncode == 0:
            return backend
    return None


@contextlib.contextmanager
def opengl_chosen() -> Iterator[None]:
    """Lets Gymnasium's MuJoCo environments render without a display.

    If MUJOCO_GL is not set, they choose a backend that crashes without a display.

    The environment variables of the process are the same afterwards.
    """
    needed = sys.platform == "linux" and "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY")
    backend = opengl_backend() if needed else None
    before = {name: os.environ.get(name) for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
