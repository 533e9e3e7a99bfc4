"""The run folder: its options, its policy, and the state to continue from."""

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from .. import __version__, ranks, zoo
from ..config import Config
from ..envs import VectorFamily
from ..errors import UserError
from ..methods import Method, adapts_to_examples, method_of
from ..policies import flatten, load
from ..sampling.examples import example_sets
from ..sampling.families import import_family, is_registered, make_env, require_memory, sample_tasks
from ..sampling.normalisation import add_statistics
from ..sampling.streams import stream, torch_generator
from .checkpoint import State, load_checkpoint
from .files import LOCK, locked, make_folder, write_json

_log = logging.getLogger(__name__)

# Options that earlier versions did not have, by the first version that has them. Their defaults must do what
# earlier versions did. (`device` and `normalise_advantages` were added during 0.1, `start_from` during 0.3.)
_ADDED = {
    "0.2": {
        *("method", "threads", "device", "normalise_advantages", "inner_advantage"),
        *("activation", "policy_gradient", "network"),
    },
    "0.3": {"normalise_observations"},
    "0.4": {"start_from"},
}
_NOT_SAVED = {"run_dir", "resume"}
# Options that make the policy. A run has those of the run that it starts from.
_OF_POLICY = (
    *("hidden_sizes", "activation", "network", "initial_std", "observe_task", "context_size"),
    *("learn_lr", "inner_advantage", "normalise_observations"),
)
# Files that a killed process left half written, and all files of a run that has trained nothing yet.
_TEMPORARY = re.compile(r"\.(config\.json|checkpoint\.pt|[a-z]+\.(json|png|mp4))(\.[0-9a-f]{16})?\.tmp")
_DRAWN = re.compile(r"rollouts\.png|events\.out\.tfevents\..*")
_BEFORE_TRAINING = re.compile(rf"{re.escape(LOCK)}|config\.json|{_DRAWN.pattern}|{_TEMPORARY.pattern}")


def new_policy(config: Config, own: nn.Module | None = None, for_training: bool = False) -> nn.Module:
    """Makes the untrained policy of a run. It is always the same for the same options.

    Args:
        config: The run's options.
        own: The user's own module instead of a ready-made one. It is copied.
        for_training: Whether it is to be trained here. Then batches must fit into the memory, and the family must
            have held-out tasks.

    Raises:
        UserError: If there is no ready-made policy for the family, or the policy does not fit the options.
    """
    method = method_of(config)
    if torch.get_default_dtype() != torch.float32:
        raise UserError(
            f"The default type of torch is {torch.get_default_dtype()}, but policies are float32; call "
            "torch.set_default_dtype(torch.float32)."
        )
    with contextlib.closing(make_env(config, 1)) as env:
        if for_training:
            require_memory(env, config, "", "eval_")
            _require_held_out(env, method)
    if own is None:
        policy = method.make_policy(env, torch_generator(stream(config.seed, "policy")))
    else:
        _require_trainable(own)
        policy = _copied(own)
    method.prepare(policy, env)
    add_statistics(policy, config, spaces.flatdim(env.single_observation_space))
    return policy


def _require_held_out(env: VectorFamily, method: Method) -> None:
    """Draws held-out tasks and examples of one, so that a family which has none is refused before training."""
    config = method.config
    tasks = sample_tasks(env, config.eval_num_tasks, np.random.default_rng(0), held_out=True)
    if adapts_to_examples(env, method):
        example_sets(env, tasks[:1], config.eval_num_rollouts, np.random.SeedSequence(0))


def require_module(policy: object) -> None:
    """Refuses a policy that is none, such as the class of one or the name of a run."""
    if not isinstance(policy, nn.Module):
        raise UserError(f"The policy given is {policy!r}, but must be an instance of torch.nn.Module.")


