"""Shared helpers: synthetic rollouts in float64, and runs through the real command line."""

import os

# Torch's threads otherwise spin while they wait, on cores that other tests need. Importing torch reads it.
os.environ["GOMP_SPINCOUNT"] = "0"

import contextlib
import io
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import misbehaving  # registers families of its own
import pytest
import torch
from maml_rl.envs import families, num_cores
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import maml_rl
from maml_rl import Config
from maml_rl.cli import main
from maml_rl.methods import method_of
from maml_rl.policies import MLP, Categorical, CategoricalHead, GaussianHead, Normal, flatten, initialise
from maml_rl.results import plots
from maml_rl.runs.checkpoint import load_checkpoint
from maml_rl.runs.folder import load_config, new_policy
from maml_rl.sampling.actors import TaskPolicies
from maml_rl.sampling.collect import collect_rollouts
from maml_rl.sampling.rollouts import Rollouts

torch.set_num_threads(1)  # pytest-xdist already uses every core
# Drawing rollouts of several tasks took a sixth of the time of tests that train a little.
plots.SHOWN_TASKS = 1
# A shell's background job ignores Ctrl-C, and so would the runs that tests start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
ROOT = Path(__file__).parents[1]
O, A = 2, 3
# All registered families but those that break the contract on purpose; the slow ones draw their goals for up
# to half a minute in each process, so that they take part in the test of the whole contract alone. Two need files.
NEED_FILES = {"maml_rl/Omniglot-v0", "maml_rl/ImageFolder-v0"}
FAMILIES = [env_id for env_id in families() if env_id not in misbehaving.ON_PURPOSE | NEED_FILES]
SLOW_FAMILIES = ("maml_rl/ML10-v0", "maml_rl/ML45-v0")
QUICK_FAMILIES = [env_id for env_id in FAMILIES if env_id not in SLOW_FAMILIES]


def pytest_addoption(parser):
    parser.addoption(
        "--whole-episodes", action="store_true", help="compare Meta-World's manipulations over 500 steps"
    )


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, because some tests wait for processes that hang or end."""
    return num_cores() + 1


def make_policy(kind, seed=0, context_size=0):
    policy = MLP(O, (4,), GaussianHead(4, A, 0.7) if kind == "normal" else CategoricalHead(4, A), context_size)
    initialise(policy, torch.Generator().manual_seed(seed))
    return policy, flatten(policy).double()


def random_rollouts(kind, num_tasks=3, num_rollouts=4, horizon=5, seed=0):
    """Rollouts of made-up numbers in float64; episodes end at different steps."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(num_tasks, num_rollouts, horizon, *shape, generator=g, dtype=torch.float64)

    if kind == "normal":
        behaviour = Normal(randn(A), 0.3 * randn(A))
        actions = behaviour.mean + behaviour.log_std.exp() * randn(A)
    else:
        behaviour = Categorical(randn(A))
        actions = torch.randint(A, (num_tasks, num_rollouts, horizon), generator=g)
    length = torch.randint(min(2, horizon), horizon + 1, (num_tasks, num_rollouts, 1), generator=g)
    mask = torch.arange(horizon) < length
    return Rollouts(
        observations=randn(O),
        actions=actions,
        rewards=randn() * mask,
        mask=mask,
        behaviour=behaviour,
        log_probs=behaviour.log_prob(actions),
        advantages=randn() * mask,
        advantage_scale=torch.ones(num_tasks, dtype=torch.float64),
        success=torch.full((num_tasks, num_rollouts), torch.nan),
        failed=torch.zeros(num_tasks, num_rollouts, dtype=torch.bool),
    )


def random_examples(kind, **shape):
    """Rollouts in float64 with targets: of one step, all of them taken."""
    rollouts = random_rollouts(kind, horizon=1, **shape)
    g = torch.Generator().manual_seed(7)
    if kind == "normal":
        targets = torch.randn(rollouts.actions.shape, generator=g, dtype=torch.float64)
    else:
        targets = rollouts.actions.flip(1)
    return rollouts._replace(targets=(targets,))


def collect(env, policy, thetas, tasks, seeds):
    """Rollouts of each task under its own parameters."""
    return collect_rollouts(env, TaskPolicies(policy, thetas), tasks, env.num_envs // len(tasks), seeds)


def phases(env, policy, theta, tasks, lr_factors, config, seeds):
    """What the method of some options collects in all environments."""
    num_rollouts = env.num_envs // len(tasks)
    return method_of(config).collect(env, policy, theta, tasks, num_rollouts, seeds, lr_factors)


@pytest.fixture(params=["normal", "categorical"])
def kind(request):
    return request.param


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs a command line in an empty folder, with the families of misbehaving.py in reach.

    It runs in this process, because a new one spends most of its time importing torch. Scripts, commands with
    an environment of their own, and those that must be `fresh` get a process of their own.
    """

    def run(*arguments, script=None, fresh=False, **environment):
        arguments = [*map(str, arguments)]
        if script or fresh or environment:
            front = [str(ROOT / script)] if script else ["-m", "maml_rl"]
            paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
            return subprocess.run(
                [sys.executable, *front, *arguments],
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", ["maml-rl", *arguments])
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(threading, "excepthook", threading.excepthook)
            with (
                contextlib.redirect_stdout(io.StringIO()) as out,
                contextlib.redirect_stderr(io.StringIO()) as err,
            ):
                try:
                    main()
                except SystemExit as end:
                    code = end.code
                except Exception:
                    traceback.print_exc()
                    code = 1
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


TINY = (
    *("--num-tasks", "3", "--num-rollouts", "4", "--horizon", "5", "--hidden-sizes", "8"),
    *("--eval-num-tasks", "3", "--eval-num-rollouts", "2", "--eval-num-steps", "2", "--eval-every", "2"),
)

MISBEHAVING = ("--env-id", "misbehaving:tests/Misbehaving-v0")


def scalars(run_dir):
    """Every tag's (step, value) pairs, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def theta_of(run_dir):
    return load_checkpoint(run_dir, new_policy(load_config(run_dir))).theta


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of 6 iterations, trained in this process."""
    config = Config(
        env_id="misbehaving:tests/Misbehaving-v0",
        run_dir=tmp_path_factory.mktemp("finished") / "run",
        iterations=6,
        num_tasks=3,
        num_rollouts=4,
        horizon=5,
        hidden_sizes=(8,),
        eval_num_tasks=3,
        eval_num_rollouts=2,
        eval_num_steps=2,
        eval_every=2,
        checkpoint_every=2,
    )
    return config, maml_rl.train(config).policy
