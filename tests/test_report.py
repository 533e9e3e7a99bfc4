"""`maml-rl report`: what the page holds, and how a browser shows it."""

import dataclasses
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import TINY, scalars
from scipy import stats

from maml_rl.results.report import learning_curve, learning_figure, report
from maml_rl.runs.tensorboard import return_tags

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
# Writes what the browser has made of the page into the page.
MEASURE = """<script>
addEventListener("load", () => {
  const fits = i => i.naturalWidth > 100 && i.getBoundingClientRect().right <= innerWidth
  const pictures = [...document.images].map(fits).join()
  const cells = document.querySelectorAll("td").length
  const wide = document.documentElement.scrollWidth > innerWidth
  document.body.innerHTML = `<p id="found">${pictures} ${cells} ${wide}</p>`
})
</script>"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods of one family, and a run of another."""
    from maml_rl import Config, train

    folder = tmp_path_factory.mktemp("runs")
    small = Config(
        iterations=3, num_tasks=2, num_rollouts=3, horizon=4, hidden_sizes=(4,), eval_num_tasks=2,
        eval_num_rollouts=2, eval_num_steps=1, eval_every=0,
    )  # fmt: skip
    for name, changes in {
        "one": {},
        "two": {"seed": 2},
        "first": {"first_order": True},
        "bandit": {"env_id": "maml_rl/BernoulliBandit-v0", "env_kwargs": {"num_arms": 3}},
    }.items():
        train(dataclasses.replace(small, run_dir=folder / name, **changes))
    return folder


def test_page_has_every_family_method_and_picture(runs, command):
    result = command(
        "report", *(runs / name for name in ("one", "two", "first", "bandit")), "--output", "page.html"
    )
    assert result.returncode == 0, result.stderr
    page = report([runs / name for name in ("one", "two", "first", "bandit")])
    assert "<h2>maml_rl/Navigation2D-v0 (horizon=4)</h2>" in page
    assert "<h2>maml_rl/BernoulliBandit-v0 (num_arms=3, horizon=4)</h2>" in page
    assert "MAML as published" not in page  # its horizon is another one
    assert "<td>maml</td><td>2</td>" in page
    assert "<tr><td>first_order</td><td>False</td><td>True</td></tr>" in page
    assert page.count("<img") == 2 + 2 + 2  # each family has two pictures of curves, and each walker its paths
    assert not re.findall(r"(?:src|href)=.(?!data:)", page)


def test_names_are_escaped(runs, tmp_path):
    folder = tmp_path / "<b>"
    shutil.copytree(runs / "one", folder)
    page = report([folder])
    assert "<b>" not in page
    assert "&lt;b&gt;</td>" in page


def test_learning_curve_is_what_was_logged(runs):
    logged = scalars(runs / "one")
    steps, before, after = learning_curve(runs / "one")
    assert [*zip(steps, before, strict=True)] == logged["train/return_step_0"]
    assert [*zip(steps, after, strict=True)] == logged["train/return_step_1"]


def test_phases_are_in_order_of_their_number():
    tags = [f"train/{of}_step_{k}" for of in ("success", "return") for k in (0, 10, 2)]
    ordered = [f"train/return_step_{k}" for k in (0, 2, 10)]
    assert return_tags([*tags, "eval/return_step_1", "train/returns"]) == ordered


def test_learning_figure_has_t_intervals_and_ends_with_the_shortest_seed():
    def curve(length, level):
        return np.arange(length) * 10.0, np.zeros(length), np.full(length, level)

    levels = np.array([1.0, 2.0, 4.0])
    axes = learning_figure("x", {"maml": [curve(n, y) for n, y in zip((5, 7, 9), levels, strict=True)]}).axes[0]
    after, before = axes.lines
    np.testing.assert_allclose(after.get_xdata(), [0, 10, 20, 30, 40])
    np.testing.assert_allclose(after.get_ydata(), levels.mean())
    np.testing.assert_allclose(before.get_ydata(), 0)
    low, high = stats.ttest_1samp(levels, 0).confidence_interval(0.95)
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (pytest.approx(low), pytest.approx(high))


def test_two_seeds_have_no_interval_in_the_learning_figure():
    steps = np.arange(5.0)
    curves = {"maml": [(steps, steps, steps), (steps, steps, steps + 1)]}
    assert not learning_figure("x", curves).axes[0].collections


def test_long_curves_are_averaged():
    steps = np.arange(1000.0)
    (line,) = learning_figure("x", {"maml": [(steps, steps, steps)]}).axes[0].lines
    assert len(line.get_xdata()) == 200
    assert line.get_ydata()[0] == 2.0  # the mean of 0 to 4


def test_runs_that_cannot_be_shown_are_refused(command, tmp_path, runs):
    assert "give the folders of at least one run" in command("report").stderr
    assert "holds no run" in command("report", tmp_path).stderr
    assert "same method with the same seed" in command("report", runs / "one", runs / "one").stderr
    unfinished = command("train", *TINY, "--iterations", "0", "--run-dir", "run", "--env-id", "Nowhere-v0")
    assert unfinished.returncode == 2
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_all_of_it(width, runs, tmp_path):
    page = report([runs / name for name in ("one", "two", "first", "bandit")])
    (tmp_path / "page.html").write_text(page.replace("</html>", MEASURE + "</html>"))
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"),
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    pictures, cells, wide = re.search(r'<p id="found">(.*?)</p>', shown)[1].split()
    assert pictures.split(",") == ["true"] * 6
    assert int(cells) == page.count("<td>")
    assert wide == "false"
