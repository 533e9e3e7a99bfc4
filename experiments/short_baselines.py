"""Algorithms that know their family, on bandits and tabular MDPs: `python experiments/short_baselines.py`.

They are the yardsticks of arXiv:1611.02779, sections 3.1 and 3.2, on new tasks of the same families:

* bandits: UCB1, Thompson sampling and the finite-horizon Gittins index. For ten pulls, the best possible mean is
  computed exactly, too: the Bayes-optimal policy of the Beta-Bernoulli model.
* tabular MDPs: posterior sampling (PSRL) with the family's own prior, and the optimal policy of each task.

Writes baselines.json into the folders of both families.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from maml_rl.envs import make_vec

from maml_rl.cli import run
from maml_rl.results.comparison import as_markdown
from maml_rl.runs.files import write_json
from maml_rl.sampling.streams import numpy_generator

RESULTS = Path(__file__).parent / "results"
Array = np.ndarray
NUM_ARMS, EPISODES, HORIZON = 5, 10, 10
OPTIMAL = "optimal policies, which know their tasks"
# Mean total rewards in arXiv:1611.02779, tables 1 (five arms) and 2 (ten states, five actions, ten episodes).
# They were written down without the paper at hand, and are still to be checked against it.
PUBLISHED = {
    "bernoulli_bandit": {
        "10": {
            "random": 5.0,
            "UCB1, a fifth of the bonus": 6.7,
            "Thompson sampling": 5.7,
            "Gittins index": 6.6,
            "RL²": 6.7,
        },
        "100": {
            "random": 49.9,
            "UCB1, a fifth of the bonus": 78.0,
            "Thompson sampling": 74.7,
            "Gittins index": 78.3,
            "RL²": 78.7,
        },
    },
    "tabular_mdp": {"10": {"random": 100.1, "PSRL": 138.1, "RL²": 156.2}},
}
# Chooses arms (n,) from wins and losses (n, k), the number of pulls so far, and a generator.
Rule = Callable[[Array, Array, int, np.random.Generator], Array]


def total(rule: Rule, num_pulls: int, num_tasks: int, rng: np.random.Generator) -> Array:
    """The total reward of a rule in each of n bandits, (n,)."""
    probabilities = rng.uniform(size=(num_tasks, NUM_ARMS))
    wins, losses, rows = np.zeros_like(probabilities), np.zeros_like(probabilities), np.arange(num_tasks)
    for pull in range(num_pulls):
        arms = rule(wins, losses, pull, rng)
        won = rng.uniform(size=num_tasks) < probabilities[rows, arms]
        wins[rows, arms] += won
        losses[rows, arms] += ~won
    return wins.sum(1)


def uniform(wins: Array, losses: Array, pull: int, rng: np.random.Generator) -> Array:
    """Any arm."""
    return rng.integers(NUM_ARMS, size=len(wins))


def ucb1(wins: Array, losses: Array, pull: int, rng: np.random.Generator, bonus: float = 1.0) -> Array:
    """The largest mean + bonus · sqrt(2 ln t / n), each arm once at first (Auer et al. 2002)."""
    pulls = wins + losses
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = wins / pulls + bonus * np.sqrt(2 * np.log(max(pull, 1)) / pulls)
    return np.where(pulls > 0, bound, np.inf).argmax(1)


def thompson(wins: Array, losses: Array, pull: int, rng: np.random.Generator) -> Array:
    """The best arm of a draw from the posterior."""
    return rng.beta(1 + wins, 1 + losses).argmax(1)


@functools.cache
def gittins_table(num_pulls: int, num_values: int = 1001) -> Array:
    """The finite-horizon index by remaining pulls, wins and losses, (n + 1, n + 1, n + 1).

    It is the payment per pull that is worth as much as going on with the arm, on a grid over [0, 1]. With m pulls
    left, V_m = max(m λ, p (1 + V_{m-1}(wins + 1)) + (1 - p) V_{m-1}(losses + 1)), p = (wins + 1) / (pulls + 2).
    """
    payments = np.linspace(0, 1, num_values)
    wins, losses = np.ogrid[: num_pulls + 1, : num_pulls + 1]
    mean = ((wins + 1) / (wins + losses + 2))[..., None]
    value = np.zeros((num_pulls + 2, num_pulls + 2, num_values))
    table = np.zeros((num_pulls + 1,) * 3)
    for left in range(1, num_pulls + 1):
        going_on = mean * (1 + value[1:, :-1]) + (1 - mean) * value[:-1, 1:]
        stopping = left * payments
        # Going on is better up to the index.
        better = (going_on >= stopping - 1e-12).sum(-1)
        table[left] = payments[np.maximum(better - 1, 0)]
        value[:-1, :-1] = np.maximum(going_on, stopping)
    return table


def gittins(num_pulls: int) -> Rule:
    """The arm with the largest index."""
    table = gittins_table(num_pulls)

    def rule(wins: Array, losses: Array, pull: int, rng: np.random.Generator) -> Array:
        return table[num_pulls - pull, wins.astype(int), losses.astype(int)].argmax(1)

    return rule


@functools.cache
def best_possible(arms: tuple[tuple[int, int], ...], left: int) -> float:
    """The Bayes-optimal total reward of the pulls that are left, given each arm's wins and losses."""
    if not left:
        return 0.0
    values = []
    for i, (wins, losses) in enumerate(arms):
        others, mean = arms[:i] + arms[i + 1 :], (wins + 1) / (wins + losses + 2)
        after = [tuple(sorted((*others, arm))) for arm in ((wins + 1, losses), (wins, losses + 1))]
        won, lost = (best_possible(one, left - 1) for one in after)
        values.append(mean * (1 + won) + (1 - mean) * lost)
    return max(values)


