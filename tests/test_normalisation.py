"""Normalised observations: their statistics are exact, and all who act see the same."""

import contextlib
import dataclasses
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from conftest import phases, random_rollouts, theta_of
from maml_rl.envs.navigation import Navigation2DVectorEnv
from test_meta_policy import RL2, untrained
from test_methods import METHODS, tiny

import maml_rl
from maml_rl import MetaPolicy, UserError
from maml_rl.methods import method_of
from maml_rl.policies import flatten, unflatten
from maml_rl.policies.parameters import OBSERVATION_STATISTICS
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.collect import trimmed
from maml_rl.sampling.families import make_env, sample_tasks
from maml_rl.sampling.normalisation import add_statistics, as_returned, normaliser, with_observations
from maml_rl.sampling.streams import numpy_generator, stream


def test_observations_whose_variance_is_not_finite_are_named():
    policy, _ = with_statistics()
    batch = random_rollouts("normal")
    batch = batch._replace(observations=1e30 * batch.observations.float())
    with pytest.raises(UserError, match="so large that their variance is not finite in float32; scale them"):
        with_observations(policy, flatten(policy), [batch])


def with_statistics(size=2):
    policy = torch.nn.Linear(size, 1)
    add_statistics(policy, maml_rl.Config(normalise_observations=True), size)
    return policy, flatten(policy).double()


def batches_of(observations):
    """Two phases of rollouts with some of the observations each, whose episodes end at different steps."""
    return [random_rollouts("normal", seed=i)._replace(observations=o) for i, o in enumerate(observations)]


def test_statistics_are_those_of_all_observations_that_policies_saw():
    policy, theta = with_statistics()
    generator = torch.Generator().manual_seed(0)
    seen = []
    for iteration in range(4):
        raw = 3.0 * torch.randn(2, 3, 4, 5, 2, generator=generator, dtype=torch.float64) + torch.tensor(
            [7.0, -2.0]
        )
        raw = raw + iteration
        normalise = normaliser(policy, theta.expand(3, -1))
        shown = [normalise(phase.flatten(1, 2)).view(phase.shape) for phase in raw]
        assert iteration or torch.equal(torch.stack(shown), raw)  # nothing is known yet
        theta = with_observations(policy, theta, batches_of(shown))
        seen += [phase[batch.mask] for phase, batch in zip(raw, batches_of(shown), strict=True)]
        number, mean, variance = unflatten(policy, theta)[OBSERVATION_STATISTICS]
        everything = torch.cat(seen)
        torch.testing.assert_close(number, torch.full_like(number, len(everything)))
        torch.testing.assert_close(mean, everything.mean(0))
        torch.testing.assert_close(variance, everything.var(0, correction=0))
    normal = normaliser(policy, theta.unsqueeze(0))(everything.unsqueeze(0))[0]
    torch.testing.assert_close(normal.mean(0), torch.zeros(2).double())
    torch.testing.assert_close(normal.var(0, correction=0), torch.ones(2).double())


def test_outliers_are_cut_off_and_constants_keep_their_unit():
    policy, theta = with_statistics()
    raw = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[..., 1] = 5.0
    normalise = normaliser(policy, with_observations(policy, theta, batches_of([raw]))[None])
    first, second = normalise(torch.tensor([[[1e3, 5.0], [-1e3, 8.0], [0.0, 4.0]]]))[0].unbind(-1)
    assert first[:2].tolist() == [10.0, -10.0]
    assert second.tolist() == [0.0, 3.0, -1.0]
    for bad in (np.inf, -np.inf, np.nan):  # so that it is refused
        assert not torch.isfinite(normalise(torch.tensor([[[bad, 5.0]]]))[0, 0, 0])


class DrawnVectorEnv(Navigation2DVectorEnv):
    """Keeps what it is to draw."""

    drawn: ClassVar[list[np.ndarray]] = []

    def plot_rollouts(self, axes, task, observations, mask):
        self.drawn.append(observations)


gymnasium.register("tests/Drawn-v0", vector_entry_point=DrawnVectorEnv, max_episode_steps=5)


def test_pictures_show_what_the_environment_returned(tmp_path):
    config = tiny(tmp_path / "run", env_id="tests/Drawn-v0", iterations=2, normalise_observations=True)
    DrawnVectorEnv.drawn.clear()
    theta = flatten(maml_rl.train(config).policy)
    statistics = unflatten(new_policy(config), theta)[OBSERVATION_STATISTICS]
    assert (statistics[1].abs() > 1e-3).any()
    assert len(DrawnVectorEnv.drawn) >= 2
    for observations in DrawnVectorEnv.drawn:  # all paths begin at the origin
        np.testing.assert_allclose(observations[:, 0], 0.0, atol=1e-6)


def test_other_inputs_than_observations_are_returned_as_they_are():
    policy, theta = with_statistics()
    raw = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = with_observations(policy, theta, batches_of([raw]))
    shown = torch.cat([normaliser(policy, theta[None])(raw.flatten(1, 2)).view(raw.shape), raw], dim=-1)
    [returned] = as_returned(policy, theta, batches_of([shown]))
    torch.testing.assert_close(returned.observations, torch.cat([raw, raw], dim=-1))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "scratch"])
