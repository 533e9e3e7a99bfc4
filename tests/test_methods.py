"""Every method as settings of one loop: it trains, logs, is evaluated, and goes on where it was stopped."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import maml_rl
from maml_rl import Config, UserError, methods
from maml_rl.maml.inner import ESTIMATORS
from maml_rl.maml.method import MAML
from maml_rl.methods import curve_name, method_of
from maml_rl.policies import flatten
from maml_rl.runs.checkpoint import load_checkpoint
from maml_rl.runs.folder import new_policy

METHODS = {
    "lvc": {"estimator": "lvc"},
    "promp": {"estimator": "lvc", "outer": "ppo", "learn_lr": "layer"},
    "e-maml": {"estimator": "dice", "dice_lambda": 0.5, "e_maml": 0.1},
    "fomaml": {"first_order": True, "outer": "adam"},
    "meta-sgd": {"learn_lr": "parameter", "num_steps": 2},
    "learned step": {"learn_lr": "task"},
    "learned advantage": {"inner_advantage": "learned", "learn_lr": "task", "outer": "ppo", "num_steps": 2},
    "reptile": {"outer": "reptile", "outer_lr": 0.5, "num_steps": 2},
    "anil": {"adapt_only": "head", "log_std_lr": 0.5},
    "cavia": {"adapt_only": "context", "context_size": 3},
    "pretrain": {"num_steps": 0},
    "oracle": {"num_steps": 0, "observe_task": True, "eval_num_steps": 0},
    "rl2": {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo", "hidden_sizes": (8,)},
    "scratch": {"iterations": 0, "eval_num_steps": 4, "eval_lr_factors": (1.0,)},
}


def tiny(folder, **options):
    common = {"num_tasks": 3, "num_rollouts": 4, "horizon": 5, "hidden_sizes": (8,), "eval_num_tasks": 3}
    common |= {"eval_num_rollouts": 2, "eval_num_steps": 2, "eval_every": 0, "iterations": 2}
    return Config(run_dir=folder, **(common | options))


@pytest.mark.parametrize("env_id", ["maml_rl/Navigation2D-v0", "maml_rl/TabularMDP-v0"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_evaluated(method, env_id, tmp_path):
    options = METHODS[method]
    if "log_std_lr" in options and "Tabular" in env_id:
        options = {"adapt_only": "head"}
    config = tiny(tmp_path / "run", env_id=env_id, **options)
    name = curve_name(config)
    policy = maml_rl.train(config).policy
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert results == maml_rl.evaluate(config.run_dir)
    curve = results["methods"][name]
    assert np.shape(curve["returns"]) == (3, config.eval_num_steps + 1)
    episodes = (1 if config.rl2_episodes else 2) * np.arange(config.eval_num_steps + 1)
    if "Tabular" in env_id:
        np.testing.assert_allclose(curve["env_steps"], 5 * episodes)
    assert list(results["methods"]) == [name, "random"][: 2 - (method == "scratch")]
    changed = flatten(policy) != flatten(new_policy(config))
    if method == "scratch":
        assert not changed.any()
        return
    assert changed.any()
    if "Navigation" in env_id:  # steps so small change no discrete action
        assert results["methods"]["random"]["returns"] != curve["returns"]
    events = EventAccumulator(str(config.run_dir), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    phases = config.rl2_episodes or config.num_steps + 1
    assert sorted(t for t in tags if "train/return" in t) == [f"train/return_step_{k}" for k in range(phases)]
    assert len(events.Scalars("outer/gradient_norm")) == 2
    assert ("outer/accepted" in tags) == (config.outer == "trpo")


@pytest.mark.parametrize("method", ["promp", "fomaml", "rl2"])
def test_what_the_optimiser_remembers_is_resumed(method, tmp_path):
    options = METHODS[method] | {"normalise_observations": True}
    whole = maml_rl.train(tiny(tmp_path / "whole", **options, iterations=4)).policy
    parts = tiny(tmp_path / "parts", **options)
    maml_rl.train(parts)
    memory = load_checkpoint(parts.run_dir, new_policy(parts)).optimiser_state
    assert memory["state"][0]["step"] == 2 * (1 if method == "fomaml" else parts.ppo_epochs)
    resumed = maml_rl.train(dataclasses.replace(parts, iterations=4, resume=True)).policy
    assert torch.equal(flatten(resumed), flatten(whole))
    one, other = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "parts"))
    assert one == other


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda theta, state, metrics: (theta.double(), state, metrics),
            "a torch.float64 tensor of shape .* as θ",
        ),
        (
            lambda theta, state, metrics: (theta[1:], state, metrics),
            "as θ, but must return a torch.float32 tensor",
        ),
        (lambda theta, state, metrics: (None, state, metrics), "None as θ"),
        (lambda theta, state, metrics: (theta, None, metrics), "None as its state, but must return a dictionary"),
        (
            lambda theta, state, metrics: (theta, {"best": [np.float64(1)]}, metrics),
            r"numpy.float64 at \['best'\]",
        ),
        (lambda theta, state, metrics: (theta, {"best": np.ones(2)}, metrics), r"numpy.ndarray at \['best'\]"),
        (lambda theta, state, metrics: (theta, state, {"x": np.ones(2)}), r"array.* as the metric 'x'"),
        (lambda theta, state, metrics: (theta, state, {"x": None}), "None as the metric 'x'"),
        (lambda theta, state, metrics: (theta, state, [1.0]), r"\[1.0\] as its metrics"),
    ],
)
def test_results_that_cannot_be_used_or_saved_are_refused(change, sentence, tmp_path, monkeypatch):
    """A checkpoint with NumPy's numbers could not be read again, because reading it would run code."""

    class Own(MAML):
        name = label = "own"

        def update(self, *arguments):
            return change(*super().update(*arguments))

    monkeypatch.setitem(methods.METHODS, "own", Own)
    config = tiny(tmp_path / "run", env_id="maml_rl/Navigation2D-v0", method="own")
    with pytest.raises(UserError, match=f"The method 'own' returned from update .*{sentence}"):
        maml_rl.train(config)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_an_estimator_must_weigh_every_step(tmp_path, monkeypatch):
    """A single number would cancel, because advantages have mean 0, and adaptation would do nothing."""
    monkeypatch.setitem(ESTIMATORS, "mean", lambda log_probs, old, config: (log_probs - old).exp().mean())
    config = Config(run_dir=tmp_path / "run", estimator="mean", num_tasks=2, num_rollouts=3, num_workers=0)
    with pytest.raises(UserError, match=r"'mean' returned a tensor of shape \(\), .* \(K, H\) = \(20, 100\)"):
        maml_rl.train(config)


def test_the_oracle_sees_the_task(tmp_path):
    """It is worth more than pre-training on the same rollouts' number, and its input has the task, scaled."""
    options = {"num_tasks": 20, "num_rollouts": 10, "horizon": 20, "iterations": 12, "eval_num_tasks": 20}
    oracle = tiny(tmp_path / "oracle", **METHODS["oracle"], **options)
    plain = tiny(tmp_path / "plain", **METHODS["pretrain"], **options)
    means = []
    for config in (oracle, plain):
        maml_rl.train(config)
        name = curve_name(config)
        results = json.loads((config.run_dir / "evaluation.json").read_text())
        means.append(results["methods"][name]["mean"][0])
    assert means[0] > means[1] + 0.5


def test_the_table_of_methods_in_the_readme_is_made_of_options():
    """Each row's options are accepted together."""
    import tyro

    rows = re.findall(
        r"^\| .*? \| (`--.*?) \|$",
        "\n".join(page.read_text() for page in (ROOT / "docs/methods").glob("*.md")),
        re.MULTILINE,
    )
    commands = [re.findall(r"`(--[^`]*)`", row)[0].split() for row in rows]
    assert len(commands) >= 12
    for command in commands:
        method_of(tyro.cli(Config, args=command))
