"""Collecting: masks, streams, spaces, each task's own parameters, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from conftest import QUICK_FAMILIES, collect, phases
from gymnasium import spaces
from maml_rl.envs import in_words, make_vec
from torch import nn
from torch.func import vmap

from maml_rl import UserError
from maml_rl.config import Config
from maml_rl.maml.inner import adapt
from maml_rl.maml.linearise import outer_objective
from maml_rl.maml.objective import adapted_policy
from maml_rl.policies import Normal, act, flatten
from maml_rl.policies.ready_made import make_policy
from maml_rl.sampling.advantages import with_advantages
from maml_rl.sampling.families import import_family, make_env, require_actions
from maml_rl.sampling.spaces import action_map, encode, task_inputs
from maml_rl.sampling.streams import TaskStreams


def setup(env_id, num_tasks=3, num_rollouts=4, horizon=6):
    env = make_env(Config(env_id=env_id, horizon=horizon, num_workers=0), num_tasks * num_rollouts)
    policy = make_policy(
        env.single_observation_space,
        env.single_action_space,
        Config(hidden_sizes=(8,)),
        torch.Generator().manual_seed(0),
    )
    thetas = flatten(policy) + 0.1 * torch.arange(num_tasks)[:, None]
    return env, policy, thetas, env.sample_tasks(num_tasks, np.random.default_rng(0))


@pytest.mark.parametrize("env_id", QUICK_FAMILIES)
def test_every_family_is_collected(env_id):
    env, policy, thetas, tasks = setup(env_id)
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    assert rollouts.rewards.shape == rollouts.log_probs.shape == rollouts.mask.shape == (3, 4, 6)
    assert rollouts.mask[..., 0].all()
    # Each task under its own parameters: the stored distributions are what `act` says, task by task.
    for i in range(3):
        distribution = act(policy, thetas[i], rollouts.observations[i].flatten(0, 1))
        for ours, theirs in zip(rollouts.behaviour, distribution, strict=True):
            torch.testing.assert_close(ours[i].flatten(0, 1), theirs)
        torch.testing.assert_close(
            rollouts.log_probs[i].flatten(), distribution.log_prob(rollouts.actions[i].flatten(0, 1))
        )
    again = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    other = collect(env, policy, thetas, tasks, np.random.SeedSequence(1))
    assert torch.equal(rollouts.actions, again.actions)
    assert torch.equal(rollouts.rewards, again.rewards)
    assert not torch.equal(rollouts.actions, other.actions)


def test_a_rollout_is_the_single_environment_s_episode():
    """Replays every rollout's actions in a single environment: rewards, length and end agree."""
    env, policy, thetas, _ = setup("maml_rl/Navigation2D-v0", horizon=30)
    tasks = np.array([[0.012, 0.0], [0.0, -0.012], [0.4, 0.4]])  # two goals that a random walk may hit
    thetas = thetas.clone()
    thetas[:, :2] = np.log(0.1)  # log_std: a module's own parameters come before its layers'
    thetas[:, 2:] = 0.0
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(7))
    single = gymnasium.make("maml_rl/Navigation2D-v0", max_episode_steps=30)
    lengths = []
    for m in range(3):
        for k in range(4):
            observation, _ = single.reset(options={"task": tasks[m]})
            for t in range(int(rollouts.mask[m, k].sum())):
                np.testing.assert_allclose(rollouts.observations[m, k, t].numpy(), observation, atol=1e-6)
                action = np.clip(rollouts.actions[m, k, t].numpy(), -1, 1)
                observation, reward, terminated, truncated, _ = single.step(action)
                assert rollouts.rewards[m, k, t].item() == pytest.approx(reward, abs=1e-6)
            assert terminated or truncated
            lengths.append(t + 1)
            assert not rollouts.rewards[m, k, t + 1 :].any()
    assert min(lengths) < 30 == max(lengths), "the test needs both kinds of episodes"


def test_a_module_of_one_s_own_goes_through_vmap():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.log_std = nn.Parameter(torch.zeros(2))

        def forward(self, observations):
            mean = self.layer(observations)
            return Normal(mean, self.log_std.expand_as(mean))

    env, _, _, tasks = setup("maml_rl/Navigation2D-v0")
    policy = Own()
    thetas = flatten(policy) + torch.arange(3.0)[:, None]
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    distribution = act(policy, thetas[2], rollouts.observations[2].flatten(0, 1))
    torch.testing.assert_close(rollouts.behaviour.mean[2].flatten(0, 1), distribution.mean)


