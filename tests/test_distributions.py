"""Against torch.distributions, and the Fisher product against the Hessian of the KL."""

import pytest
import torch

from maml_rl.policies import Categorical, MultiCategorical, Normal

# Three actions with 4, 2 and 3 values; True where an action has no such value.
MISSING = torch.arange(4) >= torch.tensor([[4], [2], [3]])


@pytest.fixture(params=["normal", "categorical", "multi-categorical"])
def kind(request):
    return request.param


def pair(kind):
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, 3, generator=g, dtype=torch.float64)  # noqa: E731
    if kind == "normal":
        ours = Normal(draw(), 0.5 * draw()), Normal(draw(), 0.5 * draw())
        theirs = [
            torch.distributions.Independent(torch.distributions.Normal(d.mean, d.log_std.exp()), 1) for d in ours
        ]
    elif kind == "multi-categorical":
        ours = tuple(
            MultiCategorical(torch.randn(5, 3, 4, generator=g, dtype=torch.float64).masked_fill(MISSING, -1e9))
            for _ in range(2)
        )
        theirs = [
            torch.distributions.Independent(torch.distributions.Categorical(logits=d.logits), 1) for d in ours
        ]
    else:
        ours = Categorical(draw()), Categorical(draw())
        theirs = [torch.distributions.Categorical(logits=d.logits) for d in ours]
    return ours, theirs


def test_log_prob_and_kl(kind):
    (p, q), (their_p, their_q) = pair(kind)
    actions = p.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(p.log_prob(actions), their_p.log_prob(actions))
    torch.testing.assert_close(p.kl(q), torch.distributions.kl_divergence(their_p, their_q))
    torch.testing.assert_close(p.kl(p), torch.zeros(5, dtype=torch.float64))


def test_actions_that_are_ruled_out_have_no_part():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    p, q = (Categorical(x.masked_fill(torch.arange(4) == 1, -torch.inf)) for x in logits)
    rest = [Categorical(x[:, [0, 2, 3]]) for x in logits]
    torch.testing.assert_close(p.kl(q), rest[0].kl(rest[1]))
    t = Categorical(torch.randn(5, 4, generator=g, dtype=torch.float64).masked_fill(torch.arange(4) == 1, 0.0))
    product = p.fisher_product(t).logits
    assert not product[:, 1].any()
    torch.testing.assert_close(
        product[:, [0, 2, 3]], rest[0].fisher_product(Categorical(t.logits[:, [0, 2, 3]])).logits
    )
    inputs = logits[1].clone().requires_grad_()
    p.kl(Categorical(inputs.masked_fill(torch.arange(4) == 1, -torch.inf))).sum().backward()
    assert inputs.grad.isfinite().all()
    assert Categorical(logits[0]).kl(q).min() > 1e300  # what p does and q rules out


def test_fisher_product_is_the_hessian_of_the_kl(kind):
    (p, t), _ = pair(kind)
    flat = lambda d: torch.cat([x.flatten() for x in d])  # noqa: E731
    for i in range(5):
        one_p, one_t = (type(d)(*(x[i] for x in d)) for d in (p, t))

        def kl(x, one_p=one_p):
            parts = x.split([y.numel() for y in one_p])
            return one_p.kl(type(one_p)(*(part.view_as(y) for part, y in zip(parts, one_p, strict=True))))

        hessian = torch.autograd.functional.hessian(kl, flat(one_p))
        torch.testing.assert_close(flat(one_p.fisher_product(one_t)), hessian @ flat(one_t))


def test_samples_follow_the_distribution():
    g = torch.Generator().manual_seed(0)
    n = 40_000
    logits = torch.tensor([0.5, -1.0, 0.2])
    frequency = torch.bincount(Categorical(logits.expand(n, 3)).sample(g), minlength=3) / n
    assert (frequency - logits.softmax(0)).abs().max() < 4 * 0.5 / n**0.5
    x = Normal(torch.full((n, 1), 2.0), torch.full((n, 1), 0.5).log()).sample(g)
    assert x.mean().item() == pytest.approx(2.0, abs=4 * 0.5 / n**0.5)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_exactly_zero_does_not_draw_an_impossible_action(dtype):
    """Generators return 0 once in some million numbers. It is less likely than any other noise, but not much."""
    policy = Categorical(torch.tensor([0.0, -60.0], dtype=dtype))
    assert policy.sample_from(torch.tensor([0.5, 0.0], dtype=dtype)) == 0
    even = Categorical(torch.zeros(2, dtype=dtype))
    smallest = torch.finfo(dtype).eps / 2  # of torch's and NumPy's uniform numbers above 0
    assert even.sample_from(torch.tensor([smallest, 0.0], dtype=dtype)) == 1
    assert even.sample_from(torch.tensor([0.5, 0.0], dtype=dtype)) == 1


def test_values_that_an_action_has_not_are_never_drawn():
    g = torch.Generator().manual_seed(0)
    n = 40_000
    logits = torch.randn(3, 4, generator=g).masked_fill(MISSING, -1e9)
    actions = MultiCategorical(logits.expand(n, 3, 4)).sample(g)
    assert actions.shape == (n, 3)
    frequency = torch.nn.functional.one_hot(actions, 4).double().mean(0)
    assert not frequency[MISSING].any()
    assert (frequency - logits.softmax(-1)).abs().max() < 4 * 0.5 / n**0.5
    missing = torch.tensor([[0, 2, 0], [0, 0, 3]])  # of the second and of the third action
    assert not MultiCategorical(logits.expand(2, 3, 4)).log_prob(missing).exp().any()
