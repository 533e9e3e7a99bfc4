"""What people do around the library in a notebook: autograd modes, threads, pickles, and Ctrl-C at any time."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml.outer import OPTIMISERS
from maml_rl.policies import Normal, flatten, initialise

NAVIGATION = "maml_rl/Navigation2D-v0"


class Own(nn.Module):
    """A policy that is differentiated automatically."""

    def __init__(self):
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(2))
        self.body = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations):
        mean = self.head(self.body(observations))
        return Normal(mean, self.log_std.expand_as(mean))


def config(folder, **options):
    small = {
        "num_tasks": 2,
        "num_rollouts": 2,
        "horizon": 5,
        "iterations": 1,
        "eval_every": 0,
        "hidden_sizes": (8,),
    }
    small |= {"eval_num_tasks": 2, "eval_num_rollouts": 2, "eval_num_steps": 1, "num_workers": 0}
    return Config(env_id=NAVIGATION, run_dir=folder, **small | options)


def environment():
    env = gymnasium.make(NAVIGATION)
    env.reset(seed=0, options={"task": np.array([0.3, 0.1])})
    return env


@pytest.mark.parametrize(
    ("mode", "own"),
    [(torch.inference_mode, None), (torch.inference_mode, Own()), (torch.no_grad, Own())],
)
def test_it_works_in_every_autograd_mode(mode, own, tmp_path):
    with mode():
        maml_rl.train(config(tmp_path / "run"), policy=own)
        loaded = maml_rl.load(tmp_path / "run", policy=own)
        loaded.adapt(environment(), seed=1)
        results = maml_rl.evaluate(tmp_path / "run", policy=own)
    assert maml_rl.evaluate(tmp_path / "run", policy=own) == results
    maml_rl.train(config(tmp_path / "again"), policy=loaded.policy)  # it can be differentiated outside


def test_another_default_type_is_refused_and_no_damage_is_reported(tmp_path):
    maml_rl.train(config(tmp_path / "run"))
    torch.set_default_dtype(torch.float64)
    try:
        for call in (lambda: maml_rl.load(tmp_path / "run"), lambda: maml_rl.train(config(tmp_path / "other"))):
            with pytest.raises(UserError, match="default type of torch is torch.float64, .*set_default_dtype"):
                call()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise_observations": True},
        {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo"},
    ],
)
def test_an_adapted_policy_can_be_pickled(options, tmp_path):
    maml_rl.train(config(tmp_path / "run", **options))
    env = environment()
    adapted = maml_rl.load(tmp_path / "run").adapt(env, seed=3)
    observation, _ = env.reset(seed=0)
    adapted(observation)  # what it has cached cannot be pickled
    copied = pickle.loads(pickle.dumps(adapted))
    np.testing.assert_array_equal(copied(observation), adapted(observation))


def test_it_is_pickled_without_its_environment():
    env = gymnasium.make("maml_rl/HalfCheetahDir-v0")
    adapted = maml_rl.load("zoo/half_cheetah_dir").adapt(env, num_steps=0)
    observation, _ = env.reset(seed=0)
    copied = pickle.loads(pickle.dumps(adapted))
    assert (copied(observation, deterministic=True) == adapted(observation, deterministic=True)).all()


def test_several_threads_adapt_one_run(tmp_path):
    """A module is changed during a call, so no two adaptations may share one."""
    maml_rl.train(config(tmp_path / "run"), policy=Own())
    run = maml_rl.load(tmp_path / "run", policy=Own())
    environments = [environment() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(6):
            found = pool.map(lambda env: run.adapt(env, seed=5, num_steps=3)._actor.thetas, environments)
            first, *others = found
            assert all(torch.equal(first, other) for other in others)


def ascent(policy, theta, state, batches, config):
    """An outer step that works in place, as torch's own optimisers do. Ctrl-C comes in its third iteration."""
    state.setdefault("count", torch.zeros(()))
    state["count"] += 1
    theta = theta.requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=1.0)
    theta.grad = torch.ones_like(theta)
    optimiser.step()
    if state["count"] == 3 and config.iterations == 5:
        raise KeyboardInterrupt
    return theta, state, {}


@pytest.mark.parametrize(("num_steps", "normalised"), [(0, True), (0, False), (1, False)])
def test_an_outer_step_may_work_in_place(num_steps, normalised, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMISERS, "ascent", ascent)
    options = {"outer": "ascent", "num_steps": num_steps, "normalise_observations": normalised}
    with pytest.raises(KeyboardInterrupt):
        maml_rl.train(config(tmp_path / "run", iterations=5, **options))
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert (saved["iteration"], saved["optimiser_state"]["count"]) == (2, 2)
    run = maml_rl.train(config(tmp_path / "run", iterations=6, resume=True, **options))
    whole = maml_rl.train(config(tmp_path / "whole", iterations=6, **options))
    assert torch.equal(flatten(run.policy), flatten(whole.policy))
    assert not flatten(whole.policy).requires_grad