def test_every_method_counts_what_it_sees_and_never_adapts_it(method, tmp_path):
    """The first iteration sees observations as they are, so its rollouts can be collected again."""
    config = tiny(tmp_path / "run", **METHODS[method] | {"iterations": 1}, normalise_observations=True)
    maml_rl.train(config)
    policy = new_policy(config)
    with contextlib.closing(make_env(config, config.num_tasks * config.num_rollouts)) as env:
        tasks = sample_tasks(env, config.num_tasks, numpy_generator(config.seed, "tasks", 0))
        seeds = stream(config.seed, "rollouts", 0)
        collected = list(phases(env, policy, flatten(policy), tasks, None, config, seeds))
        size = env.single_observation_space.shape[0]
    seen = torch.cat([batch.observations[..., :size][batch.mask] for batch in map(trimmed, collected)]).double()
    number, mean, variance = unflatten(policy, theta_of(config.run_dir))[OBSERVATION_STATISTICS].double()
    assert (number == len(seen)).all()
    torch.testing.assert_close(mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, seen.var(0, correction=0), rtol=1e-5, atol=1e-6)


def folded(meta, size):
    """The same policy without statistics: they are a part of its first layer."""
    plain = MetaPolicy(dataclasses.replace(meta.config, normalise_observations=False), None)
    plain.policy = new_policy(plain.config)
    parameters = {name: p.detach().clone() for name, p in meta.policy.named_parameters()}
    _, mean, variance = parameters.pop(OBSERVATION_STATISTICS)
    recurrent = "recurrent.weight_ih_l0" in parameters
    weight, bias = (
        ("recurrent.weight_ih_l0", "recurrent.bias_ih_l0") if recurrent else ("body.0.weight", "body.0.bias")
    )
    parameters[weight][:, :size] /= variance.sqrt()
    parameters[bias] -= parameters[weight][:, :size] @ mean
    plain.policy.load_state_dict(parameters)
    return plain


@pytest.mark.parametrize("options", [{}, RL2, {"observe_task": True, "num_steps": 0}], ids=str)
def test_policies_act_as_if_the_statistics_were_a_part_of_their_first_layer(options):
    meta = untrained("maml_rl/HalfCheetahVel-v0", normalise_observations=True, horizon=8, **options)
    size = 17
    generator = torch.Generator().manual_seed(1)
    statistics = dict(meta.policy.named_parameters())[OBSERVATION_STATISTICS]
    mean, variance = torch.randn(size, generator=generator), 16 + 20 * torch.rand(size, generator=generator)
    statistics.data.copy_(torch.stack([torch.full((size,), 100.0), mean, variance]))
    plain = folded(meta, size)
    rollouts = []
    for each in (meta, plain):
        with contextlib.closing(make_env(each.config, 6)) as env:
            tasks, seeds = env.sample_tasks(2, np.random.default_rng(0)), np.random.SeedSequence(5)
            batch = phases(env, each.policy, flatten(each.policy), tasks, [], each.config, seeds)
            rollouts.append(next(iter(batch)))
    ours, theirs = rollouts
    torch.testing.assert_close(ours.actions, theirs.actions, rtol=1e-4, atol=1e-4)
    expected = (theirs.observations[..., :size] - mean) / variance.sqrt()
    torch.testing.assert_close(ours.observations[..., :size], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        ours.observations[..., size:], theirs.observations[..., size:], rtol=1e-3, atol=1e-3
    )
    if "observe_task" in options:
        return
    env = gymnasium.make("maml_rl/HalfCheetahVel-v0")
    observation, _ = env.reset(seed=0)
    actions = [each.adapt(env, num_steps=0, seed=1)(observation, deterministic=True) for each in (meta, plain)]
    np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-4)


def test_rl2_reads_its_trials_again_as_it_saw_them():
    """`adapted` gets observations that are already normalised."""
    meta = untrained("maml_rl/TabularMDP-v0", normalise_observations=True, **RL2)
    theta, env = flatten(meta.policy), make_env(meta.config, 4)
    statistics = unflatten(meta.policy, theta)[OBSERVATION_STATISTICS]
    statistics[0], statistics[1], statistics[2] = 50.0, 0.3, 0.25
    tasks, seeds = env.sample_tasks(2, np.random.default_rng(0)), np.random.SeedSequence(5)
    collected = list(phases(env, meta.policy, theta, tasks, [1.0], meta.config, seeds))[:1]
    env.close()
    actor = method_of(meta.config).adapted(meta.policy, theta, collected, [1.0])
    torch.nn.utils.vector_to_parameters(theta, meta.policy.parameters())
    _, states = meta.policy(collected[0].observations.flatten(0, 1))
    torch.testing.assert_close(actor.state.flatten(0, 1), states[:, -1].detach())


def test_a_policy_with_statistics_needs_the_option(tmp_path):
    trained = maml_rl.train(tiny(tmp_path / "first", normalise_observations=True, iterations=1)).policy
    again = maml_rl.train(tiny(tmp_path / "second", normalise_observations=True, iterations=1), policy=trained)
    number = dict(again.policy.named_parameters())[OBSERVATION_STATISTICS][0, 0]
    assert number == 2 * dict(trained.named_parameters())[OBSERVATION_STATISTICS][0, 0]
    with pytest.raises(UserError, match="trained with normalise_observations; turn that on"):
        maml_rl.train(tiny(tmp_path / "third"), policy=trained)
