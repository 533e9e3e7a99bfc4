"""A short run of experiments/faults.py. The whole one takes more than an hour."""

import faults
import numpy as np
import pytest


@pytest.mark.skipif(not faults.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits(tmp_path):
    assert next(faults.kills("navigation", tmp_path, 1, np.random.default_rng(0))) == ("SIGKILL", "the same")


def test_damaged_files_are_refused(tmp_path):
    outcomes = list(faults.files(tmp_path, 2, np.random.default_rng(0)))
    assert len(outcomes) == 8
    assert {outcome for _, outcome in outcomes} <= {"one sentence", "the same", "read as other options"}
    assert all(outcome != "read as other options" for fault, outcome in outcomes if "checkpoint" in fault)
