"""The inner step: against finite differences, by vmap and by loop, masked and cut."""

import math

import pytest
import torch
from conftest import A, O, make_policy, random_rollouts
from torch.func import jacrev, vmap
from torch.utils._pytree import tree_map

from maml_rl import UserError
from maml_rl.config import Config
from maml_rl.maml.inner import ESTIMATORS, adapt, inner_loss
from maml_rl.maml.step_sizes import prepare, step_sizes
from maml_rl.policies import act, flatten
from maml_rl.policies.batched import per_task
from maml_rl.policies.parameters import LOG_LR_FACTORS
from maml_rl.sampling.advantages import with_advantages


def finite_differences(f, x, eps=1e-4):
    """The gradient or Jacobian of f at x by central differences of fourth order, (..., P)."""
    basis = torch.eye(len(x), dtype=x.dtype) * eps
    values = vmap(f)(torch.cat([x + n * basis for n in (1, -1, 2, -2)]))
    forward, back, far_forward, far_back = values.movedim(0, -1).chunk(4, dim=-1)
    return (8 * (forward - back) - (far_forward - far_back)) / (12 * eps)


def step(policy, theta, support, lr_factor=1.0, **options):
    """The adapted parameters; α is 0.3."""
    return adapt(policy, theta, support, Config(inner_lr=0.3, **options), lr_factor)[0]


def task(rollouts, i):
    return tree_map(lambda x: x[i], rollouts)


