"""Comparing runs: what a method is called, which runs are its seeds, and the statistics, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from scipy import stats

from maml_rl import Config, UserError
from maml_rl.methods import curve_name
from maml_rl.results.bootstrap import interquartile_mean, mean_with_interval
from maml_rl.results.comparison import (
    as_markdown,
    by_method,
    comparison_table,
    label,
    load_runs,
    success_rows,
)
from maml_rl.results.curves import at_episodes, scores
from maml_rl.results.report import report
from maml_rl.runs.evaluation import mean_and_interval
from maml_rl.runs.files import write_json
from maml_rl.runs.folder import save_config

RL2 = {"rl2_episodes": 2, "num_steps": 0, "outer": "ppo", "hidden_sizes": (8,)}


def write_run(folder, mean, steps=3, seed=1, num_rollouts=20, random=-80.0, success=None, **options):
    """A run folder with ten tasks' returns around `mean` (S + 1 numbers), and the untrained policy's below it.

    Args:
        success: The method's shares of success, (10, S + 1).
    """
    config = Config(run_dir=folder, seed=seed, eval_num_steps=steps, eval_num_rollouts=num_rollouts, **options)
    folder.mkdir(parents=True)
    save_config(config)
    spread = np.random.default_rng(seed).normal(size=(10, 1))
    seen = (100 if config.rl2_episodes else 100 * num_rollouts) * np.arange(steps + 1)
    methods = {
        name: {
            "returns": (spread + values).tolist(),
            "mean": (spread + values).mean(0).tolist(),
            "ci95": [[0.0, 0.0]] * (steps + 1),
            "env_steps": seen.tolist(),
        }
        for name, values in (
            (curve_name(config), np.asarray(mean)),
            ("random", np.full(steps + 1, random)),
        )
    }
    if success is not None:
        methods[curve_name(config)]["success"] = np.asarray(success).tolist()
    results = {"iterations": config.iterations, "num_rollouts": num_rollouts, "num_tasks": 10, "methods": methods}
    write_json(folder / "evaluation.json", results)
    return folder


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "maml"),
        ({"estimator": "lvc"}, "maml + lvc"),
        ({"estimator": "lvc", "outer": "ppo"}, "promp"),
        ({"outer": "adam"}, "maml + adam"),
        ({"outer": "reptile"}, "reptile"),
        ({"first_order": True}, "fomaml"),
        ({"e_maml": 0.05, "estimator": "dice"}, "e-maml + dice"),
        ({"learn_lr": "parameter"}, "meta-sgd"),
        ({"adapt_only": "head"}, "anil"),
        ({"adapt_only": "context", "context_size": 2}, "cavia"),
        ({"learn_lr": "task"}, "maml + learned step"),
        (
            {"adapt_only": "context", "context_size": 2, "learn_lr": "task", "estimator": "lvc"},
            "cavia + learned step + lvc",
        ),
        ({"num_steps": 0}, "pretrain"),
        ({"num_steps": 0, "observe_task": True}, "oracle"),
        (RL2, "rl2"),
        ({"iterations": 0}, "scratch"),
    ],
)
def test_methods_have_the_field_s_names(options, name):
    assert label(Config(**options)) == name


def of_different(returns):
    """The interquartile mean where no task occurs twice."""
    return interquartile_mean(returns, [np.arange(len(of_seed)) for of_seed in returns])


def test_differences_between_tasks_that_all_occur_again_do_not_widen_an_interval():
    """As in evaluations: two tasks, 20 adaptations to each, whose returns hardly differ."""
    rng = np.random.default_rng(0)
    tasks = rng.permutation(np.repeat([-1.0, 1.0], 20))[:, None]
    returns = 50 * tasks + 150 + rng.normal(size=(40, 1))
    _, exact = mean_and_interval(returns, tasks)
    mean, interval = mean_with_interval([returns], [tasks])
    np.testing.assert_allclose(mean, returns.mean(0))
    np.testing.assert_allclose(interval, exact, atol=0.1)
    _, several = interquartile_mean([returns, returns + 0.1], [tasks, tasks])
    assert np.ptp(several) < 60  # the middle half may be of either task
    _, narrow = mean_with_interval([returns, returns[::-1]], [tasks, tasks[::-1]])
    assert np.ptp(narrow) < 1
    once = np.arange(40)[:, None]
    assert np.ptp(mean_with_interval([returns], [once])[1]) > 25


def test_interquartile_mean_and_its_interval():
    """Of 1 ... 8 the middle half is 3 ... 6. How much seeds differ is part of the interval."""
    middle, interval = of_different([np.arange(1.0, 5.0)[:, None], np.arange(5.0, 9.0)[:, None]])
    np.testing.assert_allclose(middle, [4.5])
    assert interval[0, 0] < 4.5 < interval[0, 1]
    rng = np.random.default_rng(0)
    normal = [rng.normal((0.0, 5.0), size=(1200, 2))]
    middle, interval = of_different(normal)
    np.testing.assert_allclose(middle, stats.trim_mean(np.concatenate(normal), 0.25))
    # The interquartile mean of normal numbers has 1.19 times the variance of their mean.
    np.testing.assert_allclose(np.ptp(interval, axis=1), 2 * 1.96 * (1.19 / 1200) ** 0.5, rtol=0.15)
    # Seeds without any spread over tasks: the interval is that of the mean of 8 draws among 0 and 1.
    _, of_seeds = of_different([np.full((50, 1), float(i % 2)) for i in range(8)])
    np.testing.assert_allclose(of_seeds, [[0.0, 1.0]], atol=0.2)
    _, of_one = of_different([rng.normal(size=(400, 1))])
    _, of_many = of_different([rng.normal(5 * i, size=(400, 1)) for i in range(3)])
    assert np.ptp(of_many) > 10 * np.ptp(of_one)


def test_seeds_of_a_method_belong_together_and_others_do_not(tmp_path):
    folders = [
        write_run(tmp_path / "a", [-40, -11, -4, -3], seed=1),
        write_run(tmp_path / "b", [-42, -12, -5, -3], seed=2, eval_every=0, chunk_tasks=3),
        write_run(tmp_path / "c", [-43, -13, -6, -3], seed=1, inner_lr=0.3),
        write_run(tmp_path / "d", [-50, -44, -44, -44], estimator="lvc"),
    ]
    methods = by_method(load_runs(folders))
    assert list(methods) == ["maml (inner_lr=0.1)", "maml (inner_lr=0.3)", "maml + lvc", "random"]
    assert [len(curves.returns) for curves in methods.values()] == [2, 1, 1, 2]
    assert methods["random"].returns[0].mean() < -75
    with pytest.raises(UserError, match="a and .*e are the same method with the same seed; leave one out"):
        by_method(load_runs([*folders, write_run(tmp_path / "e", [-1, -1, -1, -1], seed=1)]))


def test_scores_do_not_depend_on_the_order_of_the_folders(tmp_path):
    folders = [
        write_run(tmp_path / "lvc", [-50, -44, -44, -44], random=-90.0, estimator="lvc"),
        write_run(tmp_path / "maml", [-40, -11, -4, -3]),
        write_run(tmp_path / "oracle", [-1, -1, -1, -1], random=-70.0, num_steps=0, observe_task=True),
    ]
    rows = [
        set(comparison_table("x", by_method(load_runs(order))).splitlines()) for order in (folders, folders[::-1])
    ]
    assert rows[0] == rows[1]
    assert by_method(load_runs(folders))["random"].returns[0].mean() > -85  # that of maml
    promp = write_run(tmp_path / "promp", [-50, -44, -44, -44], random=-90.0, estimator="lvc", outer="ppo")
    assert by_method(load_runs([promp, folders[2]]))["random"].returns[0].mean() < -85  # not that of the oracle


def test_scores_are_those_of_the_seeds_that_have_an_oracle(tmp_path):
    """Seeds have tasks of their own, so the returns of other seeds do not belong to the same scale."""
    oracle = {"steps": 0, "observe_task": True, "num_steps": 0}
    folders = [
        write_run(tmp_path / "maml_1", [-40, -11, -4, -3], seed=1),
        write_run(tmp_path / "oracle_1", [-2], seed=1, **oracle),
        write_run(tmp_path / "promp_3", [-30, -20, -10, -5], seed=3, estimator="lvc", outer="ppo"),
    ]
    alone = scores(by_method(load_runs(folders[:2])))
    others = [
        write_run(tmp_path / "maml_2", [-9, -9, -9, -9], random=-10.0, seed=2),
        write_run(tmp_path / "oracle_4", [-1], random=-10.0, seed=4, **oracle),
    ]
    methods = by_method(load_runs(folders + others))
    found = scores(methods)
    assert found.keys() == {"maml", "oracle", "random"}  # no oracle has ProMP's tasks
    np.testing.assert_array_equal(found["maml"], alone["maml"])
    rows = {line.split(" | ")[0].strip("| "): line for line in comparison_table("x", methods).splitlines()}
    assert rows["promp"].endswith(" |  |")
    same_tasks = [
        write_run(tmp_path / f"same_{seed}", [-9, -9, -9, -9], seed=seed, eval_seed=5) for seed in (1, 2)
    ]
    same_tasks.append(write_run(tmp_path / "same_oracle", [-1], seed=7, eval_seed=5, **oracle))
    assert scores(by_method(load_runs(same_tasks))).keys() == {"maml", "oracle", "random"}


def test_table_has_scores_and_what_was_published(tmp_path):
    folders = [
        write_run(tmp_path / "maml", [-40, -11, -4, -3]),
        write_run(tmp_path / "oracle", [-2], steps=0, observe_task=True, num_steps=0),
        write_run(tmp_path / "rl2", np.linspace(-60, -20, 31), steps=30, **RL2),
    ]
    methods = by_method(load_runs(folders))
    rows = {line.split(" | ")[0].strip("| "): line for line in comparison_table("x", methods).splitlines()}
    spread = np.random.default_rng(1).normal(size=(10, 1))
    mean = spread.mean()
    expected = [(a + mean + 80 - mean) / (-2 + mean + 80 - mean) for a in (-40, -11, -4, -3)]
    assert rows["maml"].endswith(", ".join(f"{x:.3f}" for x in expected) + " |")
    assert rows["maml"].split(" | ")[6] == "37.00"
    # After 0, 20, 40 (there are only 30), 60 episodes.
    middle = stats.trim_mean(spread, 0.25)[0]
    returns = [float(cell.split(" [")[0]) for cell in rows["rl2"].split(" | ")[2:6]]
    np.testing.assert_allclose(returns, np.array([-60, -60 + 40 * 20 / 30, -20, -20]) + middle, atol=0.006)
    published = comparison_table("maml_rl/Navigation2D-v0", methods).splitlines()[-1]
    assert published.endswith("0.526, 0.831, 0.980, 0.979 |")
    assert "score" not in comparison_table("x", {name: methods[name] for name in ("maml", "random")})


def test_success_has_a_table_of_its_own(tmp_path, command):
    """Percentages of all seeds' rollouts; the untrained policy reports no success here, and has no row."""
    share = np.linspace(0, 1, 10)[:, None] * [0.0, 0.5, 1.0, 1.0]
    one = write_run(tmp_path / "one", [1, 2, 3, 3], success=share)
    other = write_run(tmp_path / "other", [1, 2, 3, 3], success=np.full((10, 4), 0.25), seed=2)
    head, row = success_rows(by_method(load_runs([one, other])))
    assert head == ["success", "seeds", "0 steps", "1 step", "2 steps", "3 steps"]
    assert row[:2] == ["maml", "2"]
    assert [cell.split("%")[0] for cell in row[2:]] == ["12.5", "25.0", "37.5", "37.5"]
    assert row[2] == "12.5% [0.0, 25.0]"  # two seeds without spread over tasks
    printed = command("compare", one, other).stdout
    assert as_markdown([head, row]) in printed
    assert row[3] in report([one, other])
    plain = write_run(tmp_path / "plain", [1, 2, 3, 3], seed=3)
    assert not success_rows(by_method(load_runs([one, plain])))  # one of its seeds does not say
    assert "Success" not in report([plain])
    wrong = write_run(tmp_path / "wrong", [1, 2, 3, 3], success=share[:, :2])
    with pytest.raises(UserError, match="success has another shape than returns"):
        load_runs([wrong])