def test_actions_are_scaled_to_the_box_and_clipped():
    box = spaces.Box(np.array([-0.1, 2.0]), np.array([0.1, 6.0]), dtype=np.float64)
    np.testing.assert_allclose(action_map(box)(np.array([[0.5, 0.5], [9.0, -9.0]])), [[0.05, 5.0], [0.1, 2.0]])
    np.testing.assert_array_equal(action_map(spaces.Discrete(3, start=5))(np.array([0, 2])), [5, 7])
    narrow = spaces.Box(np.float32([0.1, -7.3]), np.float32([0.3, 1.7]))  # middle and half are rounded
    assert all(map(narrow.contains, action_map(narrow)(np.array([[-1, -1], [1, 1], [9, -9]], np.float32))))
    small = spaces.Box(-100, 100, (1,), np.int8)
    np.testing.assert_allclose(action_map(small)(np.array([[0.5], [-1.0]])), [[50], [-100]])
    without_bounds = spaces.Box(-np.inf, np.inf, (1,), np.int64)  # Gymnasium puts in the type's limits
    np.testing.assert_array_equal(action_map(without_bounds)(np.array([[1.4], [-3.0]], np.float32)), [[1], [-3]])
    torch.testing.assert_close(task_inputs(small, np.array([[100], [-50]])), torch.tensor([[1.0], [-0.5]]))
    unbounded = spaces.Box(-np.inf, np.inf, (1,))
    np.testing.assert_array_equal(action_map(unbounded)(np.array([[7.0]])), [[7.0]])
    half = spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 3.0]), dtype=np.float64)
    np.testing.assert_array_equal(action_map(half)(np.array([[-2.0, -2.0], [5.0, 5.0]])), [[0, -2], [5, 3]])
    largest = np.finfo(np.float32).max
    short = spaces.Box(-65504, 65504, (1,), np.float16)  # its width is no float16
    np.testing.assert_array_equal(action_map(short)(np.array([[0.0], [-0.5]], np.float32)), [[0.0], [-32752.0]])
    widest = spaces.Box(-largest, largest, (1,))  # a way to say unbounded
    np.testing.assert_array_equal(action_map(widest)(np.array([[0.0], [0.5]])), [[0.0], [0.5]])
    torch.testing.assert_close(task_inputs(widest, np.array([[0.0], [0.5]])), torch.tensor([[0.0], [0.5]]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, dtype=np.uint64),
        spaces.Discrete(3, start=-2, dtype=np.int8),
        spaces.MultiDiscrete([3, 4], dtype=np.uint64),
        spaces.Box(-2, 2, (2,), np.float16),
        spaces.Box(-2, 2, (2,), np.float64),
        spaces.Box(-np.inf, np.inf, (2,), np.float16),
    ],
)
def test_actions_have_the_type_of_their_space(space):
    discrete = not isinstance(space, spaces.Box)
    actions = np.zeros((4, *space.shape), np.int64 if discrete else np.float32)
    for action in action_map(space)(actions):
        assert space.contains(action)


def test_discrete_observations_outside_their_space_are_not_numbers():
    encoded = encode(spaces.Discrete(3, start=2), np.array([1, 2, 4, 5]))
    torch.testing.assert_close(encoded[1:3], torch.eye(3)[[0, 2]])
    assert encoded[[0, 3]].isnan().all()


def test_there_are_no_distributions_over_tables_of_actions():
    for space in (spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([[2, 3], [4, 5]]), spaces.MultiBinary(2)):
        with pytest.raises(UserError, match="only for Discrete, and for one-dimensional Box and MultiDiscrete"):
            require_actions("tests/Tables-v0", space)


def test_multi_discrete_observations_are_one_hot():
    space = spaces.MultiDiscrete([2, 3], start=[0, 5])
    observations = np.array([[1, 5], [0, 7], [0, 8]])
    encoded = encode(space, observations)
    flat = [spaces.flatten(space, observation) for observation in observations[:2]]
    torch.testing.assert_close(encoded[:2], torch.from_numpy(np.stack(flat)).float())
    assert encoded[2, 2:].isnan().all()


