"""A family that does on purpose, at a given reset, what goes wrong in real runs."""

import os
import signal

import gymnasium
import numpy as np
from maml_rl.envs.bandit import BernoulliBanditEnv, BernoulliBanditVectorEnv
from maml_rl.envs.navigation import Navigation2DEnv, Navigation2DVectorEnv


class MisbehavingVectorEnv(Navigation2DVectorEnv):
    """Navigation; at reset number MISBEHAVE_AT (from 1) it does as MISBEHAVE says."""

    resets = 0

    def reset(self, **kwargs):
        type(self).resets += 1
        if self.misbehaves("SIGKILL") or self.misbehaves("SIGINT"):
            os.kill(os.getpid(), getattr(signal, os.environ["MISBEHAVE"]))
        return super().reset(**kwargs)

    def misbehaves(self, how):
        return os.environ.get("MISBEHAVE") == how and self.resets == int(os.environ["MISBEHAVE_AT"])

    def reward(self, state, action, next_state, task, noise):
        reward = super().reward(state, action, next_state, task, noise)
        if self.misbehaves("reward"):
            reward[(self._steps == 3) & (np.arange(len(reward)) == 5)] = np.nan
        return reward

    def observation(self, state, task):
        observation = super().observation(state, task)
        if self.misbehaves("observation"):
            observation[self._steps == 2] = np.inf
        return observation


class MisbehavingEnv(Navigation2DEnv):
    vector_class = MisbehavingVectorEnv


gymnasium.register(
    "tests/Misbehaving-v0",
    entry_point="misbehaving:MisbehavingEnv",
    vector_entry_point="misbehaving:MisbehavingVectorEnv",
    max_episode_steps=20,
)


class TwoArmsVectorEnv(BernoulliBanditVectorEnv):
    """Of two arms one always pays: the smallest problem that only adaptation solves."""

    def __init__(self, num_envs=1, **kwargs):
        super().__init__(num_envs, num_arms=2, **kwargs)

    def sample_tasks(self, num_tasks, rng):
        return np.eye(2)[rng.integers(2, size=num_tasks)]


class TwoArmsEnv(BernoulliBanditEnv):
    vector_class = TwoArmsVectorEnv


gymnasium.register(
    "tests/TwoArms-v0",
    entry_point="misbehaving:TwoArmsEnv",
    vector_entry_point="misbehaving:TwoArmsVectorEnv",
    max_episode_steps=5,
)


class NanAfterEndVectorEnv(Navigation2DVectorEnv):
    """Ends where it leaves a small square, and shows NaN from then on until it is reset."""

    def terminated(self, state, task):
        return np.abs(state).max(axis=1) > 0.15

    def observation(self, state, task):
        return np.where(self.terminated(state, task)[:, None], np.nan, state).astype(np.float32)


class NanAfterEndEnv(Navigation2DEnv):
    vector_class = NanAfterEndVectorEnv


class ShortLivedVectorEnv(Navigation2DVectorEnv):
    """Random in all it can be, and ends at random: every path through the base class is taken."""

    initial_noise = 2
    step_noise = 3

    def initial_state(self, task, noise):
        return noise - 0.5

    def transition(self, state, action, task, noise):
        return np.where(noise[:, :1] < 0.2, 9.0, super().transition(state, action, task, noise) + noise[:, 1:])

    def terminated(self, state, task):
        return state[:, 0] == 9.0


class ShortLivedEnv(Navigation2DEnv):
    vector_class = ShortLivedVectorEnv


for name in ("NanAfterEnd", "ShortLived"):
    gymnasium.register(
        f"tests/{name}-v0",
        entry_point=f"misbehaving:{name}Env",
        vector_entry_point=f"misbehaving:{name}VectorEnv",
        max_episode_steps=20,
    )
