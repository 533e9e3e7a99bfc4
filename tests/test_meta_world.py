"""Meta-World's families against the benchmark itself."""

import pickle

import metaworld
import numpy as np
import pytest
from maml_rl.envs import make_vec


def rows(tasks):
    return {tuple(task) for task in tasks}


@pytest.fixture(scope="module")
def push():
    env = make_vec("maml_rl/ML1-v0", 2, 10, task_name="push-v3")
    yield env
    env.close()


def test_train_and_test_tasks_are_the_benchmark_s_own(push):
    benchmark = metaworld.ML1("push-v3", seed=0)
    drawn = {
        "train": rows(push.sample_tasks(2000, np.random.default_rng(0))),
        "test": rows(push.sample_test_tasks(2000, np.random.default_rng(0))),
    }
    for split, tasks in (("train", benchmark.train_tasks), ("test", benchmark.test_tasks)):
        assert drawn[split] == {(0.0, *pickle.loads(task.data)["rand_vec"]) for task in tasks}
        assert len(drawn[split]) == 50
    assert not drawn["train"] & drawn["test"]


def test_the_goal_is_in_force_and_not_seen(push):
    tasks = push.sample_tasks(2, np.random.default_rng(1))
    observations, _ = push.reset(seed=0, options={"task": tasks})
    for env, task in zip(push._slots.envs, tasks, strict=True):
        np.testing.assert_array_equal(env.unwrapped._inner._target_pos[:2], task[4:6])
    assert not observations[:, 36:].any()
    again, _ = push.reset(seed=1)
    np.testing.assert_array_equal(again, observations)  # the task places the objects, nothing else is drawn


def test_steps_as_meta_world_does(push):
    benchmark = metaworld.ML1("push-v3", seed=0)
    task = benchmark.train_tasks[3]
    theirs = benchmark.train_classes["push-v3"]()
    theirs.set_task(task)
    expected, _ = theirs.reset()
    vector = (0.0, *pickle.loads(task.data)["rand_vec"])
    observations, _ = push.reset(options={"task": [vector, vector]})
    np.testing.assert_array_equal(observations[1], expected)
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        expected, reward, _, _, their_info = theirs.step(action)
        observations, rewards, _, _, info = push.step(np.stack([action, action]))
        np.testing.assert_array_equal(observations[0], expected)
        assert rewards[0] == reward
        assert info["success"][0] == bool(their_info["success"])
    theirs.close()


@pytest.mark.parametrize("task", [[0.5] + [0.0] * 6, [1.0] + [0.0] * 6, [0.0, 3.0] + [0.0] * 5])
def test_what_is_no_task_is_refused(push, task):
    with pytest.raises(ValueError, match="choose"):
        push.reset(options={"task": [task, task]})


def test_ml10_tests_on_manipulations_that_training_never_sees():
    env = make_vec("maml_rl/ML10-v0", 2, 5)
    train = env.sample_tasks(20, np.random.default_rng(0))
    test = env.sample_test_tasks(10, np.random.default_rng(0))
    np.testing.assert_array_equal(train[:, 0], np.tile(np.arange(10), 2))  # two of each, at the same places
    np.testing.assert_array_equal(test[:, 0], np.tile(np.arange(10, 15), 2))
    starts = {env.sample_tasks(3, np.random.default_rng(seed))[0, 0] for seed in range(40)}
    assert starts == set(range(10))  # an odd number of tasks leaves no manipulation out for ever
    names = list(env._slots.envs[0].unwrapped._classes)
    assert names[:10] == list(metaworld.env_dict.ML10_V3["train"])
    assert names[10:] == list(metaworld.env_dict.ML10_V3["test"])
    env.reset(options={"task": test[:2]})
    for slot, name in zip(env._slots.envs, names[10:], strict=False):
        assert isinstance(slot.unwrapped._inner, metaworld.env_dict.ALL_V3_ENVIRONMENTS[name])
    env.close()
