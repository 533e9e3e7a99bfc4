"""Which gradient each estimator follows, by exact calculation: every trajectory of small problems is enumerated.

The reference, experiments/exact_tabular.py, shares no code with the learner. Advantages are rewards to go as they
are, or less any baseline; one that is fitted to the same rollouts, as in `with_advantages`, is not exact.
"""

import json
from functools import partial

import pytest
import torch
from estimators import CONFIGS, RESULTS, Table, as_rollouts, expected_gradients, problem, target
from exact_tabular import (
    hessian_terms,
    less_baseline,
    log_probs,
    policy_gradients,
    random_mdp,
    state_values,
    trajectories,
    value,
    value_after_adaptation,
)
from torch.func import grad, jacrev, vmap
from torch.utils._pytree import tree_map

from maml_rl.config import Config
from maml_rl.maml.inner import ESTIMATORS, adapt, inner_loss
from maml_rl.maml.objective import exploration_credits, outer_loss

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
PROBLEMS = [(seed, horizon, ends) for seed in range(3) for horizon in (2, 3) for ends in (False, True)]


@pytest.fixture(params=PROBLEMS, ids=lambda p: f"seed{p[0]}-H{p[1]}{'-ends' * p[2]}")
def mdp_and_logits(request):
    """A random problem and logits; where states end episodes, their lengths differ."""
    return random_mdp(*request.param)


@pytest.fixture(params=["no baseline", "baseline"])
def baseline(request, mdp_and_logits):
    """b_t(s), (H, S): any function of state and time."""
    mdp, _ = mdp_and_logits
    g = torch.Generator().manual_seed(1)
    b = torch.randn(mdp.horizon, len(mdp.initial), generator=g, dtype=torch.float64)
    return torch.where(mdp.terminal, 0.0, b) if request.param == "baseline" else 0 * b


def hessian(mdp, logits):
    return jacrev(jacrev(lambda x: value(mdp, x.view_as(logits))))(logits.flatten())


def test_reference_agrees_with_itself(mdp_and_logits, baseline):
    """Recursion, enumeration and dynamic programming give one J, one gradient and one Hessian."""
    mdp, logits = mdp_and_logits
    paths = less_baseline(trajectories(mdp), baseline)
    p = log_probs(paths, logits).exp()
    close(p.sum(), torch.ones_like(p[0]))
    close(value(mdp, logits), p @ paths.rewards.sum(-1))
    close(grad(value, 1)(mdp, logits), torch.einsum("n,nsa->sa", p, policy_gradients(paths, logits)))
    h1, h2, h12 = hessian_terms(mdp, logits, baseline)
    close(h1 + h2 + h12 + h12.mT, hessian(mdp, logits))


def with_nonsense(rollouts):
    """What stands behind an episode's end means nothing: advantages there, and actions that no policy drew."""
    mask = rollouts.mask
    return rollouts._replace(
        actions=torch.where(mask, rollouts.actions, 0), advantages=torch.where(mask, rollouts.advantages, 7.0)
    )


def expected_derivatives(mdp, logits, estimator, baseline):
    """First and second derivative of an estimator's surrogate, in expectation over all trajectories."""
    paths = less_baseline(trajectories(mdp), baseline)
    rollouts = with_nonsense(as_rollouts(mdp, paths, torch.arange(len(paths.states))[:, None], logits))
    policy, theta = Table(*logits.shape), logits.flatten()

    def surrogate(theta, one):
        # The loss is a mean over the steps of this one episode, whereas J counts them.
        return -one.mask.sum() * inner_loss(policy, theta, one, Config(estimator=estimator))[0]

    p = log_probs(paths, logits).exp()
    derivatives = grad(surrogate), jacrev(grad(surrogate))
    return [torch.tensordot(p, vmap(f, (None, 0))(theta, rollouts), dims=1) for f in derivatives]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_derivatives_in_expectation(mdp_and_logits, baseline, estimator):
    """All follow ∇J; of ∇²J = H1 + H2 + H12 + H12ᵀ `dice` has all, `lvc` H1 + H2, and `vpg` H2."""
    mdp, logits = mdp_and_logits
    first, second = expected_derivatives(mdp, logits, estimator, baseline)
    close(first, grad(value, 1)(mdp, logits).flatten())
    h1, h2, h12 = hessian_terms(mdp, logits, baseline)
    has = {"vpg": h2, "lvc": h1 + h2, "dice": hessian(mdp, logits)}
    close(second, has[estimator])
    for term in (h1, h2, h12 + h12.mT):  # else leaving one out would go unseen
        assert term.norm() > 0.03 * has["dice"].norm()


def test_mean_over_steps_is_a_ratio_where_episodes_end_early():
    """Why the losses above are multiplied by each episode's own length: their mean as it is follows no ∇J."""
    mdp, logits = random_mdp(0, 3, ends=True)
    paths, policy = trajectories(mdp), Table(*logits.shape)
    rollouts = as_rollouts(mdp, paths, torch.arange(len(paths.states))[:, None], logits)
    losses = vmap(grad(lambda x, one: inner_loss(policy, x, one, Config())[0]), (None, 0))(
        logits.flatten(), rollouts
    )
    mean = -log_probs(paths, logits).exp() @ losses
    cosine = torch.cosine_similarity(mean, grad(value, 1)(mdp, logits).flatten(), dim=0)
    assert 0.9 < cosine < 0.999


