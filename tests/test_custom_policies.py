"""Policies other than the MLP: the CNN that comes with the package, and a module of the user's own."""

import copy
import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, A, O, random_rollouts
from gymnasium import spaces
from maml_rl.envs import check_family, make_vec
from matplotlib.figure import Figure
from misbehaving import MixedEnv
from test_inner import finite_differences, step, task
from test_outer import gradient, mean_over_tasks
from torch import nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml import linearise, trust_region
from maml_rl.maml import objective as objectives
from maml_rl.policies import (
    CNN,
    MLP,
    CategoricalHead,
    GaussianHead,
    MultiCategorical,
    Normal,
    act,
    flatten,
    initialise,
    load,
)
from maml_rl.policies.batched import as_made, per_task
from maml_rl.policies.parameters import ADVANTAGE_NETWORK, LOG_LR_FACTORS
from maml_rl.policies.ready_made import make_policy as ready_made
from maml_rl.policies.ready_made import require_fit
from maml_rl.runs.folder import new_policy

PIXELS = "maml_rl/PixelNavigation2D-v0"


def pictures(positions):
    """What is seen of positions (N, 2), as a policy is given it: (N, 256) in [0, 1]."""
    seen = gymnasium.make_vec(PIXELS, num_envs=1).unwrapped.observation(np.asarray(positions), None)
    assert seen.dtype == np.uint8
    return torch.from_numpy(seen).double().flatten(1) / 255


def image_policy(kind):
    """A CNN and parameters far from its first ones, whose last layer is almost 0."""
    policy = CNN((1, 16, 16), 4, GaussianHead(4, A, 0.7) if kind == "normal" else CategoricalHead(4, A))
    generator = torch.Generator().manual_seed(0)
    initialise(policy, generator)
    theta = flatten(policy).double()
    return policy, theta + 0.2 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)


def image_rollouts(kind, seed):
    rollouts = random_rollouts(kind, seed=seed)
    positions = rollouts.observations.clamp(-1, 1).flatten(0, 2)
    return rollouts._replace(observations=pictures(positions.numpy()).unflatten(0, rollouts.mask.shape))


def test_the_picture_shows_the_point_and_not_the_goal():
    env = gymnasium.make_vec(PIXELS, num_envs=3, max_episode_steps=5)
    seen, _ = env.reset(seed=0, options={"task": np.array([[0.4, 0.4], [-0.4, 0.4], [0.4, 0.4]])})
    assert seen.shape == (3, 1, 16, 16)
    assert (seen == seen[0]).all()
    corner = pictures([[9.0, 1.0]]).view(16, 16)
    assert corner[0, 15] == 1 == corner.sum()  # beyond the square: on its edge, y upwards
    moved = pictures([[0.0, 0.0], [0.01, 0.0], [0.0, 0.01]])  # a thirteenth of a pixel
    assert len(torch.unique(moved, dim=0)) == 3


def test_paths_are_drawn_from_pictures():
    paths = np.random.default_rng(0).uniform(-1, 1, (3, 5, 2))
    mask = np.arange(5) < np.array([[5], [3], [1]])
    seen = pictures(paths.reshape(-1, 2)).view(3, 5, 256).numpy() * mask[..., None]
    seen = np.concatenate([seen, np.ones((3, 5, 2))], axis=-1)  # a policy may see more than the picture
    axes = Figure().add_subplot()
    env = gymnasium.make_vec(PIXELS, num_envs=1).unwrapped
    env.plot_rollouts(axes, np.array([0.1, 0.2]), seen, mask)
    *drawn, start, goal = axes.lines
    assert len(drawn) == 3
    for line, path, taken in zip(drawn, paths, mask, strict=True):
        np.testing.assert_allclose(line.get_xydata(), path[taken], atol=0.02)
    assert (start.get_xydata().tolist(), goal.get_xydata().tolist()) == ([[0, 0]], [[0.1, 0.2]])


def test_cnn_sees_where_the_point_is():
    """Taught to name some positions, it names others better than the nearest pixel would."""
    env = gymnasium.make_vec(PIXELS, num_envs=1)
    generator = torch.Generator().manual_seed(0)
    policy = ready_made(env.single_observation_space, env.single_action_space, Config(), generator)
    assert isinstance(policy, CNN)
    positions = 2 * torch.rand(600, 2, generator=generator) - 1
    seen = pictures(positions.numpy()).float()
    assert len(torch.unique(policy(seen).mean, dim=0)) == 600
    adam = torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(300):
        adam.zero_grad()
        (policy(seen[:300]).mean - positions[:300]).square().mean().backward()
        adam.step()
    error = (policy(seen[300:]).mean - positions[300:]).square().mean().sqrt()
    assert error < 2 / 15 / 12**0.5  # the standard deviation of a uniform error of half a pixel


