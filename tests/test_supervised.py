"""Supervised families: the gradient of the loss itself, its closed form, and runs that learn from examples."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from conftest import O, make_policy, random_examples, scalars, theta_of
from gymnasium import spaces
from maml_rl.envs import BrokenEnvironmentError, SupervisedFamily, TaskEnv, make_vec
from test_inner import finite_differences, task
from torch.func import jacrev, vmap

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml.inner import adapt, inner_loss
from maml_rl.maml.objective import mean_and_gradient, outer_loss, over_tasks
from maml_rl.methods import method_of
from maml_rl.policies import MLP, GaussianHead, act, flatten
from maml_rl.runs.folder import new_policy
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.examples import as_tensors, example_sets, predict

SINUSOID = "maml_rl/Sinusoid-v0"
LEARNED = (
    "--env-id",
    SINUSOID,
    "--outer",
    "adam",
    "--activation",
    "relu",
    "--inner-lr",
    "0.01",
    "--outer-lr",
    "0.002",
)
TINY = (
    *("--num-tasks", "3", "--num-rollouts", "4", "--hidden-sizes", "8", "8", "--eval-num-tasks", "3"),
    *("--eval-num-rollouts", "2", "--eval-num-steps", "2", "--eval-every", "2"),
)


class HalvesVectorEnv(SupervisedFamily):
    """Classes of numbers: above or below the task."""

    task_space = spaces.Box(-0.5, 0.5, (1,), np.float64)
    single_observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    single_action_space = spaces.Discrete(2, start=5)
    initial_noise = 1

    def example(self, task, noise):
        x = 2 * noise - 1
        return x, 5 + (x > task)[:, 0]


class HalvesEnv(TaskEnv):
    vector_class = HalvesVectorEnv


gymnasium.register(
    "tests/Halves-v0", entry_point=HalvesEnv, vector_entry_point=HalvesVectorEnv, max_episode_steps=1
)


def test_inner_step_follows_the_gradient_of_the_loss(kind):
    policy, theta = make_policy(kind)
    support = task(random_examples(kind), 0)

    def loss(theta):
        """Example by example."""
        output = act(policy, theta, support.observations[:, 0])
        losses = []
        for k, target in enumerate(support.targets[0][:, 0]):
            if kind == "normal":
                losses.append(sum((m - t) ** 2 for m, t in zip(output.mean[k], target, strict=True)) / len(target))
            else:
                losses.append(torch.logsumexp(output.logits[k], 0) - output.logits[k, target])
        return sum(losses) / len(losses)

    gradient = finite_differences(loss, theta)
    torch.testing.assert_close(inner_loss(policy, theta, support, Config())[0], loss(theta))
    adapted = adapt(policy, theta, support, Config(inner_lr=0.3))[0]
    torch.testing.assert_close(adapted, theta - 0.3 * gradient, rtol=1e-6, atol=1e-8)
    assert (adapted - theta).abs().max() > 1e-3
    exact = finite_differences(lambda x: adapt(policy, x, support, Config(inner_lr=0.3))[0], theta)
    second = jacrev(lambda x: adapt(policy, x, support, Config(inner_lr=0.3))[0])(theta)
    torch.testing.assert_close(second, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"num_steps": 0}, {"learn_lr": "parameter"}], ids=str)
def test_outer_gradient_is_that_of_the_loss_after_adaptation(kind, options):
    config = Config(inner_lr=0.3, outer="adam", **options)
    policy, theta = make_policy(kind)
    if config.learn_lr != "no":
        from maml_rl.maml.step_sizes import prepare

        prepare(policy, config, O, 3)
        theta = torch.cat([theta, torch.linspace(-0.5, 0.5, len(theta), dtype=torch.float64)])
    support, query = random_examples(kind), random_examples(kind, seed=1)
    data = ((support,) * config.num_steps, query, torch.zeros(3, dtype=torch.float64))

    def one(policy, *data):
        return outer_loss(policy, *data, config)[0]

    def value(theta):
        return vmap(lambda *data: one(policy, theta, *data))(*data).mean()

    loss, gradient = mean_and_gradient(over_tasks(one), policy, theta, data, config)
    assert loss == pytest.approx(value(theta).item())
    torch.testing.assert_close(gradient, finite_differences(value, theta), rtol=1e-5, atol=1e-8)


def test_a_linear_model_adapts_as_calculated():
    """Least squares: w' = w - 2α/K Xᵀ(X w - y)."""
    policy = MLP(3, (), GaussianHead(3, 1, 0.7))
    support = task(random_examples("normal", num_rollouts=6), 0)
    x = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = support.targets[0][..., :1]
    support = support._replace(observations=x, targets=(y,))
    theta = torch.tensor([0.3, 0.5, -1.0, 2.0, 0.1], dtype=torch.float64)  # log σ, weights, bias
    inputs = torch.cat([x[:, 0], torch.ones(6, 1, dtype=torch.float64)], dim=1)
    step = 0.2 / 6 * 2 * inputs.T @ (inputs @ theta[1:, None] - y[:, 0])
    adapted = adapt(policy, theta, support, Config(inner_lr=0.2))[0]
    torch.testing.assert_close(adapted, theta - torch.cat([torch.zeros(1), step[:, 0]]))


