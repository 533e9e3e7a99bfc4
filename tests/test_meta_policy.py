"""A trained run taken to an environment: it adapts by the same `adapt`, and acts in the environment's units."""

import dataclasses
import logging

import gymnasium
import numpy as np
import pytest
import torch
from conftest import phases
from gymnasium.vector import AutoresetMode
from maml_rl.envs import check_family
from maml_rl.envs.navigation import Navigation2DEnv, Navigation2DVectorEnv
from test_custom_policies import Own, config_of
from torch.func import vmap
from torch.utils._pytree import tree_map

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml.inner import adapt
from maml_rl.meta_policy import MetaPolicy
from maml_rl.methods import method_of
from maml_rl.policies import flatten
from maml_rl.rl2 import as_trials
from maml_rl.runs.evaluation import lr_factors
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env
from maml_rl.sampling.given_env import GivenEnv

RL2 = {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo", "hidden_sizes": (8,)}


def untrained(env_id, **options):
    """A policy whose actions depend on what it sees, without a training."""
    config = Config(
        env_id=env_id, num_workers=0, **{"horizon": 6, "hidden_sizes": (8,), "inner_lr": 0.5} | options
    )
    policy = new_policy(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.utils.vector_to_parameters(
        flatten(policy) + 0.3 * torch.randn(flatten(policy).shape, generator=generator), policy.parameters()
    )
    return MetaPolicy(config, policy)


def test_a_run_folder_gives_back_its_policy(tmp_path):
    config = Config(
        run_dir=str(tmp_path / "run"), iterations=1, num_tasks=2, num_rollouts=2, horizon=5, hidden_sizes=(8,),
        eval_num_tasks=2, eval_num_rollouts=2, eval_num_steps=1,
    )  # fmt: skip
    trained = maml_rl.train(config)
    loaded = maml_rl.load(str(config.run_dir))
    assert loaded.config == config
    assert torch.equal(flatten(loaded.policy), flatten(trained.policy))
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = loaded.adapt(env, seed=1)
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(adapted(observation))
    with pytest.raises(UserError, match="holds no run"):
        maml_rl.load(tmp_path)


def test_the_last_factor_is_that_of_all_further_steps():
    assert lr_factors(Config(eval_lr_factors=(1.0, 0.5)), 4) == [1.0, 0.5, 0.5, 0.5]
    assert lr_factors(Config(eval_lr_factors=(0.3,)), 2) == [0.3, 0.3]
    assert lr_factors(Config(eval_lr_factors=(1.0, 0.5)), 0) == []


@pytest.mark.parametrize("num_envs", [1, 4, 8])
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_it_adapts_as_in_an_evaluation(num_envs, num_steps):
    """The adapted parameters are those of the inner loop on the rollouts that were collected."""
    meta = untrained("maml_rl/Navigation2D-v0", eval_lr_factors=(1.0, 0.5))
    task = np.array([0.3, -0.4])
    env = gymnasium.make_vec("maml_rl/Navigation2D-v0", num_envs)
    env.reset(options={"task": np.tile(task, (num_envs, 1))})
    adapted = meta.adapt(env, num_steps=num_steps, num_rollouts=8, seed=3)
    actor = adapted._actor
    assert actor.thetas.shape == (1, len(flatten(meta.policy)))
    if num_envs == 8:  # one round: the environments of an evaluation do the same
        seeds = np.random.SeedSequence(3).spawn(2)[0]
        own = make_env(meta.config, 8)
        theta = flatten(meta.policy)
        collected = list(phases(own, meta.policy, theta, task[None], [1.0, 0.5][:num_steps], meta.config, seeds))
        thetas = theta[None]
        for batch, factor in zip(collected[:num_steps], [1.0, 0.5], strict=False):
            thetas, _ = vmap(lambda t, b, f=factor: adapt(meta.policy, t, b, meta.config, f))(thetas, batch)
        # Seeds are cut to 31 bits for the environment given, but navigation has no randomness of its own.
        torch.testing.assert_close(actor.thetas, thetas)
    if num_steps:
        assert (actor.thetas - flatten(meta.policy)).abs().max() > 1e-3
    else:
        torch.testing.assert_close(actor.thetas[0], flatten(meta.policy))


def test_it_adapts_where_derivatives_are_switched_off():
    meta, thetas = untrained("maml_rl/Navigation2D-v0"), []
    for switch in (torch.enable_grad, torch.no_grad):
        env = gymnasium.make("maml_rl/Navigation2D-v0")
        env.reset(options={"task": np.array([0.3, -0.4])})
        with switch():
            thetas.append(meta.adapt(env, num_steps=2, num_rollouts=4, seed=3)._actor.thetas)
    assert torch.equal(*thetas)


@pytest.mark.parametrize("options", [{}, {"normalise_observations": True}, {"learn_lr": "task"}])
def test_an_adapted_policy_is_kept_as_a_state_dict(options, tmp_path):
    """Its module has θ′, and a run with these parameters acts as it does, without another step."""
    meta, env = untrained("maml_rl/Navigation2D-v0", **options), gymnasium.make("maml_rl/Navigation2D-v0")
    env.reset(options={"task": np.array([0.3, -0.4])})
    adapted = meta.adapt(env, num_steps=2, num_rollouts=4, seed=3)
    before = flatten(meta.policy).clone()
    torch.save(adapted.policy.state_dict(), tmp_path / "adapted.pt")
    assert torch.equal(flatten(adapted.policy), adapted._actor.thetas[0])
    assert torch.equal(flatten(meta.policy), before)
    observation, _ = env.reset(seed=0)
    wanted, old = (p(observation, deterministic=True) for p in (adapted, meta.adapt(env, num_steps=0)))
    meta.policy.load_state_dict(torch.load(tmp_path / "adapted.pt", weights_only=True))
    again = meta.adapt(env, num_steps=0)(observation, deterministic=True)
    np.testing.assert_array_equal(again, wanted)
    assert np.abs(wanted - old).max() > 1e-3


def test_a_policy_with_a_memory_has_no_adapted_parameters():
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = untrained("maml_rl/Navigation2D-v0", **RL2).adapt(env, num_steps=1)
    with pytest.raises(UserError, match="adapts with its memory, so it has no adapted parameters to copy"):
        _ = adapted.policy


class Pair(Navigation2DVectorEnv):
    """Shows only in which quarter of the plane the point is, as two numbers."""

    single_observation_space = gymnasium.spaces.MultiDiscrete([2, 2])

    def observation(self, state, task):
        return (state[:, :2] > 0).astype(np.int64)


class SinglePair(Navigation2DEnv):
    vector_class = Pair


def test_batched_families_with_several_discrete_observations_are_adapted_to():
    gymnasium.register(
        "tests/Pair-v0",
        entry_point="test_meta_policy:SinglePair",
        vector_entry_point="test_meta_policy:Pair",
        max_episode_steps=6,
    )
    check_family("tests/Pair-v0")
    meta, thetas = untrained("tests/Pair-v0", num_rollouts=4), []
    task = [0.3, 0.3]
    single, several = gymnasium.make("tests/Pair-v0"), gymnasium.make_vec("tests/Pair-v0", 4)
    for env, tasks in ((single, task), (several, [task] * 4)):
        env.reset(options={"task": tasks})
        thetas.append(meta.adapt(env, seed=0)._actor.thetas)
    assert all((theta - flatten(meta.policy)).abs().max() > 1e-3 for theta in thetas)


class Careless(gymnasium.Wrapper):
    """Its flags are numbers."""

    def step(self, action):
        observation, reward, *ends, info = super().step(action)
        return observation, reward, *map(int, ends), info


def test_flags_may_be_numbers_and_numbers_must_be_whole():
    meta = untrained("maml_rl/Navigation2D-v0")
    thetas = []
    for wrapper in (Careless, gymnasium.Wrapper):
        env = wrapper(gymnasium.make("maml_rl/Navigation2D-v0"))
        env.reset(options={"task": np.array([0.3, 0.3])})
        thetas.append(meta.adapt(env, num_rollouts=2, seed=0)._actor.thetas)
    assert torch.equal(*thetas)
    for name in ("num_steps", "num_rollouts", "seed"):
        with pytest.raises(UserError, match=f"{name} is 1.5, but must be a whole number"):
            meta.adapt(env, **{name: 1.5})


def test_resets_leave_the_task_alone():
    meta = untrained("maml_rl/Navigation2D-v0")
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    env.reset(options={"task": np.array([0.25, 0.125])})
    meta.adapt(env, num_rollouts=3)
    np.testing.assert_array_equal(env.unwrapped.task, [0.25, 0.125])


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("maml_rl/Navigation2D-v0", {}),
        ("maml_rl/TabularMDP-v0", {}),
        ("maml_rl/CartPoleParams-v0", {}),
        ("maml_rl/PendulumParams-v0", {}),
        ("maml_rl/PixelNavigation2D-v0", {}),
        ("maml_rl/HalfCheetahVel-v0", {}),
        ("tests/Mixed-v0", {}),
        ("maml_rl/Navigation2D-v0", RL2),
        ("maml_rl/TabularMDP-v0", RL2),
    ],
    ids=str,
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_the_environment_s(env_id, options, deterministic):
    if env_id == "tests/Mixed-v0":
        meta = MetaPolicy(dataclasses.replace(config_of("unused"), num_workers=0), Own())
        env = gymnasium.make(env_id, disable_env_checker=True)
    else:
        meta, env = untrained(env_id, **options), gymnasium.make(env_id)
    adapted = meta.adapt(env, num_rollouts=None if options else 2, seed=0)
    observation, _ = env.reset(seed=1)
    taken = []
    for _ in range(4):
        action = adapted(observation, deterministic=deterministic, reward=0.5, ended=False)
        assert env.action_space.contains(action)
        taken.append(action)
        observation, *_ = env.step(action)
    again = meta.adapt(env, num_rollouts=None if options else 2, seed=0)
    observation, _ = env.reset(seed=1)
    for action in taken:
        other = again(observation, deterministic=deterministic, reward=0.5, ended=False)
        np.testing.assert_array_equal(other, action)
        observation, *_ = env.step(other)
    env.close()


def test_deterministic_actions_are_the_most_probable_ones():
    meta = untrained("maml_rl/PendulumParams-v0", initial_std=3.0)
    env = gymnasium.make("maml_rl/PendulumParams-v0")
    observation, _ = env.reset(seed=0)
    adapted = meta.adapt(env, num_steps=0, seed=0)
    mean = meta.policy(torch.from_numpy(observation)[None]).mean[0].detach().numpy()
    low, high = env.action_space.low, env.action_space.high
    expected = np.clip((low + high) / 2 + (high - low) / 2 * mean, low, high)
    np.testing.assert_allclose(adapted(observation, deterministic=True), expected, rtol=1e-5)
    assert len({float(adapted(observation)[0]) for _ in range(5)}) > 1


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_environments_of_every_kind(mode):
    """Short episodes, so that some environments end before others."""
    meta = untrained("maml_rl/CartPoleParams-v0", horizon=60)
    env = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make("maml_rl/CartPoleParams-v0")] * 3, autoreset_mode=mode
    )
    adapted = meta.adapt(env, num_steps=1, num_rollouts=6, seed=0)
    observations, _ = env.reset(seed=0)
    actions = adapted(observations)
    assert env.action_space.contains(actions)
    env.close()