def test_points_are_taken_by_episodes_seen(tmp_path):
    run = write_run(tmp_path / "rl2", np.zeros(31), steps=30, **RL2)
    curves = by_method(load_runs([run]))["rl2"]
    np.testing.assert_array_equal(at_episodes(curves, np.array([0, 20, 40, 60])), [0, 20, 30, 30])


def test_compare_command(command, tmp_path):
    for name, options in {
        "maml": (),
        "oracle": ("--num-steps", "0", "--observe-task", "--eval-num-steps", "0"),
        "rl2": ("--rl2-episodes", "2", "--num-steps", "0", "--outer", "ppo", "--hidden-sizes", "8"),
        "scratch": ("--iterations", "0", "--eval-num-steps", "5"),
    }.items():
        result = command("train", *TINY, "--iterations", "1", *options, "--run-dir", name)
        assert result.returncode == 0, result.stderr
    result = command("compare", "maml", "oracle", "--picture", "all.svg")
    assert "picture is all.svg, but must be a .png file" in result.stderr
    result = command("compare", "maml", "oracle", "rl2", "scratch", "--picture", "all.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    evaluation = json.loads((tmp_path / "maml/evaluation.json").read_text())
    names = [line.split(" | ")[0].strip("| ") for line in result.stdout.splitlines() if line.startswith("|")]
    # What was published is left out, because its horizon is another one.
    assert names == ["method", "---", "maml", "oracle", "rl2", "scratch", "random"]
    tasks = np.array(evaluation["methods"]["maml"]["returns"])
    maml = next(line for line in result.stdout.splitlines() if line.startswith("| maml"))
    assert maml.split(" | ")[3].startswith(f"{stats.trim_mean(tasks[:, 1], 0.25):.2f} [")
    oracle = json.loads((tmp_path / "oracle/evaluation.json").read_text())
    assert list(oracle["methods"]) == ["oracle", "random"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "config.json").unlink(), "holds no run"),
        (lambda run: (run / "evaluation.json").unlink(), "finish the run"),
        (lambda run: (run / "evaluation.json").write_text("{}"), "cannot be compared"),
        (lambda run: (run / "evaluation.json").write_text("[1"), "cannot be compared"),
    ],
)
def test_folders_without_results_are_refused(tmp_path, damage, sentence):
    run = write_run(tmp_path / "run", [-40, -11, -4, -3])
    damage(run)
    with pytest.raises(UserError, match=sentence):
        load_runs([run])


