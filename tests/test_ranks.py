"""Runs of several processes: they agree with one process, and if one of them fails, all end and can go on."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import ranked
import torch
from conftest import MISBEHAVING, ROOT, TINY, scalars

from maml_rl import ranks
from maml_rl.policies.parameters import OBSERVATION_STATISTICS

DOOMED = (
    *("-m", "maml_rl", "train", "--env-id", "ranked:tests/Doomed-v0", "--num-tasks", "5", "--num-rollouts", "4"),
    *("--hidden-sizes", "8", "--iterations", "6", "--eval-every", "0", "--eval-num-tasks", "4"),
    *("--eval-num-rollouts", "3", "--eval-num-steps", "1", "--checkpoint-every", "1", "--worker-timeout", "3"),
)


def torchrun(folder, num_ranks, *arguments, **environment):
    """Runs a command in several processes."""
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "DOOM": "none", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def states(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def parts_of(state, which="theta"):
    """θ without the statistics of observations, whose numbers would hide differences, and these, in a list."""
    # The first entry of the layout is the class.
    sizes = {name: math.prod(shape) for name, *shape in state["layout"] if shape}
    parts = dict(zip(sizes, state[which].split([*sizes.values()]), strict=True))
    statistics = [parts.pop(OBSERVATION_STATISTICS)] if OBSERVATION_STATISTICS in parts else []
    return torch.cat([*parts.values()]), statistics


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    ranked.train_all(folder)
    return folder


@pytest.mark.parametrize(("num_tasks", "num_ranks"), [(5, 1), (5, 2), (7, 3), (4, 4)])
def test_every_task_belongs_to_one_rank(num_tasks, num_ranks, monkeypatch):
    monkeypatch.setattr(ranks, "_size", num_ranks)
    rows = []
    for rank in range(num_ranks):
        monkeypatch.setattr(ranks, "_rank", rank)
        assert ranks.size(num_tasks) >= num_tasks // num_ranks
        rows += range(num_tasks)[ranks.share(num_tasks)]
    assert rows == [*range(num_tasks)]


def test_ranks_agree_with_one_process(alone, tmp_path):
    result = torchrun(tmp_path, 3, ROOT / "tests/ranked.py", tmp_path)
    assert result.returncode == 0, result.stderr
    for method in ranked.METHODS:
        after_first = [torch.load(folder / method / "first.pt", weights_only=True) for folder in (tmp_path, alone)]
        first = [parts_of(state)[0] for state in after_first]
        ours, theirs = states(tmp_path / method), states(alone / method)
        assert ours["env_steps"] == theirs["env_steps"]
        assert torch.equal(ours["untrained"], theirs["untrained"])
        untrained = parts_of(theirs, "untrained")[0]
        assert (first[0] - first[1]).norm() < 1e-5 * (first[1] - untrained).norm(), method
        (theta, statistics), (their_theta, their_statistics) = parts_of(ours), parts_of(theirs)
        assert (theta - their_theta).norm() < 0.01 * (their_theta - untrained).norm(), method
        torch.testing.assert_close(statistics, their_statistics, rtol=1e-3, atol=1e-3)
        assert len(statistics) == ("normalise_observations" in ranked.METHODS[method])
        evaluations = [
            json.loads((folder / method / "evaluation.json").read_text()) for folder in (tmp_path, alone)
        ]
        assert evaluations[0]["tasks"] == evaluations[1]["tasks"]
        untrained = [evaluation["methods"]["random"] for evaluation in evaluations]
        np.testing.assert_allclose(untrained[0]["returns"], untrained[1]["returns"], rtol=1e-4)
        assert untrained[0]["env_steps"] == untrained[1]["env_steps"]
        curves = [scalars(folder / method) for folder in (tmp_path, alone)]
        assert curves[0].keys() == curves[1].keys()
        for tag, points in curves[0].items():
            if not tag.startswith("time/"):
                assert points[0] == pytest.approx(curves[1][tag][0], rel=1e-3, abs=1e-5), tag
        assert len(list((tmp_path / method).glob("events*"))) == 1


def test_a_killed_process_ends_the_others_and_torchrun_goes_on_to_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = torchrun(tmp_path, 2, *DOOMED, "--run-dir", whole)
    assert result.returncode == 0, result.stderr
    result = torchrun(tmp_path, 2, "--max-restarts", "1", *DOOMED, "--run-dir", parts, DOOM="kill")
    assert result.returncode == 0, result.stderr
    assert "was killed, or it hangs" in result.stderr
    assert "Rank 1 (process " in result.stderr
    assert torch.equal(states(whole)["theta"], states(parts)["theta"])
    assert (whole / "evaluation.json").read_text() == (parts / "evaluation.json").read_text()


@pytest.mark.parametrize(
    ("doom", "sentence"),
    [("nan", "Rank 1 stopped: .* the reward at step 0"), ("hang", "Rank 1 .process .* hangs")],
)
def test_a_process_that_fails_or_hangs_is_named(doom, sentence, tmp_path):
    result = torchrun(tmp_path, 2, *DOOMED, "--run-dir", tmp_path / "run", DOOM=doom)
    assert result.returncode != 0
    assert re.search(sentence, result.stderr), result.stderr
    assert states(tmp_path / "run")["iteration"] == 3  # before the seventh reset
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout
    assert not running


def test_a_process_that_dies_before_all_are_connected_ends_the_others(tmp_path):
    (tmp_path / "early.py").write_text(
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    time.sleep(8)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "from maml_rl.cli import main\n"
        f"sys.argv = ['maml-rl', 'train', '--run-dir', {str(tmp_path / 'run')!r}]\n"
        "main()\n"
    )
    result = torchrun(tmp_path, 2, "early.py")
    assert result.returncode != 0
    assert f"exitcode  : -{int(signal.SIGTERM)} " in result.stderr  # not SIGKILL, after 30 seconds


def test_a_variable_of_another_launcher_does_not_silence_a_run(command, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = command("train", *TINY, *MISBEHAVING, "--iterations", 0, "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    assert "return after" in result.stdout


def test_too_many_processes_are_refused(command, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "3"}.items():  # as torchrun does
        monkeypatch.setenv(name, value)
    result = command("train", "--run-dir", "run", "--num-tasks", "2")
    assert result.returncode == 2
    assert "num_tasks is 2, but there are 3 processes, and each needs a task" in result.stderr
