"""Evaluates a run on ML1, ML10 or ML45 by Meta-World's own protocol.

`python experiments/metaworld_protocol.py RUN_DIR`

As `metaworld.evaluation.metalearning_evaluation` of version 3 of the package: ten episodes of a task to adapt on,
one step, and then three episodes of the most probable action. A task counts the share of these three that succeed
at any step. The rewards are those of version 2, which the package uses by default. RL² adapts in ten episodes of
its own, and three learners of each task act on.
"""

import contextlib
import dataclasses
import importlib.metadata
from itertools import islice
from pathlib import Path
from typing import Any

import metaworld
import numpy as np
import torch
import tyro
from maml_rl.envs import VectorFamily

from maml_rl import Config, UserError
from maml_rl.cli import run
from maml_rl.methods import Method, method_of
from maml_rl.policies import flatten
from maml_rl.results.comparison import as_markdown
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import load_run
from maml_rl.sampling.actors import Actor
from maml_rl.sampling.families import make_env, sample_tasks
from maml_rl.sampling.spaces import Array, action_map, encode
from maml_rl.sampling.streams import integer_seed, numpy_generator, stream

EPISODES, TESTED = 10, 3
AT_ONCE = 20  # tasks


def manipulations(config: Config) -> list[str]:
    """The names of a benchmark's manipulations, by the first number of a task."""
    name = config.env_id.removeprefix("maml_rl/").removesuffix("-v0")
    if name == "ML1":
        return [str(config.env_kwargs.get("task_name", "reach-v3"))]
    lists = getattr(metaworld.env_dict, f"{name}_V3", None)
    if lists is None:
        raise UserError(f"{config.env_id} is not ML1, ML10 or ML45; give a run on one of them.")
    return [*lists["train"], *lists["test"]]


def most_probable(
    env: VectorFamily, actor: Actor, tasks: Array, num_rollouts: int, seed: int
) -> tuple[Array, Array]:
    """Success at any step, and returns, of an episode of the most probable actions, both (M, K)."""
    shape, to_env = (len(tasks), num_rollouts), action_map(env.single_action_space)
    success, returns = np.zeros((2, env.num_envs))
    observation, _ = env.reset(seed=seed, options={"task": np.repeat(tasks, num_rollouts, axis=0)})
    with torch.no_grad():
        for _ in range(env.max_episode_steps or 0):
            _, distribution = actor.act(encode(env.single_observation_space, observation).view(*shape, -1))
            actions = distribution.mode()
            observation, reward, ended, cut, info = env.step(to_env(actions.flatten(0, 1).numpy()))
            returns += reward
            success = np.maximum(success, info["success"])
            actor.observe(actions, reward, ended | cut, np.ones(env.num_envs, bool))
    return success.reshape(shape), returns.reshape(shape)


def results(
    method: Method,
    config: Config,
    policy: torch.nn.Module,
    env: VectorFamily,
    tasks: Array,
    seeds: np.random.SeedSequence,
) -> dict[str, Array]:
    """Success before and after adaptation, and returns after it, of each task, (M,)."""
    num_rollouts, theta = env.num_envs // len(tasks), flatten(policy)
    factors = [config.eval_lr_factors[0]] * (EPISODES if method.independent_learners else 1)
    adapting, testing = seeds.spawn(2)
    phases = list(islice(method.collect(env, policy, theta, tasks, num_rollouts, adapting, factors), len(factors)))
    actor = method.adapted(policy, theta, phases, factors)
    success, returns = most_probable(env, actor, tasks, num_rollouts, integer_seed(testing))
    before = phases[0].success.double().mean(1).numpy()
    return {
        "before": before,
        "success": success[:, :TESTED].mean(1),
        "return": returns[:, :TESTED].mean(1),
    }


def evaluated(run_dir: Path, num_tasks: int, seed: int, horizon: int = 500) -> dict[str, Any]:
    """The protocol's results on training and on test tasks, by manipulation."""
    config, policy, _ = load_run(run_dir)
    config = dataclasses.replace(config, horizon=horizon)
    names, method = manipulations(config), method_of(config)
    num_rollouts = TESTED if method.independent_learners else EPISODES
    found: dict[str, Any] = {
        "metaworld": importlib.metadata.version("metaworld"),
        "seed": seed,
        "adaptation_episodes": EPISODES,
        "test_episodes": TESTED,
    }
    with contextlib.closing(make_env(config, AT_ONCE * num_rollouts)) as env:
        for split, held_out in (("train", False), ("test", True)):
            rng = numpy_generator(seed, f"metaworld {split} tasks")
            tasks = sample_tasks(env, -(-num_tasks // AT_ONCE) * AT_ONCE, rng, held_out)
            # Each round has tasks of all manipulations.
            rounds = np.split(tasks, len(tasks) // AT_ONCE)
            streams = stream(seed, f"metaworld {split} episodes").spawn(len(rounds))
            parts = [results(method, config, policy, env, *some) for some in zip(rounds, streams, strict=True)]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            numbers = tasks[:, 0].astype(int)
            found[split] = {
                names[number]: {
                    "tasks": int((numbers == number).sum()),
                    **{name: float(values[numbers == number].mean()) for name, values in joined.items()},
                }
                for number in dict.fromkeys(numbers.tolist())
            }
    return found


def table(found: dict[str, Any]) -> str:
    """A row for each manipulation, and one for the mean over them."""
    rows = [["tasks", "manipulation", "number", "success before", "success after", "return after"]]
    for split in ("train", "test"):
        by_name = found[split]
        for name, values in by_name.items():
            numbers = f"{values['before']:.2f}", f"{values['success']:.2f}", f"{values['return']:.1f}"
            rows.append([split, name, str(values["tasks"]), *numbers])
        before, after, returns = (
            np.mean([values[key] for values in by_name.values()]) for key in ("before", "success", "return")
        )
        rows.append([split, "mean", "", f"{before:.2f}", f"{after:.2f}", f"{returns:.1f}"])
    return as_markdown(rows)


def main(
    run_dir: tyro.conf.Positional[Path], num_tasks: int = 100, seed: int = 0, output: Path | None = None
) -> None:
    """Evaluates, prints and writes.

    Args:
        run_dir: The run folder. It is not changed.
        num_tasks: Tasks of each of the two lists, rounded up to a multiple of 20.
        seed: Seed of the tasks and episodes.
        output: Where to write the results as JSON.
    """
    found = evaluated(run_dir, num_tasks, seed)
    if output is not None:
        write_json(output, found)
    print(table(found))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