@pytest.mark.parametrize("env_id", ["maml_rl/TabularMDP-v0", "tests/NanAfterEnd-v0"])
def test_rl2_remembers_what_it_saw_while_adapting(env_id):
    """The state after adapting is that of the policy over the whole trial, ended early or not."""
    meta = untrained(env_id, **RL2, **({"horizon": 10} if "Nan" in env_id else {}))
    theta, env = flatten(meta.policy), make_env(meta.config, 6)
    tasks = env.sample_tasks(2, np.random.default_rng(0))
    seeds = np.random.SeedSequence(5)
    collected = list(phases(env, meta.policy, theta, tasks, [1.0, 1.0], meta.config, seeds))[:2]
    actor = method_of(meta.config).adapted(meta.policy, theta, collected, [1.0, 1.0])
    trials = as_trials(collected)
    _, states = meta.policy(trials.observations.flatten(0, 1))
    last = trials.mask.sum(-1).flatten() - 1
    if "Nan" in env_id:
        assert len(last.unique()) > 1
    expected = states[torch.arange(6), last].view(2, 3, -1)
    torch.testing.assert_close(actor.state, expected.detach())
    rewards = trials.rewards.flatten(0, 1)[torch.arange(6), last].view(2, 3)
    torch.testing.assert_close(actor.last[..., -2], rewards)
    assert (actor.last[..., -1] == 1).all()  # an episode has just ended


