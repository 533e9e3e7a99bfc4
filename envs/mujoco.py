"""The base class of MuJoCo families. Native threads step all N environments in one call."""

import atexit
import copy
import importlib
import logging
import os
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

from .family import Array, Bools, Floats, VectorFamily, num_cores
from .native import TaskVectorEnv
from .opengl import NO_OPENGL, opengl_backend, opengl_chosen

_ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS
# A simulation with a larger number (metres, or metres per second) counts as broken. MuJoCo's own limit is 1e10,
# but a single such reward would already outweigh all others of a meta-batch.
_HUGE = 1e6


def quiet_mujoco() -> None:
    """Sends MuJoCo's warnings to the logger "mujoco" at level DEBUG, unless a handler is already installed.

    Without it, MuJoCo prints a warning and writes MUJOCO_LOG.TXT into the working folder each time a simulation
    breaks down. `step` reports such simulations in any case. The setting holds for the whole process. Environments
    do it if `VectorFamily.quiet` is true.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(logging.getLogger("mujoco").debug)


class MujocoVectorEnv(TaskVectorEnv):
    """N simulations of one model, stepped by a pool of native threads.

    A state is a row [time, positions, velocities, activations, warm start]: MuJoCo's full physics state, and
    the accelerations from which its solver starts the next step. `mujoco.rollout` does not return the
    accelerations of its last step, so they are computed from the last change of velocity. From them, the solver
    converges to the same solution within its tolerance.

    A simulation counts as broken if MuJoCo resets it, or if a number in it is NaN or huge; see `TaskVectorEnv`.

    Observations, physics, frame skip and first states are those of Gymnasium's v5 environments without contact
    forces. The observation is the positions without the first `hidden_positions`, and the velocities. As in
    Gymnasium, the model clips the controls, and the control cost is that of the unclipped action.

    Args:
        num_envs: The number of environments N.
        max_episode_steps: The horizon H.
        render_mode: None or "rgb_array".
        num_threads: The number of native threads. None means one for each core.
        model_file: A MuJoCo model to use instead of Gymnasium's own, with the same joints and actuators.

    Attributes:
        model: The compiled model.
        dt: The duration of a step, in seconds.

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
        if self.quiet:
            quiet_mujoco()  # before the model is compiled, of which newer versions of MuJoCo warn
        try:
            self.model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            raise ValueError(f"{self.name}: the model file {path} does not compile ({error}); fix it.") from error
        model = self.model
        self.dt = self.frame_skip * model.opt.timestep
        self.metadata = {**self.metadata, "render_fps": round(1 / self.dt)}
        self.initial_noise = model.nq + model.nv
        # An actuator without a range, which MuJoCo gives as [0, 0], takes any control.
        has_range = model.actuator_ctrllimited.astype(bool) | model.actuator_ctrlrange.any(1)
        low, high = np.where(has_range, model.actuator_ctrlrange.T, [[-np.inf], [np.inf]]).astype(np.float32)
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
        # A single thread needs no pool: the work is done in this one.
        self._pool = Rollout(nthread=threads if threads > 1 else 0)
        self._controls = np.empty((num_envs, self.frame_skip, self.model.nu))
        self._states = np.empty((num_envs, self.frame_skip, self._num_physics))
        self._sensors = np.empty((num_envs, self.frame_skip, self.model.nsensordata))
        self._renderer: mujoco.Renderer | None = None
        self._shares: list[VectorFamily] = []

    def positions(self, state: Array) -> Array:
        """Returns the generalised positions of states (n, ...), (n, nq), in metres and radians."""
        return state[:, 1 : 1 + self.model.nq]

    def velocities(self, state: Array) -> Array:
        """Returns the generalised velocities of states (n, ...), (n, nv), in metres and radians per second."""
        start = 1 + self.model.nq
        return state[:, start : start + self.model.nv]

    def mean_velocity(self, state: Array, next_state: Array) -> Array:
        """Returns the change of positions in a step divided by its duration, (n, nq)."""
        velocity: Floats = (self.positions(next_state) - self.positions(state)) / self.dt
        return velocity

    def shares(self, num_tasks: int) -> list[VectorFamily]:
        """Splits the environments into two halves. The policy can act in one while the other is simulated."""
        first = self.num_envs // num_tasks * (num_tasks // 2)
        if not first:
            return [self]
        if not self._shares or self._shares[0].num_envs != first:
            for share in self._shares:
                share.close()
            self._shares = []
            for num_envs in (first, self.num_envs - first):
                half = copy.copy(self)  # keeps attributes that a subclass or the user has set
                half._num_threads = max(1, self._num_threads // 2)
                half._resize(num_envs)
                self._shares.append(half)
        return self._shares

    def models(self, task: Array) -> list[mujoco.MjModel]:
        """Returns the compiled model of each of n tasks. By default, all share one."""
        return [self.model] * len(task)

    def initial_state(self, task: Array, noise: Floats) -> Array:
        """Returns the model's reference pose, with noise of scale `reset_noise` on positions and velocities."""
        nq = self.model.nq
        state = np.zeros((len(task), self._num_physics + self.model.nv))
        uniform = 2 * noise - 1
        self.positions(state)[:] = self.model.qpos0 + self.reset_noise * uniform[:, :nq]
        # The noise may be 0, whose normal quantile is minus infinity; a tiny number replaces it.
        velocity = ndtri(np.maximum(noise[:, nq:], 1e-300)) if self.normal_velocities else uniform[:, nq:]
        self.velocities(state)[:] = self.reset_noise * velocity
        return state

    def transition(self, state: Array, action: Array, task: Array, noise: Floats) -> Array:
        """Simulates `frame_skip` physics steps with a constant control. Time becomes NaN in broken simulations."""
        timestep, num_physics = self.model.opt.timestep, self._num_physics
        controls, states, sensors = (x[: len(state)] for x in (self._controls, self._states, self._sensors))
        controls[:] = action[:, None]
        self._pool.rollout(
            self.models(task),
            self._data,
            np.ascontiguousarray(state[:, :num_physics]),
            controls,
            nstep=self.frame_skip,
            initial_warmstart=np.ascontiguousarray(state[:, num_physics:]),
            state=states,
            sensordata=sensors,
            skip_checks=True,
            # About four chunks per thread balance the load. Handing out more of them would take longer.
            chunk_size=max(1, len(state) // (4 * len(self._data))),
        )
        last = states[:, -1]
        before = states[:, -2] if self.frame_skip > 1 else state[:, :num_physics]
        next_state = np.empty_like(state)
        next_state[:, :num_physics] = last
        next_state[:, num_physics:] = (self.velocities(last) - self.velocities(before)) / timestep
        # MuJoCo resets an unstable simulation, which sets its time back to 0.
        late = np.abs(last[:, 0] - state[:, 0] - self.dt) > timestep / 2
        sane = (np.abs(last) < _HUGE).all(axis=1)  # false for NaN too
        next_state[late | ~sane, 0] = np.nan
        return next_state

    def broken(self, state: Array, task: Array) -> Bools:
        """Returns whether the simulation broke down, (n,)."""
        broken: Bools = np.isnan(state[:, 0])
        return broken

    def observation(self, state: Array, task: Array) -> Array:
        """Returns the positions without the first `hidden_positions`, and the velocities, (n, O)."""
        limit = self.largest_velocity
        velocities = self.velocities(state)
        if np.isfinite(limit):
            velocities = np.clip(velocities, -limit, limit)
        return np.concatenate([self.positions(state)[:, self.hidden_positions :], velocities], axis=1)

    def frame(self, state: Array, task: Array) -> Array:
        """Renders the scene from a camera that follows the body, (240, 320, 3) uint8.

        Raises:
            gymnasium.error.DependencyNotInstalled: If there is no OpenGL; the message says what to install.
        """
        if self._renderer is None:
            self._renderer = _make_renderer(self.model)
            # The renderer must be closed before OpenGL is, or it prints errors.
            atexit.register(self._renderer.close)
        data = self._data[0]
        mujoco.mj_setState(self.model, data, state[: self._num_physics], _PHYSICS)
        mujoco.mj_forward(self.model, data)
        camera = mujoco.MjvCamera()
        # MuJoCo's tracking camera moves smoothly from frame to frame, but each picture here is independent.
        camera.lookat[:] = data.subtree_com[1]
        camera.distance, camera.elevation = 4.0, -20.0
        self._renderer.update_scene(data, camera)
        return np.asarray(self._renderer.render())

    def close_extras(self, **kwargs: Any) -> None:
        """Stops the threads and the renderer."""
        for share in self._shares:
            share.close()
        self._pool.close()
        if self._renderer is not None:
            atexit.unregister(self._renderer.close)
            self._renderer.close()


def _make_renderer(model: mujoco.MjModel) -> mujoco.Renderer:
    """Makes a renderer with OpenGL as MUJOCO_GL says, or else with a backend that works here."""
    given = os.environ.get("MUJOCO_GL") or sys.platform != "linux"
    context = None if given else _find_opengl()
    # Where the renderer looks for OpenGL. The module has moved since version 3.9.
    opengl: Any = vars(sys.modules[mujoco.Renderer.__module__])["gl_context"]
    before = getattr(opengl, "GLContext", None)
    try:
        if context is not None:
            # MuJoCo chose a backend when it was imported, without trying it. This renderer gets one that works.
            opengl.GLContext = context
        return mujoco.Renderer(model, 240, 320)
    except (mujoco.FatalError, RuntimeError, AttributeError) as error:
        raise gymnasium.error.DependencyNotInstalled(f"{NO_OPENGL} ({error})") from error
    finally:
        if context is not None:
            opengl.GLContext = before


def _find_opengl() -> Any:
    """Returns the class of OpenGL contexts that works here."""
    backend = opengl_backend()
    if backend is None:
        raise gymnasium.error.DependencyNotInstalled(NO_OPENGL)
    with opengl_chosen():  # MuJoCo's module sets variables for PyOpenGL, which are read only when it is imported
        return importlib.import_module(f"mujoco.{backend}").GLContext
