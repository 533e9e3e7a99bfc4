"""MuJoCo families against Gymnasium's own environments, and their simulations breaking down."""

import gymnasium
import numpy as np
import pytest
from maml_rl.envs import make_vec

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
