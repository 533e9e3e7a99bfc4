"""MuJoCo families against Gymnasium's own environments, and their simulations breaking down."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from maml_rl.envs import make_vec
from maml_rl.envs.locomotion import HalfCheetahVelVectorEnv
from maml_rl.envs.mujoco import quiet_mujoco

NO_CONTACT_FORCES = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}
# Family -> Gymnasium's environment with the observation of ours, a task, and that task's reward from the
# velocity of the first two positions, the action (as its cost counts it), the positions after the step, and
# whether the step was healthy.
PEERS = {
    "HalfCheetahVel": (
        ("HalfCheetah-v5", {}),
        [1.3],
        lambda v, a, q, healthy: -abs(v[0] - 1.3) - 0.05 * a @ a,
    ),
    "HalfCheetahDir": (("HalfCheetah-v5", {}), [-1.0], lambda v, a, q, healthy: -v[0] - 0.05 * a @ a),
    "AntVel": (
        ("Ant-v5", NO_CONTACT_FORCES),
        [2.0],
        lambda v, a, q, healthy: 1 - abs(v[0] - 2.0) + 0.05 - 0.005 * a @ a,
    ),
    "AntDir": (("Ant-v5", NO_CONTACT_FORCES), [-1.0], lambda v, a, q, healthy: -v[0] + 0.05 - 0.005 * a @ a),
    "AntGoal": (
        ("Ant-v5", NO_CONTACT_FORCES),
        [1.0, -2.0],
        lambda v, a, q, healthy: 4 - abs(q[0] - 1.0) - abs(q[1] + 2.0) - 0.1 * a @ a,
    ),
    "HumanoidDir": (
        (
            "Humanoid-v5",
            NO_CONTACT_FORCES
            | {f"include_{part}_in_observation": False for part in ("cinert", "cvel", "qfrc_actuator")},
        ),
        [0.7],
        lambda v, a, q, healthy: 1.25 * (v[0] * np.cos(0.7) + v[1] * np.sin(0.7)) + 5.0 * healthy - 0.1 * a @ a,
    ),
    "HopperRandParams": (("Hopper-v5", {}), [0.0] * 37, lambda v, a, q, healthy: v[0] + healthy - 1e-3 * a @ a),
    "Walker2DRandParams": (
        ("Walker2d-v5", {}),
        [0.0] * 61,
        lambda v, a, q, healthy: v[0] + healthy - 1e-3 * a @ a,
    ),
}


def random_actions(space, rng, num_steps):
    """A fixed random policy: uniform, and the same for four steps on end, so that bodies move."""
    values = rng.uniform(space.low, space.high, (-(-num_steps // 4), *space.shape))
    return np.repeat(values, 4, axis=0)[:num_steps].astype(np.float32)


def family(name, num_envs, horizon):
    env = make_vec(f"maml_rl/{name}-v0", num_envs, horizon)
    env.reset(seed=0, options={"task": [PEERS[name][1]] * num_envs})
    return env


@pytest.mark.parametrize("name", PEERS)
def test_steps_as_gymnasium_does(name):
    """From the same state, warm start and action: observation, reward and termination, 100 times."""
    (peer_id, kwargs), _, reward = PEERS[name]
    peer = gymnasium.make(peer_id, **kwargs).unwrapped
    data = peer.data
    rng = np.random.default_rng(0)
    states, actions, after = [], [], []
    while len(states) < 100:
        peer.reset(seed=len(states))
        for action in random_actions(peer.action_space, rng, num_steps=40):
            state = np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])
            before = data.qpos.copy()
            observation, peer_reward, terminated, _, _ = peer.step(action)
            if rng.random() < 0.3:
                states.append(state)
                actions.append(action)
                counted = (data.ctrl if name == "HumanoidDir" else action).astype(float)
                expected = reward((data.qpos - before) / peer.dt, counted, data.qpos, not terminated)
                if "RandParams" in name:
                    assert peer_reward == pytest.approx(expected, abs=1e-9)
                after.append((observation, expected, terminated))
            if terminated:
                break
    peer.close()
    env = family(name, len(states), horizon=10)
    env._state = np.array(states)
    observations, rewards, terminated, truncated, info = env.step(np.array(actions))
    np.testing.assert_allclose(observations, [row[0] for row in after], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rewards, [row[1] for row in after], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(terminated, [row[2] for row in after])
    assert not truncated.any()
    assert info == {}
    env.close()


@pytest.mark.parametrize("name", ["HalfCheetahVel", "AntVel", "HumanoidDir", "HopperRandParams"])
def test_whole_episodes_are_like_gymnasium_s(name):
    """First states, lengths of episodes and the distance covered, under the same random policy."""
    (peer_id, kwargs), _, _ = PEERS[name]
    num_episodes, horizon = 150, 30
    peer = gymnasium.make(peer_id, **kwargs).unwrapped
    rng = np.random.default_rng(1)
    first, theirs = [], []
    for episode in range(num_episodes):
        first.append(peer.reset(seed=episode)[0])
        start, length = peer.data.qpos[0], 0
        for action in random_actions(peer.action_space, rng, horizon):
            *_, terminated, _, _ = peer.step(action)
            length += 1
            if terminated:
                break
        theirs.append((length, peer.data.qpos[0] - start))
    peer.close()
    env = family(name, num_episodes, horizon)
    our_first = env.observation(env._state, env.tasks)
    start, alive = env.positions(env._state)[:, 0].copy(), np.ones(num_episodes, bool)
    ours = np.zeros((num_episodes, 2))
    actions = np.stack(
        [random_actions(env.single_action_space, rng, horizon) for _ in range(num_episodes)], axis=1
    )
    for a_t in actions:
        _, _, terminated, truncated, _ = env.step(a_t)
        ours[alive, 0] += 1
        ours[alive, 1] = env.positions(env._state)[alive, 0] - start[alive]
        alive &= ~(terminated | truncated)
    env.close()
    for mine, other in ((our_first, np.array(first)), (ours, np.array(theirs, float))):
        error = np.sqrt((mine.var(axis=0) + other.var(axis=0)) / num_episodes) + 1e-9
        assert (np.abs(mine.mean(axis=0) - other.mean(axis=0)) < 4.5 * error).all()
        assert (mine.std(axis=0) < 1.4 * other.std(axis=0) + 1e-6).all()
        assert (other.std(axis=0) < 1.4 * mine.std(axis=0) + 1e-6).all()


@pytest.mark.parametrize("name", ["HopperRandParams", "Walker2DRandParams"])
def test_every_task_has_a_body_of_its_own(name):
    env = family(name, 3, horizon=10)
    tasks = np.zeros((3, *env.task_space.shape))
    tasks[1:, 0] = 1.0  # the first body's mass
    env.reset(seed=[5, 5, 5], options={"task": tasks})
    plain, heavy, again = env.models(env.tasks)
    assert heavy is again
    assert heavy.body_mass[1] == pytest.approx(1.5 * plain.body_mass[1])
    some = np.random.default_rng(1).normal(size=(1, tasks.shape[1]))
    (other,) = env.models(some)
    bodies = plain.nbody - 1
    sizes = np.cumsum([bodies, 3 * bodies, plain.nv])
    assert sizes[-1] + 3 * plain.ngeom == tasks.shape[1]
    mass, inertia, damping, friction = np.split(some[0], sizes)
    np.testing.assert_allclose(other.body_mass[1:], plain.body_mass[1:] * 1.5**mass)
    np.testing.assert_allclose(other.body_inertia[1:].ravel(), plain.body_inertia[1:].ravel() * 1.5**inertia)
    np.testing.assert_allclose(other.dof_damping, plain.dof_damping * 1.3**damping)
    np.testing.assert_allclose(other.geom_friction.ravel(), plain.geom_friction.ravel() * 1.5**friction)
    np.testing.assert_array_equal(heavy.body_mass[2:], plain.body_mass[2:])
    # What MuJoCo derives from masses follows them.
    assert heavy.body_subtreemass[0] == pytest.approx(plain.body_subtreemass[0] + 0.5 * plain.body_mass[1])
    assert (heavy.dof_invweight0 != plain.dof_invweight0).any()
    np.testing.assert_array_equal(env.model.body_mass, plain.body_mass)
    first, _ = env.reset(seed=[5, 5, 5])
    np.testing.assert_array_equal(first[0], first[1])
    for _ in range(3):
        observations, *_ = env.step(np.full(env.action_space.shape, 0.5, np.float32))
    assert np.abs(observations[0] - observations[1]).max() > 1e-3
    np.testing.assert_array_equal(observations[1], observations[2])
    nature = env.sample_tasks(2000, np.random.default_rng(0))
    assert abs(nature.mean()) < 0.05
    env.close()


def test_a_threads_share_changes_nothing():
    results = []
    for num_threads in (1, 2, 3):
        env = make_vec("maml_rl/AntVel-v0", 5, 10, num_threads=num_threads)
        env.reset(seed=0)
        env.action_space.seed(0)
        results.append([env.step(env.action_space.sample())[0] for _ in range(10)])
        env.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_halves_do_what_the_whole_does(num_tasks):
    env = make_vec("maml_rl/HalfCheetahVel-v0", 10, 10)
    env.reset(seed=7)
    halves = env.shares(num_tasks)
    sizes = [half.num_envs for half in halves]
    assert sum(sizes) == 10
    assert all(size % (10 // num_tasks) == 0 for size in sizes)
    assert len(halves) == 2
    assert env.shares(num_tasks) is halves
    observations, *_ = env.step(np.full((10, 6), 0.3, np.float32))
    parts = []
    for half, first in zip(halves, (0, sizes[0]), strict=True):
        half.reset(seed=7 + first)
        parts.append(half.step(np.full((half.num_envs, 6), 0.3, np.float32))[0])
    np.testing.assert_array_equal(observations, np.concatenate(parts))
    env.close()


class PaidCheetahs(HalfCheetahVelVectorEnv):
    def __init__(self, num_envs=1, pay=0.0, **kwargs):
        self.pay = pay
        super().__init__(num_envs, **kwargs)

    def reward(self, state, action, next_state, task, noise):
        return np.full(len(state), self.pay)


def test_halves_keep_what_a_subclass_and_its_user_set():
    env = PaidCheetahs(4, pay=7.0, max_episode_steps=5)
    env.model.opt.gravity[2] = 0.0
    half, other = env.shares(4)
    assert half.model is env.model
    assert other.max_episode_steps == 5
    half.reset(seed=0)
    _, rewards, *_ = half.step(np.zeros((2, 6), np.float32))
    np.testing.assert_array_equal(rewards, [7.0, 7.0])
    env.close()


@pytest.fixture
def quiet():
    before = mujoco.get_mju_user_warning()
    quiet_mujoco()
    yield
    mujoco.set_mju_user_warning(before)


@pytest.mark.parametrize("broken", [np.nan, 1e12])
def test_a_simulation_that_blows_up_ends_its_episode_alone(quiet, broken, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    env = make_vec("maml_rl/HalfCheetahVel-v0", 4, 10)
    env.reset(seed=0)
    calm, _ = env.reset(seed=0)
    env.step(np.zeros((4, 6), np.float32))
    kept = env.observation(env._state, env.tasks)[2]
    push = env._pool.rollout

    def rollout(model, data, initial_state, *arguments, **kwargs):
        initial_state[2, 3] = broken  # a position, on the way into MuJoCo
        return push(model, data, initial_state, *arguments, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(env._pool, "rollout", rollout)
        observations, rewards, terminated, truncated, info = env.step(np.zeros((4, 6), np.float32))
    np.testing.assert_array_equal(info["failed"], [False, False, True, False])
    np.testing.assert_array_equal(truncated, [False, False, True, False])
    assert not terminated.any()
    assert np.isfinite(observations).all()
    np.testing.assert_array_equal(observations[2], kept)  # it stays where it was
    assert rewards[2] == 0
    assert (rewards[[0, 1, 3]] != 0).all()
    after, _, _, truncated, info = env.step(np.zeros((4, 6), np.float32))
    assert not info
    assert not truncated.any()
    assert np.abs(after[2] - calm[2]).max() < 1  # a new episode
    env.close()
    assert list(tmp_path.iterdir()) == []  # MuJoCo writes no log into the working folder
    assert capfd.readouterr().err == ""


def test_actuators_without_a_range_take_any_control(tmp_path):
    model = Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml"
    free = tmp_path / "free.xml"
    free.write_text(re.sub(r'ctrl(limited|range)="[^"]*"', "", model.read_text()))
    env = make_vec("maml_rl/HalfCheetahVel-v0", 2, model_file=str(free))
    assert (env.single_action_space.high == np.inf).all()
    env.reset(seed=0)
    after, *_ = env.step(np.full((2, 6), 3.0, np.float32))
    env.reset(seed=0)
    still, *_ = env.step(np.zeros((2, 6), np.float32))
    assert np.abs(after - still).max() > 0.1
    env.close()


def test_a_model_that_does_not_compile_is_refused(tmp_path):
    bad = tmp_path / "bad.xml"
    bad.write_text("<mujoco><worldbody><body><geom/></worldbody></mujoco>")
    with pytest.raises(ValueError, match=r"HalfCheetahVelVectorEnv: the model file .*bad.xml does not compile \("):
        make_vec("maml_rl/HalfCheetahVel-v0", 1, model_file=str(bad))
    with pytest.raises(ValueError, match=r"none.xml does not compile \(.*(exist|open)"):
        make_vec("maml_rl/HalfCheetahVel-v0", 1, model_file=str(tmp_path / "none.xml"))
    with pytest.raises(ValueError, match="num_threads is 0"):
        make_vec("maml_rl/HalfCheetahVel-v0", 1, num_threads=0)


@pytest.mark.parametrize(
    ("env_id", "task"), [("AntGoal", [2.5, 2.5]), ("HalfCheetahDir", [0.5]), ("AntDir", [0.0])]
)
def test_tasks_outside_the_family_are_refused(env_id, task):
    env = make_vec(f"maml_rl/{env_id}-v0", 1)
    with pytest.raises(ValueError, match="metres away|does not exist"):
        env.reset(options={"task": [task]})
    env.close()


@pytest.mark.parametrize("name", ["AntVel", "HumanoidDir", "HopperRandParams", "Walker2DRandParams"])
def test_bounds_of_health_are_gymnasium_s(name):
    """States on both sides of every bound, and nowhere in reach of the simulation."""
    (peer_id, kwargs), _, _ = PEERS[name]
    peer = gymnasium.make(peer_id, **kwargs).unwrapped
    env = family(name, 1, horizon=10)
    rng = np.random.default_rng(0)
    healthy = []
    for _ in range(600):
        state = env.initial_state(env.tasks, rng.random((1, env.initial_noise)))
        positions, velocities = env.positions(state)[0], env.velocities(state)[0]
        if "RandParams" in name:
            positions[1], positions[2] = rng.uniform(0.5, 2.2), rng.uniform(-0.3, 0.3) * rng.choice([1, 4])
        else:
            positions[2] = rng.uniform(0.0, 2.3)
        velocities[3] = rng.choice([0.0, 99.0, 101.0])
        peer.set_state(positions, velocities)
        healthy.append(bool(peer.is_healthy))
        assert env.terminated(state, env.tasks)[0] != healthy[-1]
    assert 50 < sum(healthy) < 550
    peer.close()
    env.close()


def test_the_camera_goes_with_the_body():
    env = make_vec("maml_rl/HalfCheetahVel-v0", 2, 10, render_mode="rgb_array")
    env.reset(seed=[1, 1])
    env.positions(env._state)[1, 0] += 50.0  # metres
    for frame in env.render():
        red, green, _ = np.moveaxis(frame.astype(int), 2, 0)
        assert (red > green + 20).sum() > 200  # the body is the only thing of that colour
    env.close()


def test_quiet_mujoco_keeps_a_handler_that_is_installed():
    before = mujoco.get_mju_user_warning()
    mine = [].append
    try:
        mujoco.set_mju_user_warning(None)
        quiet_mujoco()
        assert mujoco.get_mju_user_warning() == logging.getLogger("mujoco").debug
        mujoco.set_mju_user_warning(mine)
        quiet_mujoco()
        assert mujoco.get_mju_user_warning() == mine
    finally:
        mujoco.set_mju_user_warning(before)


@pytest.mark.parametrize("given", ["", "egl", "osmesa"])
def test_rendering_leaves_the_process_as_it_was(given):
    """In a process of its own, because OpenGL is chosen once in each."""
    code = """
