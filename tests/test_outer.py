"""The outer step: meta-gradient and KL product, exactly; conjugate gradients; what happens when it fails."""

import copy
import dataclasses

import pytest
import torch
from conftest import A, O, make_policy, random_rollouts
from test_inner import finite_differences, task
from torch.func import vmap
from torch.utils._pytree import tree_map

from maml_rl import UserError
from maml_rl.config import Config
from maml_rl.maml import linearise, outer, trust_region
from maml_rl.maml import objective as objectives
from maml_rl.maml.inner import ESTIMATORS, adapt
from maml_rl.maml.step_sizes import prepare
from maml_rl.methods import method_of
from maml_rl.policies import flatten, unflatten
from maml_rl.policies.parameters import LOG_LR_FACTORS
from maml_rl.sampling.advantages import with_advantages


def problem(kind, num_steps, **options):
    """θ, S supports and a query, each collected by the policy after the steps before it, as in training."""
    policy, theta = make_policy(kind)
    config = Config(inner_lr=0.1, chunk_tasks=2, **options)
    batches = []
    for seed in [*range(1, num_steps + 1), 99]:
        rollouts = random_rollouts(kind, seed=seed)
        policies = vmap(lambda s, q: objectives.adapted_policy(policy, theta, s, q, config))
        adapted = policies(tuple(batches), rollouts)
        behaviour = type(adapted)(*(x.unflatten(1, rollouts.mask.shape[1:]) for x in adapted))
        batches.append(rollouts._replace(behaviour=behaviour, log_probs=behaviour.log_prob(rollouts.actions)))
    *supports, query = batches
    return policy, theta, tuple(supports), query, config


def mean_over_tasks(f, policy, supports, query, config):
    """The function of θ that averages f(adapted policy, query) over tasks, one task at a time."""

    def objective(theta):
        values = [
            f(
                objectives.adapted_policy(
                    policy, theta, tuple(task(s, i) for s in supports), task(query, i), config
                ),
                task(query, i),
            )
            for i in range(len(query.mask))
        ]
        return torch.stack(values).mean()

    return objective


def gradient(policy, theta, supports, query, config):
    chunks = linearise.linearise_chunks(policy, theta, supports, query, config)
    return trust_region.meta_gradient(chunks, len(query.mask))[1]


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_meta_gradient(kind, num_steps):
    policy, theta, *rest = problem(kind, num_steps)
    exact = finite_differences(mean_over_tasks(objectives.surrogate, policy, *rest), theta)
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
            adapted, _ = adapt(policy, adapted, task(support, i), config)
        one = mean_over_tasks(
            objectives.surrogate, policy, (), tree_map(lambda x, i=i: x[i : i + 1], query), config
        )
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
    objective = mean_over_tasks(objectives.mean_kl, policy, supports, query, config)
    hessian = torch.autograd.functional.hessian(objective, theta)
    chunks = linearise.linearise_chunks(policy, theta, supports, query, config)
    for seed in range(3):
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=theta.dtype)
        torch.testing.assert_close(trust_region.kl_product(chunks, v, 3), hessian @ v, rtol=1e-9, atol=1e-11)


def test_chunks_do_not_change_the_result(kind):
    policy, theta, supports, query, _ = problem(kind, 1)
    results = [gradient(policy, theta, supports, query, Config(inner_lr=0.1, chunk_tasks=c)) for c in (1, 2, 5)]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_conjugate_gradient_solves():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    matrix, b = root @ root.T + 0.1 * torch.eye(6), torch.randn(6, generator=g, dtype=torch.float64)
    x, image = trust_region.conjugate_gradient(lambda v: matrix @ v, b, 20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b))
    torch.testing.assert_close(image, b)
    x, image = trust_region.conjugate_gradient(lambda v: matrix @ v, b, 2)
    torch.testing.assert_close(image, matrix @ x)


