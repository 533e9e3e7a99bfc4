"""Results that others published, for comparison.

Source of the returns: the result files published with the original implementation of Finn et al.,
"Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", arXiv:1703.03400, figures 4 and 5: mean
undiscounted returns on 40 held-out tasks after 0, 1, 2, 3 gradient steps. The oracle is given the task and does
not adapt. The locomotion families used rllab's MuJoCo models, which differ from Gymnasium's (other time step, no
frame skip, horizon 200), so compare scores and not returns.
"""

from ..sampling.spaces import Array

# Families whose returns can be compared with the published ones, and not only their scores.
SAME_PHYSICS = {"maml_rl/Navigation2D-v0"}

RETURNS: dict[str, dict[str, list[float]]] = {
    "maml_rl/Navigation2D-v0": {
        "maml": [-40.41, -11.68, -3.33, -3.23],
        "random": [-82.66, -57.96, -53.84, -46.81],
        "oracle": [-2.29],
    },
    "maml_rl/HalfCheetahVel-v0": {
        "maml": [-129.53, -78.57, -66.62, -60.78],
        "pretrain": [-158.0, -135.39, -128.47, -133.61],
        "random": [-254.83, -254.33, -246.79, -230.83],
        "oracle": [-54.47],
    },
    "maml_rl/HalfCheetahDir-v0": {
        "maml": [-50.69, 293.19, 313.48, 315.65],
        "pretrain": [-43.03, -24.75, -12.85, 19.57],
        "random": [-35.73, 21.83, 62.32, 86.18],
        "oracle": [442.69],
    },
    "maml_rl/AntVel-v0": {
        "maml": [30.58, 96.74, 100.06, 101.41],
        "pretrain": [-1.83, 6.11, 8.47, 9.47],
        "random": [-78.64, -62.81, -48.55, -35.56],
        "oracle": [107.89],
    },
    "maml_rl/AntDir-v0": {
        "maml": [8.66, 499.15, 500.68, 499.11],
        "pretrain": [3.16, 1.27, 6.51, 6.86],
        "random": [3.11, 9.25, 15.96, 26.11],
        "oracle": [524.8],
    },
}

# Shares of success on ML10's training and test tasks after adaptation. Sources: Yu et al., "Meta-World",
# arXiv:1910.10897 v2, table 1 (there "average maximum success rate"), and arXiv:2511.12383.
ML10_SUCCESS: dict[str, tuple[float, float]] = {
    "MAML, arXiv:1910.10897": (0.444, 0.316),
    "RL², arXiv:1910.10897": (0.869, 0.358),
    "MAML with TRPO, arXiv:2511.12383": (0.21, 0.132),
}


def score(method: Array, random: Array, oracle: float) -> Array:
    """Computes scores of returns (S + 1,): 0 is an untrained policy with the same adaptation, 1 is the oracle."""
    scores: Array = (method - random) / (oracle - random)
    return scores
