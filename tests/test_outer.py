"""The outer step: meta-gradient and KL product, exactly; conjugate gradients; what happens when it fails."""

import pytest
import torch
from conftest import make_policy, random_rollouts
from test_adaptation import finite_differences, task
from torch.func import vmap
from torch.utils._pytree import tree_map

from maml_rl import outer
from maml_rl.advantages import with_advantages
from maml_rl.config import Config


def problem(kind, num_steps, **options):
    """θ, S supports and a query whose behaviour policy is the adapted policy at θ, as in training."""
    policy, theta = make_policy(kind)
    config = Config(inner_lr=0.1, chunk_tasks=2, **options)
    supports = tuple(random_rollouts(kind, seed=s) for s in range(1, num_steps + 1))
    query = random_rollouts(kind, seed=99)
    adapted = vmap(lambda s, q: outer.adapted_policy(policy, theta, s, q, config))(supports, query)
    behaviour = type(adapted)(*(x.unflatten(1, query.mask.shape[1:]) for x in adapted))
    query = query._replace(behaviour=behaviour, log_probs=behaviour.log_prob(query.actions))
    return policy, theta, supports, query, config


def mean_over_tasks(f, policy, supports, query, config):
    """The function of θ that averages f(adapted policy, query) over tasks, one task at a time."""

    def objective(theta):
        values = [
            f(
                outer.adapted_policy(policy, theta, tuple(task(s, i) for s in supports), task(query, i), config),
                task(query, i),
            )
            for i in range(len(query.mask))
        ]
        return torch.stack(values).mean()

    return objective


def gradient(policy, theta, supports, query, config):
    chunks = outer.linearise_chunks(policy, theta, supports, query, config)
    return outer.meta_gradient(chunks, len(query.mask))


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_meta_gradient(kind, num_steps):
    policy, theta, *rest = problem(kind, num_steps)
    exact = finite_differences(mean_over_tasks(outer.surrogate, policy, *rest), theta)
    torch.testing.assert_close(gradient(policy, theta, *rest), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_first_order_is_another_gradient(kind, num_steps):
    policy, theta, supports, query, config = problem(kind, num_steps)
    second = gradient(policy, theta, supports, query, config)
    first = gradient(policy, theta, supports, query, Config(inner_lr=0.1, first_order=True))
    assert (first - second).norm() > 1e-2 * second.norm()
    # FOMAML: the gradient at the adapted parameters, taken for the gradient in θ.
    expected = []
    for i in range(len(query.mask)):
        adapted = theta
        for support in supports:
            adapted = outer.adapt(policy, adapted, task(support, i), 0.1)
        one = mean_over_tasks(outer.surrogate, policy, (), tree_map(lambda x, i=i: x[i : i + 1], query), config)
        expected.append(finite_differences(one, adapted))
    torch.testing.assert_close(first, torch.stack(expected).mean(0), rtol=1e-6, atol=1e-9)


def test_query_rewards_reach_the_meta_gradient(kind):
    policy, theta, supports, query, config = problem(kind, 1)
    query = with_advantages(query, 0.9, 1.0)
    perturbed = with_advantages(query._replace(rewards=query.rewards * torch.linspace(0, 1, 5)), 0.9, 1.0)
    before = gradient(policy, theta, supports, query, config)
    after = gradient(policy, theta, supports, perturbed, config)
    assert (before - after).norm() > 1e-2 * before.norm()


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_kl_product_equals_the_twice_differentiated_kl(kind, num_steps):
    policy, theta, supports, query, config = problem(kind, num_steps)
    objective = mean_over_tasks(outer.mean_kl, policy, supports, query, config)
    hessian = torch.autograd.functional.hessian(objective, theta)
    chunks = outer.linearise_chunks(policy, theta, supports, query, config)
    for seed in range(3):
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=theta.dtype)
        torch.testing.assert_close(outer.kl_product(chunks, v, 3), hessian @ v, rtol=1e-9, atol=1e-11)


def test_chunks_do_not_change_the_result(kind):
    policy, theta, supports, query, _ = problem(kind, 1)
    results = [gradient(policy, theta, supports, query, Config(inner_lr=0.1, chunk_tasks=c)) for c in (1, 2, 5)]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_conjugate_gradient_solves():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    matrix, b = root @ root.T + 0.1 * torch.eye(6), torch.randn(6, generator=g, dtype=torch.float64)
    x, image = outer.conjugate_gradient(lambda v: matrix @ v, b, 20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b))
    torch.testing.assert_close(image, b)
    x, image = outer.conjugate_gradient(lambda v: matrix @ v, b, 2)
    torch.testing.assert_close(image, matrix @ x)


@pytest.mark.parametrize("max_kl", [0.01, 0.2])
def test_step_improves_within_the_trust_region(kind, max_kl):
    """In the larger region the first candidate of the normal policy improves, but lies outside."""
    policy, theta, supports, query, config = problem(kind, 1, max_kl=max_kl, line_search_steps=50)
    query = with_advantages(query, 0.9, 1.0)
    new, info = outer.trpo_step(policy, theta, supports, query, config)
    assert info.accepted
    assert info.surrogate_after < info.surrogate_before
    assert 0 < info.kl <= config.max_kl
    after, kl = outer.outer_objective(policy, new, supports, query, config)
    assert (after, kl) == pytest.approx((info.surrogate_after, info.kl))
    if max_kl == 0.01:
        # The first candidate has the KL that was asked for, up to third order.
        assert info.kl > 0.3 * config.max_kl


def test_no_signal_keeps_the_parameters(kind):
    policy, theta, supports, query, config = problem(kind, 1)
    new, info = outer.trpo_step(policy, theta, supports, query._replace(advantages=query.advantages * 0), config)
    assert torch.equal(new, theta)
    assert (info.accepted, info.line_search_steps, info.gradient_norm) == (0, 0, 0.0)


def test_failed_line_search_keeps_the_parameters():
    """One candidate only, and a region so large that the quadratic model means nothing."""
    policy, theta, supports, query, config = problem("normal", 1, max_kl=1e6, line_search_steps=1)
    new, info = outer.trpo_step(policy, theta, supports, query, config)
    assert torch.equal(new, theta)
    assert (info.accepted, info.line_search_steps) == (0, 1)
    assert info.surrogate_after == info.surrogate_before


def test_a_step_that_makes_the_surrogate_worse_is_not_taken():
    """Far steps of a categorical policy, whose KL is no limit here: some help, some do harm."""
    accepted = []
    for seed in range(8):
        policy, theta, supports, query, config = problem("categorical", 1, max_kl=1e6, line_search_steps=1)
        query = query._replace(advantages=random_rollouts("categorical", seed=seed).advantages)
        new, info = outer.trpo_step(policy, theta, supports, query, config)
        after, _ = outer.outer_objective(policy, new, supports, query, config)
        assert after <= info.surrogate_before + 1e-12
        accepted.append(info.accepted)
    assert 0 < sum(accepted) < len(accepted)


def test_ratio_is_against_the_policy_that_sampled(kind):
    """At θ itself all ratios are 1: the surrogate is minus the mean advantage, the KL is 0."""
    policy, theta, supports, query, config = problem(kind, 1)
    loss, kl = outer.outer_objective(policy, theta, supports, query, config)
    means = [a[m].mean() for a, m in zip(query.advantages, query.mask, strict=True)]
    assert loss == pytest.approx(-torch.stack(means).mean().item())
    assert kl == pytest.approx(0, abs=1e-12)
