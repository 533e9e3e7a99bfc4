"""The inner step: against finite differences, by vmap and by loop, masked and cut."""

import pytest
import torch
from conftest import make_policy, random_rollouts
from torch.func import jacrev, vmap
from torch.utils._pytree import tree_map

from maml_rl.adaptation import adapt, inner_loss
from maml_rl.advantages import with_advantages


def finite_differences(f, x, eps=1e-4):
    """The gradient or Jacobian of f at x by central differences of fourth order, (..., P)."""
    basis = torch.eye(len(x), dtype=x.dtype) * eps
    near = torch.stack([f(x + e) - f(x - e) for e in basis], dim=-1)
    far = torch.stack([f(x + 2 * e) - f(x - 2 * e) for e in basis], dim=-1)
    return (8 * near - far) / (12 * eps)


def task(rollouts, i):
    return tree_map(lambda x: x[i], rollouts)


def test_step_follows_the_gradient_of_the_loss(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    gradient = finite_differences(lambda x: inner_loss(policy, x, support), theta)
    torch.testing.assert_close(adapt(policy, theta, support, 0.3), theta - 0.3 * gradient, rtol=1e-6, atol=1e-8)


def test_loss_is_the_mean_over_valid_steps_of_log_probabilities_summed_over_action_dimensions(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    total, count = 0.0, 0
    for k, t in support.mask.nonzero().tolist():
        distribution = policy.double()(support.observations[k, t][None])
        log_prob = distribution.log_prob(support.actions[k, t][None])[0]
        total, count = total - log_prob * support.advantages[k, t], count + 1
    torch.testing.assert_close(inner_loss(policy, theta, support), total / count)


def test_jacobian_has_the_second_derivative(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    exact = finite_differences(lambda x: adapt(policy, x, support, 0.3), theta)
    second = jacrev(lambda x: adapt(policy, x, support, 0.3))(theta)
    first = jacrev(lambda x: adapt(policy, x, support, 0.3, first_order=True))(theta)
    torch.testing.assert_close(second, exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first, torch.eye(len(theta), dtype=theta.dtype))
    assert (second - first).abs().max() > 1e-3


def test_vmap_equals_loop(kind):
    policy, theta = make_policy(kind)
    support = random_rollouts(kind)
    thetas = theta + torch.arange(3.0).double()[:, None] / 10
    batched = vmap(lambda theta, support: adapt(policy, theta, support, 0.3))(thetas, support)
    looped = torch.stack([adapt(policy, thetas[i], task(support, i), 0.3) for i in range(3)])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("length", [1, 3])
def test_ended_episodes_equal_shorter_ones(kind, length):
    """Rollouts that end after `length` of 5 steps adapt as rollouts cut to that length."""
    policy, theta = make_policy(kind)
    rollouts = random_rollouts(kind)
    mask = (torch.arange(5) < length).expand_as(rollouts.mask)
    ended = with_advantages(rollouts._replace(mask=mask, rewards=rollouts.rewards * mask), 0.9, 0.8)
    cut = tree_map(lambda x: x[:, :, :length], rollouts._replace(mask=mask))
    cut = with_advantages(cut, 0.9, 0.8)
    torch.testing.assert_close(ended.advantages[:, :, :length], cut.advantages)
    torch.testing.assert_close(adapt(policy, theta, task(ended, 0), 0.3), adapt(policy, theta, task(cut, 0), 0.3))
