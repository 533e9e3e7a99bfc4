"""The committed results: what the pages say of them, whether today's scripts are those that made them."""

import dataclasses
import json

import glyphs_pretraining
import numpy as np
import pytest
import report
import reproduce
import sinusoid_shots
import zoo
from conftest import ROOT

from maml_rl import UserError, evaluate
from maml_rl.methods import method_of
from maml_rl.results.comparison import by_method, load_runs
from maml_rl.results.curves import means_in_columns
from maml_rl.runs.folder import load_config
from maml_rl.sampling.families import make_env
from maml_rl.sampling.streams import numpy_generator

FAMILIES = [family for family in reproduce.BASES if report.runs_of(family)]
RUNS = [folder for family in FAMILIES for folder in report.runs_of(family)]


def test_tables_on_pages_are_those_of_the_committed_runs():
    """Run `python experiments/report.py` where they are not. One test, because making them takes ten seconds."""
    tables = report.all_tables()
    pages = {str(page.relative_to(ROOT)): page.read_text() for page in report.PAGES}
    stale = [name for name, text in pages.items() if report.filled(text, tables) != text]
    assert not stale
    everywhere = "".join(pages.values())
    for name, table in tables.items():
        assert f"<!-- table: {name} -->" in everywhere, name
        assert table.count("\n") >= 2, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_page_with_its_pictures(family):
    several = {"glyphs": "glyphs", "ml": "meta_world"}  # families on one page
    name = next((page for start, page in several.items() if family.startswith(start)), family)
    page = (ROOT / f"docs/results/{name}.md").read_text()
    behaviour = "rollouts.png" if family.endswith("navigation_2d") else "strip.png"
    behaviour = {"sinusoid": "fits.png", "ml10": "film.webp"}.get(family, behaviour)
    # Letters do not move, and the checkpoints of push and pick-place are not committed.
    still = ("ml1_push", "ml1_pick_place", *report.WITHOUT_PICTURE)
    filmed = not family.startswith("glyphs") and family not in still
    for picture in ("adaptation.png", "learning.png", behaviour)[: 3 if filmed else 2]:
        assert f"experiments/results/{family}/{picture}" in page
    evaluation = json.loads((report.runs_of(family)[0] / "evaluation.json").read_text())
    assert ("Tasks seen in training" in page) == evaluation.get("tasks_seen", False)  # not in those of version 0.1


def test_chosen_rows_of_a_table():
    page = "a\n<!-- table: t: x -->\nold\n<!-- end -->\nb\n"
    filled = report.filled(page, {"t": "| n |\n| --- |\n| w |\n| x |"})
    assert filled == "a\n<!-- table: t: x -->\n\n| n |\n| --- |\n| x |\n\n<!-- end -->\nb\n"


def test_every_method_of_every_experiment_accepts_its_options():
    for family, methods in reproduce.METHODS.items():
        for method in methods:
            method_of(reproduce.options(family, method, 1, report.RESULTS))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: str(folder.relative_to(report.RESULTS)))
