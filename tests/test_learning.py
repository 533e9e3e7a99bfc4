"""Learning itself, whole: a short run that ends where ten seeds of it ended."""

import json


def test_navigation_learns_as_it_did(command, tmp_path):
    """Returns after 1 and 2 steps, within a band of the mean over ten seeds.

    Seeds 1 to 10 of this command had −12.05 ± 0.72 and −7.62 ± 0.15 (mean and standard deviation over seeds) after
    one and two steps, an untrained policy −58.4 and −54.8. The bands are five standard deviations wide on each
    side: rounding moves a run about as far as another seed does, and a broken learner further. Better is no less
    a change, which wants its reason and a new band.
    """
    result = command(
        *("--iterations", 15, "--num-rollouts", 10, "--eval-every", 0, "--eval-num-steps", 2, "--run-dir", "run"),
        *("--learn-lr", "no", "--max-kl", "0.01"),
        script="experiments/navigation_2d.py",
    )
    assert result.returncode == 0, result.stderr
    methods = json.loads((tmp_path / "run/evaluation.json").read_text())["methods"]
    _, one, two = methods["maml"]["mean"]
    assert abs(one - -12.05) < 5 * 0.72
    assert abs(two - -7.62) < 5 * 0.15
    assert methods["random"]["mean"][1] < -50
