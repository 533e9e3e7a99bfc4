"""Learned inner rules: exact derivatives, where they start from, what they see, and what they change."""

import pytest
import torch
from conftest import A, O, make_policy, random_rollouts
from test_inner import step, task
from test_outer import gradient, mean_over_tasks
from torch.func import vmap
from torch.utils._pytree import tree_map

from maml_rl.config import Config
from maml_rl.maml import linearise, trust_region
from maml_rl.maml import objective as objectives
from maml_rl.maml.inner import adapt, inner_loss, with_scales
from maml_rl.maml.rules import learned_advantages, num_features, statistics, step_features
from maml_rl.maml.step_sizes import prepare, step_sizes
from maml_rl.policies import flatten, unflatten
from maml_rl.policies.parameters import ADVANTAGE_NETWORK, INNER_RULES, LOG_LR_FACTORS
from maml_rl.sampling.normalisation import add_statistics, with_observations

RULES = [
    {"learn_lr": "task"},
    {"inner_advantage": "learned"},
    {"inner_advantage": "learned", "learn_lr": "task"},
]


def with_rules(kind, seed=None, **options):
    """A policy with learned rules whose scales are set, and θ: as made, or with other networks from a seed."""
    policy, _ = make_policy(kind)
    config = Config(inner_lr=0.3, chunk_tasks=2, **options)
    prepare(policy, config, O, A)
    theta = with_scales(policy, flatten(policy).double(), random_rollouts(kind, seed=1), config)
    if seed is not None:
        g = torch.Generator().manual_seed(seed)
        theta = theta + 0.1 * torch.randn(len(theta), generator=g, dtype=theta.dtype) * learnable(policy, config)
    return policy, theta, config


def learnable(policy, config):
    """1 for every entry of θ but the scales of the networks' inputs, (P,)."""
    ones = torch.ones(len(flatten(policy)), dtype=torch.float64)
    sizes = {LOG_LR_FACTORS: 2 * 2, ADVANTAGE_NETWORK: 2 * num_features(O, A)}
    for name, network in unflatten(policy, ones).items():
        if name in INNER_RULES:
            network[: sizes[name]] = 0.0
    return ones


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_meta_gradient_and_metric(kind, num_steps, options):
    """Against finite differences along random directions, and the KL differentiated twice."""
    policy, theta, config = with_rules(kind, seed=7, **options)
    *supports, query = (random_rollouts(kind, seed=seed) for seed in range(1, num_steps + 2))
    adapted = vmap(lambda s, q: objectives.adapted_policy(policy, theta, s, q, config))(tuple(supports), query)
    behaviour = type(adapted)(*(x.unflatten(1, query.mask.shape[1:]) for x in adapted))
    query = query._replace(behaviour=behaviour, log_probs=behaviour.log_prob(query.actions))
    objective = mean_over_tasks(objectives.surrogate, policy, tuple(supports), query, config)
    exact = gradient(policy, theta, tuple(supports), query, config)
    kl = mean_over_tasks(objectives.mean_kl, policy, tuple(supports), query, config)
    chunks = linearise.linearise_chunks(policy, theta, tuple(supports), query, config)
    for seed in range(4):
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=theta.dtype)
        v = v * learnable(policy, config)
        v = 1e-4 * v / v.norm()  # short, as learned factors are exponentials
        near, far = (objective(theta + k * v) - objective(theta - k * v) for k in (1, 2))
        torch.testing.assert_close(exact @ v, (8 * near - far) / 12, rtol=1e-5, atol=1e-12)
        (_, hvp) = torch.autograd.functional.hvp(kl, theta, v)
        torch.testing.assert_close(trust_region.kl_product(chunks, v, 3), hvp, rtol=1e-8, atol=1e-13)
    for name, part in unflatten(policy, exact).items():
        assert part.any(), name  # ψ has a meta-gradient, and so has everything else


@pytest.mark.parametrize("options", RULES, ids=str)
def test_a_new_rule_is_the_plain_step(kind, options):
    policy, theta, config = with_rules(kind, **options)
    plain, plain_theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    own = {name: part for name, part in unflatten(policy, theta).items() if name not in INNER_RULES}
    start = torch.cat([part.flatten() for part in own.values()])
    adapted, _ = adapt(policy, theta, support, config)
    for name, part in unflatten(policy, adapted).items():
        if name in INNER_RULES:
            assert torch.equal(part, unflatten(policy, theta)[name])
    rest = torch.cat([part.flatten() for n, part in unflatten(policy, adapted).items() if n not in INNER_RULES])
    torch.testing.assert_close(rest, step(plain, start, support, estimator=config.estimator))
    assert len(start) == len(plain_theta)