def test_cnn_adapts_under_vmap_as_task_by_task(kind):
    policy, theta = image_policy(kind)
    support = image_rollouts(kind, seed=1)
    thetas = theta + torch.arange(3.0).double()[:, None] / 10
    batched = vmap(lambda theta, support: step(policy, theta, support))(thetas, support)
    looped = torch.stack([step(policy, thetas[i], task(support, i)) for i in range(3)])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-14)
    assert (batched - thetas).abs().max() > 1e-3


def test_meta_gradient_goes_through_the_cnn(kind):
    policy, theta = image_policy(kind)
    config = Config(inner_lr=0.3, chunk_tasks=2)
    supports, query = (image_rollouts(kind, seed=1),), image_rollouts(kind, seed=2)
    exact = gradient(policy, theta, supports, query, config)

    def loss(policy, theta, supports, query):
        return objectives.surrogate(objectives.adapted_policy(policy, theta, supports, query, config), query)

    _, other = objectives.mean_and_gradient(objectives.over_tasks(loss), policy, theta, (supports, query), config)
    torch.testing.assert_close(other, exact, rtol=1e-10, atol=1e-13)
    objective = mean_over_tasks(objectives.surrogate, policy, supports, query, config)
    for seed in range(4):
        v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=theta.dtype)
        v = 1e-3 * v / v.norm()
        slope = (
            8 * (objective(theta + v) - objective(theta - v)) - objective(theta + 2 * v) + objective(theta - 2 * v)
        ) / 12
        torch.testing.assert_close(exact @ v, slope, rtol=1e-6, atol=1e-12)


def test_cnn_trains_on_pictures(command, tmp_path):
    result = command("train", "--env-id", PIXELS, "--run-dir", "run", *TINY, "--iterations", 2)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["env_id"] == PIXELS
    for method in ("maml", "random"):
        assert np.isfinite(evaluation["methods"][method]["returns"]).all()
        assert np.shape(evaluation["methods"][method]["returns"]) == (3, 3)
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert ["body.0.weight", 8, 1, 3, 3] in checkpoint["layout"]
    assert (tmp_path / "run/rollouts.png").exists()


@pytest.mark.parametrize("kind", MixedEnv.observation_spaces)
def test_adapted_observations_are_flattened(kind):
    space = MixedEnv.observation_spaces[kind]
    if kind == "sequence":
        with pytest.raises(ValueError, match=r"Mixed-v0: observations of Sequence.* cannot be flattened"):
            make_vec("tests/Mixed-v0", 3, kind=kind)
        return
    env = make_vec("tests/Mixed-v0", 3, kind=kind)
    assert env.single_observation_space == spaces.flatten_space(space)
    seen, _ = env.reset(seed=5)
    for i in range(3):
        alone, _ = gymnasium.make("tests/Mixed-v0", kind=kind).reset(seed=5 + i)
        np.testing.assert_array_equal(seen[i], spaces.flatten(space, alone))


def test_a_family_of_mixed_spaces_keeps_the_contract():
    check_family("tests/Mixed-v0")