def test_step_follows_the_gradient_of_the_loss(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    gradient = finite_differences(lambda x: inner_loss(policy, x, support, Config())[0], theta)
    torch.testing.assert_close(step(policy, theta, support), theta - 0.3 * gradient, rtol=1e-6, atol=1e-8)


def test_loss_is_the_mean_over_valid_steps_of_log_probabilities_summed_over_action_dimensions(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    total, count = 0.0, 0
    for k, t in support.mask.nonzero().tolist():
        distribution = policy.double()(support.observations[k, t][None])
        log_prob = distribution.log_prob(support.actions[k, t][None])[0]
        total, count = total - log_prob * support.advantages[k, t], count + 1
    torch.testing.assert_close(inner_loss(policy, theta, support, Config())[0], total / count)


def test_jacobian_has_the_second_derivative(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    exact = finite_differences(lambda x: step(policy, x, support), theta)
    second = jacrev(lambda x: step(policy, x, support))(theta)
    first = jacrev(lambda x: step(policy, x, support, first_order=True))(theta)
    torch.testing.assert_close(second, exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first, torch.eye(len(theta), dtype=theta.dtype))
    assert (second - first).abs().max() > 1e-3


def test_vmap_equals_loop(kind):
    policy, theta = make_policy(kind)
    support = random_rollouts(kind)
    thetas = theta + torch.arange(3.0).double()[:, None] / 10
    batched = vmap(lambda theta, support: step(policy, theta, support))(thetas, support)
    looped = torch.stack([step(policy, thetas[i], task(support, i)) for i in range(3)])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("length", [1, 3])
def test_ended_episodes_equal_shorter_ones(kind, length):
    """Rollouts that end after `length` of 5 steps adapt as rollouts cut to that length."""
    policy, theta = make_policy(kind)
    rollouts = random_rollouts(kind)
    mask = (torch.arange(5) < length).expand_as(rollouts.mask)
    ended = with_advantages(rollouts._replace(mask=mask, rewards=rollouts.rewards * mask), 0.9, 0.8)
    cut = tree_map(lambda x: x[:, :, :length] if x.ndim > 2 else x, rollouts._replace(mask=mask))
    cut = with_advantages(cut, 0.9, 0.8)
    torch.testing.assert_close(ended.advantages[:, :, :length], cut.advantages)
    torch.testing.assert_close(step(policy, theta, task(ended, 0)), step(policy, theta, task(cut, 0)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_away_from_the_behaviour_policy(kind, estimator):
    """Gradient and Jacobian of every inner loss, where ratios are not 1."""
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    gradient = finite_differences(lambda x: inner_loss(policy, x, support, Config(estimator=estimator))[0], theta)
    adapted = step(policy, theta, support, estimator=estimator)
    torch.testing.assert_close(adapted, theta - 0.3 * gradient, rtol=1e-5, atol=1e-7)
    exact = finite_differences(lambda x: step(policy, x, support, estimator=estimator), theta)
    jacobian = jacrev(lambda x: step(policy, x, support, estimator=estimator))(theta)
    torch.testing.assert_close(jacobian, exact, rtol=1e-5, atol=1e-6)


def test_estimators_by_hand():
    """Two steps of one rollout, ratios 2 and 3."""
    log_probs, old = torch.log(torch.tensor([[0.5, 0.75]])), torch.log(torch.tensor([[0.25, 0.25]]))
    half = Config(estimator="dice", dice_lambda=0.5)
    torch.testing.assert_close(ESTIMATORS["vpg"](log_probs, old, Config()), log_probs)
    torch.testing.assert_close(ESTIMATORS["lvc"](log_probs, old, Config()), torch.tensor([[2.0, 3.0]]))
    torch.testing.assert_close(ESTIMATORS["dice"](log_probs, old, Config()), torch.tensor([[2.0 - 1, 6.0 - 2]]))
    root = 2.0**0.5
    torch.testing.assert_close(ESTIMATORS["dice"](log_probs, old, half), torch.tensor([[1.0, 3 * root - root]]))


def test_estimators_agree_in_the_gradient_where_the_rollouts_were_collected(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    distribution = act(policy, theta, support.observations.flatten(0, 1))
    log_probs = distribution.log_prob(support.actions.flatten(0, 1)).unflatten(0, support.mask.shape)
    support = support._replace(log_probs=log_probs)
    steps = [step(policy, theta, support, estimator=estimator) for estimator in ESTIMATORS]
    torch.testing.assert_close(steps[0], steps[1])
    torch.testing.assert_close(steps[0], steps[2])


def with_factors(config, kind="normal", context_size=0):
    """A policy that has learned factors of α, its θ with factors of 2, and the places of each part in θ."""
    policy, _ = make_policy(kind, context_size=context_size)
    prepare(policy, config, O, A)
    if config.learn_lr != "no":
        getattr(policy, LOG_LR_FACTORS).data.fill_(math.log(2.0))
    places, start = {}, 0
    for name, parameter in policy.named_parameters():
        places[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return policy, flatten(policy).double(), places


@pytest.mark.parametrize("learn_lr", ["one", "layer", "parameter"])
def test_learned_step_sizes_are_factors_of_alpha(kind, learn_lr):
    config = Config(inner_lr=0.3, learn_lr=learn_lr)
    policy, theta, places = with_factors(config, kind)
    plain, plain_theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    own = places[LOG_LR_FACTORS]
    assert (
        own.stop - own.start
        == {"one": 1, "layer": 2 + (kind == "normal"), "parameter": len(plain_theta)}[learn_lr]
    )
    adapted = adapt(policy, theta, support, config)[0]
    assert torch.equal(adapted[own], theta[own])  # the inner step leaves its own size alone
    rest = torch.cat([adapted[: own.start], adapted[own.stop :]])
    torch.testing.assert_close(rest, plain_theta + 2 * (step(plain, plain_theta, support) - plain_theta))
    # It is differentiated through.
    exact = finite_differences(lambda x: adapt(policy, x, support, config)[0], theta)
    jacobian = jacrev(lambda x: adapt(policy, x, support, config)[0])(theta)
    torch.testing.assert_close(jacobian, exact, rtol=1e-5, atol=1e-7)
    moved = jacobian[:, own].abs().sum(0)
    assert (moved > 0).any() if learn_lr == "parameter" else (moved > 0).all()


def test_factors_of_layers_are_each_layer_s_own():
    config = Config(inner_lr=0.3, learn_lr="layer")
    policy, theta, places = with_factors(config)
    theta[places[LOG_LR_FACTORS]] = torch.log(torch.tensor([2.0, 3.0, 4.0], dtype=theta.dtype))
    alpha = step_sizes(policy, theta, task(random_rollouts("normal"), 0), config)
    for name, factor in (("body.0.weight", 2), ("body.0.bias", 2), ("head.log_std", 3), ("head.mean.weight", 4)):
        torch.testing.assert_close(alpha[places[name]], torch.full_like(alpha[places[name]], 0.3 * factor))


@pytest.mark.parametrize(("part", "context_size"), [("head", 0), ("context", 3)])
@pytest.mark.parametrize("learn_lr", ["no", "one", "layer", "parameter", "task"])
def test_only_the_part_named_is_adapted(part, context_size, learn_lr):
    config = Config(inner_lr=0.3, adapt_only=part, context_size=context_size, learn_lr=learn_lr)
    policy, theta, places = with_factors(config, context_size=context_size)
    support = task(random_rollouts("normal"), 0)
    whole, _ = make_policy("normal", context_size=context_size)
    change = adapt(policy, theta, support, config)[0] - theta
    for name, place in places.items():
        assert change[place].any() == (name.partition(".")[0] == part), name
    if learn_lr == "no":
        full = step(whole, theta, support) - theta
        for name, place in places.items():
            if name.partition(".")[0] == part:
                torch.testing.assert_close(change[place], full[place])


def test_a_step_size_of_its_own_for_the_standard_deviation():
    config = Config(inner_lr=0.3, log_std_lr=0.9)
    policy, theta, places = with_factors(config)
    support = task(random_rollouts("normal"), 0)
    plain, own = step(policy, theta, support) - theta, adapt(policy, theta, support, config)[0] - theta
    expected = plain.clone()
    expected[places["head.log_std"]] *= 3
    torch.testing.assert_close(own, expected)
    assert plain[places["head.log_std"]].any()


def test_the_schedule_multiplies_alpha(kind):
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    whole, half = (step(policy, theta, support, factor) - theta for factor in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2)


def test_context_is_an_input_of_the_policy():
    policy, theta = make_policy("normal", context_size=3)
    observations = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    assert not theta[:3].any()
    before = act(policy, theta, observations).mean
    theta[:3] = 0.5
    assert (act(policy, theta, observations).mean - before).abs().min() > 0
    plain = per_task(policy.double(), theta.expand(2, -1))(observations.expand(2, -1, -1))
    torch.testing.assert_close(plain.mean[1], act(policy, theta, observations).mean)


def test_a_part_the_policy_has_not_is_refused(kind):
    policy, _ = make_policy(kind)
    if kind == "categorical":
        with pytest.raises(UserError, match="log_std_lr is 0.5, but no parameter that adapts is a log_std"):
            prepare(policy, Config(log_std_lr=0.5), O, A)
    else:  # it is in the head
        with pytest.raises(UserError, match="log_std_lr is 0.5, but no parameter that adapts is a log_std"):
            prepare(policy, Config(log_std_lr=0.5, adapt_only="body"), O, A)
    with pytest.raises(
        UserError, match="adapt_only is 'tail', but the policy's parts are body, head; choose one.*context_size"
    ):
        prepare(policy, Config(adapt_only="tail"), O, A)


def test_dice_between_lvc_and_no_bias(kind):
    """With λ = 0 it has the Jacobian of lvc."""
    policy, theta = make_policy(kind)
    support = task(random_rollouts(kind), 0)
    lvc, none, some, all_ = (
        jacrev(lambda x, options=options: step(policy, x, support, **options))(theta)
        for options in ({"estimator": "lvc"}, *({"estimator": "dice", "dice_lambda": x} for x in (0.0, 0.5, 1.0)))
    )
    torch.testing.assert_close(lvc, none)
    assert (some - none).norm() > 1e-3
    assert (all_ - some).norm() > 1e-3
