"""Meta-World's families against the benchmark itself."""

import pickle

import gymnasium
import metaworld
import metaworld_protocol
import mujoco
import numpy as np
import pytest
from maml_rl.envs import make_vec, meta_world_fast
from maml_rl.envs.meta_world_fast import fast
from metaworld.policies import ENV_POLICY_MAP
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from maml_rl import Config, train
from maml_rl.policies import flatten
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.actors import TaskPolicies


def rows(tasks):
    return {tuple(task) for task in tasks}


@pytest.fixture(scope="module")
def push():
    env = make_vec("maml_rl/ML1-v0", 2, 10, task_name="push-v3")
    yield env
    env.close()


def test_a_picture_does_not_depend_on_what_else_is_rendered():
    """Each manipulation has meshes of its own, and their pictures take turns in films."""
    kinds = [{"task_name": "drawer-open-v3"}, {"task_name": "reach-v3"}]
    envs = [make_vec("maml_rl/ML1-v0", 1, 10, render_mode="rgb_array", **kind) for kind in kinds]
    for env in envs:
        env.reset(seed=0)
    alone = [env.snapshot(0) for env in envs]  # a renderer's first picture has a context of its own
    assert all(picture.std() > 1 for picture in alone)
    for env, picture in zip(envs, alone, strict=True):
        np.testing.assert_array_equal(env.snapshot(0), picture)
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


def test_tasks_that_a_manipulation_does_not_have_are_refused():
    """Meta-World itself would look for a better goal forever, and takes -1 for its last manipulation."""
    env = gymnasium.make("maml_rl/ML1-v0")
    for vector in (np.zeros(6), [0.0, 0.1, 0.6, 0.02, 0.1, 0.6]):
        with pytest.raises(ValueError, match="the vector of reach-v3 is .*, but must be in Box"):
            env.reset(options={"task": [0.0, *vector]})
    ten = gymnasium.make("maml_rl/ML10-v0")
    ten.reset()
    with pytest.raises(ValueError, match="choose a whole number"):
        ten.reset(options={"task": [2.9, *np.zeros(6)]})
    with pytest.raises(ValueError, match="the vector of .* is .*, but must be in Box"):
        ten.reset(options={"task": [3.0, *np.zeros(6)]})
    ten.step(np.zeros(4, np.float32))  # of the task before
    push = gymnasium.make("maml_rl/ML1-v0", task_name="push-v3")
    with pytest.raises(ValueError, match="object and goal are too close to each other"):
        push.reset(options={"task": [0.0, 0.1, 0.7, 0.02, 0.1, 0.8, 0.01]})


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


def vectors_of_tasks(env, num_tasks):
    """Draws what places the objects and the goal, as Meta-World does."""
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env.seed(0)
    vectors = []
    for _ in range(num_tasks):
        env.reset_model()
        vectors.append(env._last_rand_vec.copy())
    return vectors


def arrays_of(model):
    values = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)}


def assert_same_steps(name, episodes):
    """Steps one of ours and one of Meta-World's, with actions of its policy or random ones.

    Another one of ours, which shares the model of the first, makes steps of another task in between.
    """
    kind = metaworld.env_dict.ALL_V3_ENVIRONMENTS[name]
    theirs, ours, other = kind(), fast(kind)(), fast(kind)()
    model = ours.model
    assert other.model is model
    before = arrays_of(model)
    vectors, found = (vectors_of_tasks(env, 2 * len(episodes)) for env in (theirs, ours))
    np.testing.assert_array_equal(found, vectors)
    rng = np.random.default_rng(0)
    for steps, scripted, hidden in episodes:
        for envs in ((theirs, ours), (other,)):
            data = {"rand_vec": vectors.pop(), "env_cls": kind, "partially_observable": hidden}
            for env in envs:
                env.set_task(metaworld.types.Task(env_name=name, data=pickle.dumps(data)))
        (state, _), (observation, _), _ = (env.reset() for env in (theirs, ours, other))
        np.testing.assert_array_equal(observation, state)
        policy = ENV_POLICY_MAP[name]()
        for t in range(steps):
            action = policy.get_action(state) if scripted else rng.uniform(-1.2, 1.2, 4)
            action = np.asarray(action, np.float64 if t % 5 == 0 else np.float32)
            (state, *expected), (observation, *found) = theirs.step(action), ours.step(action)
            np.testing.assert_array_equal(observation, state)
            assert [*found, type(found[0])] == [*expected, type(expected[0])]
            other.step(rng.uniform(-1.2, 1.2, 4))
    after = arrays_of(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)}
    assert changed <= {"body_pos", "site_pos"}  # which each environment keeps for itself
    fast(kind)()  # begins with those of the file
    for array in changed:
        np.testing.assert_array_equal(getattr(model, array), before[array])
    for env in (theirs, ours, other):
        env.close()