class Own(nn.Module):
    """Two actions of 2 and 3 values from flattened observations of 4 numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        initialise(self, torch.Generator().manual_seed(0))
        self.register_buffer("missing", torch.tensor([[False, False, True], [False, False, False]]))

    def forward(self, observations):
        logits = self.layer(observations).unflatten(-1, (2, 3))
        return MultiCategorical(logits.masked_fill(self.missing, -1e9))


def config_of(run_dir, **options):
    return Config(
        env_id="misbehaving:tests/Mixed-v0", run_dir=run_dir, num_tasks=3, num_rollouts=4, horizon=5,
        eval_num_tasks=3, eval_num_rollouts=2, eval_num_steps=2, eval_every=2, checkpoint_every=1, **options
    )  # fmt: skip


def several_actions(seed):
    """Rollouts of made-up numbers in float64 for `Own`."""
    g = torch.Generator().manual_seed(seed)
    rollouts = random_rollouts("categorical", seed=seed)
    shape = rollouts.mask.shape
    logits = torch.randn(*shape, 2, 3, generator=g, dtype=torch.float64).masked_fill(Own().missing, -1e9)
    actions = MultiCategorical(logits).sample(g)
    return rollouts._replace(
        observations=torch.randn(*shape, 4, generator=g, dtype=torch.float64),
        actions=actions,
        behaviour=MultiCategorical(logits),
        log_probs=MultiCategorical(logits).log_prob(actions),
    )


def test_derivatives_with_several_actions():
    policy, config = Own(), Config(inner_lr=0.3, chunk_tasks=2)
    theta = flatten(policy).double() + torch.linspace(-0.5, 0.5, 30, dtype=torch.float64)
    supports, query = (several_actions(1),), several_actions(2)
    exact = finite_differences(mean_over_tasks(objectives.surrogate, policy, supports, query, config), theta)
    torch.testing.assert_close(gradient(policy, theta, supports, query, config), exact, rtol=1e-6, atol=1e-9)
    # The KL is that of the policies which drew the query, as in training.
    adapted = vmap(lambda s, q: objectives.adapted_policy(policy, theta, s, q, config))(supports, query)
    query = query._replace(behaviour=MultiCategorical(adapted.logits.unflatten(1, query.mask.shape[1:])))
    objective = mean_over_tasks(objectives.mean_kl, policy, supports, query, config)
    hessian = torch.autograd.functional.hessian(objective, theta)
    chunks = linearise.linearise_chunks(policy, theta, supports, query, config)
    v = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(trust_region.kl_product(chunks, v, 3), hessian @ v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("outer", ["trpo", "ppo"])
def test_a_module_of_one_s_own_trains_resumes_and_is_evaluated(tmp_path, outer):
    whole = config_of(tmp_path / "whole", iterations=4, num_workers=0, outer=outer)
    own = Own()
    before = copy.deepcopy(own.state_dict())
    trained = maml_rl.train(whole, policy=own).policy
    assert isinstance(trained, Own)
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    assert not torch.equal(flatten(trained), flatten(own))
    assert torch.isfinite(flatten(trained)).all()
    results = json.loads((whole.run_dir / "evaluation.json").read_text())
    assert maml_rl.evaluate(whole.run_dir, policy=Own()) == results
    with pytest.raises(
        UserError, match=r"^There is no ready-made policy for the action space [^\n]*policy=...\)\.$"
    ):
        maml_rl.evaluate(whole.run_dir)

    part = config_of(tmp_path / "part", iterations=2, num_workers=2, outer=outer)
    maml_rl.train(part, policy=own)
    resumed = maml_rl.train(dataclasses.replace(part, iterations=4, resume=True), policy=own).policy
    assert torch.equal(flatten(resumed), flatten(trained))
    assert json.loads((part.run_dir / "evaluation.json").read_text()) == results


def test_advantages_of_several_actions_are_learned(tmp_path):
    config = config_of(tmp_path, iterations=2, num_workers=0, inner_advantage="learned")
    trained = maml_rl.train(config, policy=Own()).policy
    assert torch.isfinite(flatten(trained)).all()
    assert dict(trained.named_parameters())[ADVANTAGE_NETWORK].any()


class FixedDeviation(nn.Module):
    """A linear policy whose standard deviation is a buffer."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(O, A)
        self.register_buffer("log_std", torch.full((A,), -0.5))
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations):
        mean = self.mean(observations)
        return Normal(mean, self.log_std.to(mean.dtype).expand_as(mean))


def test_derivatives_with_a_fixed_standard_deviation():
    policy, config = FixedDeviation(), Config(inner_lr=0.3, chunk_tasks=2)
    theta = flatten(policy).double()
    supports, query = (random_rollouts("normal", seed=1),), random_rollouts("normal", seed=2)
    exact = finite_differences(mean_over_tasks(objectives.surrogate, policy, supports, query, config), theta)
    torch.testing.assert_close(gradient(policy, theta, supports, query, config), exact, rtol=1e-6, atol=1e-9)
    chunks = linearise.linearise_chunks(policy, theta, supports, query, config)
    assert all(not chunk.jvp(torch.ones_like(theta)).log_std.any() for chunk in chunks)


