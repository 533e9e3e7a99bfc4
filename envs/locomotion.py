"""Locomotion families on Gymnasium's own models: a robot is to move as the task says."""

import copy
import math

import mujoco
import numpy as np
from gymnasium import spaces

from .core import TaskEnv
from .mujoco import MujocoVectorEnv


def _squares(action: np.ndarray) -> np.ndarray:
    return np.einsum("na,na->n", action, action)


class _HalfCheetah(MujocoVectorEnv):
    """O = 17, A = 6; a step lasts 0.05 s. Never terminates."""

    model_name = "half_cheetah.xml"
    frame_skip = 5
    hidden_positions = 1
    reset_noise = 0.1
    normal_velocities = True


class HalfCheetahVelVectorEnv(_HalfCheetah):
    """N half-cheetahs, each to run at a speed of its own.

    Source: Finn, Abbeel and Levine, arXiv:1703.03400, section 5.3, and its published code; physics, first
    states and observations of Gymnasium's HalfCheetah-v5. It differs from both where it says so.

    * Task: the goal speed g ~ U[0, 2], in metres per second.
    * Reward: -|v - g| - 0.05 |a|^2, where v is the displacement along x over a step divided by its
      duration. (Gymnasium: v - 0.1 |a|^2.)
    * H = 100.
    """

    task_space = spaces.Box(0.0, 2.0, (1,), np.float64)

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Minus the distance from the goal speed, less the cost of control, (n,)."""
        speed = self.displacement(state, next_state)[:, 0]
        return -np.abs(speed - task[:, 0]) - 0.05 * _squares(action)


class _TwoDirections(MujocoVectorEnv):
    """A task is 1 for forward (along x) or -1 for backward, each as likely."""

    task_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Directions 1 or -1, (M, 1)."""
        return rng.choice([-1.0, 1.0], size=(num_tasks, 1))

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """Whether a direction is neither 1 nor -1."""
        wrong = tasks[np.abs(tasks) != 1]
        return f"the task {wrong[0]} is no direction; choose 1 (forward) or -1 (backward)." if wrong.size else None


class HalfCheetahDirVectorEnv(_TwoDirections, _HalfCheetah):
    """N half-cheetahs, each to run forward or backward.

    Source: as `HalfCheetahVelVectorEnv`.

    * Task: the direction d, 1 or -1.
    * Reward: d v - 0.05 |a|^2, v as in `HalfCheetahVelVectorEnv`, in metres per second.
    * H = 100.
    """

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """The speed in the task's direction, less the cost of control, (n,)."""
        return task[:, 0] * self.displacement(state, next_state)[:, 0] - 0.05 * _squares(action)


class _Ant(MujocoVectorEnv):
    """O = 27, A = 8; a step lasts 0.05 s. Terminated when the torso's height is not in [0.2, 1] metres.

    On purpose, unlike Gymnasium's Ant-v5 with its defaults: contact forces are neither observed nor part of
    the cost (they cost a third of the physics and are all but noise), and the velocity is that of the
    torso's position over the whole step, where Gymnasium's lags by one of the five steps of the physics.
    """

    model_name = "ant.xml"
    frame_skip = 5
    hidden_positions = 2
    reset_noise = 0.1
    normal_velocities = True

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the torso is too low or too high, (n,)."""
        height = self.positions(state)[:, 2]
        return ~((height >= 0.2) & (height <= 1.0))


class AntVelVectorEnv(_Ant):
    """N ants, each to walk along x at a speed of its own.

    Source: Finn, Abbeel and Levine, arXiv:1703.03400, section 5.3, and its published code, without its
    contact cost; physics, first states and termination of Gymnasium's Ant-v5.

    * Task: the goal speed g ~ U[0, 3], in metres per second.
    * Reward: 1 - |v - g| + 0.05 - 0.005 |a|^2, v the displacement along x over a step divided by its duration.
    * H = 100.
    """

    task_space = spaces.Box(0.0, 3.0, (1,), np.float64)

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """One minus the distance from the goal speed, and survival, less the cost of control, (n,)."""
        speed = self.displacement(state, next_state)[:, 0]
        return 1.0 - np.abs(speed - task[:, 0]) + 0.05 - 0.005 * _squares(action)


class AntDirVectorEnv(_TwoDirections, _Ant):
    """N ants, each to walk forward or backward.

    Source: as `AntVelVectorEnv`.

    * Task: the direction d, 1 or -1.
    * Reward: d v + 0.05 - 0.005 |a|^2, v as in `AntVelVectorEnv`.
    * H = 100.
    """

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """The speed in the task's direction, and survival, less the cost of control, (n,)."""
        speed = self.displacement(state, next_state)[:, 0]
        return task[:, 0] * speed + 0.05 - 0.005 * _squares(action)


