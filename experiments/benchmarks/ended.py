"""What an iteration of robots that fall costs with and without the time after their episodes, as JSON.

* Environments begin further episodes until the last one has ended (`NEXT_STEP`), or rest (`DISABLED`).
* The learner computes all H steps, masked after the end, or only those up to the end of the longest episode.

Both are medians in turns, with untrained policies and the same rollouts.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import tyro
from gymnasium.vector import AutoresetMode
from maml_rl.envs import make_vec

from maml_rl import Config
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.process import tune_process
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.advantages import with_advantages
from maml_rl.sampling.collect import collect_rollouts, trimmed
from maml_rl.sampling.rollouts import Rollouts
from maml_rl.sampling.streams import stream

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import in_turns


def measure(env_id: str, num_tasks: int, repetitions: int) -> dict[str, float]:
    """Seconds of two phases and of an outer step, before and after."""
    config = Config(env_id=env_id, num_tasks=num_tasks)
    policy, method, size = new_policy(config), method_of(config), num_tasks * config.num_rollouts
    restarting, resting = (
        make_vec(env_id, size, autoreset_mode=mode) for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)
    )
    tasks, theta = resting.sample_tasks(num_tasks, np.random.default_rng(0)), flatten(policy)
    actor = TaskPolicies(policy, theta.expand(num_tasks, -1))

    def phases(env: object) -> list[Rollouts]:
        return [collect_rollouts(env, actor, tasks, config.num_rollouts, stream(i, "ended")) for i in range(2)]

    whole = [with_advantages(one, config.discount, config.gae_lambda) for one in phases(resting)]
    short = [with_advantages(trimmed(one), config.discount, config.gae_lambda) for one in phases(resting)]
    turns = in_turns(
        {
            "collect, restarting": lambda: phases(restarting),
            "collect, resting": lambda: phases(resting),
            "update, all steps": lambda: method.update(policy, theta, {}, whole),
            "update, up to the longest": lambda: method.update(policy, theta, {}, short),
        },
        repetitions,
    )
    medians = {name: round(statistics.median(turn[name] for turn in turns), 3) for name in turns[0]}
    steps = np.mean([batch.mask.sum(-1).double().mean().item() for batch in whole])
    for env in (restarting, resting):
        env.close()
    return {
        "horizon": resting.max_episode_steps or 0,
        "mean steps": round(float(steps), 1),
        **medians,
    }


def main(num_tasks: int = 10, repetitions: int = 5) -> None:
    """Prints the figures of three families.

    Args:
        num_tasks: M, with 20 rollouts each.
        repetitions: Turns, after two to warm up.
    """
    tune_process()
    families = ("HopperRandParams", "Walker2DRandParams", "HumanoidDir")
    print(json.dumps({name: measure(f"maml_rl/{name}-v0", num_tasks, repetitions) for name in families}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