def test_actions_of_an_integer_box_are_its_integers():
    box = spaces.Box(-2, 2, (2,), np.int64)
    actions = action_map(box)(np.array([[-0.9, 0.2], [0.3, 9.0]], np.float32))
    np.testing.assert_array_equal(actions, [[-2, 0], [1, 2]])
    assert all(box.contains(action) for action in actions)


@pytest.mark.parametrize(("what", "step"), [("reward", 3), ("observation", 2)])
def test_not_finite_is_reported_with_family_task_and_step(monkeypatch, what, step):
    env, policy, thetas, tasks = setup("misbehaving:tests/Misbehaving-v0")
    type(env).resets = 0
    monkeypatch.setenv("MISBEHAVE", what)
    monkeypatch.setenv("MISBEHAVE_AT", "1")
    with pytest.raises(UserError, match=rf"Misbehaving-v0: the {what} at step {step} of task \[") as error:
        collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    if what == "reward":
        assert in_words(tasks[1]) in str(error.value)  # environment 5 is the second of task 1


def test_what_comes_after_an_end_reaches_nothing():
    """A family that shows NaN once it has ended: rollouts, advantages and adaptation stay finite."""
    env, policy, thetas, tasks = setup("misbehaving:tests/NanAfterEnd-v0", horizon=10)
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    assert not rollouts.mask.all()
    rollouts = with_advantages(rollouts, 0.9, 0.9)
    assert torch.isfinite(rollouts.advantages).all()
    adapted, _ = vmap(lambda theta, support: adapt(policy, theta, support, Config()))(thetas, rollouts)
    assert torch.isfinite(adapted).all()


def test_diverged_parameters_are_refused():
    env, policy, thetas, tasks = setup("maml_rl/TabularMDP-v0")
    theta = thetas[0].clone()
    theta[0] = torch.nan
    with pytest.raises(UserError, match="parameters on task .* that are not finite"):
        next(phases(env, policy, theta, tasks, [1.0], Config(), np.random.SeedSequence(0)))


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_what_is_differentiated_is_what_sampled(num_steps):
    """The adapted policy of the outer step, recomputed from the supports, is the one that drew the query."""
    env, policy, thetas, tasks = setup("maml_rl/Navigation2D-v0")
    config = Config(inner_lr=0.3, num_steps=num_steps)
    *supports, query = phases(env, policy, thetas[0], tasks, [1.0] * num_steps, config, np.random.SeedSequence(0))
    behaviour = vmap(lambda s, q: adapted_policy(policy, thetas[0], s, q, config))(tuple(supports), query)
    for recomputed, sampled in zip(behaviour, query.behaviour, strict=True):
        torch.testing.assert_close(recomputed, sampled.flatten(1, 2))
    loss, kl = outer_objective(policy, thetas[0], tuple(supports), query, config)
    assert loss == pytest.approx(0.0, abs=1e-5)  # minus the mean of normalised advantages
    assert kl == pytest.approx(0.0, abs=1e-6)


def test_arguments_that_a_family_does_not_take_are_named():
    config = Config(env_id="maml_rl/Navigation2D-v0", env_kwargs={"colour": 3})
    with pytest.raises(UserError, match=r"with env_kwargs \{'colour': 3\}: .*; give the arguments that it takes"):
        make_env(config, 1)


@pytest.mark.parametrize(
    ("env_id", "sentence"),
    [
        ("Nowhere-v0", "Cannot make the task family 'Nowhere-v0'"),
        ("no_such_module:Nowhere-v0", "No module named 'no_such_module'"),
        ("CartPole-v1", "is not a task family"),
        ("Acrobot-v1", "has no task_space"),
        (".relative:Foo-v0", "Cannot make the task family"),
    ],
)
def test_unknown_ids_are_refused(env_id, sentence):
    def make():
        import_family(env_id)
        make_env(Config(env_id=env_id), 2)

    with pytest.raises(UserError, match=sentence):
        make()


