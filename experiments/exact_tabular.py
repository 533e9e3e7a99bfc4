"""Exact answers for tabular decision problems that are small enough to list every trajectory, in float64.

All that follows from a policy's table of logits (S, A), π(a | s) = softmax(logits[s])[a], by recursion or by
listing, and is differentiable in it; nothing is discounted. Nothing here is imported from maml_rl, which is held
against it. H is the horizon, N the number of trajectories, P = S·A.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap


class MDP(NamedTuple):
    """A decision problem of S states, A actions and H steps.

    Attributes:
        initial: p(s_0), (S,).
        transitions: p(s' | s, a), (S, A, S).
        rewards: r(s, a), (S, A).
        terminal: Whether an episode is over in a state, (S,) bool; such a state stays, and its rewards are 0.
        horizon: H.
    """

    initial: Tensor
    transitions: Tensor
    rewards: Tensor
    terminal: Tensor
    horizon: int


def random_mdp(seed: int, horizon: int, ends: bool = False) -> tuple[MDP, Tensor]:
    """A problem of two states and two actions, with a third state where episodes end if `ends`, and logits."""
    generator = torch.Generator().manual_seed(seed)
    num_states, num_actions = 2 + ends, 2

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    initial = torch.softmax(randn(num_states), -1)
    transitions = torch.softmax(2 * randn(num_states, num_actions, num_states), -1)
    rewards = randn(num_states, num_actions)
    terminal = torch.arange(num_states) >= 2
    initial = torch.where(terminal, 0.0, initial)
    transitions = torch.where(terminal[:, None, None], terminal.double(), transitions)
    rewards = torch.where(terminal[:, None], 0.0, rewards)
    mdp = MDP(initial / initial.sum(), transitions, rewards, terminal, horizon)
    return mdp, 0.5 * randn(num_states, num_actions)


def action_values(mdp: MDP, logits: Tensor) -> Tensor:
    """Q_t(s, a), (H, S, A): what is expected from step t on, by backward recursion."""
    policy = torch.softmax(logits, -1)
    next_values = torch.zeros_like(mdp.initial)
    q = []
    for _ in range(mdp.horizon):
        q.append(mdp.rewards + mdp.transitions @ next_values)
        next_values = (policy * q[-1]).sum(-1)
    return torch.stack(q[::-1])


def state_values(mdp: MDP, logits: Tensor) -> Tensor:
    """V_t(s), (H, S)."""
    return (torch.softmax(logits, -1) * action_values(mdp, logits)).sum(-1)


def value(mdp: MDP, logits: Tensor) -> Tensor:
    """J, the expected sum of H rewards, a scalar."""
    return mdp.initial @ state_values(mdp, logits)[0]


def state_distributions(mdp: MDP, logits: Tensor) -> Tensor:
    """p(s_t = s), (H, S), by forward recursion."""
    step = torch.einsum("sa,saz->sz", torch.softmax(logits, -1), mdp.transitions)
    distributions = [mdp.initial]
    for _ in range(mdp.horizon - 1):
        distributions.append(distributions[-1] @ step)
    return torch.stack(distributions)


def hessian_terms(mdp: MDP, logits: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of J's Hessian in the logits: H1 + H2 + H12 + H12ᵀ, (P, P) each, by dynamic programming.

    H1 = E Σ_t ∇log π ∇log πᵀ (Q_t - b_t), H2 = E Σ_t ∇²log π (Q_t - b_t) and H12 = E Σ_t ∇log π ∇Q_tᵀ, all at
    (s_t, a_t) (Rothfuss et al., arXiv:1810.06784, appendix B; there b = 0). A baseline adds to H2 what it takes
    from H1.

    Args:
        mdp: The problem.
        logits: (S, A).
        baseline: b_t(s), (H, S).
    """

    def log_policy(flat: Tensor) -> Tensor:
        return torch.log_softmax(flat.view_as(logits), -1)

    flat = logits.flatten()
    score, curvature = jacrev(log_policy)(flat), jacrev(jacrev(log_policy))(flat)  # (S, A, P), (S, A, P, P)
    q_gradient = jacrev(lambda flat: action_values(mdp, flat.view_as(logits)))(flat)  # (H, S, A, P)
    visits = state_distributions(mdp, logits)[..., None] * torch.softmax(logits, -1)  # p(s_t = s, a_t = a)
    advantages = action_values(mdp, logits) - baseline[..., None]
    return (
        torch.einsum("hsa,hsa,sap,saq->pq", visits, advantages, score, score),
        torch.einsum("hsa,hsa,sapq->pq", visits, advantages, curvature),
        torch.einsum("hsa,sap,hsaq->pq", visits, score, q_gradient),
    )


class Trajectories(NamedTuple):
    """All trajectories s_0, a_0, ..., s_{H-1}, a_{H-1} that a problem makes possible.

    Attributes:
        states: (N, H).
        actions: (N, H).
        rewards: (N, H).
        to_go: R_t, the sums of rewards from each step on, less a baseline if `less_baseline` took one off, (N, H).
        log_dynamics: What states contribute to a trajectory's log-probability, (N,).
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    to_go: Tensor
    log_dynamics: Tensor


def trajectories(mdp: MDP) -> Trajectories:
    """Lists them."""
    num_states, num_actions = mdp.rewards.shape
    steps = product(range(num_states), range(num_actions))
    states, actions = torch.tensor(list(product(steps, repeat=mdp.horizon))).unbind(-1)
    moves = mdp.transitions[states[:, :-1], actions[:, :-1], states[:, 1:]]
    dynamics = mdp.initial[states[:, 0]] * moves.prod(-1)
    rewards = mdp.rewards[states, actions]
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    possible = dynamics > 0
    return Trajectories(*(x[possible] for x in (states, actions, rewards, to_go, dynamics.log())))


def less_baseline(paths: Trajectories, baseline: Tensor) -> Trajectories:
    """The same with R_t - b_t(s_t) in place of R_t, for a baseline b_t(s), (H, S), that is no function of θ."""
    return paths._replace(to_go=paths.to_go - baseline[torch.arange(len(baseline)), paths.states])


def log_probs(paths: Trajectories, logits: Tensor) -> Tensor:
    """Log p(τ) of all trajectories, (N,)."""
    return paths.log_dynamics + torch.log_softmax(logits, -1)[paths.states, paths.actions].sum(-1)


def policy_gradients(paths: Trajectories, logits: Tensor) -> Tensor:
    """What each trajectory alone says of ∇J: ĝ(τ) = Σ_t ∇log π(a_t | s_t) R_t, (N, S, A)."""
    scores = jacrev(lambda logits: torch.log_softmax(logits, -1))(logits)[paths.states, paths.actions]
    return torch.einsum("nh,nhsa->nsa", paths.to_go, scores)


@cache
def multisets(num_kinds: int, size: int) -> tuple[Tensor, Tensor]:
    """All ways to draw `size` out of N kinds, in any order.

    Returns:
        How often each kind is drawn, (C, N), and the logarithm of the number of orders, (C,); both float64.
    """
    drawn = torch.tensor(list(combinations_with_replacement(range(num_kinds), size)))
    counts = torch.zeros(len(drawn), num_kinds, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    orders = torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1).sum(-1)
    return counts, orders


def expectation_over_supports(
    paths: Trajectories,
    logits: Tensor,
    step_size: float,
    num_rollouts: int,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """E f(θ + α/K Σ_k ĝ(τ_k), counts) over K trajectories under θ, differentiable in θ wherever it stands.

    Args:
        paths: All trajectories.
        logits: θ, (S, A).
        step_size: α.
        num_rollouts: K.
        function: From adapted logits (S, A), and how often each trajectory was drawn (N,), to a tensor (...).

    Returns:
        A tensor (...).
    """
    counts, orders = multisets(len(paths.states), num_rollouts)
    mean_gradients = torch.einsum("cn,nsa->csa", counts / num_rollouts, policy_gradients(paths, logits))
    probabilities = torch.exp(orders + counts @ log_probs(paths, logits))
    return torch.tensordot(probabilities, vmap(function)(logits + step_size * mean_gradients, counts), dims=1)


def value_after_adaptation(
    mdp: MDP, paths: Trajectories, logits: Tensor, step_size: float, num_rollouts: int = 1, num_steps: int = 1
) -> Tensor:
    """E J(θ_S) over all S inner steps θ_{k+1} = θ_k + α/K Σ ĝ(τ), τ ~ p_{θ_k}: what E-MAML maximises, a scalar.

    Stadie et al., arXiv:1803.01118; arguments as in `expectation_over_supports`.
    """
    if num_steps == 0:
        return value(mdp, logits)
    return expectation_over_supports(
        paths,
        logits,
        step_size,
        num_rollouts,
        lambda adapted, _: value_after_adaptation(mdp, paths, adapted, step_size, num_rollouts, num_steps - 1),
    )
