"""Properties of every registered family, found through the registry, and definitions of the ones here."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from conftest import FAMILIES, QUICK_FAMILIES
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from maml_rl.envs import BrokenEnvironmentError, TaskEnv, TaskVectorEnv, check_family, families, make_vec
from maml_rl.envs.navigation import Navigation2DVectorEnv


def test_registry_is_not_empty():
    assert "maml_rl/Navigation2D-v0" in families()
    assert "CartPole-v1" not in families()


@pytest.mark.filterwarnings(
    "ignore:.*Box (observation|action) space.*:UserWarning",
    # Random actions do not find a goal that is felt only near it.
    "ignore:maml_rl/(Sparse|Corner)Navigation2D-v0. the tasks .* give the same:UserWarning",
)
@pytest.mark.parametrize("env_id", FAMILIES)
def test_contract(env_id):
    check_family(env_id)


@pytest.mark.parametrize("env_id", QUICK_FAMILIES)
def test_task_survives_resets_and_auto_resets(env_id):
    env = make_vec(env_id, 4, max_episode_steps=2)
    tasks = env.sample_tasks(4, np.random.default_rng(7))
    env.reset(seed=0, options={"task": tasks})
    for _ in range(5):
        env.step(env.action_space.sample())
    env.reset(seed=1)
    env.reset()
    np.testing.assert_array_equal(env.tasks, tasks)


@pytest.mark.parametrize("env_id", QUICK_FAMILIES)
def test_refused_task_names_task_and_space(env_id):
    env = make_vec(env_id, 2)
    outside = np.full((2, *env.task_space.shape), 1e6).astype(env.task_space.dtype)
    with pytest.raises(ValueError, match=r"(?s)1000000.*not in the task space.*(Box|MultiDiscrete)"):
        env.reset(options={"task": outside})
    with pytest.raises(ValueError, match=r"has shape .* but must have shape"):
        env.reset(options={"task": outside[:-1]})
    for nonsense in ("goal", [1.0, [2.0]], None):
        with pytest.raises(
            ValueError, match="not an array of float64 numbers|not an array of int64 numbers|has shape"
        ):
            env.reset(options={"task": nonsense})


@pytest.mark.parametrize("env_id", [env_id for env_id in FAMILIES if gymnasium.spec(env_id).vector_entry_point])
def test_renders(env_id):
    env = gymnasium.make_vec(env_id, num_envs=2, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == 2
    assert frames[0].dtype == np.uint8
    assert frames[0].shape[2] == 3
    assert frames[0].std() > 0


@pytest.mark.parametrize("env_id", [env_id for env_id in QUICK_FAMILIES if "ShortLived" not in env_id])
def test_episode_ends_at_horizon_once(env_id):
    env = make_vec(env_id, 2, max_episode_steps=4)
    env.reset(seed=0)
    env.action_space.seed(0)
    cut = np.array([env.step(env.action_space.sample())[3] for _ in range(9)])
    resets_itself = env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    np.testing.assert_array_equal(np.flatnonzero(cut[:, 0]), [3, 8] if resets_itself else [3])  # step 4: the reset


@pytest.mark.parametrize("env_id", ["maml_rl/HopperRandParams-v0", *QUICK_FAMILIES])
def test_an_environment_can_rest_after_its_episode(env_id):
    """The first episodes are the same, whether others begin after them or not."""
    histories = {}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        env = make_vec(env_id, 6, max_episode_steps=30, autoreset_mode=mode)
        tasks = env.sample_tasks(6, np.random.default_rng(1))
        observation, _ = env.reset(seed=4, options={"task": tasks})
        env.action_space.seed(5)
        steps, alive = [], np.ones(6, bool)
        for _ in range(33):
            before = observation
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            steps.append([observation[alive], reward[alive], terminated[alive], truncated[alive]])
            if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
                np.testing.assert_array_equal(observation[~alive], before[~alive])
                assert not np.any([reward[~alive], terminated[~alive], truncated[~alive]])
            alive = alive & ~(terminated | truncated)
        assert not alive.any()
        histories[mode] = steps
        env.close()
    for both in zip(*histories.values(), strict=True):
        for one, other in zip(*both, strict=True):
            np.testing.assert_array_equal(one, other)


def test_constructor_refuses():
    for wrong in ({"num_envs": 0}, {"max_episode_steps": 0}, {"render_mode": "human"}):
        with pytest.raises(ValueError, match="must be"):
            gymnasium.make_vec("maml_rl/Navigation2D-v0", **{"num_envs": 1, **wrong})
    with pytest.raises(ValueError, match="must be NEXT_STEP or DISABLED"):
        make_vec("maml_rl/Navigation2D-v0", 1, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("all_tasks", [lambda self: np.zeros((2, 2)), np.zeros(2), 3.0])
def test_all_tasks_is_an_array(all_tasks):
    with pytest.raises(ValueError, match="all_tasks has shape .*, but must be an array of tasks"):
        type("Own", (Navigation2DVectorEnv,), {"all_tasks": all_tasks})(2)


@pytest.mark.filterwarnings("ignore:.*Box (observation|action) space.*:UserWarning")
@pytest.mark.parametrize(
    ("method", "broken", "sentence"),
    [
        (
            "reset",
            "new task",
            "given task is not the task in force|task in force changed|rewards are not equivalent",
        ),
        ("step", "same array", "changes an array that was returned before|share an object"),
        ("step", "same rewards", "changes an array that was returned before"),
        ("step", "own noise", "a different episode|from a single|like a single|auto-reset has a reward"),
    ],
)
def test_check_family_notices(monkeypatch, method, broken, sentence):
    original = getattr(TaskVectorEnv, method)
    kept = {}

    def wrapped(self, *args, **kwargs):
        observation, *rest = original(self, *args, **kwargs)
        if broken == "new task":
            self.tasks = self.sample_tasks(self.num_envs, np.random.default_rng())
        elif broken == "own noise":
            rest[0] = np.random.default_rng().random(self.num_envs)
        elif broken == "same rewards":
            buffer = kept.setdefault(id(self), rest[0])
            buffer[:] = rest[0]
            rest[0] = buffer
        else:
            buffer = kept.setdefault(id(self), observation)
            buffer[:] = observation
            observation = buffer
        return observation, *rest

    monkeypatch.setattr(TaskVectorEnv, method, wrapped)
    with pytest.raises(AssertionError, match=sentence):
        check_family("maml_rl/Navigation2D-v0")


def test_importing_the_package_registers_the_families():
    code = "import maml_rl, gymnasium; gymnasium.make('maml_rl/Navigation2D-v0')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_families_imports_only_gymnasium():
    code = (
        "import sys, gymnasium; before = set(sys.modules); import maml_rl.envs\n"
        "print(*(set(sys.modules) - before - {'importlib'}))\n"
        "from maml_rl.envs import *\n"
        "assert all(name in globals() for name in maml_rl.envs.__all__)\n"
        "assert not hasattr(maml_rl.envs, 'nonsense')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = {name for name in result.stdout.split() if not name.startswith("__editable__")}
    assert {
        name for name in imported if name.split(".")[0] in ("PIL", "scipy", "mujoco", "multiprocessing")
    } == set()
    assert {name for name in imported if name.startswith("maml_rl.envs")} == {"maml_rl.envs"}


def test_using_the_families_leaves_the_process_as_it_was():
    code = """