def _require_trainable(own: nn.Module) -> None:
    require_module(own)
    names: dict[nn.Module, str] = {}
    for name, module in own.named_modules(remove_duplicate=False):
        if names.setdefault(module, name) != name and any(True for _ in module.parameters()):
            raise UserError(
                f"The policy given has one module under two names, {names[module]!r} and {name!r}; keep it under "
                "one, and call it twice in forward."
            )
    if not any(True for _ in own.parameters()):
        raise UserError("The policy given has no parameters, so there is nothing to train.")
    if not all(parameter.requires_grad for parameter in own.parameters()):
        raise UserError("The policy given has frozen parameters, but all are meta-trained; make them buffers.")
    if not torch.isfinite(flatten(own)).all():
        raise UserError("The policy given has parameters that are not finite; initialise them.")
    for name, buffer in own.named_buffers():
        if buffer.isnan().any():  # nothing equals NaN, so that no checkpoint would fit the policy again
            raise UserError(f"The policy given has the buffer {name}, which has NaN; use other values.")
    if other := {str(parameter.dtype) for parameter in own.parameters()} - {"torch.float32"}:
        raise UserError(f"The policy given has parameters of {min(other)}; convert them: policy.float().")


def _copied(own: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(own)
    except TypeError as error:
        raise UserError(f"The policy given cannot be copied ({error}); keep no such thing in it.") from error
    except RuntimeError as error:
        raise UserError(
            f"The policy given cannot be copied ({error}). Keep no tensors in it that are computed from others; "
            "instead of torch.nn.utils.weight_norm, take torch.nn.utils.parametrizations.weight_norm."
        ) from error


@contextlib.contextmanager
def open_folder(config: Config, policy: nn.Module, first: Path | None = None) -> Iterator[State]:
    """Makes or reopens the run folder, and keeps other processes from training in it.

    Args:
        config: The run's options.
        policy: The untrained policy.
        first: The folder of the run that this one starts from, if there is one.

    Yields:
        The state to continue from.

    Raises:
        UserError: If the folder cannot be written, is in use, holds a run and `resume` is not set, holds a run
            with other options, or holds something else.
    """
    folder = config.run_dir
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            names = os.listdir(folder)
            # The lock is a run's first file. Without it, files that have the names of a run's are somebody else's.
            began = LOCK in names and all(_BEFORE_TRAINING.fullmatch(name) for name in names)
            if names and "checkpoint.pt" not in names and not began:
                raise UserError(f"{folder} holds files, but no run; choose an empty or new --run-dir.")
            stack.enter_context(locked(folder))
            is_run = (folder / "checkpoint.pt").exists()  # another process may have finished it
            for path in [*folder.iterdir()]:
                # Curves of a run that has trained nothing would be mixed with those of the next.
                if _TEMPORARY.fullmatch(path.name) or (not is_run and _DRAWN.fullmatch(path.name)):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot use the folder {folder} ({error.strerror}); choose another --run-dir."
            ) from error
        # After a failure, torchrun starts the same command again, which then continues the run that it began.
        lock = folder / LOCK
        continues = ranks.restarted() and lock.read_text() == ranks.launch()
        state = _state(dataclasses.replace(config, resume=config.resume or continues), policy, first)
        save_config(config)  # first, because it reports a full disk
        lock.write_text(ranks.launch())
        yield state


def _state(config: Config, policy: nn.Module, first: Path | None) -> State:
    """Returns the state of the run in the folder, or the first one if it has trained nothing yet."""
    folder = config.run_dir
    if not (folder / "checkpoint.pt").exists():
        if config.resume:
            _log.info("%s has no checkpoint to continue, so training begins.", folder)
        return _first_state(config, policy, first)
    if not config.resume:
        raise UserError(
            f"{folder} already holds a run; continue it with --resume (in Python resume=True), or choose another "
            "--run-dir."
        )
    before = load_config(folder)
    fixed = {field.name for field in dataclasses.fields(Config) if field.metadata["fixed"]}
    for (name, old), new in zip(before.options().items(), config.options().values(), strict=True):
        if name in fixed and old != new:
            words = ["--resume", str(folder), *["--env-id", before.env_id] * (":" in before.env_id)]
            raise UserError(
                f"The run in {folder} has {name}={old}, but {new} was asked for; resume it with its own "
                f"options (train {shlex.join(words)}), or choose another --run-dir, where --start-from {folder} "
                "trains on with other options."
            )
    state = load_checkpoint(folder, policy)
    if state.iteration > config.iterations:
        raise UserError(
            f"The run in {folder} has done {state.iteration} iterations, but iterations is {config.iterations}; "
            "ask for more, or choose another --run-dir."
        )
    return state