@pytest.mark.parametrize("env_id", [SINUSOID, "tests/Halves-v0"])
def test_examples_agree_with_the_environment(env_id):
    """Each example is one that stepping could show: its reward is -L of the same input and target."""
    env = make_vec(env_id, 40)
    tasks = np.repeat(env.sample_tasks(2, np.random.default_rng(0)), 20, axis=0)
    observations, _ = env.reset(seed=3, options={"task": tasks})
    noise = np.stack([np.random.Generator(np.random.Philox(key=[3 + i, 0])).random(1) for i in range(40)])
    inputs, targets = env.example(tasks, noise)
    np.testing.assert_array_equal(observations, inputs.astype(np.float32))
    numbers = env_id == SINUSOID
    wrong = targets + 1.5 if numbers else 11 - targets
    env.action_space.seed(0)
    for actions, expected in ((targets, 0.0), (wrong, -2.25 if numbers else -1.0)):
        env.reset(seed=3)
        _, rewards, _, truncated, _ = env.step(actions)
        np.testing.assert_allclose(rewards, expected)
        assert truncated.all()
    x, y = env.examples(tasks[::20], 500, np.random.default_rng(1))
    assert x.shape == (2, 500, 1)
    assert y.shape == (2, 500, 1)[: 3 if numbers else 2]
    low, high = env.single_observation_space.low, env.single_observation_space.high
    assert (x.min((0, 1)) < low + 0.05 * (high - low)).all()
    assert (x.max((0, 1)) > high - 0.05 * (high - low)).all()
    if env_id == SINUSOID:
        a, b = tasks[::20].T[..., None, None]
        np.testing.assert_allclose(y, a * np.sin(x - b))


def test_predictions_are_scored_by_the_loss_without_noise():
    env = make_vec(SINUSOID, 1)
    config = Config(env_id=SINUSOID, outer="adam", hidden_sizes=(8,), observe_task=True, num_steps=0)
    policy = method_of(config).make_policy(env, torch.Generator().manual_seed(0))
    tasks = env.sample_tasks(3, np.random.default_rng(0))
    x, y = as_tensors(env, *env.examples(tasks, 5, np.random.default_rng(1)))
    seen = torch.from_numpy(tasks).float()
    rollouts = predict(TaskPolicies(policy, flatten(policy).expand(3, -1), seen), x, y)
    with torch.no_grad():
        mean = policy(torch.cat([x, seen[:, None].expand(3, 5, 2)], -1)).mean
    torch.testing.assert_close(rollouts.actions[:, :, 0], mean)
    torch.testing.assert_close(rollouts.rewards[..., 0], -((mean - y) ** 2)[..., 0])
    torch.testing.assert_close(rollouts.returns(), -((mean - y) ** 2).mean((1, 2)))