import logging, os, random, signal, sys, threading, warnings
import gymnasium, mujoco, scipy.special, numpy as np  # their own settings do not count

def process():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    chance = (random.getstate(), np.random.get_state()[1].tolist())
    loggers = (logging.root.level, logging.root.handlers[:])
    others = (mujoco.get_mju_user_warning(), np.geterr(), os.getcwd(), sys.path[:], threading.active_count())
    return dict(os.environ), handlers, chance, loggers, others, warnings.filters[:]

warnings.simplefilter("ignore")
before = process()
import maml_rl.envs
for name in ("Navigation2D", "AntVel", "HopperRandParams", "CartPoleParams", "TabularMDP"):
    env = maml_rl.envs.make_vec(f"maml_rl/{name}-v0", 4, num_workers=int(name == "CartPoleParams"))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
for ours, theirs in zip(process(), before, strict=True):
    assert ours == theirs, (ours, theirs)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("env_id", ["maml_rl/HalfCheetahDir-v0", "maml_rl/AntDir-v0"])
def test_a_family_with_few_tasks_lists_them(env_id):
    env = make_vec(env_id, 1)
    rng = np.random.default_rng(0)
    for num_tasks in (1, 7, 40):
        sums = {env.sample_tasks(num_tasks, rng).sum() for _ in range(50)}
        assert sums == ({-1.0, 1.0} if num_tasks % 2 else {0.0})  # each as often, or once more
    tests = env.sample_test_tasks(5, np.random.default_rng(0))
    np.testing.assert_array_equal(tests, [[-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    assert make_vec("maml_rl/HumanoidDir-v0", 1).all_tasks is None
    env.close()


class FewGoalsVectorEnv(Navigation2DVectorEnv):
    all_tasks = np.array([[0.5, 0.5], [0.0, -0.5], [0.25, 0.0]])


def test_tasks_that_are_not_listed_are_refused():
    env = FewGoalsVectorEnv(3)
    assert {tuple(task) for task in env.sample_tasks(100, np.random.default_rng(0))} == set(
        map(tuple, env.all_tasks)
    )
    tests = env.sample_test_tasks(4, np.random.default_rng(0))
    np.testing.assert_array_equal(tests, env.all_tasks[[0, 1, 2, 0]])
    pairs = [env.sample_test_tasks(2, np.random.default_rng(seed)) for seed in range(30)]
    assert {tuple(task) for pair in pairs for task in pair} == set(map(tuple, env.all_tasks))
    assert all((pair[0] != pair[1]).any() for pair in pairs)
    env.reset(options={"task": env.all_tasks})
    with pytest.raises(
        ValueError,
        match=r"FewGoalsVectorEnv: options\['task'\]: the task \[0.5 0. \] does not exist; choose one of",
    ):
        env.reset(options={"task": [[0.5, 0.5], [0.5, 0.0], [0.25, 0.0]]})
    np.testing.assert_array_equal(env.tasks, env.all_tasks)


@pytest.mark.parametrize(
    ("function", "result", "sentence"),
    [
        (
            "initial_state",
            lambda x: x[0],
            r"initial_state returned an array of shape \(2,\), but must return .* \(3,\)",
        ),
        (
            "transition",
            lambda x: x[:, :1],
            r"transition returned an array of shape \(3, 1\), but must .* \(3, 2\)",
        ),
        ("reward", lambda x: x[:, None], r"reward returned an array of shape \(3, 1\), but must return .* \(3,\)"),
        (
            "reward",
            lambda x: x.sum(),
            r"reward returned np.float64\(.*\), but must return an array of shape \(3,\)",
        ),
        ("terminated", lambda x: None, r"terminated returned None, but must return an array of shape \(3,\)"),
        ("observation", lambda x: x[:, :1], r"observation returned an array of shape \(3, 1\), but .* \(3, 2\)"),
    ],
)
def test_a_function_of_a_family_that_returns_another_shape_is_named(function, result, sentence, monkeypatch):
    before = getattr(Navigation2DVectorEnv, function)
    monkeypatch.setattr(Navigation2DVectorEnv, function, lambda *arguments: result(before(*arguments)))
    env = gymnasium.make_vec("maml_rl/Navigation2D-v0", num_envs=3)

    def begin():
        env.reset(seed=0)
        env.step(np.zeros((3, 2)))

    with pytest.raises(BrokenEnvironmentError, match=sentence):
        begin()


def test_a_transition_cannot_change_the_state_in_place(monkeypatch):
    """The reward would compare the next state with itself."""

    def transition(self, state, action, task, noise):
        state += action
        return state

    monkeypatch.setattr(Navigation2DVectorEnv, "transition", transition)
    env = Navigation2DVectorEnv(3, max_episode_steps=1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="read-only"):
        env.step(np.zeros((3, 2)))
    monkeypatch.setattr(Navigation2DVectorEnv, "transition", lambda self, state, *_: state)
    for _ in range(3):  # which may return the state itself, and reset it
        env.step(np.zeros((3, 2)))


def test_an_observation_cannot_change_the_state_in_place(monkeypatch):
    def observation(self, state, task):
        task += 1.0
        return state

    monkeypatch.setattr(Navigation2DVectorEnv, "observation", observation)
    with pytest.raises(ValueError, match="read-only"):
        Navigation2DVectorEnv(3, max_episode_steps=1).reset(seed=0)
    monkeypatch.setattr(Navigation2DVectorEnv, "observation", lambda self, state, task: state)
    env = Navigation2DVectorEnv(3, max_episode_steps=5)
    first, _ = env.reset(seed=0)
    first += 1.0  # a caller may change what it got
    np.testing.assert_array_equal(env.step(np.zeros((3, 2)))[0], np.zeros((3, 2)))


@pytest.mark.parametrize("part", ["task", "next_state"])
def test_a_broken_simulation_leaves_alone_what_a_reward_is_a_part_of(part, monkeypatch):
    """A reward of 0 must not be written into the task or the state."""

    def reward(self, state, action, next_state, task, noise):
        return {"task": task, "next_state": next_state}[part][:, 0]

    monkeypatch.setattr(Navigation2DVectorEnv, "reward", reward)
    monkeypatch.setattr(
        Navigation2DVectorEnv, "broken", lambda self, state, task: np.arange(3) == (self._steps > 1)
    )
    env = Navigation2DVectorEnv(3, max_episode_steps=5)
    env.reset(seed=0, options={"task": np.full((3, 2), 0.3)})
    before, *_ = env.step(np.full((3, 2), 0.1))
    env.step(np.full((3, 2), 0.1))
    after, rewards, *_, info = env.step(np.full((3, 2), 0.1))
    assert info["failed"].any()
    assert not rewards[info["failed"]].any()
    assert (after[:, 0] > before[:, 0] - 1e-9).all()
    np.testing.assert_array_equal(env.tasks, np.full((3, 2), 0.3))


def test_a_misspelt_option_of_reset_is_refused():
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    with pytest.raises(ValueError, match="reset has no option 'tasks'; its only option is 'task'"):
        env.reset(options={"tasks": [0.1, 0.1]})
    for wrong in ([0.3], [[0.3, 0.3]]):
        with pytest.raises(ValueError, match=r"has shape \(.*\), but must have shape \(2,\)"):
            env.reset(options={"task": wrong})


class ListedVectorEnv(Navigation2DVectorEnv):
    all_tasks = [[0.5, 0.5], [0.0, -0.5]]  # noqa: RUF012

    def sample_test_tasks(self, num_tasks, rng):
        return np.full((num_tasks, 2), 0.25)

    def task_problem(self, tasks):
        return "no goal is at 0" if (tasks == 0).all() else None


class ListedEnv(TaskEnv):
    vector_class = ListedVectorEnv


gymnasium.register("tests/Listed-v0", entry_point=ListedEnv, max_episode_steps=5)


@pytest.mark.parametrize(
    ("name", "task", "physics"),
    [
        (
            "CartPole",
            [0.7, 0.3, 1.4],
            {"length": 0.7, "masspole": 0.3, "masscart": 1.4, "total_mass": 1.7, "polemass_length": 0.21},
        ),
        ("Pendulum", [7.0, 0.6, 1.3], {"g": 7.0, "m": 0.6, "l": 1.3}),
    ],
)
def test_classic_control_obeys_its_task(name, task, physics):
    """As Gymnasium's environment with these numbers."""
    ours = gymnasium.make(f"maml_rl/{name}Params-v0")
    theirs = gymnasium.make(f"{name}-v1", disable_env_checker=True).unwrapped
    assert physics.keys() <= vars(theirs).keys()
    vars(theirs).update(physics)
    theirs.action_space.seed(0)
    np.testing.assert_array_equal(ours.reset(seed=3, options={"task": np.array(task)})[0], theirs.reset(seed=3)[0])
    for _ in range(8):
        action = theirs.action_space.sample()
        np.testing.assert_allclose(ours.step(action)[0], theirs.step(action)[0], rtol=1e-6)


def test_integers_are_tasks_only_if_their_type_holds_them():
    env = ListedVectorEnv(2)
    env.task_space = spaces.Box(0, 5, (1,), np.uint8)
    np.testing.assert_array_equal(env.checked_tasks([[3], [1]], 2), [[3], [1]])
    assert env.checked_tasks(np.array([[3], [1]]), 2).dtype == np.uint8
    for outside in ([[300], [1]], [[-1], [1]]):  # would wrap to numbers inside
        with pytest.raises(ValueError, match="is not an array of uint8 numbers"):
            env.checked_tasks(outside, 2)


def test_a_single_environment_of_a_native_family_has_all_of_its_methods():
    for env in (ListedVectorEnv(2), make_vec("tests/Listed-v0", 2, num_workers=0)):
        tasks = env.sample_tasks(4, np.random.default_rng(0))
        assert sorted(tasks.tolist()) == [[0.0, -0.5]] * 2 + [[0.5, 0.5]] * 2
        assert (env.sample_test_tasks(3, np.random.default_rng(0)) == 0.25).all()
        assert env.task_problem(np.zeros((1, 2))) == "no goal is at 0"
        assert env.task_problem(np.ones((1, 2))) is None
        env.close()


def test_navigation_definition():
    env = gymnasium.make_vec("maml_rl/Navigation2D-v0", num_envs=2)
    goals = np.array([[0.3, 0.4], [0.1, -0.1]])
    observation, _ = env.reset(seed=0, options={"task": goals})
    np.testing.assert_array_equal(observation, np.zeros((2, 2)))
    observation, reward, terminated, _, _ = env.step(np.array([[5.0, 0.0], [1.0, -0.95]]))
    np.testing.assert_allclose(observation, [[0.1, 0.0], [0.1, -0.095]], rtol=1e-6)
    np.testing.assert_allclose(reward, [-np.hypot(0.2, 0.4), -0.005])
    np.testing.assert_array_equal(terminated, [False, True])


def test_sparse_navigation_definition():
    env = gymnasium.make_vec("maml_rl/SparseNavigation2D-v0", num_envs=3)
    env.reset(seed=0, options={"task": [[0.0], [0.0], [np.pi / 2]]})  # at (1, 0), (1, 0) and (0, 1)
    rewards = []
    for _ in range(9):
        _, reward, terminated, _, _ = env.step(np.array([[0.95, 0.0], [0.0, 0.95], [0.0, 0.95]]))
        rewards.append(reward)
    np.testing.assert_array_equal(rewards[:8], 0.0)  # 0.76 from the start, and 0.24 from the goal
    np.testing.assert_allclose(rewards[8], [0.855, 0.0, 0.855])
    assert not terminated.any()
    angles = env.sample_tasks(1000, np.random.default_rng(0))
    assert angles.min() < 0.1
    assert angles.max() > np.pi - 0.1


def test_corner_navigation_definition():
    env = gymnasium.make_vec("maml_rl/CornerNavigation2D-v0", num_envs=2)
    start, _ = env.reset(seed=0, options={"task": [[2.0, 2.0], [-2.0, 2.0]]})
    assert np.abs(start).max() <= 0.2
    state, rewards = start.astype(float), []
    for _ in range(4):
        observation, reward, terminated, _, _ = env.step(np.ones((2, 2)))
        before, state = state, state + 0.2
        np.testing.assert_allclose(observation, state, rtol=1e-5)
        felt = np.abs(state).sum(1) >= 0.5
        way = np.linalg.norm(before - 2, axis=1) - np.linalg.norm(state - 2, axis=1)
        np.testing.assert_allclose(
            reward, np.where(felt, way, 0) * [1, 0], atol=1e-6
        )  # the other goal is not near
        rewards.append(reward[0])
    assert rewards[-1] > 0.28
    assert not terminated.any()


def test_bandit_pays_with_the_arms_probability():
    env = gymnasium.make_vec("maml_rl/BernoulliBandit-v0", num_envs=2000, num_arms=2, max_episode_steps=5)
    env.reset(seed=0, options={"task": np.tile([0.2, 0.9], (2000, 1))})
    actions = np.arange(2000) % 2
    pay = np.mean([env.step(actions)[1] for _ in range(5)], axis=0)
    # 5000 pulls of each arm: four standard errors.
    assert abs(pay[::2].mean() - 0.2) < 4 * np.sqrt(0.16 / 5000)
    assert abs(pay[1::2].mean() - 0.9) < 4 * np.sqrt(0.09 / 5000)


def test_tabular_mdp_follows_its_tables():
    n = 4000
    env = gymnasium.make_vec("maml_rl/TabularMDP-v0", num_envs=n, num_states=3, num_actions=2)
    task = env.sample_tasks(1, np.random.default_rng(0))
    transitions, rewards = env.tables(task)
    env.reset(seed=0, options={"task": np.repeat(task, n, axis=0)})
    next_state, reward, *_ = env.step(np.ones(n, int))
    frequency = np.bincount(next_state, minlength=3) / n
    assert np.abs(frequency - transitions[0, 0, 1]).max() < 4 * 0.5 / np.sqrt(n)
    assert abs(reward.mean() - rewards[0, 0, 1]) < 4 / np.sqrt(n)
    assert abs(reward.std() - 1) < 0.1
    wrong = task.copy()
    wrong[:, 0] = 0.0
    with pytest.raises(ValueError, match="sum to 1"):
        env.reset(options={"task": np.repeat(wrong, n, axis=0)})


def test_seeds_beyond_one_noise_block():
    """Noise is drawn in blocks: an episode longer than a block goes on with the same stream."""
    env = gymnasium.make_vec("maml_rl/BernoulliBandit-v0", num_envs=2, max_episode_steps=200)
    env.reset(seed=3, options={"task": np.full((2, 5), 0.5)})
    pays = np.array([env.step(np.zeros(2, int))[1] for _ in range(200)])
    stream = np.random.Generator(np.random.Philox(key=[4, 0]))  # environment 1, episode 0
    np.testing.assert_array_equal(pays[:, 1], stream.random(200) < 0.5)
    env.step(np.zeros(2, int))  # the auto-reset
    again = np.array([env.step(np.zeros(2, int))[1] for _ in range(200)])
    stream = np.random.Generator(np.random.Philox(key=[4, 1]))  # episode 1 has a stream of its own
    np.testing.assert_array_equal(again[:, 1], stream.random(200) < 0.5)