def test_the_level_of_the_reward_decides_how_far_a_step_goes():
    """Advantages, and so the gradient, do not change if all rewards grow by a constant."""
    policy, theta, config = with_rules("normal", seed=7, learn_lr="task")
    support = task(random_rollouts("normal"), 0)
    better = support._replace(rewards=(support.rewards + 1) * support.mask)
    steps = [adapt(policy, theta, rollouts, config)[0] - theta for rollouts in (support, better)]
    assert (steps[0] - steps[1]).norm() > 1e-2 * steps[0].norm()
    plain = Config(inner_lr=0.3)
    assert torch.equal(inner_loss(policy, theta, support, plain)[0], inner_loss(policy, theta, better, plain)[0])


def test_each_layer_has_a_factor_of_its_own():
    policy, theta, config = with_rules("normal", seed=7, learn_lr="task")
    alpha = step_sizes(policy, theta, task(random_rollouts("normal"), 0), config)
    by_name = unflatten(policy, alpha)
    assert not by_name.pop(LOG_LR_FACTORS).any()
    layers = {name.rpartition(".")[0]: part.unique() for name, part in by_name.items()}
    assert all(len(factors) == 1 for factors in layers.values())
    assert len({factors.item() for factors in layers.values()}) == len(layers) == 3


def test_statistics_by_hand():
    support = task(random_rollouts("normal"), 0)
    valid = support.rewards[support.mask]
    found = statistics(support)
    torch.testing.assert_close(found[0], valid.mean())
    torch.testing.assert_close(found[1], valid.std(correction=0))


def test_step_features_by_hand(kind):
    support = task(random_rollouts(kind), 0)
    found = step_features(support)
    assert found.shape == (*support.mask.shape, num_features(O, A))
    length = support.mask.sum(-1).tolist()
    for k, last in enumerate(length):
        for t in range(last):
            follows = t + 1 < last
            change = support.observations[k, t + 1] - support.observations[k, t] if follows else torch.zeros(O)
            action = support.actions[k, t] if kind == "normal" else torch.eye(A)[support.actions[k, t]]
            scalars = torch.stack([support.rewards[k, t], support.advantages[k, t]])
            expected = torch.cat([support.observations[k, t], change, action, scalars])
            torch.testing.assert_close(found[k, t], expected, check_dtype=False)


def test_learned_advantages_are_bounded():
    policy, theta, _ = with_rules("normal", seed=7, inner_advantage="learned")
    first, support = random_rollouts("normal", seed=1), task(random_rollouts("normal"), 0)
    network = unflatten(policy, theta)[ADVANTAGE_NETWORK]
    found, scale = learned_advantages(network, support), first.advantages[first.mask].std(correction=0)
    assert not torch.allclose(found, support.advantages)
    assert ((found - support.advantages).abs() <= support.advantages.abs() + scale).all()


def test_scales_are_those_of_the_first_batch_and_stay(kind):
    policy, theta, config = with_rules(kind, learn_lr="task", inner_advantage="learned")
    other = tree_map(lambda x: 2 * x if x.is_floating_point() else x, random_rollouts(kind, seed=5))
    assert torch.equal(with_scales(policy, theta, other, config), theta)
    first = random_rollouts(kind, seed=1)
    shift, factor = unflatten(policy, theta)[LOG_LR_FACTORS][:4].view(2, 2)
    means = [r[m].mean() for r, m in zip(first.rewards, first.mask, strict=True)]
    torch.testing.assert_close(shift[0], torch.stack(means).mean())
    torch.testing.assert_close(1 / factor[0], torch.stack(means).std(correction=0))
    shift, factor = unflatten(policy, theta)[ADVANTAGE_NETWORK][: 2 * num_features(O, A)].view(2, -1)
    torch.testing.assert_close(shift[-2], first.rewards[first.mask].mean())


def test_learned_advantages_take_their_scales_from_observations_that_are_normalised():
    policy, _ = make_policy("normal")
    config = Config(inner_advantage="learned", normalise_observations=True)
    prepare(policy, config, O, A)
    add_statistics(policy, config, O)
    theta = flatten(policy).double()
    batches = [random_rollouts("normal", seed=seed) for seed in (1, 2)]
    assert torch.equal(with_scales(policy, theta, batches[0], config), theta)
    theta = with_observations(policy, theta, batches[:1])
    theta = with_scales(policy, theta, batches[1], config)
    shift, _ = unflatten(policy, theta)[ADVANTAGE_NETWORK][: 2 * num_features(O, A)].view(2, -1)
    torch.testing.assert_close(shift[-2], batches[1].rewards[batches[1].mask].mean())


def test_the_scale_of_what_does_not_vary_is_1():
    """With one task in a batch, its statistics have no spread."""
    policy, _ = make_policy("normal")
    config = Config(learn_lr="task")
    prepare(policy, config, O, A)
    one = tree_map(lambda x: x[:1], random_rollouts("normal"))
    theta = with_scales(policy, flatten(policy).double(), one, config)
    torch.testing.assert_close(unflatten(policy, theta)[LOG_LR_FACTORS][2:4], torch.ones(2).double())
