"""MuJoCo families against Gymnasium's own environments, and their simulations breaking down."""

import gymnasium
import numpy as np
import pytest
from maml_rl.envs.locomotion import HalfCheetahVelVectorEnv

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
        lambda v, a, q, healthy: (
            1.25 * (v[0] * np.cos(0.7) + v[1] * np.sin(0.7)) + 5.0 * healthy - 0.1 * a @ a
        ),
    ),
    "HopperRandParams": (("Hopper-v5", {}), [0.0] * 37, lambda v, a, q, healthy: v[0] + healthy - 1e-3 * a @ a),
    "Walker2DRandParams": (
        ("Walker2d-v5", {}),
        [0.0] * 61,
        lambda v, a, q, healthy: v[0] + healthy - 1e-3 * a @ a,
    ),
}


def random_policy(space, rng, step, size=()):
    """Actions of a fixed random policy: uniform, but constant for four steps, so that bodies move."""
    scale = rng.uniform(-1, 1, (*size, *space.shape)) if step % 4 == 0 else None
    return None if scale is None else space.low + (space.high - space.low) * (scale + 1) / 2


@pytest.mark.parametrize("name", PEERS)
def test_steps_as_gymnasium_does(name):
    (peer_id, kwargs), task, reward = PEERS[name]
    peer = gymnasium.make(peer_id, **kwargs).unwrapped
    rng = np.random.default_rng(0)
    data, states, actions, after = peer.data, [], [], []
    observation, _ = peer.reset(seed=0)
    first = []
    step, episode = 0, 0
    while len(states) < 100:
        chosen = random_policy(peer.action_space, rng, step)
        action = (chosen if chosen is not None else action).astype(np.float32)
        before = data.qpos.copy()
        if rng.random() < 0.3:
            states.append(np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart]))
            actions.append(action)
        observation, peer_reward, terminated, _, _ = peer.step(action)
        if len(states) > len(after):
            velocity = (data.qpos[:2] - before[:2]) / peer.dt
            counted = data.ctrl if name == "HumanoidDir" else action
            expected = reward(velocity, counted.astype(float), data.qpos, not terminated)
            if "RandParams" in name:
                assert peer_reward == pytest.approx(expected, abs=1e-9)
            after.append((observation, expected, terminated, data.qpos.copy(), data.qvel.copy()))
        step += 1
        if terminated or step == 40:
            step, episode = 0, episode + 1
            peer.reset(seed=episode)
    env = gymnasium.make_vec(f"maml_rl/{name}-v0", 100, "vector_entry_point", max_episode_steps=10)
    env.reset(seed=0, options={"task": [task] * 100})
    env._state = np.array(states)
    observations, rewards, terminated, truncated, info = env.step(np.array(actions))
    np.testing.assert_allclose(observations, [row[0] for row in after], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rewards, [row[1] for row in after], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(terminated, [row[2] for row in after])
    assert not truncated.any()
    assert info == {}
    env.close()