@pytest.mark.parametrize("max_kl", [0.01, 0.2])
def test_step_improves_within_the_trust_region(kind, max_kl):
    """In the larger region the first candidate of the normal policy improves, but lies outside."""
    policy, theta, supports, query, config = problem(kind, 1, max_kl=max_kl, line_search_steps=50)
    query = with_advantages(query, 0.9, 1.0)
    new, _, info = trust_region.trpo_step(policy, theta, {}, [*supports, query], config)
    assert info["accepted"]
    assert info["surrogate_after"] < info["surrogate_before"]
    assert 0 < info["kl"] <= config.max_kl
    after, kl = linearise.outer_objective(policy, new, supports, query, config)
    assert (after, kl) == pytest.approx((info["surrogate_after"], info["kl"]))
    if max_kl == 0.01:
        # The first candidate has the KL that was asked for, up to third order.
        assert info["kl"] > 0.3 * config.max_kl


def test_no_signal_keeps_the_parameters(kind):
    policy, theta, supports, query, config = problem(kind, 1)
    new, _, info = trust_region.trpo_step(
        policy, theta, {}, [*supports, query._replace(advantages=query.advantages * 0)], config
    )
    assert torch.equal(new, theta)
    assert (info["accepted"], info["line_search_steps"], info["gradient_norm"]) == (0, 0, 0.0)


def test_failed_line_search_keeps_the_parameters():
    """One candidate only, and a region so large that the quadratic model means nothing."""
    policy, theta, supports, query, config = problem("normal", 1, max_kl=1e6, line_search_steps=1)
    new, _, info = trust_region.trpo_step(policy, theta, {}, [*supports, query], config)
    assert torch.equal(new, theta)
    assert (info["accepted"], info["line_search_steps"]) == (0, 1)
    assert info["surrogate_after"] == info["surrogate_before"]


def test_a_step_that_makes_the_surrogate_worse_is_not_taken():
    """Far steps of a categorical policy, whose KL is no limit here: some help, some do harm."""
    accepted = []
    for seed in range(8):
        policy, theta, supports, query, config = problem("categorical", 1, max_kl=1e6, line_search_steps=1)
        query = query._replace(advantages=random_rollouts("categorical", seed=seed).advantages)
        new, _, info = trust_region.trpo_step(policy, theta, {}, [*supports, query], config)
        after, _ = linearise.outer_objective(policy, new, supports, query, config)
        assert after <= info["surrogate_before"] + 1e-12
        accepted.append(info["accepted"])
    assert 0 < sum(accepted) < len(accepted)


def test_ratio_is_against_the_policy_that_sampled(kind):
    """At θ itself all ratios are 1: the surrogate is minus the mean advantage, the KL is 0."""
    policy, theta, supports, query, config = problem(kind, 1)
    loss, kl = linearise.outer_objective(policy, theta, supports, query, config)
    means = [a[m].mean() for a, m in zip(query.advantages, query.mask, strict=True)]
    assert loss == pytest.approx(-torch.stack(means).mean().item())
    assert kl == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_steps", [1, 2])
def test_gradient_of_the_whole_outer_loss(kind, estimator, num_steps):
    """E-MAML's term and the surrogate together, through inner steps, as Adam and the trust region take it."""
    policy, theta, supports, query, config = problem(kind, num_steps, e_maml=0.7, estimator=estimator)
    credits = objectives.exploration_credits(query)

    def objective(theta):
        losses = [
            objectives.outer_loss(policy, theta, tuple(task(s, i) for s in supports), task(query, i), c, config)[0]
            for i, c in enumerate(credits)
        ]
        return torch.stack(losses).mean()

    exact = finite_differences(objective, theta)
    _, _, info = outer.adam_step(policy, theta, {}, [*supports, query], config)
    assert info["surrogate_before"] == pytest.approx(objective(theta).item())
    assert info["gradient_norm"] == pytest.approx(exact.norm().item(), rel=1e-5)
    _, memory, info = outer.adam_step(policy, theta, {}, [*supports, query], config)
    torch.testing.assert_close(memory["state"][0]["exp_avg"], 0.1 * exact, rtol=1e-5, atol=1e-8)  # 1 - 0.9
    _, _, info = trust_region.trpo_step(policy, theta, {}, [*supports, query], config)
    assert info["surrogate_before"] == pytest.approx(objective(theta).item())
    assert info["gradient_norm"] == pytest.approx(exact.norm().item(), rel=1e-5)
    without = gradient(policy, theta, supports, query, config)
    assert (without - exact).norm() > 1e-2 * exact.norm()


