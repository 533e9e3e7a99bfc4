"""RL²: what the policy is given, what it remembers, trials made of episodes, and that it learns to learn."""

import json

import numpy as np
import pytest
import torch
from conftest import phases, random_rollouts
from gymnasium import spaces
from maml_rl.envs import make_vec
from torch.func import functional_call

import maml_rl
from maml_rl import Config, UserError
from maml_rl.methods import method_of
from maml_rl.policies import MLP, CategoricalHead, GaussianHead, flatten, unflatten
from maml_rl.rl2 import GRUPolicy, as_trials, ppo_on_trials
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.families import make_env

RL2 = {"rl2_episodes": 3, "num_steps": 0, "outer": "ppo", "hidden_sizes": (8,)}


def episodes(env_id, num_tasks=4, num_rollouts=5, horizon=6, num_episodes=3, **options):
    config = Config(env_id=env_id, horizon=horizon, num_workers=0, **{**RL2, **options})
    env = make_env(config, num_tasks * num_rollouts)
    policy = new_policy(config)
    theta = flatten(policy) + 0.3 * torch.randn(len(flatten(policy)), generator=torch.Generator().manual_seed(0))
    tasks = env.sample_tasks(num_tasks, np.random.default_rng(0))
    factors = [1.0] * (num_episodes - 1)
    batches = phases(env, policy, theta, tasks, factors, config, np.random.SeedSequence(0))
    return config, policy, theta, list(batches)


@pytest.mark.parametrize("env_id", ["tests/NanAfterEnd-v0", "maml_rl/TabularMDP-v0", "maml_rl/HalfCheetahVel-v0"])
def test_the_memory_goes_on_from_episode_to_episode(env_id):
    """Acting step by step, in halves too, is the policy over the whole trial at once; it forgets nothing."""
    _, policy, theta, batches = episodes(env_id, horizon=10 if "Nan" in env_id else 6)
    trials = as_trials(batches)
    flat = trials.observations.flatten(0, 1)
    distribution, _ = functional_call(policy, unflatten(policy, theta), (flat,))
    valid = trials.mask.flatten(0, 1)
    if "Nan" in env_id:
        assert not all(batch.mask.all() for batch in batches)
    for ours, theirs in zip(trials.behaviour, distribution, strict=True):
        torch.testing.assert_close(ours.flatten(0, 1)[valid], theirs[valid], rtol=1e-4, atol=1e-5)
    # Another first episode changes what is done in the last one, observation for observation.
    changed = flat.clone()
    changed[:, 0] += 1.0
    other, _ = functional_call(policy, unflatten(policy, theta), (changed,))
    last = int(valid.sum(1).min()) - 1
    assert (other[0][:, last] - distribution[0][:, last]).abs().max() > 1e-6


@pytest.mark.parametrize("env_id", ["maml_rl/Navigation2D-v0", "maml_rl/TabularMDP-v0"])
def test_the_policy_sees_last_action_reward_and_end(env_id):
    _, _, _, batches = episodes(env_id)
    trials = as_trials(batches)
    size = (2, 2) if "Navigation" in env_id else (10, 5)
    seen = trials.observations[..., size[0] :]
    assert seen.shape[-1] == size[1] + 2
    assert not seen[:, :, 0].any()
    actions = trials.actions
    if not actions.is_floating_point():
        actions = torch.nn.functional.one_hot(actions, size[1]).float()
    torch.testing.assert_close(seen[:, :, 1:, : size[1]], actions[:, :, :-1])
    torch.testing.assert_close(seen[:, :, 1:, -2], trials.rewards[:, :, :-1])
    # No episode of these ended early: each end is the horizon's.
    ends = torch.zeros(18)
    ends[[6, 12]] = 1.0
    torch.testing.assert_close(seen[..., -1], ends.expand(4, 5, -1))


def test_trials_have_the_steps_taken_first():
    batches = [random_rollouts("normal", seed=seed) for seed in (1, 2)]
    trials = as_trials(batches)
    assert trials.rewards.shape == (3, 4, 10)
    for m in range(3):
        for k in range(4):
            lengths = [int(batch.mask[m, k].sum()) for batch in batches]
            assert trials.mask[m, k].tolist() == [True] * sum(lengths) + [False] * (10 - sum(lengths))
            for name in ("observations", "actions", "rewards", "log_probs"):
                expected = torch.cat([getattr(b, name)[m, k, :n] for b, n in zip(batches, lengths, strict=True)])
                torch.testing.assert_close(getattr(trials, name)[m, k, : sum(lengths)], expected)


def test_credit_goes_back_over_the_end_of_an_episode():
    """Where only the last episode pays, what was done in those before still has a gradient."""
    config, policy, theta, batches = episodes("maml_rl/TabularMDP-v0", gae_lambda=1.0, ppo_epochs=1)
    batches = [batch._replace(rewards=batch.rewards * (i == 2)) for i, batch in enumerate(batches)]
    _, memory, info = ppo_on_trials(policy, theta, {}, batches, config)
    assert info["surrogate_before"] == pytest.approx(0.0, abs=1e-5)  # ratios are 1, advantages normalised
    assert info["surrogate_after"] < 0 < info["kl"]
    # Ratios of nearly 0 silence the steps of the last episode.
    silent = batches[2]._replace(log_probs=batches[2].log_probs + 50)
    _, other, _ = ppo_on_trials(policy, theta, {}, [*batches[:2], silent], config)
    whole, earlier = (m["state"][0]["exp_avg"].norm() for m in (memory, other))
    assert earlier > 0.1 * whole