def optimal_actions(transitions: Array, rewards: Array) -> tuple[Array, Array]:
    """Backward induction: actions (n, H, states), and the values of all states at first, (n, states)."""
    values, actions = np.zeros(rewards.shape[:2]), []
    for _ in range(HORIZON):
        worth = rewards + np.einsum("nsat,nt->nsa", transitions, values)
        actions.append(worth.argmax(-1))
        values = worth.max(-1)
    return np.stack(actions[::-1], 1), values


def psrl(num_tasks: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """PSRL's total rewards over all episodes, (n,), and the optimal policies' means per episode, (n,).

    The prior is the family's: Dirichlet(1, ..., 1) and N(1, 1). Each episode follows the optimal policy of a draw
    from the posterior (Strens 2000; Osband et al., arXiv:1306.0940).
    """
    env: Any = make_vec("maml_rl/TabularMDP-v0", num_tasks)
    tasks = env.sample_tasks(num_tasks, rng)
    transitions, rewards = env.tables(tasks)
    counts, pulls, sums = np.ones_like(transitions), np.ones_like(rewards), np.ones_like(rewards)
    rows, totals = np.arange(num_tasks), np.zeros(num_tasks)
    for episode in range(EPISODES):
        drawn = rng.standard_gamma(counts)
        guess = drawn / drawn.sum(-1, keepdims=True), rng.normal(sums / pulls, pulls**-0.5)
        actions, _ = optimal_actions(*guess)
        states, _ = env.reset(seed=int(rng.integers(2**31)) if not episode else None, options={"task": tasks})
        for t in range(HORIZON):
            chosen = actions[rows, t, states]
            after, reward, *_ = env.step(chosen)
            counts[rows, states, chosen, after] += 1
            pulls[rows, states, chosen] += 1
            sums[rows, states, chosen] += reward
            totals += reward
            states = after
    return totals, optimal_actions(transitions, rewards)[1][:, 0]


def optimum() -> float:
    """The mean return of an episode of tabular MDPs' optimal policies, from the committed file."""
    found = json.loads((RESULTS / "tabular_mdp/baselines.json").read_text())["total_reward"][str(EPISODES)]
    return float(found[OPTIMAL]["mean"]) / EPISODES


def summary(totals: Array) -> dict[str, float]:
    """A mean over tasks with half its 95% interval."""
    return {"mean": round(float(totals.mean()), 3), "half": round(1.96 * totals.std() / len(totals) ** 0.5, 3)}


def measured(num_tasks: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """All total rewards, by family, number of pulls or episodes, and algorithm."""
    found: dict[str, Any] = {"bernoulli_bandit": {}, "tabular_mdp": {}}
    for num_pulls in (10, 100):
        rules = {
            "random": uniform,
            "UCB1": ucb1,
            "UCB1, a fifth of the bonus": functools.partial(ucb1, bonus=0.2),
            "Thompson sampling": thompson,
            "Gittins index": gittins(num_pulls),
        }
        found["bernoulli_bandit"][str(num_pulls)] = {
            name: summary(total(rule, num_pulls, num_tasks, numpy_generator(1, f"{name}, {num_pulls} pulls")))
            for name, rule in rules.items()
        }
    best = best_possible(((0, 0),) * NUM_ARMS, 10)
    found["bernoulli_bandit"]["10"]["best possible"] = {"mean": round(best, 3), "half": 0.0}
    totals, optimal = psrl(num_tasks, numpy_generator(1, "PSRL"))
    found["tabular_mdp"][str(EPISODES)] = {
        "PSRL": summary(totals),
        OPTIMAL: summary(EPISODES * optimal),
    }
    return found


def rl2_totals(family: str, size: str) -> list[Array]:
    """The total rewards of each committed RL² run over held-out tasks, in what it was trained for."""
    method = "rl2_once" if (family, size) == ("bernoulli_bandit", "10") else "rl2"
    paths = sorted((RESULTS / family / method).glob("seed*/evaluation.json"))
    return [np.array(json.loads(path.read_text())["methods"]["rl2"]["returns"]).sum(1) for path in paths]


def table(family: str) -> str:
    """Markdown: total rewards of a family's algorithms, computed here and as published."""
    found = json.loads((RESULTS / family / "baselines.json").read_text())["total_reward"]
    what = {"bernoulli_bandit": "pulls", "tabular_mdp": "episodes"}[family]
    head = [text for size in found for text in (f"{size} {what}", "as published")]
    of_size = {size: {name: f"{one['mean']:.2f}" for name, one in of.items()} for size, of in found.items()}
    for size, of in of_size.items():
        if runs := rl2_totals(family, size):
            of["RL²"] = f"{np.mean(runs):.2f}"
    names = dict.fromkeys(name for size in found for name in [*of_size[size], *PUBLISHED[family][size]])
    rows = [["total reward", *head]]
    for name in names:
        published = [str(PUBLISHED[family][size].get(name, "")) for size in found]
        cells = [
            cell
            for size, theirs in zip(found, published, strict=True)
            for cell in (of_size[size].get(name, ""), theirs)
        ]
        rows.append([name, *cells])
    return as_markdown(rows)


def main(num_tasks: int = 10_000) -> None:
    """Computes the yardsticks, and writes them down.

    Args:
        num_tasks: Tasks of each mean.
    """
    for family, found in measured(num_tasks).items():
        write_json(RESULTS / family / "baselines.json", {"num_tasks": num_tasks, "total_reward": found})
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
