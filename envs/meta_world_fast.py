"""Meta-World's environments stepped faster, with exactly the same observations, rewards and infos.

Most of the time of a Meta-World step is spent in Python, in a few places. `fast` makes a subclass of a
manipulation that replaces them. Reset, reward and success remain Meta-World's own code, which finds faster
functions under the names `np.linalg.norm`, `np.hstack`, `reward_utils.tolerance` and `Rotation`. Only the subclass
is changed: other users of the package in the same process see nothing of it.
"""

import functools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils

from .family import Array

_DOWN = np.array([1.0, 0.0, 1.0, 0.0])  # the gripper's orientation
_MAX_DRAWS = 10  # of the vector that places objects and goal in a reset; two are usual
_GAUSSIAN_SCALE = float(np.sqrt(-2 * np.log(0.1)))


def _norm(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Equals `np.linalg.norm`, and is faster for one vector of float64."""
    if args or kwargs or type(x) is not np.ndarray or x.ndim != 1 or x.dtype.char != "d":
        return np.linalg.norm(x, *args, **kwargs)
    x = x.ravel()
    return np.float64(math.sqrt(x.dot(x)))


def _hstack(parts: Any) -> Array:
    """Equals `np.hstack`, and is faster for vectors of the same type and for two numbers of float64."""
    if type(parts) is tuple:
        kinds = {type(part) for part in parts}
        if kinds == {np.ndarray} and all(part.ndim == 1 for part in parts):
            return np.concatenate(parts)
        if kinds == {np.float64}:
            return np.array(parts)
    return np.hstack(parts)


def tolerance(
    x: Any, bounds: tuple[float, float] = (0.0, 0.0), margin: Any = 0.0, sigmoid: Any = "gaussian", **kwargs: Any
) -> Any:
    """Equals Meta-World's `reward_utils.tolerance`, and is faster for one number."""
    lower, upper = bounds
    known = sigmoid in ("long_tail", "gaussian") and isinstance(x, float)
    if not known or lower > upper or not margin > 0 or kwargs:
        return reward_utils.tolerance(x, bounds, margin, sigmoid, **kwargs)
    x = float(x)
    if lower <= x <= upper:
        return 1.0
    distance = (lower - x if x < lower else x - upper) / float(margin)
    # As Meta-World does: the scales make the value 0.1 at the margin, and a power rounds otherwise than a product.
    if sigmoid == "gaussian":
        return float(np.exp(-0.5 * (distance * _GAUSSIAN_SCALE) ** 2))
    return 1 / ((distance * 3.0) ** 2 + 1)


class Rotation:
    """Equals SciPy's `Rotation.from_matrix(matrix).as_quat()` for a rotation matrix, (3, 3), and is faster."""

    def __init__(self, quat: list[float]):
        self._quat = quat

    @staticmethod
    def from_matrix(matrix: Array) -> "Rotation":
        """Computes the quaternion."""
        m = matrix.tolist()
        trace = m[0][0] + m[1][1] + m[2][2]
        diagonal = [m[0][0], m[1][1], m[2][2], trace]
        i = diagonal.index(max(diagonal))
        if i == 3:
            q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace]
        else:
            j, k = (i + 1) % 3, (i + 2) % 3
            q = [0.0, 0.0, 0.0, m[k][j] - m[j][k]]
            q[i], q[j], q[k] = 1 - trace + 2 * m[i][i], m[j][i] + m[i][j], m[k][i] + m[i][k]
        norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
        return Rotation([part / norm for part in q])

    def as_quat(self) -> Array:
        """Returns x, y, z and w, (4,)."""
        return np.array(self._quat)


def _module(original: types.ModuleType, **replaced: Any) -> types.ModuleType:
    """Copies a module, with other contents under some names."""
    module = types.ModuleType(original.__name__)
    vars(module).update(vars(original) | replaced)
    return module


# What Meta-World's functions find under these names of their modules.
_NAMES: dict[str, Any] = {
    "np": _module(np, linalg=_module(np.linalg, norm=_norm), hstack=_hstack),
    "reward_utils": _module(reward_utils, tolerance=tolerance),
    "Rotation": Rotation,
}


def _faster(member: Any, names: dict[str, Any]) -> Any:
    """Makes Meta-World's function again, from the same code, with other names in place of its module's."""
    if isinstance(member, staticmethod):
        return staticmethod(_faster(member.__func__, names))
    if isinstance(member, property):
        return property(_faster(member.fget, names))
    if not isinstance(member, types.FunctionType):
        return member
    cells = tuple(types.CellType(_faster(cell.cell_contents, names)) for cell in member.__closure__ or ())
    # A decorator's function comes from another module, and has Meta-World's own in its closure.
    own = names if member.__globals__["__name__"] == names["__name__"] else member.__globals__
    function = types.FunctionType(member.__code__, own, member.__name__, member.__defaults__, cells)
    function.__kwdefaults__ = member.__kwdefaults__
    return function


@functools.cache
def _loaded(path: str, width: int, height: int) -> tuple[Any, Array, Array]:
    """Loads a model once for all its environments, and returns its first positions of bodies and sites too."""
    model = mujoco.MjModel.from_xml_path(path)
    size = model.vis.global_
    size.offwidth, size.offheight = max(size.offwidth, width), max(size.offheight, height)
    return model, model.body_pos.copy(), model.site_pos.copy()


