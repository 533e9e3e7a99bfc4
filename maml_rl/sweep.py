"""Sweeps: one run for every combination of options and every seed, several at once, each on its own cores."""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from .config import Config
from .envs import num_cores
from .errors import UserError
from .methods import method_of
from .runs.evaluation import held_out_seed
from .runs.files import make_folder
from .runs.folder import load_config
from .sampling.families import import_family

# What the runs of one comparison must have in common.
_ALIKE = ("env_id", "horizon", "env_kwargs", "eval_num_tasks", "eval_num_rollouts")


class Planned(NamedTuple):
    """A run of a sweep.

    Attributes:
        config: Its options.
        words: The command line that trains it, without the program's name.
    """

    config: Config
    words: list[str]

    @property
    def log(self) -> Path:
        """The file with what the run prints, beside its folder."""
        return self.config.run_dir.with_suffix(".log")


def combinations(arguments: Sequence[str]) -> dict[str, list[str]]:
    """All combinations of the values in a command line: the command line of each, by a name.

    An option of one value may have several here. If it is repeated, the last ones count. An option that takes
    several words, such as `--hidden-sizes 64 64`, may be repeated, and so may a flag and its opposite. The name
    has the options that differ between the combinations.
    """
    defaults = Config().options()
    choices: dict[str, list[list[str]]] = {}
    for option, *values in _groups(arguments):
        name = option.removeprefix("--").removeprefix("no-")
        if values and not isinstance(defaults.get(name.replace("-", "_")), tuple | dict):
            choices[name] = [[option, value] for value in values]
        else:
            choices.setdefault(name, []).append([option, *values])
    found = {}
    for chosen in itertools.product(*choices.values()):
        differing = [
            "=".join([words[0].removeprefix("--"), *["_".join(words[1:])] * (len(words) > 1)]).replace("/", "_")
            for words, all_words in zip(chosen, choices.values(), strict=True)
            if len(all_words) > 1
        ]
        found[",".join(differing)] = [word for words in chosen for word in words]
    return found


def _groups(arguments: Sequence[str]) -> list[list[str]]:
    """Splits a command line into its options, each with its values."""
    groups: list[list[str]] = []
    for word in arguments:
        if word.startswith("--"):
            option, *value = word.split("=", 1)
            groups.append([option.replace("_", "-"), *value])  # both are the same option
        elif groups:
            groups[-1].append(word)
        else:
            raise UserError(
                f"{word!r} belongs to no option; write an option such as --inner-lr before its values."
            )
    return groups


def planned(
    arguments: Sequence[str],
    program: Sequence[str],
    options: Callable[[list[str]], Config],
    root: Path,
    seeds: int,
) -> list[Planned]:
    """The runs of a sweep.

    Args:
        arguments: A command line in which options may have several values.
        program: The words that stand before it, `train` for example.
        options: Reads the options of one run from its command line.
        root: The folder of all runs.
        seeds: The number of seeds, from 1 on.

    Raises:
        UserError: If the runs cannot be compared.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}, but must be at least 1.")
    for name in ("seed", "run-dir", "resume"):
        if any(group[0] in (f"--{name}", f"--no-{name}") for group in _groups(arguments)):
            raise UserError(f"A sweep chooses --{name} itself; leave it out.")
    plans = []
    for name, combination in combinations(arguments).items():
        for seed in range(1, seeds + 1):
            folder = root / name / f"seed{seed}"
            words = [*combination, "--run-dir", str(folder), "--seed", str(seed), "--resume"]
            plans.append(Planned(options(words), [*program, *words]))
    import_family(plans[0].config.env_id)  # it may register the method
    for plan in plans:
        method_of(plan.config)  # before any run starts
    first, trained = plans[0].config, [(plan.config.options("method"), plan.config.seed) for plan in plans]
    for plan, name in itertools.product(plans, _ALIKE):
        if getattr(plan.config, name) != getattr(first, name):
            raise UserError(
                f"{name} has several values, but a sweep compares runs that agree in it; start one sweep for each."
            )
    if any(one in trained[:i] for i, one in enumerate(trained)):
        raise UserError(
            "Some runs would train the same policy, because they differ only in options that do not affect "
            "training; give each of these options one value."
        )
    return plans


def is_finished(config: Config) -> bool:
    """Whether a run was trained and evaluated with these options. If not, `train --resume` trains, or says why."""
    try:
        evaluated = json.loads((config.run_dir / "evaluation.json").read_text())
        wanted = {
            "iterations": config.iterations,
            "num_steps": config.eval_num_steps,
            "num_tasks": config.eval_num_tasks,
            "num_rollouts": config.eval_num_rollouts,
            "seed": held_out_seed(config),
        }
        same = load_config(config.run_dir).options("method") == config.options("method")
        return bool(same and all(evaluated[name] == value for name, value in wanted.items()))
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return False


def run_all(plans: Sequence[Planned], jobs: int) -> list[Planned]:
    """Trains all runs that are not finished, some at once, and returns those that failed.

    If this process is interrupted, the runs write their checkpoints and end.

    Raises:
        UserError: If the folder of a run cannot be made. Then none is trained.
    """
    waiting = [plan for plan in plans if not is_finished(plan.config)]
    for plan in waiting:
        make_folder(plan.log.parent)
    with tqdm(total=len(plans), initial=len(plans) - len(waiting), unit="run") as progress:
        codes = asyncio.run(_run_all(waiting, jobs, progress.update))
    return [plan for plan, code in zip(waiting, codes, strict=True) if code]


def _opened(log: Path) -> IO[str]:
    try:
        return open(log, "a")
    except OSError as error:
        raise UserError(f"Cannot write {log} ({error.strerror}); choose another --run-dir.") from error


async def _run_all(plans: Sequence[Planned], jobs: int, ended: Callable[[], object]) -> list[int]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(num_cores())]
    slots: asyncio.Queue[list[int]] = asyncio.Queue()
    for i in range(jobs):
        slots.put_nowait(cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs])

    async def one(plan: Planned) -> int:
        own_cores = await slots.get()
        with _opened(plan.log) as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "maml_rl", *plan.words),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal reaches this process only, which ends the runs
            )
        try:
            if own_cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, own_cores)
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        slots.put_nowait(own_cores)
        ended()
        return code

    return await asyncio.gather(*(one(plan) for plan in plans))
