"""Locomotion families with Gymnasium's robots. The task says how the robot should move, or which body it has."""

import copy
import math

import mujoco
import numpy as np
from gymnasium import spaces

from .family import Array, Bools, Floats
from .mujoco import MujocoVectorEnv
from .native import TaskEnv


def _squares(action: Array) -> Floats:
    squares: Floats = np.einsum("na,na->n", action, action)
    return squares


class _HalfCheetah(MujocoVectorEnv):
    """A half-cheetah runs; O = 17, A = 6. A step lasts 0.05 s. Never terminated."""

    model_name = "half_cheetah.xml"
    frame_skip = 5
    hidden_positions = 1
    reset_noise = 0.1
    normal_velocities = True


class HalfCheetahVelVectorEnv(_HalfCheetah):
    """Half-cheetahs run, each at its own goal speed.

    Source: Finn, Abbeel and Levine, arXiv:1703.03400, section 5.3, and its published code. Physics, first
    states and observations are those of Gymnasium's HalfCheetah-v5.

    * Task: the goal speed g ~ U[0, 2], in metres per second.
    * Reward: -|v - g| - 0.05 |a|^2, where v is the displacement along x in a step divided by its
      duration. (Gymnasium: v - 0.1 |a|^2.)
    * H = 100.
    """

    task_space = spaces.Box(0.0, 2.0, (1,), np.float64)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns minus the difference from the goal speed, minus the control cost, (n,)."""
        difference: Floats = np.abs(self.mean_velocity(state, next_state)[:, 0] - task[:, 0])
        return -difference - 0.05 * _squares(action)


class _TwoDirections(MujocoVectorEnv):
    """The robot runs forward (along x, task 1) or backward (task -1). Both are equally likely."""

    task_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    all_tasks = np.array([[-1.0], [1.0]])


class HalfCheetahDirVectorEnv(_TwoDirections, _HalfCheetah):
    """Half-cheetahs run, each forward or backward.

    Source: see `HalfCheetahVelVectorEnv`.

    * Task: the direction d, 1 or -1.
    * Reward: d v - 0.05 |a|^2, with v as in `HalfCheetahVelVectorEnv`, in metres per second.
    * H = 100.
    """

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the speed in the task's direction, minus the control cost, (n,)."""
        speed: Floats = task[:, 0] * self.mean_velocity(state, next_state)[:, 0]
        return speed - 0.05 * _squares(action)


class _Ant(MujocoVectorEnv):
    """An ant walks; O = 27, A = 8. A step lasts 0.05 s. Terminated when the torso is not 0.2 to 1 metres high.

    Differences from the defaults of Gymnasium's Ant-v5: contact forces are neither observed nor part of the
    cost, because they take a third of the simulation's time and are almost only noise. The velocity is that of
    the torso over the whole step, while Gymnasium's is one of the five physics steps late.
    """

    model_name = "ant.xml"
    frame_skip = 5
    hidden_positions = 2
    reset_noise = 0.1
    normal_velocities = True

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns whether the torso is too low or too high, (n,)."""
        height: Floats = self.positions(state)[:, 2]
        return ~((height >= 0.2) & (height <= 1.0))


class AntVelVectorEnv(_Ant):
    """Ants walk along x, each at its own goal speed.

    Source: Finn, Abbeel and Levine, arXiv:1703.03400, section 5.3, and its published code, without its
    contact cost. Physics, first states and termination are those of Gymnasium's Ant-v5.

    * Task: the goal speed g ~ U[0, 3], in metres per second.
    * Reward: 1 - |v - g| + 0.05 - 0.005 |a|^2, with v the displacement along x in a step divided by its
      duration.
    * H = 100.
    """

    task_space = spaces.Box(0.0, 3.0, (1,), np.float64)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns one minus the difference from the goal speed, plus survival, minus the control cost, (n,)."""
        difference: Floats = np.abs(self.mean_velocity(state, next_state)[:, 0] - task[:, 0])
        return 1.0 - difference + 0.05 - 0.005 * _squares(action)


