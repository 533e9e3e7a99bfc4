"""Against torch.distributions, and the Fisher product against the Hessian of the KL."""

import pytest
import torch

from maml_rl.distributions import Categorical, Normal


def pair(kind):
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(5, 3, generator=g, dtype=torch.float64)  # noqa: E731
    if kind == "normal":
        ours = Normal(draw(), 0.5 * draw()), Normal(draw(), 0.5 * draw())
        theirs = [
            torch.distributions.Independent(torch.distributions.Normal(d.mean, d.log_std.exp()), 1) for d in ours
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


def test_fisher_product_is_the_hessian_of_the_kl(kind):
    (p, t), _ = pair(kind)
    one = lambda d, i: type(d)(*(x[i] for x in d))  # noqa: E731
    for i in range(5):
        flat = torch.cat(tuple(one(p, i)))

        def kl(x, i=i):
            return one(p, i).kl(type(p)(*x.split(3)))

        hessian = torch.autograd.functional.hessian(kl, flat)
        torch.testing.assert_close(
            torch.cat(tuple(one(p, i).fisher_product(one(t, i)))), hessian @ torch.cat(tuple(one(t, i)))
        )


def test_samples_follow_the_distribution():
    g = torch.Generator().manual_seed(0)
    n = 40_000
    logits = torch.tensor([0.5, -1.0, 0.2])
    frequency = torch.bincount(Categorical(logits.expand(n, 3)).sample(g), minlength=3) / n
    assert (frequency - logits.softmax(0)).abs().max() < 4 * 0.5 / n**0.5
    x = Normal(torch.full((n, 1), 2.0), torch.full((n, 1), 0.5).log()).sample(g)
    assert x.mean().item() == pytest.approx(2.0, abs=4 * 0.5 / n**0.5)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)