def test_an_evaluation_of_another_moment_is_refused(tmp_path):
    """A run that went on, or was evaluated otherwise, is not what its config.json says."""
    run, other = write_run(tmp_path / "run", [1, 1, 1, 1]), write_run(tmp_path / "b", [1, 1, 1, 1], seed=2)
    results = json.loads((run / "evaluation.json").read_text())
    write_json(run / "evaluation.json", results | {"iterations": 7})
    with pytest.raises(UserError, match="it is of iteration 7 of 100"):
        load_runs([run])
    write_json(run / "evaluation.json", results | {"num_rollouts": 7})
    with pytest.raises(UserError, match="b was evaluated with num_rollouts=20 and .*run with 7"):
        load_runs([run, other])
    del results["num_rollouts"]
    write_json(run / "evaluation.json", results)
    with pytest.raises(UserError, match="num_tasks or num_rollouts is missing"):
        load_runs([run])


def test_columns_are_inner_steps_whatever_the_order(tmp_path):
    runs = [
        write_run(tmp_path / "oracle", [-2], steps=0, observe_task=True, num_steps=0),
        write_run(tmp_path / "rl2", np.linspace(-60, -20, 31), steps=30, **RL2),
        write_run(tmp_path / "maml", [-40, -11, -4, -3]),
    ]
    tables = [comparison_table("x", by_method(load_runs(order))).splitlines() for order in (runs, runs[::-1])]
    assert sorted(tables[0]) == sorted(tables[1])
    assert tables[0][0].startswith("| method | seeds | 0 steps | 1 step | 2 steps | 3 steps |")


