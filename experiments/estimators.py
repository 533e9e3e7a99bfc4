"""Bias and noise of the meta-gradient estimators, against the exact gradient: `python experiments/estimators.py`.

Problems are so small (two states, two actions, two steps: 16 trajectories) that the gradient of the return after
adaptation, E J(θ + α/K Σ_k ĝ(τ_k)) over K support trajectories, can be calculated. An estimator's bias is
calculated as well, over all multisets of K trajectories; its standard deviation is measured over meta-gradients
that the learner's own code makes of K sampled support and K sampled query trajectories.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from exact_tabular import (
    MDP,
    Trajectories,
    expectation_over_supports,
    less_baseline,
    log_probs,
    random_mdp,
    state_values,
    trajectories,
    value,
    value_after_adaptation,
)
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import grad, grad_and_value, jacrev, vmap

from maml_rl import Config
from maml_rl.maml.inner import adapt, inner_loss
from maml_rl.maml.objective import exploration_credits, outer_loss
from maml_rl.policies import Categorical
from maml_rl.results.comparison import as_markdown
from maml_rl.sampling.rollouts import Rollouts

RESULTS = Path(__file__).parent / "results" / "estimators"
SEEDS, HORIZON, STEP_SIZE, REPLICATIONS = range(5), 2, 1.0, 10_000
NUM_ROLLOUTS = (1, 2, 4, 8)
# The learner's loss is a mean over steps, where ĝ is a sum: H·α makes up for it.
COMMON = {"inner_lr": STEP_SIZE * HORIZON, "horizon": HORIZON}
CONFIGS = {
    "first order": Config(**COMMON, first_order=True),
    **{
        name + (" + E-MAML" if e_maml else ""): Config(**COMMON, estimator=name, e_maml=e_maml)
        for name in ("vpg", "lvc", "dice")
        for e_maml in (0.0, 1.0)
    },
}


class Table(nn.Module):
    """A policy whose θ is its table of logits, row after row: one row of A for each of S states."""

    def __init__(self, num_states: int, num_actions: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states, num_actions, dtype=torch.float64))

    def forward(self, observations: Tensor) -> Categorical:
        """The distribution of actions (..., N) at one-hot states (..., N, S)."""
        return Categorical(observations @ self.logits)


def as_rollouts(mdp: MDP, paths: Trajectories, chosen: Tensor, logits: Tensor) -> Rollouts:
    """Trajectories as M tasks' K rollouts, with rewards to go for advantages.

    Args:
        mdp: The problem.
        paths: All N trajectories.
        chosen: Which of them, (M, K).
        logits: The policies that drew them, (M, S, A) or (S, A).
    """
    states, rewards = paths.states[chosen], paths.rewards[chosen]
    observations = nn.functional.one_hot(states, len(mdp.initial)).double()
    behaviour = Categorical(observations @ logits.unsqueeze(-3))
    return Rollouts(
        observations=observations,
        actions=paths.actions[chosen],
        rewards=rewards,
        mask=~mdp.terminal[states],
        behaviour=behaviour,
        log_probs=behaviour.log_prob(paths.actions[chosen]),
        advantages=paths.to_go[chosen],
        advantage_scale=torch.ones(len(chosen), dtype=torch.float64),
        success=torch.full(chosen.shape, torch.nan),
        failed=torch.zeros(chosen.shape, dtype=torch.bool),
    )


def target(mdp: MDP, paths: Trajectories, logits: Tensor, num_rollouts: int) -> Tensor:
    """The exact gradient of the expected return after adaptation to K trajectories, (P,)."""
    return grad(value_after_adaptation, argnums=2)(mdp, paths, logits, STEP_SIZE, num_rollouts).flatten()


def expected_gradients(
    mdp: MDP, paths: Trajectories, logits: Tensor, num_rollouts: int, configs: Sequence[Config]
) -> Tensor:
    """What estimators are on average over K support and any number of query trajectories, (E, P), exactly.

    The query enters linearly, so that ∇J(θ') and J(θ') stand for it.
    """
    policy, theta = Table(*logits.shape), logits.flatten()
    alone = as_rollouts(mdp, paths, torch.arange(len(paths.states))[:, None], logits)

    def curvatures(config: Config) -> Tensor:
        """What the estimator takes for ∂ĝ(τ)/∂θ, (N, P, P)."""
        second = jacrev(grad(lambda theta, one: inner_loss(policy, theta, one, config)[0]))
        return -mdp.horizon * (not config.first_order) * vmap(second, (None, 0))(theta, alone)

    of_all = torch.stack([curvatures(config) for config in configs])
    weights = torch.tensor([config.e_maml for config in configs], dtype=torch.float64)[:, None]
    scores = jacrev(lambda theta: log_probs(paths, theta.view_as(logits)))(theta)  # (N, P)

    def one(adapted: Tensor, counts: Tensor) -> Tensor:
        gradient, after = grad_and_value(value, argnums=1)(mdp, adapted)
        through_step = torch.einsum("n,enpq->epq", counts / num_rollouts, of_all) @ gradient.flatten()
        return gradient.flatten() + STEP_SIZE * through_step + weights * after * (counts @ scores)

    return expectation_over_supports(paths, logits, STEP_SIZE, num_rollouts, one)


def sampled_gradients(
    mdp: MDP,
    paths: Trajectories,
    logits: Tensor,
    num_rollouts: int,
    configs: Sequence[Config],
    generator: torch.Generator,
) -> Tensor:
    """Estimators on the same K support and K query trajectories in each of M replications, (E, M, P).

    For E-MAML's credit the replications are the tasks of one meta-batch.
    """
    policy, theta = Table(*logits.shape), logits.flatten()

    def draw(logits: Tensor) -> Rollouts:
        probabilities = vmap(lambda logits: log_probs(paths, logits))(logits).exp()
        chosen = torch.multinomial(probabilities, num_rollouts, replacement=True, generator=generator)
        return as_rollouts(mdp, paths, chosen, logits)

    support = draw(logits.expand(REPLICATIONS, -1, -1))
    adapted, _ = vmap(lambda support: adapt(policy, theta, support, configs[0]))(support)  # alike for all
    query = draw(adapted.view(-1, *logits.shape))
    credit = exploration_credits(query)

    def one(config: Config) -> Tensor:
        gradient = grad(lambda theta, *data: outer_loss(policy, theta, *data, config)[0])
        return -mdp.horizon * vmap(gradient, (None, 0, 0, 0))(theta, (support,), query, credit)

    return torch.stack([one(config) for config in configs])


def problem(seed: int, baseline: bool) -> tuple[MDP, Trajectories, Tensor]:
    """A problem, its trajectories, less V_t(s_t) if with a baseline, and θ."""
    mdp, logits = random_mdp(seed, HORIZON)
    paths = trajectories(mdp)
    return mdp, less_baseline(paths, state_values(mdp, logits)) if baseline else paths, logits


def measure(seed: int, baseline: bool) -> dict[str, list]:
    """Bias and standard deviation on one problem, (K's, E) each, in units of the target's norm, and that norm."""
    mdp, paths, logits = problem(seed, baseline)
    generator = torch.Generator().manual_seed(seed)
    configs = list(CONFIGS.values())
    numbers: dict[str, list] = {"bias": [], "std": [], "target_norm": []}
    for num_rollouts in NUM_ROLLOUTS:
        exact = target(mdp, paths, logits, num_rollouts)
        expected = expected_gradients(mdp, paths, logits, num_rollouts, configs)
        samples = sampled_gradients(mdp, paths, logits, num_rollouts, configs, generator)
        deviations = (samples.mean(1) - expected) / (samples.std(1) / math.sqrt(REPLICATIONS))
        assert deviations.abs().max() < 5, "Samples do not agree with their exact expectation."
        numbers["bias"].append(((expected - exact).norm(dim=1) / exact.norm()).tolist())
        numbers["std"].append((samples.var(1).sum(1).sqrt() / exact.norm()).tolist())
        numbers["target_norm"].append(exact.norm().item())
    return numbers


def medians(problems: list[dict[str, list]], key: str) -> np.ndarray:
    """Of a number over all problems, (K's, E)."""
    return np.median([numbers[key] for numbers in problems], axis=0)


def tables(results: dict) -> str:
    """A table for each kind of advantages, with a row for each estimator: bias ± standard deviation for each K."""
    found = []
    for kind, problems in results["problems"].items():
        rows = [[kind, *(f"K = {k}" for k in results["num_rollouts"])]]
        for name, biases, stds in zip(
            results["estimators"], medians(problems, "bias").T, medians(problems, "std").T, strict=True
        ):
            rows.append([name, *(f"{bias:.3f} ± {std:.2f}" for bias, std in zip(biases, stds, strict=True))])
        found.append(as_markdown(rows))
    return "\n\n".join(found)


def picture(results: dict) -> Figure:
    """Medians against K on logarithmic axes: bias at the left, standard deviation at the right."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    colours = {"first": "black", "vpg": "tab:blue", "lvc": "tab:orange", "dice": "tab:green"}
    ks = results["num_rollouts"]
    grid = figure.subplots(2, 2, sharex=True, sharey="col")
    for row, (kind, problems) in zip(grid, results["problems"].items(), strict=True):
        for panel, key in zip(row, ("bias", "std"), strict=True):
            for name, curve in zip(results["estimators"], medians(problems, key).T, strict=True):
                colour = colours[name.split()[0]]
                if curve.max() < 1e-12:  # has no place on a logarithmic axis
                    panel.text(0.03, 0.04, f"{name}: 0", color=colour, transform=panel.transAxes)
                else:
                    panel.plot(ks, curve, "o--" if "E-MAML" in name else "o-", label=name, color=colour)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(ks, [str(k) for k in ks])
            panel.grid(which="both", alpha=0.3)
            panel.set_title(f"{'bias' if key == 'bias' else 'standard deviation'}, {kind}")
        row[0].set_ylabel("share of the exact gradient's norm")
    for panel in grid[1]:
        panel.set_xlabel("K, support and query trajectories")
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def main() -> None:
    """Writes table.json and bias_and_std.png, and prints the tables."""
    torch.set_num_threads(1)  # half the time of two threads, where another program has one of the cores
    results = {
        "command": "python experiments/estimators.py",
        "seeds": list(SEEDS),
        "horizon": HORIZON,
        "step_size": STEP_SIZE,
        "replications": REPLICATIONS,
        "num_rollouts": NUM_ROLLOUTS,
        "estimators": list(CONFIGS),
        "problems": {
            kind: [measure(seed, baseline) for seed in SEEDS]
            for kind, baseline in (("rewards to go", False), ("less a baseline", True))
        },
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "table.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results).savefig(RESULTS / "bias_and_std.png", dpi=110)
    print(tables(results))


if __name__ == "__main__":
    main()
