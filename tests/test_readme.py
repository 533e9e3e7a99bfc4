"""The README: short, and with the numbers of the committed results."""

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_it_has_the_table_of_results_and_what_training_prints():
    assert "<!-- table: summary -->" in README
    assert "<!-- table: printed by make train -->" in README