class _Data(mujoco.MjData):  # type: ignore[misc]
    """MuJoCo's data, where a name is looked up only once."""

    def __init__(self, model: Any):
        super().__init__(model)
        for kind in ("body", "geom", "joint", "site"):
            setattr(self, kind, functools.cache(getattr(self, kind)))


class FastSawyer(SawyerXYZEnv):
    """The base class of Meta-World's manipulations, faster.

    All environments of a manipulation share one model. Meta-World writes only positions of bodies and sites into
    it, in resets: each environment keeps its own and writes them again before it steps. So the environments of a
    process must not step in several threads at once. Forces on bodies (`cfrc_ext` and `cfrc_int`), which no
    manipulation looks at, are not computed.
    """

    _hand_moves = True
    _draws = 0

    def _initialize_simulation(self) -> tuple[Any, Any]:
        model, *self._positions = _loaded(self.fullpath, self.width, self.height)
        self._in_model = model.body_pos, model.site_pos
        self._own_positions()
        data = _Data(model)
        self._mocap_pos, self._mocap_quat = data.mocap_pos[0], data.mocap_quat[0]
        self._pads = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id
        return model, data

    def _own_positions(self) -> None:
        """Writes this environment's positions into the shared model."""
        self._in_model[0][:], self._in_model[1][:] = self._positions

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """As Meta-World, which places everything twice, but moves the hand only the second time.

        Placing it once would not do: the first time decides where the second one finds bodies and sites.
        """
        self._own_positions()
        self.curr_path_length, self._hand_moves, self._draws = 0, False, 0
        self.reset_model()
        self._hand_moves = True
        obs, info = super(SawyerXYZEnv, self).reset()
        self._prev_obs = obs[:18].copy()
        obs[18:36] = self._prev_obs
        self._positions = [positions.copy() for positions in self._in_model]
        return obs, info

    def _get_state_rand_vec(self) -> Any:
        """As Meta-World, which repeats this until object and goal are apart. A task has only one vector."""
        self._draws += 1
        if self._freeze_rand_vec and self._draws > _MAX_DRAWS:
            raise ValueError("the task's object and goal are too close to each other; choose another task.")
        return super()._get_state_rand_vec()

    def _reset_hand(self, steps: int = 50) -> None:
        super()._reset_hand(steps if self._hand_moves else 0)

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """As Meta-World, which looks the task up, asserts and copies more often, and moves sites back in vain."""
        if not self._set_task_called:
            raise RuntimeError("You must call env.set_task before using env.step")
        assert len(action) == 4, f"Actions should be size 4, got {len(action)}"
        self._own_positions()
        self.set_xyz_action(action[:3])
        if self.curr_path_length >= self.max_path_length:
            raise ValueError("You must reset the env manually once truncate==True")
        self.do_simulation((action[3], -action[3]), self.frame_skip)
        self.curr_path_length += 1
        mujoco.mj_forward(self.model, self.data)
        space = self.sawyer_observation_space
        obs = self._get_obs()
        np.minimum(np.maximum(obs, space.low, out=obs), space.high, out=obs)
        self._last_stable_obs = obs
        reward, info = self.evaluate_state(obs, action)
        return obs, reward, False, self.curr_path_length == self.max_path_length, info

    def set_xyz_action(self, action: Array) -> None:
        """As Meta-World."""
        moved = self._mocap_pos + np.minimum(np.maximum(action, -1), 1) * self.action_scale
        np.minimum(np.maximum(moved, self.mocap_low, out=moved), self.mocap_high, out=self._mocap_pos)
        self._mocap_quat[:] = _DOWN

    def do_simulation(self, ctrl: Any, n_frames: int) -> None:
        """As Meta-World, without the forces on bodies."""
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, nstep=n_frames)

    def _get_obs(self) -> Array:
        obs = np.zeros(39)
        obs[:18] = current = self._get_curr_obs_combined_no_goal()
        obs[18:36] = self._prev_obs
        if not self._partially_observable:
            obs[36:] = self._get_pos_goal()
        self._prev_obs = current
        return obs

    def _get_curr_obs_combined_no_goal(self) -> Array:
        obs = np.zeros(18)
        body = self.data.body
        obs[:3] = body("hand").xpos
        obs[3] = min(float(_norm(body("rightclaw").xpos - body("leftclaw").xpos)) / 0.1, 1.0)
        positions, quats = self._get_pos_objects(), self._get_quat_objects()
        for i in range(len(positions) // 3):
            obs[4 + 7 * i : 7 + 7 * i] = positions[3 * i : 3 * i + 3]
            obs[7 + 7 * i : 11 + 7 * i] = quats[4 * i : 4 * i + 4]
        return obs

    def touching_object(self, object_geom_id: int) -> bool:
        """As Meta-World."""
        contact = self.data.contact
        touching = [(i, pair) for i, pair in enumerate(contact.geom.tolist()) if object_geom_id in pair]
        if not touching:
            return False
        addresses, forces = contact.efc_address, self.data.efc_force
        return all(sum(forces[addresses[i]] for i, pair in touching if pad in pair) > 0 for pad in self._pads)

    _gripper_caging_reward: Callable[..., float] = _faster(
        SawyerXYZEnv._gripper_caging_reward, vars(sys.modules[SawyerXYZEnv.__module__]) | _NAMES
    )


@functools.cache
def fast(kind: type) -> type:
    """Makes the faster subclass of a manipulation's class."""
    names = vars(sys.modules[kind.__module__]) | _NAMES
    members = {name: _faster(member, names) for name, member in vars(kind).items()}
    names[kind.__name__] = made = type(kind.__name__, (kind, FastSawyer), members)
    return made
