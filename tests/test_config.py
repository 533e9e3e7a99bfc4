"""Options: what each one is stands at the field, and everything else reads it there."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
import pytest
from conftest import ROOT

import maml_rl
from maml_rl import Config, UserError
from maml_rl.maml.inner import ESTIMATORS
from maml_rl.maml.outer import OPTIMISERS
from maml_rl.methods import METHODS, method_of
from maml_rl.runs.checkpoint import save_checkpoint
from maml_rl.runs.folder import load_config, new_policy, open_folder, save_config

OPTIONS = {option.name: option for option in dataclasses.fields(Config)}
OLD = ROOT / "experiments/results/navigation_2d/maml/seed1/config.json"  # of version 0.1


def another(name):
    """A value other than the default, of the same kind."""
    value = getattr(Config(), name)
    if name == "method":
        return "rl2"
    choices = get_args(get_type_hints(Config)[name])
    if choices and get_args(choices[0]):
        choices = get_args(choices[0])
    if choices and isinstance(choices[0], str):
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return (value / 2 or 0.5) if isinstance(value, float) else value + 1
    return {
        "env_id": "maml_rl/TabularMDP-v0", "run_dir": Path("elsewhere"), "env_kwargs": {"num_arms": 3},
        "hidden_sizes": (8,), "eval_lr_factors": (1.0,), "horizon": 7, "log_std_lr": 0.5, "eval_seed": 3,
        "num_workers": 1, "threads": 2, "start_from": Path("another"),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_what_it_is(name):
    metadata = OPTIONS[name].metadata
    assert metadata["scope"] in ("method", "run", "machine")
    for limit, beyond in (("at_least", -1), ("above", 0), ("at_most", 1)):
        if limit in metadata:
            with pytest.raises(UserError, match=f"^{name} is .*, but must be "):
                Config(**{name: metadata[limit] + beyond})
    if "at_least" in metadata or "above" in metadata:
        with pytest.raises(UserError, match=f"^{name} is nan, but must be "):
            Config(**{name: float("nan")})


def test_a_tilde_is_the_home_folder():
    assert Config(run_dir="~/runs/x").run_dir == Path.home() / "runs/x"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_is_resumed_with_what_is_fixed(name, tmp_path):
    before = Config(run_dir=tmp_path / "run")
    policy = new_policy(before)
    with open_folder(before, policy) as state:
        save_checkpoint(before.run_dir, policy, state)
    changed = dataclasses.replace(before, **{"resume": True, name: another(name)})
    if name == "run_dir":
        return
    if OPTIONS[name].metadata["fixed"]:
        with pytest.raises(UserError, match=f"has ({name}|method)=.* was asked for"):
            open_folder(changed, policy).__enter__()
    else:
        with open_folder(dataclasses.replace(changed, resume=True), policy):
            pass


def test_options_that_change_what_is_computed_are_fixed():
    for option in OPTIONS.values():
        wanted = (option.metadata["scope"] == "method" and option.name != "iterations") or option.name == "seed"
        assert option.metadata["fixed"] == wanted, option.name


@pytest.mark.parametrize(
    ("name", "registry"), [("estimator", ESTIMATORS), ("outer", OPTIMISERS), ("method", METHODS)]
)
def test_help_shows_the_registered_choices(name, registry):
    choices = get_type_hints(Config)[name]
    literal = next(part for part in get_args(choices) if getattr(part, "__origin__", None) is Literal)
    assert get_args(literal) == tuple(registry)


def test_nothing_is_changed_by_default():
    assert Config().changed(*Config().options()) == []
    assert Config(env_kwargs={"side": 2}).changed(*Config().options()) == ["env_kwargs"]


def test_a_method_that_is_chosen_by_name_is_the_same(tmp_path):
    one, other = Config(), Config(method="maml")
    assert one.options() == other.options()
    policy = new_policy(one)
    with open_folder(dataclasses.replace(one, run_dir=tmp_path / "run"), policy) as state:
        save_checkpoint(tmp_path / "run", policy, state)
    with open_folder(dataclasses.replace(other, run_dir=tmp_path / "run", resume=True), policy):
        pass
    assert Config(rl2_episodes=2).options("method")["method"] == "rl2"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_tasks": 2.5}, "num_tasks is 2.5, but must be of type int"),
        ({"num_tasks": None}, "num_tasks is None, but must be of type int"),
        ({"num_tasks": "20"}, "num_tasks is '20', but must be of type int"),
        ({"num_tasks": True}, "num_tasks is True, but must be of type int"),
        ({"hidden_sizes": 64}, "hidden_sizes is 64, but must be of type tuple"),
        ({"hidden_sizes": (8.5,)}, "every layer needs at least 1 unit"),
        ({"env_id": 5}, "env_id is 5, but must be of type str"),
        ({"horizon": "long"}, "horizon is 'long', but must be of type None or int"),
        ({"run_dir": 3}, "run_dir is 3, but must be of type"),
        ({"eval_lr_factors": ("1",)}, "eval_lr_factors"),
        (
            {"env_kwargs": {"root": Path("data")}},
            "env_kwargs has 'root': .*data.*, but must be names with",
        ),
        ({"env_kwargs": {"sizes": (1, 2)}}, r"env_kwargs has 'sizes': \(1, 2\), but must be names with values of"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Config(**options)


def test_numbers_and_lists_are_kept_as_json_has_them(tmp_path):
    config = Config(run_dir=tmp_path, seed=np.int64(3), inner_lr=np.float32(0.5), hidden_sizes=[8, np.int32(4)])
    assert config == Config(run_dir=tmp_path, seed=3, inner_lr=0.5, hidden_sizes=(8, 4))
    whole = Config(inner_lr=1, eval_lr_factors=(1, 0.5), env_kwargs={"num_ways": np.int64(5)})
    assert str(whole) == str(Config(inner_lr=1.0, eval_lr_factors=(1.0, 0.5), env_kwargs={"num_ways": 5}))
    save_config(config)
    assert load_config(tmp_path) == config


@pytest.mark.parametrize("name", ["learn_lr", "inner_advantage", "activation", "network", "adapt_only", "outer"])
def test_only_open_choices_take_other_words(name):
    """`--outer` and others also take a name that the user has registered. The method checks those."""
    if name in ("adapt_only", "outer"):
        Config(**{name: "mine"})
        return
    with pytest.raises(UserError, match=f"{name} is 'mine', but must be one of "):
        Config(**{name: "mine"})


def test_a_value_that_is_no_choice_is_refused():
    with pytest.raises(UserError, match="learn_lr is 'some', but must be one of no, one, layer, parameter"):
        Config(learn_lr="some")
    with pytest.raises(UserError, match="method is 'sgd', but must be one of maml, rl2"):
        method_of(Config(method="sgd"))


@pytest.mark.parametrize("kind", [str, Path])
def test_any_path_will_do_for_a_run_folder(kind, tmp_path):
    config = Config(run_dir=kind(tmp_path / "run"))
    assert config.run_dir == tmp_path / "run"
    with open_folder(config, new_policy(config)):
        assert load_config(tmp_path / "run") == config


def test_config_json_says_which_version_wrote_it(tmp_path):
    save_config(Config(run_dir=tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["version"] == maml_rl.__version__


def test_a_folder_of_version_0_1_means_what_it_meant(tmp_path):
    shutil.copy(OLD, tmp_path)
    options = json.loads(OLD.read_text())
    assert "version" not in options
    loaded = load_config(tmp_path)
    assert method_of(loaded).name == "maml"
    for name, value in options.items():
        assert getattr(loaded, name) == (tuple(value) if isinstance(value, list) else value)


def test_no_single_bit_of_config_json_changes_an_option(tmp_path):
    config = Config(run_dir=tmp_path, iterations=60, eval_seed=3, horizon=20)
    save_config(config)
    path = tmp_path / "config.json"
    content, refused = path.read_bytes(), 0
    places = [i for i in range(len(content)) if content[i : i + 1].isdigit() or i % 9 == 0]
    for i, bit in itertools.product(places, range(8)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
        try:
            assert load_config(tmp_path) == config
        except UserError:
            refused += 1
    assert refused > 6 * len(places)


def test_a_change_by_hand_is_possible(tmp_path):
    save_config(Config(run_dir=tmp_path))
    path = tmp_path / "config.json"
    options = json.loads(path.read_text()) | {"eval_num_tasks": 7}
    path.write_text(json.dumps(options))
    with pytest.raises(UserError, match='damaged: its checksum is wrong. .* remove the line "checksum"'):
        load_config(tmp_path)
    del options["checksum"]
    path.write_text(json.dumps(options))
    assert load_config(tmp_path).eval_num_tasks == 7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": "7.1.0"}, "version 7.1.0 wrote it, and this is"),
        ({"horizon": ...}, "horizon is missing"),
        ({"beauty": 1}, "beauty is unknown"),
        ({"version": "new"}, "is not a configuration of this version"),
        ({"num_tasks": 0}, "num_tasks is 0"),
    ],
    ids=str,
)
def test_other_configurations_are_refused(change, sentence, tmp_path):
    save_config(Config(run_dir=tmp_path))
    options = json.loads((tmp_path / "config.json").read_text()) | change
    options = {name: value for name, value in options.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(UserError, match=sentence):
        load_config(tmp_path)
