"""Chunks of tasks in threads: the same numbers for any number of threads, and nothing left changed."""

import dataclasses
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import make_policy, random_rollouts
from test_custom_policies import Own, several_actions
from torch.utils._pytree import tree_leaves

from maml_rl import Config
from maml_rl.maml.linearise import linearise_chunks, outer_objective
from maml_rl.maml.trust_region import trpo_step
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import stream
from maml_rl.sampling.threads import in_threads, map_chunks, thread_map


@pytest.mark.parametrize("own", [False, True], ids=["ready-made", "own module"])
def test_results_do_not_depend_on_the_number_of_threads(own):
    """To the last bit. A module shared by two threads would also show: `functional_call` changes it."""
    if own:
        policy, theta = Own(), flatten(Own()).double() + 0.3
        batches = [several_actions(seed) for seed in (1, 2)]
    else:
        policy, theta = make_policy("normal")
        batches = [
            random_rollouts("normal", num_tasks=8, num_rollouts=20, horizon=50, seed=seed) for seed in (1, 2)
        ]
    results = []
    for threads in (1, 2, 3, 8):
        config = Config(inner_lr=0.3, chunk_tasks=1, threads=threads)
        before = torch.get_num_threads()
        new, _, metrics = trpo_step(policy, theta, {}, batches, config)
        assert torch.get_num_threads() == before
        results.append([new, torch.tensor([*metrics.values()])])
        objective = outer_objective(policy, theta, (batches[0],), batches[1], config)
        chunks = linearise_chunks(policy, theta, (batches[0],), batches[1], config)
        results[-1] += [torch.tensor(objective), *tree_leaves([chunk.outputs for chunk in chunks])]
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize(
    "options",
    [
        {"outer": "ppo", "estimator": "lvc", "e_maml": 0.1},
        {"outer": "adam"},
        {"outer": "reptile"},
        {"outer": "trpo", "e_maml": 0.1},
        {"outer": "ppo", "rl2_episodes": 2, "num_steps": 0, "hidden_sizes": (8,)},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_no_outer_step_depends_on_the_number_of_threads(options):
    results = []
    for threads in (1, 2, 5):
        config = Config(**options, num_tasks=5, num_rollouts=3, horizon=8, chunk_tasks=1, threads=threads)
        env, method = make_env(config, 15), method_of(config)
        policy = new_policy(config)
        tasks = env.sample_tasks(5, np.random.default_rng(0))
        batches = [*method.collect(env, policy, flatten(policy), tasks, 3, stream(0, "test"))]
        theta, _, metrics = method.update(policy, flatten(policy), {}, batches)
        results.append((theta, metrics))
    assert not torch.equal(results[0][0], flatten(policy))
    for theta, metrics in results[1:]:
        assert torch.equal(theta, results[0][0])
        assert metrics == results[0][1]


def test_threads_are_used_and_get_modules_of_their_own():
    policy, _ = make_policy("normal")
    barrier = threading.Barrier(2)  # passes only if both chunks are at work at once

    def chunk(module, rows):
        barrier.wait(timeout=30)
        return id(module), rows.start, torch.get_num_threads()

    config = Config(chunk_tasks=2, threads=2)
    (one, first, alone), (other, second, _) = map_chunks(chunk, policy, 4, config)
    assert one == id(policy) != other
    assert (first, second, alone) == (0, 2, 1)


def test_threads_left_over_go_into_the_operations():
    assert in_threads(lambda _: torch.get_num_threads(), [0, 1], threads=6)[0] == 3
    assert in_threads(lambda _: torch.get_num_threads(), [0], threads=2) == [2]


def test_maps_share_their_threads():
    before, barrier = torch.get_num_threads(), threading.Barrier(2)

    def name(_):
        barrier.wait(timeout=30)
        return threading.get_ident()

    with thread_map(2, threads=2) as map_:
        assert set(map_(name, [0, 1])) == set(map_(name, [0, 1]))
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's threads from /proc")
def test_operations_in_threads_start_no_threads_of_their_own():
    """PyTorch starts the threads of its operations in the first product, so this needs a process of its own."""
    script = """
import os, threading, torch
from maml_rl.sampling.threads import in_threads

x, both = torch.ones(300, 300), threading.Barrier(2)

def threads_of_process(_):
    x @ x
    both.wait()
    return len(os.listdir("/proc/self/task"))

before = len(os.listdir("/proc/self/task"))
print(max(in_threads(threads_of_process, [0, 1], threads=2)) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "8"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == 2


def test_an_error_in_a_thread_is_raised_here_and_restores_the_threads():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda x: 1 / x, [1, 0, 2], threads=2)
    assert torch.get_num_threads() == before


def test_the_number_of_threads_may_change_on_resume(tmp_path):
    import maml_rl

    config = Config(run_dir=tmp_path / "run", iterations=1, num_tasks=4, num_rollouts=3, horizon=5, chunk_tasks=1,
                    eval_num_tasks=2, eval_num_rollouts=1, eval_num_steps=0, threads=1)  # fmt: skip
    maml_rl.train(config)
    maml_rl.train(dataclasses.replace(config, iterations=2, threads=3, resume=True))