def test_today_s_script_asks_for_what_was_run(folder):
    """Options changed since would make the tables those of another experiment."""
    family, method, seed = folder.parts[-3:]
    device = load_config(folder).device  # whichever was at hand
    now = reproduce.options(family, method, int(seed.removeprefix("seed")), report.RESULTS, device)
    assert load_config(folder) == now
    for record in report.records_of([folder]).values():
        assert not record["commit"].endswith("-dirty")
        if not now.iterations:  # from scratch
            assert record["curves"] == {"env_steps": []}
            continue
        every = -(-now.iterations // reproduce.POINTS)
        assert len(record["curves"]["env_steps"]) == -(-now.iterations // every)
        assert record["curves"]["env_steps"][-1] * now.iterations >= record["env_steps"] * (now.iterations - every)


@pytest.mark.parametrize(
    "family",
    [
        family
        for family in FAMILIES
        # Tests of the zoo evaluate the others.
        if (report.RESULTS / family / "maml/seed1/checkpoint.pt").exists()
        and zoo.CHOSEN.get(family) != ("maml", 1)
    ],
)
def test_committed_parameters_still_do_what_was_written_down(family):
    """On the first tasks, with rollouts of their own; in parts of what training made of the untrained policy."""
    folder = report.RESULTS / family / "maml" / "seed1"
    then = json.loads((folder / "evaluation.json").read_text())
    config = load_config(folder)
    env = make_env(config, 1)
    # Robots take long.
    first = 80 // config.eval_num_rollouts if sum(env.single_action_space.shape or (1,)) > 2 else 10
    before, untrained = (np.array(then["methods"][method]["returns"])[:first, :2] for method in ("maml", "random"))
    # As version 0.1 drew them.
    tasks = env.sample_tasks(then["num_tasks"], numpy_generator(config.seed, "held-out tasks"))[:first]
    env.close()
    after = np.array(evaluate(folder, num_steps=1, tasks=tasks)["methods"]["maml"]["returns"])
    progress = (before - untrained)[:, 1].mean()
    assert np.abs(after.mean(axis=0) - before.mean(axis=0)).max() < 0.15 * progress
    assert np.median(np.abs(after - before)[:, 1]) < 0.3 * progress


@pytest.mark.parametrize(
    "family",
    [
        family
        for family in FAMILIES
        # The pages of the others say that one policy suits most tasks there.
        if (report.RESULTS / family / "pretrain").exists() and family not in reproduce.PHYSICS
    ],
)
def test_maml_is_above_pretraining_after_one_step(family):
    methods = by_method(load_runs(report.runs_of(family)))
    maml = next(iter(methods.values()))  # which comes first
    seeds = 1 if family == "sinusoid" else len(maml.returns)  # its page says that pre-training has one
    for ours, theirs in zip(maml.returns[:seeds], methods["pretrain"].returns, strict=True):
        assert ours[:, 1].mean() > theirs[:, 1].mean()  # a seed's tasks are the same for both
    apart = maml.interval[1, 0] > methods["pretrain"].interval[1, 1]
    assert apart == (family not in ("ant_goal", "ml1_push"))  # whose pages say that intervals overlap


def test_learned_step_is_above_pretraining_on_push():
    methods = by_method(load_runs(report.runs_of("ml1_push")))
    learned, pretrain = methods["maml + learned step"], methods["pretrain"]
    # After one step, and above what pre-training reaches without a step.
    assert learned.interval[1, 0] > pretrain.interval[:, 1].max()


def test_a_longer_run_goes_on_and_its_record_is_of_all_of_it(tmp_path, monkeypatch):
    small = {"num_tasks": 2, "num_rollouts": 2, "horizon": 5, "eval_num_tasks": 2, "eval_num_rollouts": 2}
    base = dataclasses.replace(reproduce.BASES["navigation_2d"], iterations=2, **small)
    folder = tmp_path / "navigation_2d/maml/seed1"
    steps = []
    for iterations in (2, 3, 3):
        monkeypatch.setitem(
            reproduce.BASES, "navigation_2d", dataclasses.replace(base, iterations=iterations, eval_every=1)
        )
        reproduce.main(("navigation_2d",), ("maml",), (1,), tmp_path)
        written = (folder / "training.json").stat().st_mtime_ns
        record = json.loads((folder / "training.json").read_text())
        assert record["curves"]["env_steps"] == [2 * 2 * 2 * 5 * i for i in range(1, iterations + 1)]
        assert record["env_steps"] == record["curves"]["env_steps"][-1]
        assert len(record["curves"]["return_step_1"]) == iterations
        steps.append(written)
    assert steps[0] < steps[1] == steps[2]  # what is finished is left alone
    with monkeypatch.context() as patch:
        patch.setitem(reproduce.BASES, "navigation_2d", dataclasses.replace(base, iterations=3, inner_lr=0.2))
        with pytest.raises(UserError, match="has inner_lr="):
            reproduce.main(("navigation_2d",), ("maml",), (1,), tmp_path)
    assert (folder / "training.json").stat().st_mtime_ns == steps[2]  # the record of the run that is there
    assert report.runs_of("navigation_2d", tmp_path) == [folder]
    assert report.how_table([folder]).count("navigation_2d") == 1
    assert report.summary_table(tmp_path).count("\n") == 1  # without an oracle there is no score


@pytest.mark.parametrize("family", FAMILIES)
def test_a_curve_is_of_the_seeds_of_one_method(family):
    curves = report.learning_curves(report.runs_of(family))
    trained = [folder for folder, record in report.records_of(report.runs_of(family)).items() if record["curves"]]
    trained = [folder for folder in trained if load_config(folder).iterations]
    assert len(curves) == len({folder.parent for folder in trained})
    assert sum(map(len, curves.values())) == len(trained)


@pytest.mark.parametrize("methods", [("oracle",), ("oracle", "rl2_once")])
def test_runs_that_do_not_adapt_have_a_report(methods, tmp_path, capsys):
    (tmp_path / "bernoulli_bandit").mkdir()
    for method in methods:
        (tmp_path / "bernoulli_bandit" / method).symlink_to(report.RESULTS / "bernoulli_bandit" / method)
    report.main(tmp_path)
    assert "| mean over tasks | 0 steps | 0 steps, seed by seed |" in capsys.readouterr().out
    assert (tmp_path / "bernoulli_bandit/adaptation.png").exists()


def test_a_continued_run_stands_for_its_method_in_summaries(tmp_path):
    (tmp_path / "ant_dir").symlink_to(report.RESULTS / "ant_dir")  # the other families take seconds
    returns = means_in_columns(report.methods_of("ant_dir", tmp_path))
    assert not np.array_equal(returns["maml"], returns["maml, continued"])
    mean = report.means_of("ant_dir", tmp_path)
    assert mean.keys() == returns.keys() - {"maml, continued"}
    np.testing.assert_array_equal(mean["maml"], returns["maml, continued"])
    assert "maml, continued" not in report.scores_after_one_step(tmp_path)["ant_dir"]


def test_an_oracle_is_flat_if_every_seed_is(tmp_path):
    rng = np.random.default_rng(0)
    for family, last in (("ant_dir", 2.0), ("ant_goal", 9.0)):  # of the second seed
        for seed, end in ((1, 2.0), (2, last)):
            folder = tmp_path / family / f"oracle/seed{seed}"
            folder.mkdir(parents=True)
            (folder / "evaluation.json").write_text("{}")
            returns = np.repeat([0.0, 1.0, 2.0, 2.0, end], 20) + rng.normal(size=100)
            record = {"env_steps": 3e6, "curves": {"return_step_0": returns.tolist()}}
            (folder / "training.json").write_text(json.dumps(record))
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in report.oracles_table(tmp_path).splitlines()[2:]
    ]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("[ant_dir](ant_dir.md)", "3.0 M", "yes"),
        ("[ant_goal](ant_goal.md)", "3.0 M", "no"),
    ]


