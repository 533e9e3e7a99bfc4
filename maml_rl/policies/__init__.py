"""Policies: networks from observations to action distributions, and their parameters as one flat tensor."""

from .distributions import Categorical, Distribution, MultiCategorical, Normal, prediction_loss
from .networks import CNN, MLP, CategoricalHead, Conv4, GaussianHead, initialise
from .parameters import act, flatten, load, unflatten

__all__ = [
    "CNN",
    "MLP",
    "Categorical",
    "CategoricalHead",
    "Conv4",
    "Distribution",
    "GaussianHead",
    "MultiCategorical",
    "Normal",
    "act",
    "flatten",
    "initialise",
    "load",
    "prediction_loss",
    "unflatten",
]