def test_exploration_loss_by_hand(kind):
    policy, theta, supports, _, config = problem(kind, 2)
    one = tuple(task(s, 0) for s in supports)
    _, passed = objectives.through_adaptation(policy, theta, one, config)
    total = sum(
        distribution.log_prob(support.actions.flatten(0, 1))[support.mask.flatten()].sum()
        for distribution, support in zip(passed, one, strict=True)
    )
    credit = torch.tensor(3.0, dtype=theta.dtype)
    torch.testing.assert_close(objectives.exploration_loss(passed, one, credit), -3 * total)


def test_clipped_surrogate_by_hand():
    """Ratios 1.5 and 0.5, with gains that speak for and against going there."""
    query = task(random_rollouts("categorical", num_rollouts=1, horizon=4), 0)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]], dtype=torch.float64)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    logits = torch.zeros(4, 3, dtype=torch.float64)
    distribution = type(query.behaviour)(logits)
    query = query._replace(
        advantages=advantages,
        mask=torch.ones(1, 4, dtype=torch.bool),
        log_probs=(distribution.log_prob(query.actions.flatten()) - ratio.log()).unsqueeze(0),
    )
    loss = objectives.clipped_surrogate(distribution, query, 0.2)
    # The minimum of r A and clip(r) A: 1.2 · 2, 1.5 · -2, 0.5 · 2, 0.8 · -2.
    assert loss.item() == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6) / 4)


def test_adam_is_torch_s_and_carries_its_memory(kind):
    policy, theta, supports, query, config = problem(kind, 1, outer="adam", outer_lr=0.01)
    before = theta.clone()
    expected = theta.clone().requires_grad_()
    optimizer = torch.optim.Adam([expected], lr=0.01)
    ours, memory = theta, {}
    for _ in range(3):
        expected.grad = gradient(policy, expected.detach(), supports, query, config)
        optimizer.step()
        kept = copy.deepcopy(memory)
        after, following, _ = outer.adam_step(policy, ours, memory, [*supports, query], config)
        again, _, _ = outer.adam_step(policy, ours, kept, [*supports, query], config)
        assert torch.equal(after, again)  # a memory is a value: a step does not change the one it was given
        ours, memory = after, following
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-6, atol=1e-9)
    assert torch.equal(theta, before)


def test_ppo_begins_with_the_meta_gradient_and_goes_on(kind):
    policy, theta, supports, query, config = problem(kind, 1, outer="ppo", outer_lr=0.01, ppo_epochs=1)
    one, memory, info = outer.ppo_step(policy, theta, {}, [*supports, query], config)
    plain, _, _ = outer.adam_step(policy, theta, {}, [*supports, query], config)
    torch.testing.assert_close(one, plain)  # all ratios are 1, the penalty has no slope yet
    several = dataclasses.replace(config, ppo_epochs=4)
    four, memory, info = outer.ppo_step(policy, theta, {}, [*supports, query], several)
    assert memory["state"][0]["step"] == 4
    assert info["surrogate_after"] < info["surrogate_before"]
    assert info["kl"] > 0
    assert (four - theta).norm() > (one - theta).norm()


def test_ppo_s_penalty_holds_the_sampling_policies(kind):
    policy, theta, supports, query, config = problem(kind, 2, outer="ppo", outer_lr=0.02, ppo_epochs=20)

    def drift(kl_penalty):
        options = dataclasses.replace(config, kl_penalty=kl_penalty)
        new, _, _ = outer.ppo_step(policy, theta, {}, [*supports, query], options)

        def one(supports):
            _, passed = objectives.through_adaptation(policy, new, supports, config)
            return torch.stack([objectives.mean_kl(p, s) for p, s in zip(passed, supports, strict=True)])

        return vmap(one)(supports).mean(0)

    free, held = drift(0.0), drift(100.0)
    assert (held < 0.5 * free).all(), "at every inner step"