import os, subprocess, sys, gymnasium, mujoco
from maml_rl.envs import make_vec
opengl = vars(sys.modules[mujoco.Renderer.__module__])['gl_context']  # moved since 3.9
before, context = dict(os.environ), opengl.GLContext
ran, run = [], subprocess.run
subprocess.run = lambda *arguments, **kwargs: (ran.append(arguments), run(*arguments, **kwargs))[1]
for name in ("HalfCheetahVel", "AntVel"):
    env = make_vec(f"maml_rl/{name}-v0", 2, 10, render_mode="rgb_array")
    env.reset(seed=0)
    try:
        assert all(frame.std() > 1 for frame in env.render())
    except gymnasium.error.DependencyNotInstalled as error:
        print("no OpenGL:", error)
        break
    finally:
        env.close()
    attempts = len(ran) if name == "HalfCheetahVel" else attempts
else:
    assert len(ran) == attempts  # the second environment tries no backend again
assert dict(os.environ) == before
assert opengl.GLContext is context
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = given
    attempt = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"]
    if given and subprocess.run(attempt, env=environment, capture_output=True).returncode != 0:
        pytest.skip(f"no OpenGL here by way of {given}")
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "no OpenGL" in result.stdout:
        pytest.skip("no OpenGL here")
    assert result.returncode == 0, result.stderr