def _first_state(config: Config, policy: nn.Module, first: Path | None) -> State:
    """Returns the state before training: the untrained policy, or the θ of another run."""
    if first is None:
        return State(flatten(policy), flatten(policy), {}, 0, 0)
    other = load_config(first)
    for name in _OF_POLICY:  # some do not change the shapes of parameters, but what they mean
        if getattr(other, name) != getattr(config, name):
            raise UserError(
                f"start_from names the run in {first}, which has {name}={getattr(other, name)}, but this run has "
                f"{getattr(config, name)}; give it the same, because options of the policy cannot change."
            )
    return load_checkpoint(first, policy)._replace(optimiser_state={}, iteration=0)


def save_config(config: Config) -> None:
    """Writes config.json. It does not contain the folder's name, so that a run can be moved."""
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in _NOT_SAVED
    }
    content = {"version": __version__, **options}
    write_json(config.run_dir / "config.json", content | {"checksum": _checksum(content)})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_config(folder: Path) -> Config:
    """Reads config.json.

    Raises:
        UserError: If the file is missing, or is not a configuration of this or an earlier version.
    """
    path = folder / "config.json"
    try:
        options = json.loads(path.read_text())
        checksum = options.pop("checksum", None)  # files of earlier versions have none
        changed = checksum not in (None, _checksum(options))
        version = str(options.pop("version", "0.1.0"))
        _require_complete(options, version)
        config = Config(**options, run_dir=folder)
    except OSError as error:
        if folder.parts[:1] == ("zoo",) and folder.name in zoo.names():
            raise UserError(
                f"{folder} comes with the package, and can only be loaded, evaluated and rendered; begin a new "
                f"run with --start-from {folder}, or give a folder that train wrote."
            ) from error
        wanted = f"zoo/{folder.name}" if folder.name in zoo.names() else "the folder that train wrote"
        raise UserError(
            f"{folder} holds no run: {path} cannot be read ({error.strerror}); give {wanted}."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} is not a configuration of this version of maml_rl ({error}); start a new run, or install the "
            "version that wrote it."
        ) from error
    if changed:
        raise UserError(
            f"{path} is damaged: its checksum is wrong. Restore it from a copy, or, if you changed it on purpose, "
            'remove the line "checksum".'
        )
    return config


def _require_complete(options: dict[str, Any], version: str) -> None:
    """Refuses files of a later version, unknown options, and missing options that the version already had."""
    if _number(version) > _number(__version__):
        raise ValueError(f"version {version} wrote it, and this is {__version__}")
    names = {field.name for field in dataclasses.fields(Config)} - _NOT_SAVED
    added = {name for since, new in _ADDED.items() if _number(since) > _number(version) for name in new}
    if missing := sorted(names - added - options.keys()):
        raise ValueError(f"{', '.join(missing)} is missing")
    if unknown := sorted(options.keys() - names):
        raise ValueError(f"{', '.join(unknown)} is unknown")


def _number(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version. The meaning of options depends on them only."""
    return tuple(int(number) for number in version.split(".")[:2])


@torch.inference_mode(False)  # whose tensors could not be differentiated later
def load_run(folder: Path, own: nn.Module | None = None, trust: bool = False) -> tuple[Config, nn.Module, State]:
    """Reads a run from its last checkpoint: its options, its policy with θ, and its state.

    Args:
        folder: The run folder, or `zoo/NAME` for a policy that comes with the package.
        own: The user's own module, if the run was trained with one.
        trust: Import the module that registers the run's family, if config.json names one.

    Raises:
        UserError: If the folder holds no run or a damaged one, or if `trust` is needed but not set.
    """
    folder = zoo.located(folder).absolute()  # an environment may change the working folder
    config = load_config(folder)
    if trust:
        import_family(config.env_id)
    else:
        require_trust(config, "import it yourself first, or pass --trust (in Python trust=True)")
    policy = new_policy(config, own)
    state = load_checkpoint(folder, policy)
    load(policy, state.theta)
    return config, policy, state


def require_trust(config: Config, how: str) -> None:
    """Refuses a config.json that names a module, whose code would run, if it is not imported yet.

    Raises:
        UserError: The message says how to import it.
    """
    if ":" in config.env_id and not is_registered(config.env_id):
        module = config.env_id.rpartition(":")[0]
        raise UserError(
            f"The run in {config.run_dir} names the module {module!r}, which would run its code. If you trust it, "
            f"{how}."
        )