def test_rl2_goes_on_remembering_while_it_acts():
    meta = untrained("maml_rl/TabularMDP-v0", **RL2)
    env = gymnasium.make_vec("maml_rl/TabularMDP-v0", 3)
    adapted = meta.adapt(env, num_steps=2, seed=5)
    before = adapted._actor.state.clone()
    observations, _ = env.reset(seed=0)
    adapted(observations)
    assert torch.equal(adapted._actor.state, before)  # it does not know yet what the action leads to
    adapted(observations, reward=np.ones(3), ended=np.zeros(3, bool))
    assert not torch.equal(adapted._actor.state, before)
    assert (adapted._actor.last[..., -2] == 1).all()


def test_rl2_says_so_if_it_is_told_no_rewards(caplog):
    meta = untrained("maml_rl/Navigation2D-v0", **RL2)
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = meta.adapt(env)
    observation, _ = env.reset()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            adapted(observation)
    said = [record.message for record in caplog.records]
    assert sum("remembers rewards, but was not given any" in message for message in said) == 1


@pytest.mark.parametrize(
    ("env_id", "options", "arguments", "sentence"),
    [
        ("Pendulum-v1", {}, {}, "The environment's observation space is .* but the run was trained with"),
        ("maml_rl/Navigation2D-v0", {"observe_task": True, "num_steps": 0}, {}, "The oracle is given its task"),
        ("maml_rl/Navigation2D-v0", {}, {"num_steps": -1}, "num_steps is -1, but must be at least 0"),
        ("maml_rl/Navigation2D-v0", {}, {"num_rollouts": 0}, "num_rollouts is 0, but must be positive"),
        ("maml_rl/Navigation2D-v0", RL2, {"num_rollouts": 3}, "remembers one rollout in each of 1 env"),
    ],
)
def test_what_does_not_fit_is_refused(env_id, options, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        untrained("maml_rl/Navigation2D-v0", **options).adapt(gymnasium.make(env_id), **arguments)


def test_the_number_of_rollouts_is_rounded_up_to_whole_rounds():
    meta = untrained("maml_rl/Navigation2D-v0", num_rollouts=7)
    env = gymnasium.make_vec("maml_rl/Navigation2D-v0", 4)
    meta.adapt(env)
    with pytest.raises(
        UserError, match="num_rollouts is 7, but must be positive and divisible by the 4 environments"
    ):
        meta.adapt(env, num_rollouts=7)


def test_one_policy_is_not_adapted_to_several_tasks():
    env = gymnasium.make_vec("maml_rl/Navigation2D-v0", 2)
    env.reset(options={"task": [[0.5, 0.5], [0.5, 0.0]]})
    with pytest.raises(UserError, match="The environments have different tasks, but a policy adapts to one"):
        untrained("maml_rl/Navigation2D-v0").adapt(env)
    env.reset(options={"task": [[0.5, 0.5], [0.5, 0.5]]})
    untrained("maml_rl/Navigation2D-v0").adapt(env)
    singles = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("maml_rl/Navigation2D-v0")] * 2)
    singles.reset()
    untrained("maml_rl/Navigation2D-v0").adapt(singles)
    singles.envs[0].reset(options={"task": [-0.4, 0.4]})
    with pytest.raises(UserError, match="The environments have different tasks, but a policy adapts to one"):
        untrained("maml_rl/Navigation2D-v0").adapt(singles)