def test_nearest_neighbours_of_other_families_and_seeds_are_kept(tmp_path, monkeypatch):
    one, other = reproduce.FEW_SHOT[:2]
    for family in (one, other):
        (tmp_path / family).mkdir()
        (tmp_path / family / "pretraining").symlink_to(report.RESULTS / family / "pretraining")
    (tmp_path / "nearest.json").write_text('{"letters": [0.5]}')
    monkeypatch.setattr(glyphs_pretraining, "tune_process", lambda: None)  # the process is pytest's
    monkeypatch.setattr(glyphs_pretraining, "nearest", lambda config: config.seed / 10)
    glyphs_pretraining.main((one,), (2,), tmp_path)
    found = json.loads((tmp_path / "nearest.json").read_text())
    assert found == {"letters": [0.5], one: [0.1, 0.2, 0.3]}
    assert "| nearest neighbour | 3 | 20.0 |" in report.few_shot_table(one, tmp_path)
    assert "nearest" not in report.few_shot_table(other, tmp_path)


def test_errors_of_other_sinusoid_runs_are_kept(tmp_path, monkeypatch):
    committed = (sinusoid_shots.RESULTS / "shots.json").read_text()
    (tmp_path / "shots.json").write_text(committed)
    with pytest.raises(UserError, match="no checkpoint"):
        sinusoid_shots.main(tmp_path, tmp_path)
    assert (tmp_path / "shots.json").read_text() == committed
    folder = tmp_path / "meta_sgd/seed1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((sinusoid_shots.RESULTS / "meta_sgd/seed1/config.json").read_bytes())
    (folder / "checkpoint.pt").touch()
    new = {shots: [0.0] * 11 for shots in ("5", "10", "20")}
    monkeypatch.setattr(sinusoid_shots, "errors", lambda folder: new)
    sinusoid_shots.main(tmp_path, tmp_path)
    expected = json.loads(committed)
    expected["meta-sgd"]["seed1"] = new
    assert json.loads((tmp_path / "shots.json").read_text()) == expected
