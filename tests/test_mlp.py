"""The derivatives written out, against automatic differentiation of the same policy."""

from functools import partial

import pytest
import torch
from conftest import A, O, random_examples, random_rollouts
from torch.utils._pytree import tree_leaves, tree_map

from maml_rl.config import Config
from maml_rl.maml import linearise, mlp
from maml_rl.maml.inner import adapt
from maml_rl.maml.step_sizes import prepare
from maml_rl.policies import MLP, CategoricalHead, GaussianHead, flatten, initialise, unflatten
from maml_rl.policies.batched import as_made

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class Differentiated(MLP):
    """The same policy, but not one that derivatives are written out for."""


def policies(kind, hidden_sizes, config):
    width = hidden_sizes[-1] if hidden_sizes else O + config.context_size
    made = []
    for kind_of_policy in (MLP, Differentiated):
        head = GaussianHead(width, A, 0.7) if kind == "normal" else CategoricalHead(width, A)
        policy = kind_of_policy(O, hidden_sizes, head, config.context_size, ACTIVATIONS[config.activation])
        initialise(policy, torch.Generator().manual_seed(0))
        prepare(policy, config, O, A)
        made.append(policy)
    assert [as_made(policy) for policy in made] == [True, False]
    return made


def problem(policy, num_steps, data=random_rollouts):
    """θ whose every entry counts, supports and a query."""
    g = torch.Generator().manual_seed(3)
    theta = flatten(policy).double()
    return theta + 0.3 * torch.randn(len(theta), generator=g, dtype=theta.dtype), [
        data("normal" if isinstance(policy.head, GaussianHead) else "categorical", seed=seed)
        for seed in range(num_steps + 1)
    ]


@pytest.mark.parametrize("hidden_sizes", [(), (4,), (5, 4), (5, 4, 3)], ids=str)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
@pytest.mark.parametrize("cg_iterations", [1, 10], ids=["few products", "many products"])
def test_every_depth(kind, hidden_sizes, num_steps, cg_iterations):
    compare(kind, hidden_sizes, num_steps, cg_iterations=cg_iterations)


@pytest.mark.parametrize(
    "options",
    [
        {"first_order": True},
        {"learn_lr": "one"},
        {"learn_lr": "layer"},
        {"learn_lr": "parameter", "first_order": True},
        {"adapt_only": "head"},
        {"estimator": "dice", "learn_lr": "parameter", "adapt_only": "body"},
        {"estimator": "lvc", "adapt_only": "head", "learn_lr": "layer"},
        {"learn_lr": "task"},
        {"learn_lr": "task", "first_order": True},
        {"inner_advantage": "learned"},
        {"inner_advantage": "learned", "first_order": True},
        {"inner_advantage": "learned", "learn_lr": "task", "estimator": "dice"},
    ],
    ids=str,
)
def test_every_option_of_the_inner_step(kind, options):
    compare(kind, (5, 4), 2, **options)


@pytest.mark.parametrize("hidden_sizes", [(), (5, 4), (5, 4, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"learn_lr": "parameter"}, {"first_order": True}], ids=str)
@pytest.mark.parametrize("data", [random_rollouts, random_examples])
def test_relu_layers(kind, hidden_sizes, options, data):
    compare(kind, hidden_sizes, 2, data, activation="relu", **options)