def test_all_steps_use_the_same_examples_and_are_measured_on_others():
    env = make_vec(SINUSOID, 12)
    config = Config(env_id=SINUSOID, outer="adam", hidden_sizes=(8,), inner_lr=0.05, num_steps=3)
    method = method_of(config)
    policy = method.make_policy(env, torch.Generator().manual_seed(0))
    theta, tasks = flatten(policy), env.sample_tasks(3, np.random.default_rng(0))
    first, *later = method.collect(env, policy, theta, tasks, 4, np.random.SeedSequence(5))
    assert len(later) == 3
    for phase in later:
        assert torch.equal(phase.observations, later[0].observations)
        assert not torch.isin(phase.observations, first.observations).any()
    thetas = theta.expand(3, -1)
    for phase in later:
        thetas = vmap(lambda theta, support: adapt(policy, theta, support, config)[0])(thetas, first)
        expected = vmap(lambda theta, query: act(policy, theta, query.observations.flatten(0, 1)).mean)(
            thetas, phase
        )
        torch.testing.assert_close(phase.actions.flatten(1, 2), expected)
    actor = method.adapted(policy, theta, [first, *later[:-1]], [1.0] * 3)
    torch.testing.assert_close(actor.thetas, thetas)


def test_a_run_learns_from_examples_and_is_read_back(command, tmp_path):
    result = command("train", *LEARNED, *TINY, "--run-dir", "run", "--iterations", "4")
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert results == maml_rl.evaluate(tmp_path / "run")
    curve = results["methods"]["maml"]
    assert np.shape(curve["returns"]) == (3, 3)
    assert curve["env_steps"] == [0.0, 2.0, 2.0]  # examples that a task's learner has seen
    assert "success" not in curve
    tags = scalars(tmp_path / "run")
    assert [step for step, _ in tags["train/return_step_1"]] == [24, 48, 72, 96]
    assert {"train/return_step_0", "eval/return_step_2", "outer/surrogate_before"} <= tags.keys()
    assert all(np.isfinite(value) for points in tags.values() for _, value in points)
    assert (tmp_path / "run/adaptation.png").exists()
    result = command("evaluate", "run", "--num-rollouts", "5", "--num-steps", "3")
    assert result.returncode == 0, result.stderr
    result = command("render", "run")
    assert result.returncode == 2
    assert "learns from examples, and has no episodes to film" in result.stderr
    result = command("compare", "run")
    assert result.returncode == 0, result.stderr


def test_a_run_is_continued_bit_for_bit(command, tmp_path):
    for folder, iterations in (("whole", 4), ("parts", 2)):
        run = ("train", *LEARNED, *TINY, "--run-dir", folder, "--iterations", iterations)
        assert command(*run).returncode == 0
    assert command("train", "--resume", "parts", "--iterations", "4").returncode == 0
    assert torch.equal(theta_of(tmp_path / "parts"), theta_of(tmp_path / "whole"))
    one, other = ((tmp_path / name / "evaluation.json").read_text() for name in ("whole", "parts"))
    assert one == other


