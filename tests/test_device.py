"""The learner on another device: on one that computes nothing but shapes, and on CUDA where there is one."""

import dataclasses

import pytest
import torch
from conftest import A, O, make_policy, random_rollouts
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from maml_rl import Config, UserError, train
from maml_rl.maml import linearise, trust_region
from maml_rl.maml import objective as objectives
from maml_rl.maml.inner import ESTIMATORS, adapt
from maml_rl.maml.step_sizes import prepare
from maml_rl.policies import flatten
from maml_rl.policies.batched import as_made
from maml_rl.runs.folder import load_run
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.advantages import with_advantages
from maml_rl.sampling.examples import predict


class OneDevice(TorchDispatchMode):
    """Raises where an operation joins tensors of two devices, which those without data do not always."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim > 0]
        assert len({x.device for x in tensors}) < 2 or function is torch.ops.aten.copy_.default, function
        return function(*args, **(kwargs or {}))


def on_device(x):
    return tree_map(lambda x: x.to("meta"), x)


# Each estimator with a fixed step and with all that is learned. The other step lengths do not depend on it.
@pytest.mark.parametrize(
    ("estimator", "learn_lr"),
    [
        *((name, learn_lr) for name in ESTIMATORS for learn_lr in ("no", "task")),
        *(("lvc", learn_lr) for learn_lr in ("one", "layer", "parameter")),
    ],
)
@pytest.mark.parametrize("context_size", [0, 2], ids=["", "context"])
@pytest.mark.parametrize("written_out", [True, False], ids=["written out", "differentiated"])
def test_nothing_of_the_learner_is_made_on_the_cpu(kind, written_out, context_size, estimator, learn_lr):
    policy, _ = make_policy(kind, context_size=context_size)
    if not written_out:
        policy.body[0].register_forward_pre_hook(lambda module, inputs: None)
    assert as_made(policy) == written_out
    log_std_lr = 0.1 if kind == "normal" else None
    advantage = "learned" if learn_lr == "task" else "gae"
    config = Config(learn_lr=learn_lr, inner_advantage=advantage, log_std_lr=log_std_lr, estimator=estimator,
                    e_maml=1.0, chunk_tasks=2)  # fmt: skip
    prepare(policy, config, O, A)
    theta, rollouts = on_device((flatten(policy).double(), random_rollouts(kind)))
    policy.to("meta")
    with OneDevice():
        adapted = vmap(lambda r: adapt(policy, theta, r, config)[0])(rollouts)
        chunks = linearise.linearise_chunks(policy, theta, (rollouts,), rollouts, config)
        gradient = trust_region.meta_gradient(chunks, len(rollouts.mask))[1]
        product = trust_region.kl_product(chunks, gradient, len(rollouts.mask))
        credits = objectives.exploration_credits(rollouts)
        one = tree_map(lambda x: x[0], rollouts)
        loss = objectives.outer_loss(policy, theta, (one,), one, credits[0], config)
        clipped = objectives.clipped_surrogate(
            objectives.adapted_policy(policy, theta, (one,), one, config), one, 0.2
        )
    for result in tree_leaves((adapted, gradient, product, loss, clipped)):
        assert result.device.type == "meta"


def test_advantages_stay_on_the_device(monkeypatch):
    """RL²'s are calculated there, over whole trials."""
    # Whether a factorisation failed is a number, which tensors without data have not.
    monkeypatch.setattr(torch.Tensor, "any", lambda self: False)
    with OneDevice():
        advantages = with_advantages(on_device(random_rollouts("normal")), 0.9, 0.8).advantages
    assert advantages.device.type == "meta"


@pytest.mark.parametrize("targets", [torch.randn(3, 4, A), torch.zeros(3, 4).long()], ids=["numbers", "classes"])
def test_predictions_stay_on_the_device(targets):
    """Those of examples are made where the learner computes, and those of environments on the CPU."""
    policy, _ = make_policy("normal" if targets.is_floating_point() else "categorical")
    thetas, inputs, targets = on_device((flatten(policy).expand(3, -1), torch.randn(3, 4, O), targets))
    policy.to("meta")
    with OneDevice():
        rollouts = predict(TaskPolicies(policy, thetas), inputs, targets)
    assert {x.device.type for x in tree_leaves(rollouts)} == {"meta"}


@pytest.mark.parametrize("device", ["cuda:99", "meta", "toaster"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(UserError, match=f"device is '{device}', but this machine only has cpu"):
        train(Config(run_dir=tmp_path, device=device))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "dice", "learn_lr": "layer"},
        {"outer": "ppo"},
        {"outer": "ppo", "rl2_episodes": 2, "num_steps": 0},
        {"env_id": "maml_rl/Sinusoid-v0", "outer": "reptile", "horizon": None},
        {"env_id": "maml_rl/Glyphs-v0", "outer": "reptile", "horizon": None, "network": "conv4"},
    ],
    ids=str,
)
def test_cuda_learns_the_same(tmp_path, options):
    sizes = {"iterations": 1, "num_tasks": 4, "num_rollouts": 5, "horizon": 10, "hidden_sizes": (8,)}
    config = Config(run_dir=tmp_path / "cpu", **{**sizes, **options})
    steps = []
    for device in ("cpu", "cuda"):
        train(dataclasses.replace(config, run_dir=tmp_path / device, device=device))
        state = load_run(tmp_path / device)[2]
        steps.append(state.theta - state.untrained)
    assert (steps[0] - steps[1]).norm() < 0.01 * steps[0].norm()
    train(dataclasses.replace(config, run_dir=tmp_path / "cpu", device="cuda", resume=True, iterations=2))