@pytest.mark.parametrize("hidden_sizes", [(), (5, 4)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("data", [random_rollouts, random_examples])
@pytest.mark.parametrize(
    "options",
    [{}, {"adapt_only": "context", "learn_lr": "task"}, {"first_order": True}, {"estimator": "lvc"}],
    ids=str,
)
def test_context(kind, hidden_sizes, activation, data, options):
    compare(kind, hidden_sizes, 2, data, activation=activation, context_size=3, **options)


@pytest.mark.parametrize(
    "sizes", [(300, 5, 4), (300, 9, 4), (300, 4, 9), (3, 300, 9), (300, 9, 10), (5, 4, 3)], ids=str
)
def test_products_of_any_shape(sizes):
    """Long and narrow matrices go to NumPy, and the others to torch."""
    a, b, c = sizes
    g = torch.Generator().manual_seed(0)
    left, right, total = (torch.randn(2, *size, generator=g).double() for size in ((a, b), (c, b), (a, c)))
    expected = torch.einsum("mab,mcb->mac", left, right)
    torch.testing.assert_close(mlp.bmm(left, right.mT), expected)
    torch.testing.assert_close(mlp.add_bmm(total.clone(), left, right.mT), total + expected)
    torch.testing.assert_close(mlp.summed_outer(left.mT, right.mT), expected)


def test_many_rows():
    compare("normal", (5, 4), 1, partial(random_rollouts, num_rollouts=60))


def test_examples_and_tanh(kind):
    compare(kind, (5, 4), 2, random_examples)


def test_adapting_many_tasks_equals_adapting_each(kind):
    config = Config(inner_lr=0.4, learn_lr="layer")
    for policy in policies(kind, (5, 4), config):
        theta, (support,) = problem(policy, 0)
        thetas = theta + torch.arange(3.0).double()[:, None] / 10
        together = linearise.adapt_tasks(policy, thetas, support, config, 0.5)
        each = [adapt(policy, thetas[i], tree_map(lambda x, i=i: x[i], support), config, 0.5)[0] for i in range(3)]
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-9, atol=1e-12)


def test_a_step_size_of_its_own_for_the_standard_deviation():
    compare("normal", (5, 4), 2, log_std_lr=0.02, estimator="lvc")


def test_a_standard_deviation_at_its_bound_does_not_move():
    config = Config(chunk_tasks=3)
    policy, _ = policies("normal", (4,), config)
    theta, (query,) = problem(policy, 0)
    unflatten(policy, theta)["head.log_std"].fill_(-20.0)  # a view
    (chunk,) = linearise.linearise_chunks(policy, theta, (), query, config)
    pulled = unflatten(policy, chunk.vjp(tree_map(torch.ones_like, chunk.outputs)))
    assert not pulled["head.log_std"].any()
    assert pulled["head.mean.bias"].all()
    assert not chunk.jvp(torch.ones_like(theta)).log_std.any()


def test_a_policy_that_was_changed_is_not_covered():
    policy = MLP(O, (5, 4), GaussianHead(4, A, 0.7))
    assert as_made(policy)
    policy.body[1] = torch.nn.ReLU()
    assert not as_made(policy)
    policy.body[1] = torch.nn.Tanh()
    assert as_made(policy)
    hook = policy.body[0].register_forward_pre_hook(lambda module, inputs: None)
    assert not as_made(policy)
    hook.remove()
    policy.scale_weight = torch.nn.Parameter(torch.ones(1))
    assert not as_made(policy)
    assert not as_made(MLP(O, (4,), torch.nn.Linear(4, A)))


def compare(kind, hidden_sizes, num_steps, data=random_rollouts, **options):
    config = Config(inner_lr=0.4, chunk_tasks=2, **options)
    results = []
    for policy in policies(kind, hidden_sizes, config):
        theta, (*supports, query) = problem(policy, num_steps, data)
        chunks = linearise.linearise_chunks(policy, theta, tuple(supports), query, config)
        g = torch.Generator().manual_seed(5)
        tangent = torch.randn(len(theta), generator=g, dtype=theta.dtype)
        of_outputs = [
            tree_map(lambda x, g=g: torch.randn(x.shape, generator=g, dtype=x.dtype), chunk.outputs)
            for chunk in chunks
        ]
        pulled = [chunk.vjp(u) for chunk, u in zip(chunks, of_outputs, strict=True)]
        figures = torch.tensor(
            linearise.outer_objective(policy, theta, tuple(supports), query, config), dtype=torch.float64
        )
        results.append(
            tree_leaves(
                [[chunk.outputs for chunk in chunks], [chunk.jvp(tangent) for chunk in chunks], pulled, figures]
            )
        )
    for written_out, differentiated in zip(*results, strict=True):
        torch.testing.assert_close(written_out, differentiated, rtol=1e-9, atol=1e-12)