METHODS = {
    "fomaml": {"first_order": True},
    "reptile": {"outer": "reptile", "num_steps": 2, "outer_lr": 0.5},
    "meta-sgd": {"learn_lr": "parameter"},
    "learned step": {"learn_lr": "task"},
    "anil": {"adapt_only": "head"},
    "cavia": {"adapt_only": "context", "context_size": 2},
    "pretrain": {"num_steps": 0},
    "oracle": {"num_steps": 0, "observe_task": True},
    "policy gradient": {"policy_gradient": True, "outer": "trpo", "outer_lr": Config.outer_lr},
    "rl2": {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo", "hidden_sizes": (8,)},
}


@pytest.mark.parametrize("env_id", [SINUSOID, "tests/Halves-v0"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method, env_id, tmp_path):
    common = {"num_tasks": 3, "num_rollouts": 4, "hidden_sizes": (8,), "eval_num_tasks": 3, "eval_num_rollouts": 2}
    common |= {"outer": "adam", "outer_lr": 0.01, "eval_num_steps": 2, "eval_every": 0, "iterations": 2}
    config = Config(run_dir=tmp_path / "run", env_id=env_id, **(common | METHODS[method]))
    policy = maml_rl.train(config).policy
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    assert results == maml_rl.evaluate(config.run_dir)
    curve = results["methods"][method_of(config).name]
    assert np.isfinite(curve["returns"]).all()
    assert ("success" in curve) == ("Halves" in env_id and method not in ("policy gradient", "rl2"))
    assert not torch.equal(flatten(policy), flatten(new_policy(config)))
    if method in ("policy gradient", "rl2"):
        with pytest.raises(
            UserError, match=r"This run learns from rewards; call adapt\(env\) with an environment"
        ):
            maml_rl.load(config.run_dir).adapt((np.zeros((2, 1)), np.zeros((2, 1))))
        maml_rl.load(config.run_dir).adapt(gymnasium.make(env_id))


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_training_makes_steps_worth_more(first_order, tmp_path):
    """The untrained network gains little by the same steps; examples must reach both losses for that."""
    config = Config(
        env_id="tests/Halves-v0", run_dir=tmp_path / "run", hidden_sizes=(16,), inner_lr=1.0, outer="adam",
        outer_lr=0.01, iterations=60, num_tasks=20, num_rollouts=10, first_order=first_order, eval_every=0,
        eval_num_tasks=100, eval_num_rollouts=10, eval_num_steps=2, eval_lr_factors=(1.0,),
    )  # fmt: skip
    maml_rl.train(config)
    methods = json.loads((config.run_dir / "evaluation.json").read_text())["methods"]
    assert methods["maml"]["success_mean"][1] > max(methods["random"]["success_mean"][1], 0.7)
    assert methods["maml"]["mean"][1] > methods["maml"]["mean"][0] + 0.1


def test_a_loaded_run_adapts_to_examples(tmp_path):
    config = Config(
        env_id=SINUSOID, run_dir=tmp_path / "run", hidden_sizes=(8,), inner_lr=0.05, outer="adam", iterations=1,
        num_tasks=3, num_rollouts=4, eval_num_tasks=2, eval_every=0, eval_lr_factors=(1.0, 0.5),
    )  # fmt: skip
    maml_rl.train(config)
    run = maml_rl.load(config.run_dir)
    x = np.linspace(-4, 4, 6)[:, None]
    y = 3 * np.sin(x)
    theta = flatten(run.policy).requires_grad_()
    expected = theta
    for factor in (1.0, 0.5):
        loss = (
            (act(run.policy, expected, torch.from_numpy(x).float()).mean - torch.from_numpy(y).float())
            .square()
            .mean()
        )
        expected = expected - 0.05 * factor * torch.autograd.grad(loss, expected, retain_graph=True)[0]
    adapted = run.adapt((x, y), num_steps=2)
    predictions = adapted(np.linspace(-5, 5, 11)[:, None], deterministic=True)
    wanted = act(run.policy, expected, torch.linspace(-5, 5, 11)[:, None]).mean
    np.testing.assert_allclose(predictions, wanted.detach().numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"This run learns from examples; call adapt\(\(inputs, targets\)\)"):
        run.adapt(gymnasium.make(SINUSOID))
    with pytest.raises(UserError, match=r"targets of a task have shape \(5, 1\), but must have \(6, 1\)"):
        run.adapt((x, y[:5]))
    with pytest.raises(UserError, match="inputs of examples are not all finite; correct them"):
        run.adapt((x * np.nan, y))
    with pytest.raises(UserError, match="num_rollouts is 7, but every step uses all examples"):
        run.adapt((x, y), num_rollouts=7)
    with pytest.raises(UserError, match="is not finite, or not in its space"):
        adapted([[np.nan]])
    for wrong, shape in ((3.0, r"\(\)"), (x[0], r"\(1,\)")):
        with pytest.raises(UserError, match=rf"inputs have shape {shape}, but must have shape \(n, 1\): a value"):
            adapted(wrong)
    with pytest.raises(UserError, match="The examples are not arrays"):
        run.adapt(([[1.0], [2.0, 3.0]], y[:2]))
    for wrong in (x.astype(str), x + 1j, x.astype(object)):
        with pytest.raises(UserError, match="inputs of examples are of type .*, but must be real numbers"):
            run.adapt((wrong, y))
    for several in ((x,), (x, y, y), (x[:0], y[:0])):
        with pytest.raises(UserError, match="must be a pair of inputs and targets, with at least one of each"):
            run.adapt(several)


def test_images_are_integers():
    """Scaled ones would be divided by 255 again."""
    env = gymnasium.make_vec("maml_rl/Glyphs-v0", num_envs=1)
    inputs, targets = env.unwrapped.examples(
        env.unwrapped.sample_tasks(1, np.random.default_rng(0)), 10, np.random.default_rng(0)
    )
    with pytest.raises(UserError, match="inputs of examples are float32 numbers, but must be integers"):
        as_tensors(env.unwrapped, inputs.astype(np.float32) / 255, targets)


def test_discrete_inputs_outside_their_space_are_refused():
    env = gymnasium.make_vec(SINUSOID, num_envs=1).unwrapped
    env.single_observation_space = spaces.Discrete(3)
    inputs, targets = np.array([[0, 2]]), np.zeros((1, 2, 1))
    torch.testing.assert_close(as_tensors(env, inputs, targets)[0], torch.eye(3)[[0, 2]].unsqueeze(0))
    with pytest.raises(UserError, match=r"inputs of examples are not all in Discrete\(3\); correct them"):
        as_tensors(env, inputs + 1, targets)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--outer", "trpo"), "without probabilities of actions; choose outer adam or reptile, or learn it from"),
        (("--outer", "ppo"), "without probabilities of actions; choose outer adam or reptile, or learn it from"),
        (("--horizon", "2"), "horizon is 2, but an example of maml_rl/Sinusoid-v0 is one step"),
        (("--estimator", "lvc"), "estimator is 'lvc', but maml_rl/Sinusoid-v0 is learned from examples"),
        (("--env-id", "maml_rl/Navigation2D-v0", "--policy-gradient"), "leave policy_gradient out"),
        (
            ("--outer", "trpo", "--policy-gradient", "--num-rollouts", "1"),
            "single reward has nothing to be compared",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, sentence, command):
    result = command("train", "--env-id", SINUSOID, "--outer", "adam", "--iterations", "1", *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("inputs", "targets", "sentence"),
    [
        ((4, 2), (4,), r"example \(its inputs\) returned an array of shape \(4, 2\), but must .* \(4, 1\)"),
        ((4, 1), (4, 1), r"example \(its targets\) returned an array of shape \(4, 1\), but must .* \(4,\)"),
        ((4, 1), (4,), r"targets that are not all classes of Discrete\(2, start=5\); fix the family"),
    ],
)
def test_examples_of_another_shape_are_refused_where_rewards_are_learned_from(inputs, targets, sentence):
    class Wrong(HalvesVectorEnv):
        def example(self, task, noise):
            return np.zeros(inputs), np.zeros(targets)

    with pytest.raises(BrokenEnvironmentError, match=sentence):
        Wrong(4).reset(seed=0)


def test_errors_in_an_example_of_one_s_own_keep_their_traceback():
    class Wrong(HalvesVectorEnv):
        def example(self, task, noise):
            return noise @ np.zeros((7, 1)), noise

    with pytest.raises(ValueError, match="mismatch in its core dimension"):
        example_sets(Wrong(4), np.zeros((4, 1)), 3, np.random.SeedSequence(0))


@pytest.mark.parametrize("low", [-1.0, -np.inf])
def test_predictions_without_a_loss_are_refused(low):
    class Wrong(HalvesVectorEnv):
        single_action_space = spaces.Box(low, 1.0, (1,), np.float32)

    with pytest.raises(ValueError, match="predictions must be an unbounded, one-dimensional Box"):
        Wrong(2)