@pytest.mark.filterwarnings("ignore:Constant")  # of Meta-World's policies
@pytest.mark.parametrize("name", metaworld.env_dict.ALL_V3_ENVIRONMENTS)
def test_faster_steps_are_meta_world_s_own(name, pytestconfig):
    """With --whole-episodes, over all 500 steps of an episode, which takes minutes."""
    whole = pytestconfig.getoption("whole_episodes")
    scripted, drawn, seen = (500, 500, 500) if whole else (70, 20, 15)
    assert_same_steps(name, [(scripted, True, True), (drawn, False, True), (seen, True, False)])


def test_faster_helpers_give_the_same_numbers():
    rng = np.random.default_rng(0)
    for sigmoid in ("long_tail", "gaussian", "linear"):
        for x in [*rng.uniform(-0.5, 0.5, 2000), 0.0, 0.1, np.nan]:
            for value in (x, float(x)):
                arguments = value, (0.0, 0.1), float(rng.uniform(0, 0.5)), sigmoid
                expected, found = reward_utils.tolerance(*arguments), meta_world_fast.tolerance(*arguments)
                np.testing.assert_array_equal(found, expected)
                assert type(found) is type(expected)
    for quat in [*rng.normal(size=(2000, 4)), *np.eye(4), *rng.normal(size=(500, 4)) * [1, 1e-9, 1, 1e-9]]:
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, quat / np.linalg.norm(quat))
        matrix = matrix.reshape(3, 3)
        expected = Rotation.from_matrix(matrix).as_quat()
        np.testing.assert_array_equal(meta_world_fast.Rotation.from_matrix(matrix).as_quat(), expected)
    for x in [*rng.normal(size=(2000, 3)), *rng.normal(size=(50, 2)), *rng.normal(size=(50, 8))[:, ::2], [1, 2]]:
        assert meta_world_fast._norm(x) == np.linalg.norm(x)
    for parts in [(rng.normal(size=3), rng.normal(size=4)), tuple(rng.normal(size=2)), (np.ones(2), [1])]:
        np.testing.assert_array_equal(meta_world_fast._hstack(parts), np.hstack(parts))


@pytest.mark.parametrize(("margin", "bounds"), [(-0.1, (0.0, 0.1)), (0.1, (0.2, 0.1))])
def test_faster_tolerance_refuses_what_meta_world_refuses(margin, bounds):
    with pytest.raises(ValueError, match="argin|bound"):
        meta_world_fast.tolerance(0.3, bounds, margin, "long_tail")


def test_meta_world_itself_is_left_as_it_is():
    kind = metaworld.env_dict.ALL_V3_ENVIRONMENTS["door-open-v3"]
    made = fast(kind)
    assert made is not kind
    assert issubclass(made, kind)
    for function in (kind.compute_reward, kind._reward_pos):
        assert function.__globals__["np"] is np
        assert function.__globals__["reward_utils"] is reward_utils
        assert function.__globals__[kind.__name__] is kind
    assert np.linalg.norm is not meta_world_fast._norm


def test_meta_world_s_own_protocol(tmp_path, monkeypatch):
    monkeypatch.setattr(metaworld_protocol, "AT_ONCE", 2)
    config = Config(
        env_id="maml_rl/ML1-v0",
        env_kwargs={"task_name": "push-v3"},
        run_dir=tmp_path / "run",
        iterations=1,
        num_tasks=2,
        num_rollouts=2,
        horizon=5,
        hidden_sizes=(8,),
        eval_num_tasks=2,
        eval_num_rollouts=1,
        num_workers=0,
    )
    train(config)
    found = [metaworld_protocol.evaluated(config.run_dir, 4, seed=seed, horizon=5) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for split in ("train", "test"):
        (name, values), *rest = found[0][split].items()
        assert (name, rest, values["tasks"]) == ("push-v3", [], 4)
        assert 0 <= values["success"] <= 1
        assert values["return"] > 0
    assert found[0]["train"] != found[0]["test"]
    assert "| test | mean |" in metaworld_protocol.table(found[0])


def test_the_most_probable_actions_are_the_same_with_any_seed(push):
    config = Config(env_id="maml_rl/ML1-v0", hidden_sizes=(8,), num_workers=0)
    policy = new_policy(config)
    tasks = push.sample_tasks(2, np.random.default_rng(0))
    actor = TaskPolicies(policy, flatten(policy).expand(2, -1))
    one, other = (metaworld_protocol.most_probable(push, actor, tasks, 1, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
