"""Meta-World's steps, by this package and by Meta-World itself, against bare physics, as JSON, all in one run.

For each manipulation, in this process: the microseconds of a step by Meta-World's class, by the faster one, and of
MuJoCo's five steps alone from the same states under the same actions. For ML10's training manipulations: steps a
second of Meta-World's asynchronous vector environment, and of the family in worker processes, one for each core.
Then memory for each further environment. Repetitions take turns, and every time is the least of its repetitions.
Actions are random.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import metaworld
import mujoco
import numpy as np
import tyro
from maml_rl.envs import make_vec
from maml_rl.envs.meta_world_fast import fast

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import own_turns, seconds

STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def cpu_seconds(f: Callable[[], Any]) -> float:
    """The processor's time of a call, in which nothing waits: other processes may share the core."""
    start = time.thread_time()
    f()
    return time.thread_time() - start


def least(parts: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """The least seconds of each part over turns."""
    turns = own_turns(parts, repetitions)
    return {name: min(turn[name] for turn in turns) for name in parts}


def manipulation(name: str, repetitions: int, steps: int = 20) -> dict[str, float]:
    """Microseconds of a step of one manipulation."""
    kind = metaworld.env_dict.ALL_V3_ENVIRONMENTS[name]
    theirs, ours = envs = [kind(), fast(kind)()]
    for env in envs:
        env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
        env.seed(0)
        env.reset()
    start = np.zeros(mujoco.mj_stateSize(ours.model, STATE))
    actions = np.zeros((steps, 4), np.float32)
    rng = np.random.default_rng(0)

    def by_meta_world() -> float:
        actions[:] = rng.uniform(-1, 1, actions.shape)
        return cpu_seconds(lambda: [theirs.step(a) for a in actions])

    def faster() -> float:
        mujoco.mj_getState(ours.model, ours.data, start, STATE)
        return cpu_seconds(lambda: [ours.step(a) for a in actions])

    def bare() -> float:
        mujoco.mj_setState(ours.model, ours.data, start, STATE)

        def step(action: np.ndarray) -> float:
            ours.set_xyz_action(action[:3])
            ours.data.ctrl[:] = action[3], -action[3]
            return cpu_seconds(lambda: mujoco.mj_step(ours.model, ours.data, nstep=ours.frame_skip))

        return sum(step(a) for a in actions)

    times = least({"meta_world": by_meta_world, "this_package": faster, "bare_physics": bare}, repetitions)
    resets = least({f"reset_{i}": lambda e=env: cpu_seconds(e.reset) for i, env in enumerate(envs)}, 2)  # type: ignore[misc]
    return {part: round(of / steps * 1e6, 1) for part, of in times.items()} | {
        "times_faster": round(times["meta_world"] / times["this_package"], 2),
        "times_bare_physics": round(times["this_package"] / times["bare_physics"], 2),
        "reset_milliseconds_meta_world": round(resets["reset_0"] * 1e3, 1),
        "reset_milliseconds_this_package": round(resets["reset_1"] * 1e3, 1),
    }


def ml10(repetitions: int, horizon: int) -> dict[str, Any]:
    """Steps a second of ML10's training manipulations, without resets."""
    asynchronous = gymnasium.make_vec("Meta-World/ML10-train", vector_strategy="async", seed=0)
    asynchronous.call("sample_tasks")
    num_envs, cores = asynchronous.num_envs, os.cpu_count() or 1
    families = {
        f"this_package_{n}_environments": make_vec("maml_rl/ML10-v0", n, 500, num_workers=cores)
        for n in (num_envs, 5 * num_envs)
    }
    for env in families.values():
        tasks = env.sample_tasks(env.num_envs, np.random.default_rng(0))
        env.reset(seed=0, options={"task": tasks})
    envs = {"meta_world_async": asynchronous, **families}
    asynchronous.reset()

    def run(env: gymnasium.vector.VectorEnv) -> float:
        actions = np.random.default_rng(0).uniform(-1, 1, (horizon, env.num_envs, 4)).astype(np.float32)
        return seconds(lambda: [env.step(a_t) for a_t in actions])

    times = least({name: lambda env=env: run(env) for name, env in envs.items()}, repetitions)  # type: ignore[misc]
    rates = {name: horizon * env.num_envs / times[name] for name, env in envs.items()}
    for env in envs.values():
        env.close()
    return {
        "num_envs": num_envs,
        "steps_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_meta_world": {name: round(rates[name] / rates["meta_world_async"], 2) for name in families},
    }


def megabytes_per_env(name: str, num_envs: int = 20) -> dict[str, float]:
    """Resident memory of each environment beyond the first of its manipulation, in one process."""
    script = (
        "import sys, metaworld, numpy as np\n"
        "from maml_rl.envs.meta_world_fast import fast\n"
        "kind = metaworld.env_dict.ALL_V3_ENVIRONMENTS[sys.argv[1]]\n"
        "kind = fast(kind) if sys.argv[2] == 'this_package' else kind\n"
        "def memory(): return int(next(l.split()[1] for l in open('/proc/self/status') if 'VmRSS' in l))\n"
        "envs = []\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    env = kind(); envs.append(env)\n"
        "    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True\n"
        "    env.seed(0); env.reset()\n"
        "    for _ in range(5): env.step(np.ones(4, np.float32))\n"
        "    first = memory() if len(envs) == 1 else first\n"
        "print((memory() - first) / 1024 / (len(envs) - 1))"
    )

    def measured(which: str) -> float:
        command = [sys.executable, "-W", "ignore", "-c", script, name, which, str(num_envs)]
        return round(float(subprocess.run(command, check=True, capture_output=True).stdout), 2)

    return {which: measured(which) for which in ("meta_world", "this_package")}


def main(names: list[str] | None = None, repetitions: int = 5, horizon: int = 50) -> None:
    """Measures and prints.

    Args:
        names: Manipulations. None means all of Meta-World's.
        repetitions: Turns that count.
        horizon: Steps of a turn of ML10. All turns are of one episode, of 500 steps.
    """
    warnings.filterwarnings("ignore", category=UserWarning)  # Gymnasium's, about Meta-World's spaces
    names = list(metaworld.env_dict.ALL_V3_ENVIRONMENTS) if names is None else names
    report: dict[str, Any] = {"cores": os.cpu_count(), "ML10": ml10(repetitions, horizon)}
    report["megabytes_per_env"] = {name: megabytes_per_env(name) for name in ("reach-v3", "box-close-v3")}
    report["microseconds_per_step"] = {name: manipulation(name, repetitions) for name in names}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