class AntGoalVectorEnv(_Ant):
    """N ants, each to walk to a place of its own.

    Source: Rothfuss et al., "ProMP: Proximal Meta-Policy Search", arXiv:1810.06784, and its published code
    (AntRandGoal), without its contact cost; physics, first states and termination of Gymnasium's Ant-v5.

    * Task: the goal g, uniform on the disc of radius 3 metres around the start.
    * Reward: 4 - |x - g|_1 - 0.1 |a|^2, the distance along both axes summed, after the step.
    * H = 100.
    """

    task_space = spaces.Box(-3.0, 3.0, (2,), np.float64)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        """Goals uniform on the disc, (M, 2)."""
        angle = rng.uniform(0, 2 * np.pi, num_tasks)
        radius = 3.0 * np.sqrt(rng.uniform(0, 1, num_tasks))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def task_problem(self, tasks: np.ndarray) -> str | None:
        """Whether a goal is off the disc."""
        far = np.hypot(*tasks.T) > 3.0 + 1e-9
        return f"the goal {tasks[far][0]} is more than 3 metres away; choose a nearer one." if far.any() else None

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """Four minus the distance from the goal, less the cost of control, (n,)."""
        distance = np.abs(self.positions(next_state)[:, :2] - task).sum(axis=1)
        return 4.0 - distance - 0.1 * _squares(action)


class HumanoidDirVectorEnv(MujocoVectorEnv):
    """N humanoids, each to walk in a direction of its own.

    Source: Rothfuss et al., arXiv:1810.06784 (HumanoidRandDirec2D); physics, first states, termination and
    weights of Gymnasium's Humanoid-v5. On purpose, unlike that with its defaults: inertias, body velocities,
    actuator and contact forces are not observed (O = 45 instead of 348), there is no contact cost, and the
    velocity is that of the torso over the whole step, not of the centre of mass one step of the physics ago.
    A = 17; a step lasts 0.015 s.

    * Task: the direction phi ~ U[0, 2 pi], in radians from the x axis.
    * Reward: 1.25 (v_x cos phi + v_y sin phi) + 5 - 0.1 |a|^2, the 5 only while healthy.
    * Terminated: when the torso's height is not between 1 and 2 metres. H = 200.
    """

    model_name = "humanoid.xml"
    frame_skip = 5
    hidden_positions = 2
    reset_noise = 0.01
    normal_velocities = False
    task_space = spaces.Box(0.0, 2 * math.pi, (1,), np.float64)

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """The speed in the task's direction, and survival, less the cost of control, (n,)."""
        velocity = self.displacement(state, next_state)
        along = velocity[:, 0] * np.cos(task[:, 0]) + velocity[:, 1] * np.sin(task[:, 0])
        return 1.25 * along + 5.0 * ~self.terminated(next_state, task) - 0.1 * _squares(action)

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the torso is too low or too high, (n,)."""
        height = self.positions(state)[:, 2]
        return ~((height > 1.0) & (height < 2.0))


class _RandomParameters(MujocoVectorEnv):
    """A model of its own for each task: masses, inertias, damping and friction scaled.

    Source: the environments of Rothfuss et al., arXiv:1810.06784 (rand_param_envs): each number of the model
    is multiplied by b^u with u ~ U[-3, 3]; b is 1.5 for masses, inertias and friction, 1.3 for damping.
    A task holds all the u: of each body's mass and three principal inertias (not the world's), each joint's
    damping and each geometry's three frictions (the floor's too), in the model's order.
    """

    normal_velocities = False
    largest_velocity = 10.0
    reset_noise = 0.005
    hidden_positions = 1
    frame_skip = 4

    @property
    def task_space(self) -> spaces.Box:  # type: ignore[override]
        """Exponents in [-3, 3], (D,)."""
        model = self.model
        num_bodies = model.nbody - 1
        return spaces.Box(-3.0, 3.0, (4 * num_bodies + model.nv + 3 * model.ngeom,), np.float64)

    def models(self, task: np.ndarray) -> list[mujoco.MjModel]:
        """The compiled model of each of n tasks; equal tasks share one."""
        # The same array at every step of an episode, an equal one at every later reset.
        if self._compiled_for is not task and not np.array_equal(self._compiled_for, task):
            rows = {row.tobytes(): row for row in task}
            compiled = {key: self._scaled(row) for key, row in rows.items()}
            self._compiled = [compiled[row.tobytes()] for row in task]
        self._compiled_for = task
        return self._compiled

    _compiled: list[mujoco.MjModel]
    _compiled_for: np.ndarray = np.empty(0)

    def _scaled(self, task: np.ndarray) -> mujoco.MjModel:
        model = copy.copy(self.model)
        bodies = model.nbody - 1
        mass, inertia, damping, friction = np.split(task, np.cumsum([bodies, 3 * bodies, model.nv]))
        model.body_mass[1:] *= 1.5**mass
        model.body_inertia[1:] *= 1.5 ** inertia.reshape(bodies, 3)
        model.dof_damping[:] *= 1.3**damping
        model.geom_friction[:] *= 1.5 ** friction.reshape(model.ngeom, 3)
        # What MuJoCo derives from them at compile time, the solver's invariants above all.
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def reward(
        self, state: np.ndarray, action: np.ndarray, next_state: np.ndarray, task: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """The speed along x, 1 while healthy, less the cost of control, (n,)."""
        speed = self.displacement(state, next_state)[:, 0]
        return speed + ~self.terminated(next_state, task) - 1e-3 * _squares(action)


class HopperRandParamsVectorEnv(_RandomParameters):
    """N hoppers, each with a body of its own.

    Physics, first states, reward and termination of Gymnasium's Hopper-v5; O = 11, A = 3; a step lasts 0.008 s.

    * Task: see the base class; D = 37.
    * Reward: v + 1 - 0.001 |a|^2, v the displacement along x over a step divided by its duration, in metres
      per second; the 1 only while healthy.
    * Terminated: when the height is not above 0.7 metres, the angle not within 0.2 radians, or another
      position or velocity not within 100. H = 200.
    """

    model_name = "hopper.xml"

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the hopper has fallen, (n,)."""
        positions = self.positions(state)
        rest = np.concatenate([positions[:, 2:], self.velocities(state)], axis=1)
        healthy = (positions[:, 1] > 0.7) & (np.abs(positions[:, 2]) < 0.2) & (np.abs(rest) < 100).all(axis=1)
        return ~healthy


