"""Run folders as repositories of the Hugging Face hub; a local folder stands for the repository."""

import dataclasses
import shutil

import pytest
import torch
from conftest import theta_of

from maml_rl import UserError
from maml_rl.hub import HubRun
from maml_rl.policies import flatten
from maml_rl.runs.folder import save_config


def test_a_run_survives_the_way_to_the_hub_and_back(finished, tmp_path):
    config, trained = finished
    HubRun(config.run_dir).save_pretrained(tmp_path / "repository")
    written = {path.name for path in (tmp_path / "repository").iterdir()}
    assert written == {"config.json", "checkpoint.pt", "evaluation.json", "adaptation.png", "README.md"}
    back = HubRun.from_pretrained(str(tmp_path / "repository")).load()
    assert torch.equal(flatten(back.policy), flatten(trained))
    assert torch.equal(theta_of(tmp_path / "repository"), theta_of(config.run_dir))
    card = (tmp_path / "repository/README.md").read_text()
    assert "library_name: maml_rl" in card
    assert "| steps | return | 95% interval |" in card
    assert f"{config.iterations} meta-iterations" in card


def test_a_card_names_the_run_that_training_started_from(finished, tmp_path):
    folder = shutil.copytree(finished[0].run_dir, tmp_path / "run")
    save_config(dataclasses.replace(finished[0], run_dir=folder, start_from="runs/first"))
    HubRun(folder).save_pretrained(tmp_path / "repository")
    assert (
        "6 meta-iterations that go on from `runs/first`, seed 1."
        in (tmp_path / "repository/README.md").read_text()
    )


def test_the_zoo_can_be_published(tmp_path):
    HubRun("zoo/navigation_2d").save_pretrained(tmp_path)
    assert HubRun.from_pretrained(str(tmp_path)).load().config.learn_lr == "task"


def test_a_run_is_not_saved_into_its_own_folder(finished, tmp_path):
    folder = shutil.copytree(finished[0].run_dir, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is the folder of the run itself"):
        HubRun(folder).save_pretrained(tmp_path / "other/../run")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_another_run_in_the_same_repository_leaves_nothing_of_the_first(finished, tmp_path):
    HubRun("zoo/navigation_2d").save_pretrained(tmp_path / "repository")
    (tmp_path / "run").mkdir()
    for name in ("config.json", "checkpoint.pt"):
        shutil.copy(finished[0].run_dir / name, tmp_path / "run")
    HubRun(tmp_path / "run").save_pretrained(tmp_path / "repository")
    written = {path.name for path in (tmp_path / "repository").iterdir()}
    assert written == {"config.json", "checkpoint.pt", "README.md"}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        HubRun(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a configuration"):
        HubRun.from_pretrained(str(tmp_path))


def test_without_network_a_repository_that_was_not_downloaded_is_an_error(tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(LocalEntryNotFoundError):
        HubRun.from_pretrained("user/boat", local_files_only=True, cache_dir=tmp_path)
