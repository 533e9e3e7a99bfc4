"""`maml-rl sweep`: which runs it starts, how it goes on, and what it says when one fails."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import MISBEHAVING, TINY

from maml_rl import Config, UserError
from maml_rl.cli import _options
from maml_rl.runs.folder import load_config
from maml_rl.sweep import combinations, is_finished, planned

SMALL = (*TINY, "--eval-every", "0", "--iterations", "2")


def test_every_combination_has_a_name_and_a_command_line():
    words = "--inner-lr 0.1 0.5 --num-steps=2 --hidden-sizes 8 8 --hidden-sizes 4 --first-order --no-first-order"
    found = combinations(words.split())
    assert len(found) == 8
    assert found["inner-lr=0.5,hidden-sizes=8_8,no-first-order"] == (
        ["--inner-lr", "0.5", "--num-steps", "2", "--hidden-sizes", "8", "8", "--no-first-order"]
    )
    assert combinations(["--iterations", "3"]) == {"": ["--iterations", "3"]}
    assert combinations([]) == {"": []}
    with pytest.raises(UserError, match="A sweep chooses --run-dir itself"):
        planned(["--run_dir", "other"], ["train"], lambda words: _options(words, Config()), Path("sweep"), seeds=1)
    assert combinations(["--inner_lr", "0.1", "--inner-lr", "0.5"]) == {"": ["--inner-lr", "0.5"]}
    words = ["--inner-lr", "0.1", "0.5"]
    plans = planned(words, ["train"], lambda words: _options(words, Config()), Path("sweep"), seeds=2)
    found = [(plan.config.inner_lr, plan.config.seed, str(plan.log)) for plan in plans]
    assert found == [(lr, seed, f"sweep/inner-lr={lr}/seed{seed}.log") for lr in (0.1, 0.5) for seed in (1, 2)]


def test_a_combination_that_makes_no_sense_is_refused_before_any_run(command, tmp_path):
    result = command("sweep", "--run-dir", "sweep", *SMALL, "--outer", "trpo", "adam", "--outer-lr", "0.1")
    assert result.returncode == 2
    assert "outer_lr is 0.1, but is only used with outer ppo, adam or reptile" in result.stderr
    assert not (tmp_path / "sweep").exists()


def test_runs_are_trained_once_and_compared(command, tmp_path):
    words = ("sweep", "--run-dir", "sweep", "--seeds", "1", *SMALL, "--inner-lr", "0.1", "0.5")
    result = command(*words)
    assert result.returncode == 0, result.stderr
    assert "| maml (inner_lr=0.1) | 1 |" in result.stdout
    assert "| maml (inner_lr=0.5) | 1 |" in result.stdout
    assert (tmp_path / "sweep/comparison.png").exists()
    folders = [tmp_path / f"sweep/inner-lr={lr}/seed1" for lr in (0.1, 0.5)]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [(config["inner_lr"], config["seed"]) for config in configs] == [(0.1, 1), (0.5, 1)]
    written = [(folder / "checkpoint.pt").stat().st_mtime_ns for folder in folders]
    again = command(*words)
    assert is_finished(load_config(folders[0]))
    assert not is_finished(dataclasses.replace(load_config(folders[0]), eval_num_tasks=50))
    (folders[0] / "evaluation.json").write_text("{")
    assert not is_finished(load_config(folders[0]))
    assert again.stdout == result.stdout
    assert written == [(folder / "checkpoint.pt").stat().st_mtime_ns for folder in folders]


def test_a_failed_run_is_named_and_the_others_are_compared(command, tmp_path):
    (tmp_path / "sweep/seed1").mkdir(parents=True)
    (tmp_path / "sweep/seed1/notes.txt").write_text("mine")
    words = ("--experiment", "navigation_2d", "--run-dir", "sweep", "--seeds", "2", "--jobs", "1")
    result = command("sweep", *words, *SMALL)
    assert result.returncode == 2
    assert "1 of 2 runs failed; their logs say why: sweep/seed1.log." in result.stderr
    assert "holds files, but no run" in (tmp_path / "sweep/seed1.log").read_text()
    assert "| maml + learned step | 1 |" in result.stdout


def test_an_interrupted_sweep_goes_on_to_the_same_bits(command, tmp_path):
    words = (*MISBEHAVING, *SMALL, "--iterations", "6", "--checkpoint-every", "1")
    whole = command("train", "--run-dir", "whole/seed1", *words)
    assert whole.returncode == 0, whole.stderr
    parts = ("sweep", "--run-dir", "parts", "--seeds", "1", *words)
    stopped = command(*parts, MISBEHAVE="parent", MISBEHAVE_AT="7")
    assert stopped.returncode == 143, stopped.stderr
    assert "the same command continues them" in stopped.stderr
    assert not (tmp_path / "parts/seed1/evaluation.json").exists()
    assert "stopped; continue with" in (tmp_path / "parts/seed1.log").read_text()
    assert command(*parts, fresh=True).returncode == 0
    folders = [tmp_path / name / "seed1/checkpoint.pt" for name in ("whole", "parts")]
    thetas = [torch.load(path, weights_only=True)["theta"] for path in folders]
    assert torch.equal(*thetas)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--seed 3", "A sweep chooses --seed itself"),
        ("--no-resume", "A sweep chooses --resume itself"),
        ("--eval-num-tasks 10 20", "eval_num_tasks has several values"),
        ("--seeds 0", "seeds is 0, but must be at least 1"),
        ("--jobs 0", "jobs is 0, but must be at least 1"),
        ("--eval-every 0 1", "Some runs would train the same policy"),
        ("--horizon 5 6", "horizon has several values"),
        ("0.1 --inner-lr 0.2", "'0.1' belongs to no option"),
        ("--inner-lr 0.1 -1", "inner_lr is -1"),
        ("--experiment nowhere", "There is no experiment 'nowhere'; choose one of ant_dir"),
    ],
)
def test_a_sweep_that_cannot_work_starts_nothing(words, sentence, command, tmp_path):
    result = command("sweep", "--run-dir", "sweep", *words.split())
    assert result.returncode == 2
    assert sentence in result.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_that_cannot_make_its_folders_trains_nothing(command, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/inner-lr=0.5").write_text("mine")
    result = command("sweep", "--run-dir", "sweep", "--seeds", "1", *SMALL, "--inner-lr", "0.1", "0.5")
    assert result.returncode == 2
    assert "Cannot make the folder sweep/inner-lr=0.5" in result.stderr
    assert not any((tmp_path / "sweep/inner-lr=0.1").iterdir())


def test_experiments_are_listed_by_name(command):
    listed = command("experiment").stdout
    assert "half_cheetah_vel        MAML with a learned step on half-cheetahs" in listed
    assert "omniglot" in listed