def test_columns_of_rl2_alone_are_episodes(tmp_path):
    rl2 = write_run(tmp_path / "rl2", np.linspace(-60, -20, 31), steps=30, **RL2)
    table = comparison_table("maml_rl/Navigation2D-v0", by_method(load_runs([rl2])))
    assert table.startswith("| method | seeds | 0 episodes | 1 episode | 2 episodes | 3 episodes |")
    assert "published" not in table  # its columns are steps
    maml = write_run(tmp_path / "maml", [-40, -11, -4, -3])
    assert "published" in comparison_table("maml_rl/Navigation2D-v0", by_method(load_runs([rl2, maml])))


@pytest.mark.parametrize("num_rollouts", [1, 20])
def test_every_step_has_a_column(num_rollouts, tmp_path):
    runs = [
        write_run(tmp_path / "oracle", [-2], steps=0, observe_task=True, num_steps=0, num_rollouts=num_rollouts),
        write_run(tmp_path / "short", [-40, -12], steps=1, inner_lr=0.2, num_rollouts=num_rollouts),
        write_run(tmp_path / "maml", [-40, -11, -4, -3], num_rollouts=num_rollouts),
    ]
    for order in (runs, runs[::-1]):
        assert "| 2 steps | 3 steps |" in comparison_table("x", by_method(load_runs(order)))


def test_runs_of_different_families_are_refused(tmp_path):
    runs = [write_run(tmp_path / "a", [1, 1, 1, 1]), write_run(tmp_path / "b", [1, 1, 1, 1], horizon=50)]
    with pytest.raises(
        UserError, match="b was evaluated with horizon=50 and .*a with None; compare runs that agree in it"
    ):
        load_runs(runs)
    with pytest.raises(UserError, match="nothing to compare"):
        load_runs([])
    with pytest.raises(UserError, match="holds no run"):
        load_runs([Path("nowhere")])