def test_it_learns_to_try_and_to_remember(tmp_path):
    """A bandit of two arms, one of which pays: pulled at random at first, known at the second episode."""
    config = Config(
        env_id="misbehaving:tests/TwoArms-v0",
        run_dir=tmp_path / "run",
        iterations=40,
        num_tasks=20,
        num_rollouts=10,
        outer_lr=0.02,
        gae_lambda=1.0,
        eval_every=0,
        eval_num_steps=2,
        **{**RL2, "rl2_episodes": 2},
    )
    maml_rl.train(config)
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    curve = results["methods"]["rl2"]
    # Of 5: the first pull of all can only be a guess, which costs half a unit.
    assert curve["mean"][0] == pytest.approx(4.5, abs=0.25)
    assert curve["mean"][1] > 4.95
    assert curve["env_steps"] == [0, 5, 10]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"outer": "reptile", "estimator": "lvc"},
            "Reptile takes no derivative.* leave estimator out",
        ),
        ({"outer": "reptile", "e_maml": 1.0}, "leave e_maml out"),
        ({"outer": "reptile", "first_order": True}, "leave first_order out"),
        ({"outer": "reptile", "learn_lr": "one"}, "leave learn_lr out"),
        ({"outer": "reptile", "num_steps": 0}, "moves towards adapted parameters; choose num_steps 1 or more"),
        ({**RL2, "method": "maml"}, "rl2_episodes is 3, but the method is 'maml'; choose method rl2"),
        ({"method": "rl2"}, "rl2_episodes is 0, but RL² needs"),
        ({**RL2, "num_steps": 1}, "num_steps is 1, but RL² adapts by its memory.*choose num_steps 0"),
        ({**RL2, "estimator": "dice"}, "estimator is 'dice', but RL² adapts by its memory"),
        ({**RL2, "outer": "trpo"}, "RL² is trained by PPO; choose outer ppo"),
        ({**RL2, "context_size": 2}, "context_size is 2, but RL² does not use it; leave context_size out"),
        ({**RL2, "observe_task": True}, "observe_task is True, but RL² does not use it"),
        ({**RL2, "kl_penalty": 1.0}, "kl_penalty is 1.0, but RL² does not use it"),
        ({"outer": "adam", "max_kl": 0.1}, "max_kl is 0.1, but is only used with outer trpo; choose that"),
        ({"outer_lr": 0.1}, "outer_lr is 0.1, but is only used with outer ppo, adam or reptile"),
        ({"ppo_clip": 0.1}, "ppo_clip is 0.1, but is only used with outer ppo"),
        (
            {"first_order": True, "estimator": "lvc"},
            "is only used with second derivatives .without first_order.",
        ),
        ({"num_steps": 0, "estimator": "lvc"}, "no inner step that could use it; choose num_steps 1 or more"),
        ({"num_steps": 0, "first_order": True}, "no inner step that could use it"),
        ({"observe_task": True}, "sees the task has nothing to adapt to; choose num_steps 0"),
        ({"dice_lambda": 0.5}, "dice_lambda is 0.5, but is only used with estimator dice"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        method_of(Config(**options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"adapt_only": "body"},
            "adapt_only is 'body', but the policy's parts are head; choose",
        ),
        (RL2, "The policy given is a Linear, but RL² needs a maml_rl.rl2.GRUPolicy"),
        ({}, "The policy given returns a torch.Tensor, but must return a Normal, Categorical or"),
        ({"estimator": "reinforce"}, "estimator is 'reinforce', but must be one of vpg, lvc, dice"),
        ({"outer": "sgd"}, "outer is 'sgd', but must be one of trpo"),
    ],
)
def test_what_does_not_fit_the_policy_or_is_not_there_is_refused(tmp_path, options, sentence):
    config = Config(run_dir=tmp_path / "run", **options)
    linear = torch.nn.Linear(2, 2)
    policy = linear if options in (RL2, {}) else MLP(2, (), GaussianHead(2, 2, 1.0))
    with pytest.raises(UserError, match=sentence):
        maml_rl.train(config, policy=policy)
    assert not (tmp_path / "run").exists()


def test_a_recurrent_policy_for_other_actions_is_refused():
    config = Config(env_id="maml_rl/BernoulliBandit-v0", **RL2)
    size = spaces.flatdim(make_vec(config.env_id, 1).single_observation_space)
    assert isinstance(new_policy(config, GRUPolicy(size, 5, 8, CategoricalHead(8, 5))), GRUPolicy)
    with pytest.raises(UserError, match=r"Categorical .*\(N, 3\), .* a Categorical .*\(N, 5\);"):
        new_policy(config, GRUPolicy(size, 5, 8, CategoricalHead(8, 3)))


def test_a_memory_of_several_layers_is_refused():
    with pytest.raises(UserError, match="RL² has one recurrent layer; choose one number"):
        new_policy(Config(**{**RL2, "hidden_sizes": (8, 8)}))


def test_advantages_keep_their_size_where_asked():
    """Then the norm of PPO's gradient grows with the rewards."""
    norms = {}
    for normalised in (True, False):
        config, policy, theta, batches = episodes(
            "maml_rl/TabularMDP-v0", normalise_advantages=normalised, ppo_epochs=1
        )
        for factor in (1.0, 10.0):
            scaled = [batch._replace(rewards=factor * batch.rewards) for batch in batches]
            norms[normalised, factor] = ppo_on_trials(policy, theta, {}, scaled, config)[2]["gradient_norm"]
    assert norms[True, 10.0] == pytest.approx(norms[True, 1.0], rel=1e-3)
    assert norms[False, 10.0] == pytest.approx(10 * norms[False, 1.0], rel=0.1)