def test_spaces_that_policies_do_not_support_are_refused():
    with pytest.raises(UserError, match="no ready-made policy for the observation space Box.* policy=..."):
        make_policy(spaces.Box(0, 1, (4, 4)), spaces.Discrete(2), Config(), torch.Generator())
    with pytest.raises(UserError, match="no ready-made policy for the action space MultiDiscrete.* policy=..."):
        make_policy(spaces.Box(0, 1, (4,)), spaces.MultiDiscrete([2, 3]), Config(), torch.Generator())
    with pytest.raises(UserError, match="the ready-made networks for images take one number; choose one, or pass"):
        make_policy(
            spaces.Box(0, 255, (3, 20, 20), np.uint8),
            spaces.Discrete(2),
            Config(hidden_sizes=(8, 8)),
            torch.Generator(),
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_tasks", 0), ("num_rollouts", 0), ("horizon", 0), ("num_steps", -1), ("inner_lr", 0.0),
        ("inner_lr", float("nan")), ("discount", 1.5), ("hidden_sizes", (0,)), ("max_kl", -1.0),
        ("iterations", -1),
        ("outer_lr", 0.0),
        ("outer_lr", 1e7), ("ppo_clip", -0.1), ("kl_penalty", -1.0), ("e_maml", -1.0), ("log_std_lr", -0.1),
        ("eval_lr_factors", ()), ("eval_lr_factors", (1.0, -1.0)), ("learn_lr", "each"), ("context_size", -1),
        ("ppo_epochs", 0), ("rl2_episodes", -1),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=f"^{option} is .* but"):
        Config(**{option: value})


def test_success_at_any_step_is_success():
    env, policy, thetas, _ = setup("tests/SuccessOnce-v0")
    tasks = np.array([[0.2], [0.8], [0.4]])
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    assert rollouts.success.tolist() == [[0] * 4, [1] * 4, [0] * 4]


def test_no_two_environments_share_their_chance():
    """MuJoCo families are collected in two halves: neither first states nor actions may repeat."""
    env, policy, thetas, tasks = setup("maml_rl/HalfCheetahVel-v0", num_tasks=4)
    assert [share.num_envs for share in env.shares(4)] == [8, 8]
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    first = rollouts.observations[:, :, 0].flatten(0, 1)
    assert len(torch.unique(first, dim=0)) == 16
    mean, log_std = rollouts.behaviour
    noise = ((rollouts.actions - mean) / log_std.exp())[:, :, 0].flatten(0, 1)
    assert len(torch.unique(noise.round(decimals=4), dim=0)) == 16
    again = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    assert torch.equal(again.observations, rollouts.observations)
    assert torch.equal(again.actions, rollouts.actions)
    assert torch.equal(again.rewards, rollouts.rewards)
    other = collect(env, policy, thetas, tasks, np.random.SeedSequence(1))
    assert not torch.equal(other.actions, rollouts.actions)


@pytest.mark.parametrize(
    "env_id",
    ["maml_rl/Navigation2D-v0", "maml_rl/HalfCheetahVel-v0", "maml_rl/TabularMDP-v0", "maml_rl/CartPoleParams-v0"],
)
def test_a_task_s_rollouts_do_not_depend_on_which_others_are_collected_with_it(env_id):
    env, policy, thetas, tasks = setup(env_id, num_tasks=5)
    seeds = np.random.SeedSequence(3)
    together = collect(env, policy, thetas, tasks, seeds)
    for rows in (slice(0, 2), slice(2, 5)):
        some = make_vec(env_id, env.num_envs // 5 * (rows.stop - rows.start), env.max_episode_steps)
        apart = collect(
            some, policy, thetas[rows], tasks[rows], TaskStreams(np.random.SeedSequence(3), tasks, rows)
        )
        for name in ("observations", "actions", "rewards", "mask"):
            torch.testing.assert_close(getattr(apart, name), getattr(together, name)[rows], rtol=1e-5, atol=1e-5)
    assert not torch.equal(together.actions[0], together.actions[1])


def test_halves_share_no_policy():
    """A user's own module is called functionally, which changes it for the time of the call."""
    env, inner, thetas, tasks = setup("maml_rl/HalfCheetahVel-v0", num_tasks=4, num_rollouts=20, horizon=30)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, observations):
            return self.inner(observations)

    policy = Own()
    rollouts = collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
    for i in range(4):
        distribution = act(inner, thetas[i], rollouts.observations[i].flatten(0, 1))
        torch.testing.assert_close(rollouts.behaviour.mean[i].flatten(0, 1), distribution.mean)
    torch.testing.assert_close(flatten(policy), flatten(inner))


def test_torch_gets_its_threads_back():
    env, policy, thetas, tasks = setup("maml_rl/HalfCheetahVel-v0")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        collect(env, policy, thetas, tasks, np.random.SeedSequence(0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