class OwnHead(nn.Module):
    """A head of one's own under the ready-made body, which knows nothing of a task axis."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, features):
        mean = self.layer(features)
        return Normal(mean, self.log_std.expand_as(mean))


def test_a_head_of_one_s_own_keeps_tasks_apart():
    """With as many rollouts as tasks, a standard deviation could be taken for another task's unnoticed."""
    policy = MLP(2, (8,), OwnHead())
    thetas = flatten(policy) + torch.linspace(0, 1, 3)[:, None]
    observations = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    together = per_task(policy, thetas)(observations)
    for i in range(3):
        alone = act(policy, thetas[i], observations[i])
        torch.testing.assert_close(together.mean[i], alone.mean)
        torch.testing.assert_close(together.log_std[i], alone.log_std)


def as_buffer(module, name):
    value = getattr(module, name).detach().clone()
    delattr(module, name)
    module.register_buffer(name, value)


def share(policy):
    policy.body[4].weight = policy.body[2].weight


CHANGES = {
    "fixed layer": lambda policy: [as_buffer(policy.body[2], name) for name in ("weight", "bias")],
    "shared weights": share,
    "shared layer": lambda policy: policy.body.__setitem__(4, policy.body[2]),
    "fixed deviation": lambda policy: as_buffer(policy.head, "log_std"),
    "patched forward": lambda policy: setattr(policy.head, "forward", lambda x: Normal(*[x[..., :2] * 0 + 5] * 2)),
    "fixed context": lambda policy: as_buffer(policy, "context"),
    "deeper head": lambda policy: setattr(policy.head, "mean", nn.Sequential(policy.body[2], policy.head.mean)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_policy_is_not_taken_for_a_ready_made_one(change):
    policy = MLP(2, (8, 8, 8), GaussianHead(8, 2, 0.7), context_size=2)
    assert as_made(policy)
    change(policy)
    theta = flatten(policy) + torch.linspace(-0.3, 0.3, flatten(policy).numel())
    observations = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    together, alone = per_task(policy, theta[None])(observations[None]), act(policy, theta, observations)
    torch.testing.assert_close(together.mean[0], alone.mean)
    torch.testing.assert_close(together.log_std[0], alone.log_std)


@pytest.mark.parametrize(
    ("env_id", "head", "sentence"),
    [
        (
            "maml_rl/Navigation2D-v0",
            GaussianHead(8, 1, 1.0),
            r"Normal .*\(N, 1\), .* Normal .*\(N, 2\);",
        ),
        (
            "maml_rl/Navigation2D-v0",
            CategoricalHead(8, 2),
            r"a Categorical .*\(N, 2\), .* a Normal with",
        ),
        (
            "maml_rl/BernoulliBandit-v0",
            CategoricalHead(8, 3),
            r"\(N, 3\), .* a Categorical .*\(N, 5\);",
        ),
    ],
)
def test_a_policy_for_other_actions_is_refused(env_id, head, sentence, tmp_path):
    size = 2 if env_id.endswith("2D-v0") else 1
    with pytest.raises(UserError, match=sentence):
        maml_rl.train(Config(env_id=env_id, run_dir=tmp_path / "run"), policy=MLP(size, (8,), head))


def test_a_trained_policy_keeps_its_learned_rules(tmp_path):
    options = {"num_tasks": 3, "num_rollouts": 4, "horizon": 5, "hidden_sizes": (8,), "eval_every": 0}
    config = Config(
        run_dir=tmp_path / "a", iterations=1, learn_lr="layer", eval_num_tasks=2, eval_num_rollouts=2, **options
    )
    trained = maml_rl.train(config).policy
    assert dict(trained.named_parameters())[LOG_LR_FACTORS].any()
    assert torch.equal(flatten(new_policy(config, trained)), flatten(trained))
    for learn_lr in ("no", "task"):
        with pytest.raises(UserError, match="learned log_lr_factors for other options of the inner step"):
            new_policy(dataclasses.replace(config, learn_lr=learn_lr), trained)


class Buffered(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.register_buffer("fixed", torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)))
        self.head = GaussianHead(4, 2, 1.0)
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations):
        return self.head(observations @ self.fixed)


class Elsewise(MLP):
    """Other than its parent in what it does, not in its parameters."""

    def forward(self, observations):
        return super().forward(-observations)