@pytest.mark.parametrize("num_envs", [None, 4])
def test_rollouts_whose_simulation_broke_down_are_counted(num_envs, monkeypatch):
    monkeypatch.setattr(Navigation2DVectorEnv, "broken", lambda self, state, task: np.abs(state[:, 0]) > 0.15)
    name = "maml_rl/Navigation2D-v0"
    env = gymnasium.make(name) if num_envs is None else gymnasium.make_vec(name, num_envs)
    with pytest.raises(UserError, match=r"The simulation broke down in \d of 4 rollouts"):
        untrained(name, horizon=40, num_rollouts=4).adapt(env, seed=0)


@pytest.mark.parametrize("reward", [np.nan, [1.0, 2.0], "much"])
def test_a_memory_is_not_told_what_is_no_reward(reward):
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = untrained("maml_rl/Navigation2D-v0", **RL2).adapt(env, seed=0)
    observation, _ = env.reset()
    adapted(observation)
    with pytest.raises(UserError, match="reward"):
        adapted(observation, reward=reward, ended=False)
    assert np.isfinite(adapted(observation, reward=0.0, ended=False)).all()


def test_an_observation_that_is_none_is_refused():
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    adapted = untrained("maml_rl/Navigation2D-v0").adapt(env, num_rollouts=1)
    for wrong in (np.zeros(1), np.zeros((1, 2)), 0.0):
        with pytest.raises(UserError, match=r"An observation has shape \(.*\), but must be in Box\(.*\)"):
            adapted(wrong)
    with pytest.raises(UserError, match="is not finite"):
        adapted(np.array([0.0, np.nan]))
    several = untrained("maml_rl/Navigation2D-v0").adapt(gymnasium.make_vec("maml_rl/Navigation2D-v0", 4))
    with pytest.raises(UserError, match=r"shape \(2, 2\), but must be in Box\(.*\) for each of 4 environments"):
        several(np.zeros((2, 2)))
    mixed = MetaPolicy(dataclasses.replace(config_of("unused"), num_workers=0), Own())
    adapted = mixed.adapt(gymnasium.make("tests/Mixed-v0", disable_env_checker=True), num_rollouts=1)
    for wrong in ({}, np.zeros(3), None):
        with pytest.raises(UserError, match="An observation is .*, which is not in "):
            adapted(wrong)