def test_reptile_goes_a_share_of_the_way_to_the_adapted_parameters(kind):
    policy, theta, supports, query, config = problem(kind, 2, outer="reptile", outer_lr=0.25)
    new, memory, info = outer.reptile_step(policy, theta, {}, [*supports, query], config)
    adapted = []
    for i in range(3):
        own = theta
        for support in supports:
            own, _ = adapt(policy, own, task(support, i), config)
        adapted.append(own)
    mean = torch.stack(adapted).mean(0)
    torch.testing.assert_close(new, 0.75 * theta + 0.25 * mean)
    assert info["gradient_norm"] == pytest.approx((mean - theta).norm().item())
    assert memory == {}


def test_learned_step_sizes_have_a_meta_gradient_and_a_metric(kind):
    """The whole trust region where α is part of θ."""
    policy, _ = make_policy(kind)
    config = Config(inner_lr=0.1, chunk_tasks=2, learn_lr="layer")
    prepare(policy, config, O, A)
    theta = flatten(policy).double()
    supports, query = (random_rollouts(kind, seed=1),), random_rollouts(kind, seed=99)
    adapted = vmap(lambda s, q: objectives.adapted_policy(policy, theta, s, q, config))(supports, query)
    behaviour = type(adapted)(*(x.unflatten(1, query.mask.shape[1:]) for x in adapted))
    query = query._replace(behaviour=behaviour, log_probs=behaviour.log_prob(query.actions))
    exact = finite_differences(mean_over_tasks(objectives.surrogate, policy, supports, query, config), theta)
    torch.testing.assert_close(gradient(policy, theta, supports, query, config), exact, rtol=1e-5, atol=1e-8)
    hessian = torch.autograd.functional.hessian(
        mean_over_tasks(objectives.mean_kl, policy, supports, query, config), theta
    )
    chunks = linearise.linearise_chunks(policy, theta, supports, query, config)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    torch.testing.assert_close(trust_region.kl_product(chunks, v, 3), hessian @ v, rtol=1e-9, atol=1e-11)
    new, _, info = trust_region.trpo_step(policy, theta, {}, [*supports, query], config)
    assert info["accepted"]
    factors = dict(policy.named_parameters())[LOG_LR_FACTORS]
    assert (unflatten(policy, new)[LOG_LR_FACTORS] != factors).all()


def test_a_gradient_that_is_not_finite_is_reported():
    policy, theta, supports, query, config = problem("normal", 1)
    query = query._replace(advantages=query.advantages * torch.nan)
    with pytest.raises(UserError, match="The surrogate is nan and its gradient's norm nan"):
        trust_region.trpo_step(policy, theta, {}, [*supports, query], config)


def test_an_optimiser_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="outer is 'sgd', but must be one of trpo, ppo, adam, reptile"):
        method_of(Config(outer="sgd"))


def test_a_task_that_pays_alike_everywhere_has_no_credit_for_exploring():
    query = random_rollouts("normal")
    query = query._replace(rewards=query.rewards * torch.tensor([0.0, 1.0, 1.0])[:, None, None])
    query = with_advantages(query, 0.9, 0.9)
    credits = objectives.exploration_credits(query)
    assert credits[0] == 0
    assert 0 < credits[1:].abs().max() < 10


def test_a_task_that_pays_nearly_alike_has_no_huge_credit_for_exploring():
    """What is left of its advantages is the error of the baseline."""
    query = random_rollouts("normal")
    query = query._replace(rewards=query.rewards * torch.tensor([1e-6, 1.0, 1.0])[:, None, None])
    query = with_advantages(query, 0.9, 0.9)
    assert objectives.exploration_credits(query).abs().max() < 20