class Walker2DRandParamsVectorEnv(_RandomParameters):
    """N walkers, each with a body of its own.

    Physics, first states, reward and termination of Gymnasium's Walker2d-v5; O = 17, A = 6; a step lasts
    0.008 s.

    * Task: see the base class; D = 61.
    * Reward: as `HopperRandParamsVectorEnv`.
    * Terminated: when the height is not between 0.8 and 2 metres, or the angle not within 1 radian. H = 200.
    """

    model_name = "walker2d_v5.xml"

    def terminated(self, state: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Whether the walker has fallen, (n,)."""
        height, angle = self.positions(state)[:, 1], self.positions(state)[:, 2]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0))


class HalfCheetahVelEnv(TaskEnv):
    """One half-cheetah; see `HalfCheetahVelVectorEnv`."""

    vector_class = HalfCheetahVelVectorEnv


class HalfCheetahDirEnv(TaskEnv):
    """One half-cheetah; see `HalfCheetahDirVectorEnv`."""

    vector_class = HalfCheetahDirVectorEnv


class AntVelEnv(TaskEnv):
    """One ant; see `AntVelVectorEnv`."""

    vector_class = AntVelVectorEnv


class AntDirEnv(TaskEnv):
    """One ant; see `AntDirVectorEnv`."""

    vector_class = AntDirVectorEnv


class AntGoalEnv(TaskEnv):
    """One ant; see `AntGoalVectorEnv`."""

    vector_class = AntGoalVectorEnv


class HumanoidDirEnv(TaskEnv):
    """One humanoid; see `HumanoidDirVectorEnv`."""

    vector_class = HumanoidDirVectorEnv


class HopperRandParamsEnv(TaskEnv):
    """One hopper; see `HopperRandParamsVectorEnv`."""

    vector_class = HopperRandParamsVectorEnv


class Walker2DRandParamsEnv(TaskEnv):
    """One walker; see `Walker2DRandParamsVectorEnv`."""

    vector_class = Walker2DRandParamsVectorEnv