def test_a_run_is_evaluated_with_the_policy_it_was_trained_with(tmp_path):
    options = {"num_tasks": 3, "num_rollouts": 4, "horizon": 5, "iterations": 1, "hidden_sizes": (8,)}
    options |= {"eval_num_tasks": 3, "eval_num_rollouts": 2, "eval_every": 0}
    buffered = Config(run_dir=tmp_path / "buffered", **options)
    maml_rl.train(buffered, policy=Buffered(0))
    results = json.loads((buffered.run_dir / "evaluation.json").read_text())
    assert maml_rl.evaluate(buffered.run_dir, policy=Buffered(0)) == results
    elsewise = Config(run_dir=tmp_path / "elsewise", **options)
    maml_rl.train(elsewise, policy=Elsewise(2, (8,), GaussianHead(8, 2, 1.0)))
    for run_dir, other in ((buffered.run_dir, Buffered(1)), (elsewise.run_dir, None)):
        with pytest.raises(UserError, match="holds the parameters of another policy"):
            maml_rl.evaluate(run_dir, policy=other)
    # "random" is what training began with, whatever the module given later holds.
    other = Buffered(0)
    load(other, flatten(other) + 1)
    assert maml_rl.evaluate(buffered.run_dir, policy=other) == results


def test_frozen_and_missing_parameters_are_refused(tmp_path):
    policy = MLP(2, (8,), GaussianHead(8, 2, 1.0))
    assert torch.isfinite(flatten(policy)).all()  # a ready-made part is ready
    policy.body.requires_grad_(False)
    with pytest.raises(UserError, match="frozen parameters"):
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=policy)


def with_nan():
    policy = MLP(2, (8,), GaussianHead(8, 2, 1.0))
    policy.register_buffer("unknown", torch.tensor([float("nan")]))
    return policy


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (MLP, "must be an instance of torch.nn.Module"),
        (nn.Tanh(), "has no parameters"),
        (MLP(2, (8,), GaussianHead(8, 2, 1.0)).double(), "has parameters of torch.float64; convert them"),
        (with_nan(), "has the buffer unknown, which has NaN"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), "one module under two names, '0' and '1'; keep it under one"),
    ],
)
def test_what_cannot_be_trained_is_refused(policy, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=policy)
    assert not list(tmp_path.iterdir())


class Branches(MLP):
    def forward(self, observations):
        return super().forward(observations if observations.sum() > 0 else -observations)


class Dropped(MLP):
    def forward(self, observations):
        return super().forward(torch.nn.functional.dropout(observations))


class Counts(MLP):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, observations):
        self.calls = self.calls + 1
        return super().forward(observations)


class Remembers(MLP):
    def forward(self, observations):
        self.seen = 2 * observations
        return super().forward(self.seen)


class Attention(MLP):
    def __init__(self, *args):
        super().__init__(*args)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        initialise(self, torch.Generator().manual_seed(0))

    def forward(self, observations):
        pairs = torch.stack([observations, 2 * observations], dim=-2)
        return super().forward(self.attention(pairs, pairs, pairs, need_weights=False)[0].mean(-2))


def weight_normed():
    policy = MLP(2, (8,), GaussianHead(8, 2, 1.0))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(policy.body[0])
    return policy


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Counts(2, (8,), GaussianHead(8, 2, 1.0)), "keeps a tensor from its forward pass, 'calls'"),
        (lambda: Remembers(2, (8,), GaussianHead(8, 2, 1.0)), "keeps a tensor from its forward pass, 'seen'"),
        (weight_normed, "cannot be copied .* take torch.nn.utils.parametrizations.weight_norm"),
    ],
)
def test_what_would_fail_in_the_middle_of_training_is_refused(make, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=make())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_trains_with_the_kernel_that_the_message_names(tmp_path):
    small = {"iterations": 1, "num_tasks": 2, "num_rollouts": 2, "eval_every": 0, "chunk_tasks": 1}
    small |= {"eval_num_tasks": 2, "eval_num_rollouts": 2, "eval_num_steps": 1}
    config, own = Config(run_dir=tmp_path / "run", **small), Attention(2, (8,), GaussianHead(8, 2, 1.0))
    with pytest.raises(UserError, match="cannot be differentiated twice .*inside .*sdpa_kernel"):
        maml_rl.train(config, policy=own)
    with sdpa_kernel(SDPBackend.MATH):  # in the same folder, where nothing was trained
        trained = maml_rl.train(config, policy=own).policy
    assert not torch.equal(flatten(trained), flatten(own))
    results = maml_rl.evaluate(config.run_dir, policy=own)  # without the kernel
    assert np.isfinite(results["methods"]["maml"]["mean"]).all()
    first_order = Config(run_dir=tmp_path / "first", first_order=True, outer="adam", **small)
    maml_rl.train(first_order, policy=own)


