"""Environment steps a second against what bounds them, as JSON, all in one run.

For half-cheetah and ant: the ceiling (MuJoCo stepping the same first states under the same controls on all
cores, in one native call for the whole episode), closed-loop stepping without the policy (all environments in
one call, and in two halves as while collecting) and with it, and one of Gymnasium's own environments. Then
memory for each further environment, and the adapter's workers against this process on an environment whose
step keeps Python busy for a millisecond. Repetitions take turns, and every ratio is the median of the ratios of
one turn, so that the machine's other work falls on both sides.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
import tyro
from maml_rl.envs import make_vec
from mujoco.rollout import Rollout as ThreadPool

from maml_rl import Config
from maml_rl.policies import flatten
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.collect import collect_rollouts
from maml_rl.sampling.families import make_env
from maml_rl.sampling.rollouts import Rollouts
from maml_rl.sampling.spaces import action_map
from maml_rl.sampling.streams import integer_seed, stream

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import own_turns, seconds

NUM_TASKS, NUM_ROLLOUTS = 40, 20
PEERS = {"HalfCheetahVel": "HalfCheetah-v5", "AntVel": "Ant-v5"}


class BusyEnv(gymnasium.Env):
    """An environment whose step takes a millisecond of Python."""

    task_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float64)
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: None = None):
        pass

    def set_task(self, task: np.ndarray) -> None:
        """Does nothing."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode."""
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Keeps the processor busy for a millisecond."""
        end = time.perf_counter() + 1e-3
        while time.perf_counter() < end:
            pass
        return np.zeros(3, np.float32), 0.0, False, False, {}


def stepping(name: str, horizon: int, repetitions: int) -> dict[str, Any]:
    """Steps a second of the ceiling, of the family and of Gymnasium, and their ratios."""
    config = Config(env_id=f"maml_rl/{name}-v0", horizon=horizon)
    num_envs = NUM_TASKS * NUM_ROLLOUTS
    env: Any = make_env(config, num_envs)
    model, frame_skip = env.model, env.frame_skip
    policy = new_policy(config)
    thetas = flatten(policy).expand(NUM_TASKS, -1)
    tasks = env.sample_tasks(NUM_TASKS, np.random.default_rng(0))
    slots = {"task": np.repeat(tasks, NUM_ROLLOUTS, axis=0)}

    def rollouts() -> Rollouts:
        return collect_rollouts(
            env, TaskPolicies(policy, thetas), tasks, num_envs // NUM_TASKS, stream(0, "benchmark")
        )

    # All parts start from the same states and take the policy's actions: others make other contacts.
    seed = integer_seed(stream(0, "benchmark").spawn(2)[0])
    taken = action_map(env.single_action_space)(rollouts().actions.flatten(0, 1).numpy())
    actions = np.ascontiguousarray(taken.transpose(1, 0, 2))
    controls = np.repeat(actions.transpose(1, 0, 2), frame_skip, axis=1).astype(float)
    threads = os.cpu_count() or 1
    pool, data = ThreadPool(nthread=threads), [mujoco.MjData(model) for _ in range(threads)]
    num_physics = env._num_physics
    out = np.zeros((num_envs, horizon * frame_skip, num_physics)), np.zeros((num_envs, horizon * frame_skip, 0))

    def ceiling() -> float:
        env.reset(seed=seed, options=slots)
        states, warm = env._state[:, :num_physics].copy(), np.zeros((num_envs, model.nv))
        models, steps = [model] * num_envs, horizon * frame_skip
        return seconds(
            lambda: pool.rollout(
                models, data, states, controls, nstep=steps, initial_warmstart=warm, state=out[0],
                sensordata=out[1], skip_checks=True, chunk_size=1,
            )
        )  # fmt: skip

    def without_policy() -> float:
        env.reset(seed=seed, options=slots)
        return seconds(lambda: [env.step(a_t) for a_t in actions])

    # As `collect` does it: each half by a thread of its own.
    halves = env.shares(NUM_TASKS)
    half = num_envs // len(halves)

    def without_policy_in_halves() -> float:
        for i, share in enumerate(halves):
            share.reset(seed=seed + i * half, options={"task": slots["task"][i * half : (i + 1) * half]})

        def steps(i: int) -> None:
            for a_t in actions[:, i * half : (i + 1) * half]:
                halves[i].step(a_t)

        with ThreadPoolExecutor(len(halves)) as executor:
            return seconds(lambda: list(executor.map(steps, range(len(halves)))))

    peer = gymnasium.make(PEERS[name], max_episode_steps=horizon)

    def gymnasium_single() -> float:
        def steps() -> None:
            for a_t in actions[:, 0]:
                *_, terminated, truncated, _ = peer.step(a_t)
                if terminated or truncated:
                    peer.reset()

        peer.reset(seed=0)
        return seconds(steps)

    parts = {
        "ceiling": ceiling,
        "without_policy": without_policy,
        "without_policy_in_halves": without_policy_in_halves,
        "with_policy": lambda: seconds(rollouts),
        "gymnasium_single": gymnasium_single,
    }
    times = own_turns(parts, repetitions)
    steps = {part: horizon * (1 if part == "gymnasium_single" else num_envs) for part in parts}
    rates = {part: steps[part] / statistics.median(turn[part] for turn in times) for part in parts}
    return {
        "num_envs": num_envs,
        "horizon": horizon,
        "steps_per_second": {part: round(rate) for part, rate in rates.items()},
        "share_of_ceiling": {
            part: round(statistics.median(turn["ceiling"] / turn[part] for turn in times), 3)
            for part in ("without_policy", "without_policy_in_halves", "with_policy")
        },
        "times_gymnasium_single": round(rates["with_policy"] / rates["gymnasium_single"], 1),
    }


def kilobytes_per_env(name: str) -> float:
    """Resident memory of each further environment, from 500 to 4,500 of them, after a few steps."""
    script = (
        "import sys, maml_rl.envs as e\n"
        f"env = e.make_vec('maml_rl/{name}-v0', int(sys.argv[1]), 10)\n"
        "env.reset(seed=0)\n"
        "for _ in range(3): env.step(env.action_space.sample())\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    few, many = (
        int(subprocess.run([sys.executable, "-c", script, n], check=True, capture_output=True).stdout)
        for n in ("500", "4500")
    )
    return round((many - few) / 4000, 1)


def adapter(repetitions: int, num_envs: int, horizon: int = 10) -> dict[str, Any]:
    """Workers, one for each core, against this process."""
    envs = {n: make_vec("benchmark/Busy-v0", num_envs, horizon, num_workers=n) for n in (0, os.cpu_count() or 1)}
    actions = np.zeros((num_envs, 1), np.float32)

    def run(env: gymnasium.vector.VectorEnv) -> float:
        env.reset(seed=0)
        return seconds(lambda: [env.step(actions) for _ in range(horizon)])

    taken = own_turns({str(n): lambda env=env: run(env) for n, env in envs.items()}, repetitions)  # type: ignore[misc]
    for env in envs.values():
        env.close()
    workers = str(os.cpu_count() or 1)
    return {
        "num_envs": num_envs,
        "workers": int(workers),
        "times_this_process": round(statistics.median(turn["0"] / turn[workers] for turn in taken), 2),
    }


def main(repetitions: int = 11, horizon: int = 100) -> None:
    """Measures and prints.

    Args:
        repetitions: Turns that count.
        horizon: H.
    """
    report: dict[str, Any] = {"cores": os.cpu_count(), "threads_of_torch": torch.get_num_threads()}
    for name in PEERS:
        report[name] = stepping(name, horizon, repetitions) | {"kilobytes_per_env": kilobytes_per_env(name)}
    report["adapter"] = [adapter(repetitions, num_envs) for num_envs in (16, 64, 256)]
    print(json.dumps(report, indent=2))


gymnasium.register("benchmark/Busy-v0", entry_point="stepping:BusyEnv", max_episode_steps=25)

if __name__ == "__main__":
    tyro.cli(main)