def expected_meta_gradient(mdp, paths, logits, step_size, num_rollouts, num_steps, **options):
    """The learner's meta-gradient, over all supports of S steps of K trajectories and all queries of one."""
    config = Config(inner_lr=mdp.horizon * step_size, **options)
    policy = Table(*logits.shape)
    every = [torch.arange(len(paths.states))] * (num_steps * num_rollouts + 1)
    theta, p, rollouts = logits.flatten(), 1.0, []
    for chosen in torch.cartesian_prod(*every).split([num_rollouts] * num_steps + [1], dim=1):
        if rollouts:
            theta, _ = vmap(lambda x, support: adapt(policy, x, support, config))(theta, rollouts[-1])
        tables = theta.expand(len(chosen), -1).view(-1, *logits.shape)
        theta = tables.flatten(1)
        p = p * vmap(lambda x: log_probs(paths, x))(tables).gather(1, chosen).sum(1).exp()
        rollouts.append(with_nonsense(as_rollouts(mdp, paths, chosen, tables)))
    close(p.sum(), torch.ones_like(p[0]))
    *supports, query = rollouts
    # The surrogate and its credit are means over steps: of the query's, which may end early, and of H.
    length = query.mask.sum(-1, keepdim=True)
    query = query._replace(advantages=query.advantages * length / mdp.horizon)
    gradient = grad(lambda theta, *data: outer_loss(policy, theta, *data, config)[0])
    data = (tuple(supports), query, query.returns() / mdp.horizon)
    return -mdp.horizon * p @ vmap(gradient, (None, 0, 0, 0))(logits.flatten(), *data)


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize(
    ("seed", "horizon", "ends", "num_rollouts", "num_steps"),
    [
        *((0, 2, False, 1, 1), (1, 3, False, 1, 1), (2, 2, False, 2, 1), (0, 2, False, 1, 2), (1, 2, False, 1, 2)),
        *((0, 3, True, 1, 1), (1, 2, True, 1, 2)),
    ],
)
def test_e_maml_is_the_gradient_of_the_return_after_adaptation(
    seed, horizon, ends, num_rollouts, num_steps, with_baseline
):
    """`vpg` with e_maml = 1 is exact, for K rollouts and S steps; leaving out or adding anything shows."""
    mdp, logits = random_mdp(seed, horizon, ends)
    paths = trajectories(mdp)
    if with_baseline:
        paths = less_baseline(paths, state_values(mdp, logits))
    # Of one episode that ends early, the learner's mean over steps makes a longer inner step.
    length = (~mdp.terminal)[paths.states].sum(1, keepdim=True)
    stepped = paths._replace(to_go=paths.to_go * horizon / length)
    setting = (0.5, num_rollouts, num_steps)
    exact = grad(value_after_adaptation, argnums=2)(mdp, stepped, logits, *setting).flatten()

    def found(**options):
        return expected_meta_gradient(mdp, paths, logits, *setting, **options)

    close(found(e_maml=1.0), exact)
    close(found(e_maml=0.5), (found() + exact) / 2)
    others = [
        {},
        {"estimator": "dice"},
        {"estimator": "dice", "e_maml": 1.0},
        {"first_order": True, "e_maml": 1.0},
    ]
    for options in others:
        assert (found(**options) - exact).norm() > 0.0005 * exact.norm(), options


def test_exploration_credits_by_hand():
    """Returns of 5, 3 and 10 with the others' means 6.5, 7.5 and 4; mean lengths 2, 3 and 1; scales 4, 1 and 2."""
    mdp, logits = random_mdp(0, 3)
    query = as_rollouts(mdp, trajectories(mdp), torch.zeros(3, 2, dtype=torch.long), logits)
    lengths = torch.tensor([[3, 1], [3, 3], [1, 1]])
    rewards = [[[1, 2, 3], [4, 0, 0]], [[1, 1, 1], [0, 2, 1]], [[8, 0, 0], [12, 0, 0]]]
    query = query._replace(
        rewards=torch.tensor(rewards).double(),
        mask=torch.arange(3) < lengths[..., None],
        advantage_scale=torch.tensor([4.0, 1.0, 2.0]).double(),
    )
    close(exploration_credits(query), torch.tensor([-1.5 / 8, -4.5 / 3, 6.0 / 2]).double())
    alone = tree_map(lambda x: x[:1], query)
    close(exploration_credits(alone), torch.tensor([5.0 / 8]).double())


@pytest.mark.parametrize("baseline", [False, True])
def test_committed_biases(baseline):
    """Those for K = 1 and 2 again; E-MAML with `vpg` has none, and only it."""
    results = json.loads((RESULTS / "table.json").read_text())
    assert results["estimators"] == list(CONFIGS)
    kind = list(results["problems"])[baseline]
    for seed, committed in zip(results["seeds"], results["problems"][kind], strict=True):
        setting = problem(seed, baseline)
        for i, num_rollouts in enumerate(results["num_rollouts"][:2]):
            exact = target(*setting, num_rollouts)
            expected = expected_gradients(*setting, num_rollouts, list(CONFIGS.values()))
            bias = ((expected - exact).norm(dim=1) / exact.norm()).tolist()
            assert committed["bias"][i] == pytest.approx(bias, rel=1e-9, abs=1e-12)
            assert [name for name, b in zip(CONFIGS, bias, strict=True) if b < 1e-12] == ["vpg + E-MAML"]