def test_actions_that_do_not_exist_must_be_ruled_out():
    space, logits = spaces.MultiDiscrete([3, 2], dtype=np.uint16), torch.zeros(5, 2, 3)
    with pytest.raises(UserError, match="may choose actions that .* set the logits .* to -1e9"):
        require_fit(MultiCategorical(logits), space)
    logits[:, 1, 2] = -1e9
    require_fit(MultiCategorical(logits), space)


@pytest.mark.parametrize("own", [Branches, Dropped])
def test_a_module_that_does_not_run_under_vmap_is_one_sentence(own, tmp_path):
    with pytest.raises(UserError, match="does not run under torch.func.vmap, .* Remove dropout"):
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=own(2, (8,), GaussianHead(8, 2, 1.0)))


def test_a_module_that_mixes_the_rows_of_a_batch_is_refused(tmp_path):
    """Acting sees as many rows as there are rollouts, and learning sees those of all steps."""
    policy = MLP(2, (8,), GaussianHead(8, 2, 1.0))
    policy.body = nn.Sequential(policy.body, nn.BatchNorm1d(8, track_running_stats=False))
    with pytest.raises(UserError, match="depends on the other observations of a batch.*LayerNorm"):
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=policy)
    policy.body[1] = nn.LayerNorm(8)
    options = {"num_tasks": 2, "num_rollouts": 2, "horizon": 3, "iterations": 1, "eval_every": 0}
    options |= {"eval_num_tasks": 2, "eval_num_rollouts": 2}
    maml_rl.train(Config(run_dir=tmp_path / "run", **options), policy=policy)


def test_a_standard_deviation_is_refused_where_actions_have_none():
    with pytest.raises(UserError, match="initial_std is 0.5, but the actions .* have no standard deviation"):
        ready_made(spaces.Box(0, 1, (3,)), spaces.Discrete(2), Config(initial_std=0.5), torch.Generator())


def test_inputs_of_another_shape_are_named(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        maml_rl.train(Config(run_dir=tmp_path / "run"), policy=MLP(3, (8,), GaussianHead(8, 2, 1.0)))
    assert caught.value.__notes__ == ["The policy gets float32 inputs of shape (N, 2)."]


class OneDeviation(nn.Module):
    """One standard deviation, a single number, for both actions."""

    def __init__(self):
        super().__init__()
        self.log_std, self.head = nn.Parameter(torch.tensor(0.0)), nn.Linear(2, 2)

    def forward(self, observations):
        mean = self.head(observations)
        return Normal(mean, self.log_std.expand_as(mean))


class OneRow(OneDeviation):
    """Leaves it to broadcasting to give each observation a standard deviation."""

    def forward(self, observations):
        return Normal(self.head(observations), self.log_std.expand(2))


@pytest.mark.parametrize("num_rollouts", [2, 4])
def test_a_standard_deviation_for_each_observation_is_needed(num_rollouts, tmp_path):
    config = Config(run_dir=tmp_path / "run", num_tasks=4, num_rollouts=num_rollouts)
    with pytest.raises(UserError, match=r"mean has shape \(2, 2\) and whose log_std has shape \(2,\).*expand_as"):
        maml_rl.train(config, policy=OneRow())


def test_a_parameter_may_be_a_single_number(tmp_path):
    options = {"num_tasks": 3, "num_rollouts": 4, "horizon": 5, "iterations": 1, "learn_lr": "parameter"}
    options |= {"eval_num_tasks": 3, "eval_num_rollouts": 2, "eval_every": 0}
    trained = maml_rl.train(Config(run_dir=tmp_path / "run", **options), policy=OneDeviation()).policy
    assert trained.log_std.shape == ()
    assert trained.log_std != 0


def test_divergence_keeps_the_last_good_checkpoint(command, tmp_path):
    arguments = ("train", *TINY, "--run-dir", "run", "--outer", "adam", "--checkpoint-every", "1")
    result = command(*arguments, "--outer-lr", "1e6", "--iterations", "4")
    assert result.returncode == 2, result.stderr
    assert "are not finite; lower" in result.stderr
    assert "Traceback" not in result.stderr
    assert torch.isfinite(torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["theta"]).all()


def test_images_with_channels_last_are_refused():
    with pytest.raises(UserError, match="channels last; put them first"):
        ready_made(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2), Config(), torch.Generator())
