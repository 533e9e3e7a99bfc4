"""MuJoCo families: all N environments and all `frame_skip` steps in one call of native threads."""

import atexit
import copy
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import numpy as np
from gymnasium import spaces
from mujoco.rollout import Rollout
from scipy.special import ndtri

from .core import TaskVectorEnv, VectorFamily, num_cores

_ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS
# Beyond this a simulation is lost, metres or metres per second, even where MuJoCo itself (1e10) has not
# noticed: one such reward would outweigh all others of a meta-batch.
_HUGE = 1e6


# By default MuJoCo writes warnings on standard error and into a file in the working folder, for each of N
# environments. Broken simulations are counted and reported by `step`; the texts are for whoever debugs one.
if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(logging.getLogger("mujoco").debug)


class MujocoVectorEnv(TaskVectorEnv):
    """N simulations of one model, stepped by a persistent pool of native threads.

    A state is a row [time, positions, velocities, activations, warm start]: MuJoCo's full physics state, and
    the accelerations that its solver starts the next step from. `mujoco.rollout` does not return those of
    its last step, so they are taken from the last change of velocity; the solver converges from them to
    the same solution, within its tolerance.

    A simulation that MuJoCo warns of (not a number, or huge) counts as broken; see `TaskVectorEnv`.

    Observations are positions, less the first `hidden_positions`, and velocities, as in Gymnasium's v5
    environments without contact forces; so are physics, frame skip and first states. As there, controls are
    clamped by the model, and costs are those of the action as given.

    Args:
        num_envs: N.
        max_episode_steps: H.
        render_mode: None or "rgb_array".
        num_threads: Native threads; by default one for each core.
        model_file: A MuJoCo model to use instead of Gymnasium's own, with the same joints and actuators.

    Attributes:
        model: The compiled model.
        dt: Duration of a step, in seconds.

    Raises:
        ValueError: If the model file cannot be read or does not compile.
    """

    model_name: ClassVar[str]
    frame_skip: ClassVar[int]
    hidden_positions: ClassVar[int]
    reset_noise: ClassVar[float]
    normal_velocities: ClassVar[bool]
    largest_velocity: ClassVar[float] = np.inf

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        num_threads: int | None = None,
        model_file: str | None = None,
    ):
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"{self.name}: num_threads is {num_threads}, but must be at least 1.")
        path = _ASSETS / self.model_name if model_file is None else Path(model_file)
        try:
            self.model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            raise ValueError(f"{self.name}: the model file {path} does not compile ({error}); mend it.") from error
        model = self.model
        self.dt = self.frame_skip * model.opt.timestep
        self.metadata = {**self.metadata, "render_fps": round(1 / self.dt)}
        self.initial_noise = model.nq + model.nv
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        self.single_action_space = spaces.Box(low, high, dtype=np.float32)
        num_observed = model.nq - self.hidden_positions + model.nv
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (num_observed,), np.float64)
        self._num_threads = num_threads or num_cores()
        self._num_physics = mujoco.mj_stateSize(model, _PHYSICS)
        super().__init__(num_envs, max_episode_steps, render_mode)

    def _resize(self, num_envs: int) -> None:
        super()._resize(num_envs)
        threads = min(self._num_threads, num_envs)
        self._data = [mujoco.MjData(self.model) for _ in range(threads)]
        # One thread is this one: a pool would only add the way there and back.
        self._pool = Rollout(nthread=threads if threads > 1 else 0)
        self._controls = np.empty((num_envs, self.frame_skip, self.model.nu))
        self._states = np.empty((num_envs, self.frame_skip, self._num_physics))
        self._sensors = np.empty((num_envs, self.frame_skip, self.model.nsensordata))
        self._renderer: mujoco.Renderer | None = None
        self._shares: list[VectorFamily] = []

    def positions(self, state: np.ndarray) -> np.ndarray:
        """The generalised positions of states (n, ...), (n, nq), in metres and radians."""
        return state[:, 1 : 1 + self.model.nq]

    def velocities(self, state: np.ndarray) -> np.ndarray:
        """The generalised velocities of states (n, ...), (n, nv), per second."""
        start = 1 + self.model.nq
        return state[:, start : start + self.model.nv]

    def displacement(self, state: np.ndarray, next_state: np.ndarray) -> np.ndarray:
        """The change of positions over a step divided by its duration, (n, nq)."""
        return (self.positions(next_state) - self.positions(state)) / self.dt

    def shares(self, num_tasks: int) -> list[VectorFamily]:
        """Two halves, so that the policy acts in one while the physics of the other is on its way.

        There are two on any machine, as each half draws the noise of its actions from a stream of its own.
        """
        first = self.num_envs // num_tasks * (num_tasks // 2)
        if not first:
            return [self]
        if not self._shares or self._shares[0].num_envs != first:
            for share in self._shares:
                share.close()
            self._shares = []
            for num_envs in (first, self.num_envs - first):
                half = copy.copy(self)  # with whatever a subclass, or its user, has set
                half._num_threads = max(1, self._num_threads // 2)
                half._resize(num_envs)
                self._shares.append(half)
        return self._shares

    def models(self, task: np.ndarray) -> list[mujoco.MjModel]:
        """The compiled model of each of n tasks; by default the same for all."""
        return [self.model] * len(task)

    def initial_state(self, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The model's reference pose with noise of scale `reset_noise` on positions and velocities."""
        nq = self.model.nq
        state = np.zeros((len(task), self._num_physics + self.model.nv))
        uniform = 2 * noise - 1
        self.positions(state)[:] = self.model.qpos0 + self.reset_noise * uniform[:, :nq]
        # The smallest number there is instead of 0, whose normal quantile is minus infinity.
        velocity = ndtri(np.maximum(noise[:, nq:], 1e-300)) if self.normal_velocities else uniform[:, nq:]
        self.velocities(state)[:] = self.reset_noise * velocity
        return state

    def transition(self, state: np.ndarray, action: np.ndarray, task: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The state after `frame_skip` steps of the physics under a constant control; time is NaN if it broke."""
        timestep, num_physics = self.model.opt.timestep, self._num_physics
        self._controls[:] = action[:, None]
        states = self._states
        self._pool.rollout(
            self.models(task),
            self._data,
            np.ascontiguousarray(state[:, :num_physics]),
            self._controls,
            nstep=self.frame_skip,
            initial_warmstart=np.ascontiguousarray(state[:, num_physics:]),
            state=states,
            sensordata=self._sensors,
            skip_checks=True,
            # A few pieces for each thread: handing out more of them costs more than the last one's tail.
            chunk_size=max(1, self.num_envs // (4 * len(self._data))),
        )
        last = states[:, -1]
        before = states[:, -2] if self.frame_skip > 1 else state[:, :num_physics]
        next_state = np.empty_like(state)
        next_state[:, :num_physics] = last
        next_state[:, num_physics:] = (self.velocities(last) - self.velocities(before)) / timestep
        # MuJoCo answers instability by a reset, which sets the clock back.
        late = np.abs(last[:, 0] - state[:, 0] - self.dt) > timestep / 2
        sane = (np.abs(last) < _HUGE).all(axis=1)  # false for NaN too
        next_state[late | ~sane, 0] = np.nan
        return next_state

    def broken(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the simulation became unstable, (n,) bool."""
        return np.isnan(state[:, 0])

    def observation(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Positions without the first `hidden_positions`, and velocities, (n, O)."""
        limit = self.largest_velocity
        velocities = self.velocities(state)
        if np.isfinite(limit):
            velocities = np.clip(velocities, -limit, limit)
        return np.concatenate([self.positions(state)[:, self.hidden_positions :], velocities], axis=1)

    def frame(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """The scene from a camera that follows the body, (240, 320, 3) uint8.

        Raises:
            gymnasium.error.DependencyNotInstalled: If there is no OpenGL to render with; says what to install.
        """
        if self._renderer is None:
            _choose_opengl()
            try:
                self._renderer = mujoco.Renderer(self.model, 240, 320)
            except (mujoco.FatalError, RuntimeError, AttributeError) as error:
                raise gymnasium.error.DependencyNotInstalled(f"{_NO_OPENGL} ({error})") from error
            # At the latest before OpenGL itself ends, or it complains.
            atexit.register(self._renderer.close)
        data = self._data[0]
        mujoco.mj_setState(self.model, data, state[: self._num_physics], _PHYSICS)
        mujoco.mj_forward(self.model, data)
        camera = mujoco.MjvCamera()
        # Not MuJoCo's tracking camera: that one follows smoothly, and each picture here begins anew.
        camera.lookat[:] = data.subtree_com[1]
        camera.distance, camera.elevation = 4.0, -20.0
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Stops the threads and the renderer."""
        for share in self._shares:
            share.close()
        self._pool.close()
        if self._renderer is not None:
            atexit.unregister(self._renderer.close)
            self._renderer.close()


_NO_OPENGL = (
    "MuJoCo finds no OpenGL to render with; install EGL or OSMesa (on Debian and Ubuntu: `apt install libegl1 "
    "libgl1-mesa-dri` or `apt install libosmesa6`), or set MUJOCO_GL to one that works."
)


def _choose_opengl() -> None:
    """Makes MuJoCo render by what works here, a display or none, unless MUJOCO_GL says what to use."""
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
        return
    for backend in ("glfw", "egl", "osmesa") if os.environ.get("DISPLAY") else ("egl", "osmesa"):
        # In a process of its own: an attempt that fails leaves PyOpenGL bound to the wrong platform.
        attempt = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            check=False,
        )
        if attempt.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            # MuJoCo chose when it was imported; this is the choice it would make now.
            mujoco.gl_context.GLContext = importlib.import_module(f"mujoco.{backend}").GLContext
            return
    raise gymnasium.error.DependencyNotInstalled(_NO_OPENGL)