def test_a_dictionary_is_flattened_in_vectors_too():
    meta = MetaPolicy(dataclasses.replace(config_of("unused"), num_workers=0), Own())
    env = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("tests/Mixed-v0", disable_env_checker=True)] * 2)
    adapted = meta.adapt(env, num_rollouts=4, seed=0)
    observations, _ = env.reset(seed=0)
    assert env.action_space.contains(adapted(observations))
    env.close()


def test_batches_are_trees():
    """`adapted` takes phases as `collect` yields them."""
    meta = untrained("maml_rl/Navigation2D-v0")
    env = make_env(meta.config, 6)
    tasks = env.sample_tasks(2, np.random.default_rng(0))
    batch, _ = phases(env, meta.policy, flatten(meta.policy), tasks, [1.0], meta.config, np.random.SeedSequence(0))
    actor = method_of(meta.config).adapted(meta.policy, flatten(meta.policy), [batch], [1.0])
    alone = method_of(meta.config).adapted(
        meta.policy, flatten(meta.policy), [tree_map(lambda x: x[1:], batch)], [1.0]
    )
    torch.testing.assert_close(actor.thetas[1:], alone.thetas)


class ReusedArrayEnv(gymnasium.Env):
    """Returns the same array at every step, and success as a float; moves by the action."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.zeros(2, np.float32)
        return self.at, {}

    def step(self, action):
        self.at += 0.1 * np.clip(action, -1, 1)
        return self.at, -float(np.linalg.norm(self.at - 0.3)), False, False, {"success": 1.0}


def test_environments_may_reuse_their_arrays():
    """What the learner keeps of each step is a copy: it adapts as in the family with the same dynamics."""
    meta = untrained("maml_rl/Navigation2D-v0")
    family = gymnasium.make("maml_rl/Navigation2D-v0")
    family.reset(options={"task": np.array([0.3, 0.3])})
    thetas = [meta.adapt(env, num_rollouts=3, seed=0)._actor.thetas for env in (ReusedArrayEnv(), family)]
    torch.testing.assert_close(*thetas, rtol=1e-4, atol=1e-5)


def test_the_end_of_a_shorter_horizon_is_an_end():
    """RL² is told so, whatever limit the environment itself has."""
    meta = untrained("maml_rl/Navigation2D-v0", **RL2)  # a horizon of 6, where the family has 100
    env = gymnasium.make("maml_rl/Navigation2D-v0")
    given = GivenEnv(env, make_env(meta.config, 1))
    theta, seeds = flatten(meta.policy), np.random.SeedSequence(0)
    first, second = phases(given, meta.policy, theta, np.zeros((1, 0)), [1.0], meta.config, seeds)
    assert first.mask.all()
    assert second.observations[0, 0, 0, -1] == 1


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_step_that_resets_an_environment_is_not_remembered(mode):
    meta = untrained("maml_rl/CartPoleParams-v0", **RL2, horizon=60)
    env = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make("maml_rl/CartPoleParams-v0", max_episode_steps=3)] * 2, autoreset_mode=mode
    )
    adapted = meta.adapt(env, num_steps=1, seed=0)
    observations, _ = env.reset(seed=0)
    rewards = ended = None
    flags = []
    for _ in range(9):
        actions = adapted(observations, reward=rewards, ended=ended)
        flags.append(adapted._actor.last[0, 0, -1].item())
        observations, rewards, terminated, truncated, _ = env.step(actions)
        ended = terminated | truncated
    # The flag is up when the first observation of an episode is seen.
    once_more = [1] if mode == AutoresetMode.NEXT_STEP else []  # the last observation of an episode is seen, too
    episode = [0, 0, 1, *once_more]
    assert flags == ([1, *episode * 3])[:9]
    env.close()