class AntDirVectorEnv(_TwoDirections, _Ant):
    """Ants walk, each forward or backward.

    Source: see `AntVelVectorEnv`.

    * Task: the direction d, 1 or -1.
    * Reward: d v + 0.05 - 0.005 |a|^2, with v as in `AntVelVectorEnv`.
    * H = 100.
    """

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the speed in the task's direction, plus survival, minus the control cost, (n,)."""
        speed: Floats = task[:, 0] * self.mean_velocity(state, next_state)[:, 0]
        return speed + 0.05 - 0.005 * _squares(action)


class AntGoalVectorEnv(_Ant):
    """Ants walk, each to its own goal position.

    Source: Rothfuss et al., "ProMP: Proximal Meta-Policy Search", arXiv:1810.06784, and its published code
    (AntRandGoal), without its contact cost. Physics, first states and termination are those of Ant-v5.

    * Task: the goal g, uniform on the disc of radius 3 metres around the start.
    * Reward: 4 - |x - g|_1 - 0.1 |a|^2, where |x - g|_1 sums the distances along both axes after the step.
    * H = 100.
    """

    task_space = spaces.Box(-3.0, 3.0, (2,), np.float64)

    def sample_tasks(self, num_tasks: int, rng: np.random.Generator) -> Array:
        """Draws goals uniformly on the disc, (M, 2)."""
        angle = rng.uniform(0, 2 * np.pi, num_tasks)
        radius = 3.0 * np.sqrt(rng.uniform(0, 1, num_tasks))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def task_problem(self, tasks: Array) -> str | None:
        """Checks that goals are on the disc."""
        far: Bools = np.hypot(*tasks.T) > 3.0 + 1e-9
        return f"the goal {tasks[far][0]} is more than 3 metres away; choose a closer one." if far.any() else None

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns four minus the distance from the goal, minus the control cost, (n,)."""
        distance: Floats = np.abs(self.positions(next_state)[:, :2] - task).sum(axis=1)
        return 4.0 - distance - 0.1 * _squares(action)


class HumanoidDirVectorEnv(MujocoVectorEnv):
    """Humanoids walk, each in its own direction; O = 45, A = 17.

    Source: Rothfuss et al., arXiv:1810.06784 (HumanoidRandDirec2D). Physics, first states, termination and
    weights are those of Gymnasium's Humanoid-v5. Differences from its defaults: inertias, body velocities,
    actuator and contact forces are not observed (Gymnasium: O = 348), there is no contact cost, and the
    velocity is that of the torso over the whole step, not that of the centre of mass one physics step earlier.
    A step lasts 0.015 s.

    * Task: the direction phi ~ U[0, 2 pi], in radians from the x axis.
    * Reward: 1.25 (v_x cos phi + v_y sin phi) + 5 - 0.1 |a|^2. The 5 is paid only while healthy.
    * Terminated: when the torso's height is not between 1 and 2 metres. H = 200.
    """

    model_name = "humanoid.xml"
    frame_skip = 5
    hidden_positions = 2
    reset_noise = 0.01
    normal_velocities = False
    task_space = spaces.Box(0.0, 2 * math.pi, (1,), np.float64)

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the speed in the task's direction, plus survival, minus the control cost, (n,)."""
        velocity = self.mean_velocity(state, next_state)
        along: Floats = velocity[:, 0] * np.cos(task[:, 0]) + velocity[:, 1] * np.sin(task[:, 0])
        return 1.25 * along + 5.0 * ~self.terminated(next_state, task) - 0.1 * _squares(action)

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns whether the torso is too low or too high, (n,)."""
        height: Floats = self.positions(state)[:, 2]
        return ~((height > 1.0) & (height < 2.0))


class _RandomParameters(MujocoVectorEnv):
    """The robot runs along x with a body that depends on the task: masses, inertias, damping and friction.

    Source: the environments of Rothfuss et al., arXiv:1810.06784 (rand_param_envs). Each of these numbers of the
    model is multiplied by b^u with u ~ U[-3, 3]. b is 1.5 for masses, inertias and friction, and 1.3 for damping.
    A task is all the u, in the model's order: of each body's mass and three principal inertias (without the
    world), of each joint's damping, and of each geometry's three frictions (with the floor).
    """

    normal_velocities = False
    largest_velocity = 10.0
    reset_noise = 0.005
    hidden_positions = 1
    frame_skip = 4

    @property
    def task_space(self) -> spaces.Box:  # type: ignore[override]
        """The exponents in [-3, 3], (D,)."""
        model = self.model
        num_bodies = model.nbody - 1
        return spaces.Box(-3.0, 3.0, (4 * num_bodies + model.nv + 3 * model.ngeom,), np.float64)

    def models(self, task: Array) -> list[mujoco.MjModel]:
        """Returns the compiled model of each of n tasks. Equal tasks share a model."""
        keys = [row.tobytes() for row in task]
        if not self._compiled.keys() >= set(keys):
            self._compiled = {key: self._scaled(row) for key, row in dict(zip(keys, task, strict=True)).items()}
        return [self._compiled[key] for key in keys]

    _compiled: dict[bytes, mujoco.MjModel] = {}  # noqa: RUF012 (replaced, never changed)

    def _scaled(self, task: Array) -> mujoco.MjModel:
        model = copy.copy(self.model)
        bodies = model.nbody - 1
        mass, inertia, damping, friction = np.split(task, np.cumsum([bodies, 3 * bodies, model.nv]))
        model.body_mass[1:] *= 1.5**mass
        model.body_inertia[1:] *= 1.5 ** inertia.reshape(bodies, 3)
        model.dof_damping[:] *= 1.3**damping
        model.geom_friction[:] *= 1.5 ** friction.reshape(model.ngeom, 3)
        # Recomputes what MuJoCo derives from these numbers at compile time, mostly constants of the solver.
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def reward(self, state: Array, action: Array, next_state: Array, task: Array, noise: Floats) -> Floats:
        """Returns the speed along x, plus 1 while healthy, minus the control cost, (n,)."""
        speed: Floats = self.mean_velocity(state, next_state)[:, 0]
        return speed + ~self.terminated(next_state, task) - 1e-3 * _squares(action)


class HopperRandParamsVectorEnv(_RandomParameters):
    """Hoppers run along x, each with its own body; O = 11, A = 3.

    Physics, first states, reward and termination are those of Gymnasium's Hopper-v5. A step lasts 0.008 s.

    * Task: see the base class; D = 37.
    * Reward: v + 1 - 0.001 |a|^2, with v the displacement along x in a step divided by its duration, in metres
      per second. The 1 is paid only while healthy.
    * Terminated: unless the height is above 0.7 metres, the angle within 0.2 radians, and every other position
      and velocity within 100. H = 200.
    """

    model_name = "hopper.xml"

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns whether the hopper has fallen, (n,)."""
        positions = self.positions(state)
        rest = np.concatenate([positions[:, 2:], self.velocities(state)], axis=1)
        healthy: Bools = (
            (positions[:, 1] > 0.7) & (np.abs(positions[:, 2]) < 0.2) & (np.abs(rest) < 100).all(axis=1)
        )
        return ~healthy


class Walker2DRandParamsVectorEnv(_RandomParameters):
    """Walkers run along x, each with its own body; O = 17, A = 6.

    Physics, first states, reward and termination are those of Gymnasium's Walker2d-v5. A step lasts 0.008 s.

    * Task: see the base class; D = 61.
    * Reward: as in `HopperRandParamsVectorEnv`.
    * Terminated: unless the height is between 0.8 and 2 metres and the angle within 1 radian. H = 200.
    """

    model_name = "walker2d_v5.xml"

    def terminated(self, state: Array, task: Array) -> Bools:
        """Returns whether the walker has fallen, (n,)."""
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
