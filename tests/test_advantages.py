"""Returns and GAE against numbers worked out by hand; masks; the baseline."""

import pytest
import torch
from conftest import random_rollouts

from maml_rl.sampling.advantages import discounted_sums, features, fit_values, normalise, with_advantages


def test_discounted_sums_by_hand():
    x = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]], dtype=torch.float64)
    torch.testing.assert_close(
        discounted_sums(x, 0.5), torch.tensor([[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(discounted_sums(x, 0.0), x)
    torch.testing.assert_close(discounted_sums(torch.empty(2, 0), 0.5), torch.empty(2, 0))


def test_discounted_sums_of_very_long_episodes():
    """They are computed in blocks, so that memory does not grow with the square of the length."""
    x = torch.randn(2, 2500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, later = torch.empty_like(x), torch.zeros(2, dtype=torch.float64)
    for t in reversed(range(x.shape[1])):
        later = expected[:, t] = x[:, t] + 0.99 * later
    torch.testing.assert_close(discounted_sums(x, 0.99), expected)


def test_gae_by_hand(monkeypatch):
    """γ = 0.5, λ = 0.5; V = (4, 2, 1), and the episode of the second rollout ends after two steps."""
    values = torch.tensor([[[4.0, 2.0, 1.0], [4.0, 2.0, 0.0]]], dtype=torch.float64)
    monkeypatch.setattr("maml_rl.sampling.advantages.fit_values", lambda *_: values)
    monkeypatch.setattr("maml_rl.sampling.advantages.normalise", lambda x, *_: (x, torch.ones(len(x))))
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    rollouts = random_rollouts("normal", 1, 2, 3)._replace(
        rewards=torch.tensor([[[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]], dtype=torch.float64), mask=mask
    )
    # δ = r + 0.5 V' - V: (-2, 0.5, 2) and (-2, 0, -), then Â = δ + 0.25 Â'.
    expected = torch.tensor([[[-1.75, 1.0, 2.0], [-2.0, 0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(with_advantages(rollouts, 0.5, 0.5).advantages, expected)


def test_features():
    o = torch.tensor([[[3.0], [-20.0]]])
    expected = [[[3.0, 9.0, 0.0, 0.0, 0.0, 1.0], [-10.0, 100.0, 0.01, 1e-4, 1e-6, 1.0]]]
    torch.testing.assert_close(features(o), torch.tensor(expected, dtype=torch.float64))


def test_baseline_recovers_what_is_linear_in_its_features():
    rollouts = random_rollouts("normal", horizon=8)
    truth = (features(rollouts.observations) @ torch.arange(1.0, 9.0, dtype=torch.float64)) * rollouts.mask
    fitted = fit_values(rollouts.observations, truth, rollouts.mask, ridge=1e-12)
    torch.testing.assert_close(fitted, truth, rtol=1e-4, atol=1e-4)


def test_baseline_is_per_task_and_ignores_masked_steps():
    rollouts = random_rollouts("normal")
    returns = discounted_sums(rollouts.rewards, 0.9)
    fitted = fit_values(rollouts.observations, returns, rollouts.mask)
    garbage = torch.where(rollouts.mask.unsqueeze(-1), rollouts.observations, 7.0)
    torch.testing.assert_close(fit_values(garbage, returns, rollouts.mask), fitted)
    torch.testing.assert_close(
        fit_values(rollouts.observations[1:2], returns[1:2], rollouts.mask[1:2]), fitted[1:2]
    )


def test_a_baseline_does_not_fit_the_returns_of_a_few_steps():
    """With 20 features and 20 steps, it would be equal to the returns, and no advantage would be left."""
    g = torch.Generator().manual_seed(0)
    observations = torch.randn(2, 20, 4, 8, generator=g, dtype=torch.float64)
    returns, mask = torch.randn(2, 20, 4, generator=g, dtype=torch.float64), torch.ones(2, 20, 4, dtype=torch.bool)
    mask[0, :, 1:] = False  # the first task has 20 steps, and the second one has 80
    returns *= mask
    values = fit_values(observations, returns, mask)
    of_time = fit_values(observations[..., :0], returns, mask)
    torch.testing.assert_close(values[0], of_time[0])
    assert (values[1] - of_time[1]).abs().max() > 0.1
    torch.testing.assert_close(values[0, :, 0], returns[0, :, 0].mean().expand(20), rtol=1e-4, atol=1e-4)


def test_baseline_survives_singular_features():
    rollouts = random_rollouts("normal", horizon=1)
    ones = torch.ones_like(rollouts.observations)
    fitted = fit_values(ones, rollouts.rewards, rollouts.mask, ridge=1e-300)
    assert torch.isfinite(fitted).all()
    torch.testing.assert_close(fitted[:, 0, 0], rollouts.rewards.mean((1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_normalised_per_task_over_valid_steps(gae_lambda):
    rollouts = with_advantages(random_rollouts("normal"), 0.9, gae_lambda)
    for advantages, mask in zip(rollouts.advantages, rollouts.mask, strict=True):
        assert advantages[mask].mean().item() == pytest.approx(0, abs=1e-6)
        assert advantages[mask].std(correction=0).item() == pytest.approx(1, abs=1e-6)
        assert not advantages[~mask].any()


def test_equal_numbers_normalise_to_zero():
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    assert not normalise(torch.full((1, 2, 3), 5.0, dtype=torch.float64), mask, scaled=True)[0].any()


def test_without_scaling_only_the_mean_goes():
    rollouts = random_rollouts("normal", seed=0)
    scaled, plain = (with_advantages(rollouts, 0.9, 0.8, divide) for divide in (True, False))
    assert (plain.advantage_scale == 1).all()
    torch.testing.assert_close(plain.advantages, scaled.advantages * scaled.advantage_scale[:, None, None])
