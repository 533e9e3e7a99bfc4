"""Action distributions as named tuples of tensors, so that they pass through `torch.func` transforms.

In shapes, `...` stands for any batch axes, such as rollouts and steps. Log-probabilities and KL are summed over
action dimensions, never averaged.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Normal(NamedTuple):
    """Independent normal distributions over A action dimensions.

    Attributes:
        mean: (..., A).
        log_std: (..., A), the logarithm of the standard deviation.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws actions, (..., A)."""
        return self.sample_from(torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype))

    def sample_from(self, noise: Tensor) -> Tensor:
        """Turns standard normal noise (..., A) into actions, (..., A)."""
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def mode(self) -> Tensor:
        """Returns the most probable actions, (..., A)."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns the log-density of actions (..., A), shape (...)."""
        deviation = (actions - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * deviation.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Normal") -> Tensor:
        """Returns KL(self ‖ other) in nats, shape (...)."""
        scaled = torch.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return (0.5 * (scaled + shift - 1) + other.log_std - self.log_std).sum(-1)

    def fisher_product(self, tangent: "Normal") -> "Normal":
        """Returns F t, where F is the Fisher information in (mean, log_std): diag(1/σ², 2)."""
        return Normal(tangent.mean * torch.exp(-2 * self.log_std), 2 * tangent.log_std)


class Categorical(NamedTuple):
    """A distribution over A discrete actions.

    Attributes:
        logits: (..., A), unnormalised log-probabilities.
    """

    logits: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws actions, (...) int64."""
        return self.sample_from(torch.rand(self.logits.shape, generator=generator, dtype=self.logits.dtype))

    def sample_from(self, uniform: Tensor) -> Tensor:
        """Draws actions by the Gumbel-max trick, from noise that is uniform on [0, 1), (..., A)."""
        # Noise of 0 would win for any action. It becomes half of the smallest other number that is drawn.
        exponential = -torch.log1p(-uniform.clamp(min=torch.finfo(uniform.dtype).eps / 4))
        return torch.argmax(self.logits - torch.log(exponential), dim=-1)

    def mode(self) -> Tensor:
        """Returns the most probable actions, (...) int64."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns the log-probability of actions (...), shape (...)."""
        return torch.log_softmax(self.logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """Returns KL(self ‖ other) in nats, shape (...)."""
        # A logit may be -inf, to rule an action out. The difference of two infinities would not be a number.
        least = torch.finfo(self.logits.dtype).min
        log_p, log_q = (torch.log_softmax(logits, -1).clamp(min=least) for logits in (self.logits, other.logits))
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def fisher_product(self, tangent: "Categorical") -> "Categorical":
        """Returns F t, where F is the Fisher information in the logits: diag(p) - p pᵀ."""
        p = torch.softmax(self.logits, -1)
        return Categorical(p * (tangent.logits - (p * tangent.logits).sum(-1, keepdim=True)))


class MultiCategorical(NamedTuple):
    """Independent distributions over several discrete actions each, for MultiDiscrete spaces.

    Attributes:
        logits: (..., A, n) for A actions with up to n values. Missing values have the logit -1e9.
    """

    logits: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws actions, (..., A) int64."""
        return Categorical(self.logits).sample(generator)

    def sample_from(self, uniform: Tensor) -> Tensor:
        """Turns noise that is uniform on [0, 1), (..., A, n), into actions, (..., A)."""
        return Categorical(self.logits).sample_from(uniform)

    def mode(self) -> Tensor:
        """Returns the most probable actions, (..., A) int64."""
        return self.logits.argmax(-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns the log-probability of actions (..., A), shape (...)."""
        return Categorical(self.logits).log_prob(actions).sum(-1)

    def kl(self, other: "MultiCategorical") -> Tensor:
        """Returns KL(self ‖ other) in nats, shape (...)."""
        return Categorical(self.logits).kl(Categorical(other.logits)).sum(-1)

    def fisher_product(self, tangent: "MultiCategorical") -> "MultiCategorical":
        """Returns F t, where F is the Fisher information in the logits."""
        return MultiCategorical(Categorical(self.logits).fisher_product(Categorical(tangent.logits)).logits)


Distribution = Normal | Categorical | MultiCategorical


def prediction_loss(distribution: Distribution, targets: Tensor) -> Tensor:
    """Returns L of predictions, (...): the squared error of a mean, averaged over A, or the cross-entropy."""
    if isinstance(distribution, Normal):
        return (distribution.mean - targets).square().mean(-1)
    return -distribution.log_prob(targets)
