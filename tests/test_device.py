"""The learner on another device: on one that computes nothing but shapes, and on CUDA where there is one."""

import dataclasses

import pytest
import torch
from conftest import make_policy, random_rollouts
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from maml_rl import Config, UserError, objectives, train, trust_region
from maml_rl.adaptation import adapt, prepare
from maml_rl.policies import flatten
from maml_rl.runs import load_run


@pytest.mark.parametrize("learn_lr", ["no", "one", "layer"])
@pytest.mark.parametrize("context_size", [0, 2], ids=["written out", "differentiated"])
def test_nothing_of_the_learner_is_made_on_the_cpu(kind, context_size, learn_lr):
    """Operations between two devices raise, on tensors without data too."""
    policy, _ = make_policy(kind, context_size=context_size)
    config = Config(
        learn_lr=learn_lr,
        log_std_lr=0.1 if kind == "normal" else None,
        estimator="dice",
        e_maml=1.0,
        chunk_tasks=2,
    )
    prepare(policy, config)
    theta, rollouts = tree_map(lambda x: x.to("meta"), (flatten(policy).double(), random_rollouts(kind)))
    policy.to("meta")
    adapted = vmap(lambda r: adapt(policy, theta, r, config)[0])(rollouts)
    chunks = trust_region.linearise_chunks(policy, theta, (rollouts,), rollouts, config)
    gradient = trust_region.meta_gradient(chunks, len(rollouts.mask))
    product = trust_region.kl_product(chunks, gradient, len(rollouts.mask))
    credits = objectives.exploration_credits(rollouts)
    one = tree_map(lambda x: x[0], rollouts)
    loss = objectives.outer_loss(policy, theta, (one,), one, credits[0], config)
    clipped = objectives.clipped_surrogate(objectives.adapted_policy(policy, theta, (one,), one, config), one, 0.2)
    for result in tree_leaves((adapted, gradient, product, loss, clipped)):
        assert result.device.type == "meta"


@pytest.mark.parametrize("device", ["cuda:99", "meta", "toaster"])
def test_a_device_that_is_not_there_is_refused(tmp_path, device):
    with pytest.raises(UserError, match=f"device is '{device}', but here there are only cpu"):
        train(Config(run_dir=tmp_path, device=device))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("outer", ["trpo", "ppo"])
def test_cuda_learns_the_same(tmp_path, outer):
    config = Config(
        run_dir=tmp_path / "cpu", iterations=3, num_tasks=4, num_rollouts=5, horizon=10, eval_num_tasks=2
    )
    config = dataclasses.replace(config, outer=outer)
    train(config)
    train(dataclasses.replace(config, run_dir=tmp_path / "cuda", device="cuda"))
    thetas = [load_run(tmp_path / name)[2].theta for name in ("cpu", "cuda")]
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=1e-4)
