"""The front of the command line, the commands that train, and the experiment scripts."""

import ast
import dataclasses
import importlib.util
import json
import os
import runpy
import shlex
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from .commands import add_working_folder, compare, evaluate, families, render, report, table, zoo
from .config import Config
from .errors import UserError
from .process import end_process, exit_code, interrupts, prepare_process, raise_lost_interrupt, tune_process


def train(config: Annotated[Config, tyro.conf.arg(name="")]) -> None:
    """Meta-trains on a task family, evaluates on held-out tasks, and writes everything into the run folder."""
    tune_process()
    add_working_folder()
    from .ranks import under_torchrun  # imported late, because torch takes seconds
    from .training import train as meta_train

    run_dir = config.run_dir.absolute()  # an environment may change the working folder
    first = not under_torchrun() or os.environ["RANK"] == "0"  # one of several processes speaks
    try:
        with interrupts():
            meta_train(config, callbacks=[raise_lost_interrupt])
    except KeyboardInterrupt as error:
        if first and (run_dir / "checkpoint.pt").exists():
            module = ["--env-id", config.env_id] * (":" in config.env_id)  # never imported because a file names it
            words = [*_program(), "--resume", str(config.run_dir), *module]
            print(f"\nstopped; continue with: {shlex.join(words)}", file=sys.stderr)
        sys.exit(exit_code(error))
    if not first:
        return
    results = json.loads((run_dir / "evaluation.json").read_text())
    print(table(results))
    for name in ("adaptation.png", "rollouts.png"):
        if (run_dir / name).exists():
            print(f"picture      {config.run_dir / name}")
    print(
        f"TensorBoard  {shlex.join([sys.executable, '-m', 'tensorboard.main', '--logdir', str(config.run_dir)])}"
    )


def sweep(
    experiment: str | None = None,
    seeds: int = 3,
    jobs: int | None = None,
    run_dir: Path = Path("runs/sweep"),
) -> Callable[[list[str]], None]:
    """Trains every combination of options with several seeds, several runs at once, and compares them.

    Any option of `train` can follow, with one or more values: `--inner-lr 0.05 0.1`. Finished runs are not trained
    again, and stopped ones go on. Each run has a folder and a log of its own.

    Args:
        experiment: An experiment whose options are the defaults. `maml-rl experiment` lists them.
        seeds: The number of seeds of each combination, from 1 on.
        jobs: The number of runs at once, which share the cores. By default one per core.
        run_dir: The folder of all runs. The picture comparison.png is written there.

    Returns:
        A function of the options that follow, which does it.
    """
    return partial(_sweep, experiment, seeds, jobs, run_dir)


def _sweep(experiment: str | None, seeds: int, jobs: int | None, run_dir: Path, words: list[str]) -> None:
    tune_process()
    add_working_folder()
    from .envs import num_cores
    from .sweep import planned, run_all

    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}, but must be at least 1.")
    defaults = Config() if experiment is None else _defaults_of(experiment)
    program = ["train"] if experiment is None else ["experiment", experiment]
    plans = planned(words, program, lambda arguments: _options(arguments, defaults), run_dir, seeds)
    try:
        failed = run_all(plans, min(jobs or num_cores(), len(plans)))
    except KeyboardInterrupt:
        print("\nThe runs have written their checkpoints; the same command continues them.", file=sys.stderr)
        raise
    if finished := tuple(plan.config.run_dir for plan in plans if plan not in failed):
        compare(finished, picture=run_dir / "comparison.png")
    if failed:
        logs = ", ".join(str(plan.log) for plan in failed)
        raise UserError(
            f"{len(failed)} of {len(plans)} runs failed; their logs say why: {logs}. The same command goes on."
        )


def experiment(name: tyro.conf.Positional[str | None] = None) -> None:
    """Runs an experiment by its name, with any options of `train` after it, or lists the experiments."""
    if name is None:
        for path in sorted(_experiments().values()):
            print(f"{path.stem:<24}{(ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()[0]}")
        return
    script = _script(name)
    sys.argv = [str(script), *sys.argv[3:]]
    runpy.run_path(str(script), run_name="__main__")


def _experiments() -> dict[str, Path]:
    """The scripts of the experiments that train, by name."""
    spec = importlib.util.find_spec("maml_rl.experiments")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    scripts = [path for folder in folders for path in Path(folder).glob("*.py")]
    return {path.stem: path for path in scripts if "run_experiment(CONFIG)" in path.read_text()}


def _script(name: str) -> Path:
    """The script of an experiment. What lies beside it can be imported afterwards.

    Raises:
        UserError: If there is no such experiment.
    """
    scripts = _experiments()
    if name not in scripts:
        raise UserError(f"There is no experiment {name!r}; choose one of {', '.join(sorted(scripts))}.")
    sys.path.insert(0, str(scripts[name].parent))
    return scripts[name]


def _defaults_of(name: str) -> Config:
    """The options of an experiment."""
    config = runpy.run_path(str(_script(name)))["CONFIG"]
    assert isinstance(config, Config)
    return config


def run_experiment(defaults: Config) -> NoReturn:
    """Runs an experiment script with its own defaults. The command line can set every option of `Config`."""
    run(lambda: train(_options(sys.argv[1:], defaults)))


def _options(arguments: list[str], defaults: Config) -> Config:
    """Reads options from the command line.

    With `--resume RUN_DIR`, their defaults are those of the run in there. With `--start-from RUN_DIR` too, unless
    an experiment has its own.

    Raises:
        UserError: If there is no run, if another folder is named too, or if only its config.json names the module
            that registers its family.
    """
    head = f"Meta-trains on {defaults.env_id}." if defaults.env_id != Config.env_id else train.__doc__
    resumed, others = _taken("--resume", arguments)
    first, env_id = (_taken(option, arguments)[0] for option in ("--start-from", "--env-id"))
    if first == "None" or defaults != Config():
        first = None  # what is left out is not taken from it
    if resumed is not None or first is not None:
        from .runs.folder import load_config, require_trust
        from .sampling.families import registered_id
        from .zoo import located

        if resumed is not None:
            if _taken("--run-dir", arguments)[0] is not None:
                raise UserError(f"--resume {resumed} continues in that folder; leave --run-dir out.")
            arguments = others
            defaults = dataclasses.replace(load_config(Path(resumed)), resume=True)
        elif first is not None:
            defaults = dataclasses.replace(load_config(located(Path(first))), run_dir=defaults.run_dir)
            if env_id and registered_id(env_id) != registered_id(defaults.env_id):  # arguments are a family's own
                defaults = dataclasses.replace(defaults, env_kwargs={}, horizon=None)
        if not env_id:
            require_trust(defaults, f"name it yourself: --env-id {defaults.env_id}")
    program = " ".join(Path(word).name for word in _program())
    # Of a dictionary that is not empty, tyro would make an option for each name, and take no other names.
    of_family, defaults = defaults.env_kwargs, dataclasses.replace(defaults, env_kwargs={})
    config = tyro.cli(Config, args=arguments, default=defaults, description=head, prog=program)
    return dataclasses.replace(config, env_kwargs=of_family | config.env_kwargs)


def _taken(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Returns the value of an option, None if it has none, and the words of the command line without both."""
    for i in reversed(range(len(arguments))):  # the last one counts
        name, equals, value = arguments[i].partition("=")
        after = arguments[i + 1 : i + 2]
        if name.replace("_", "-") == option and equals:
            return value, arguments[:i] + arguments[i + 1 :]
        if name.replace("_", "-") == option and after and not after[0].startswith("-"):
            return after[0], arguments[:i] + arguments[i + 2 :]
    return None, arguments


def main() -> NoReturn:
    """The command `maml-rl`."""
    commands: dict[str, Callable[..., object]] = {
        "train": train,
        "experiment": experiment,
        "sweep": sweep,
        "evaluate": evaluate,
        "compare": compare,
        "report": report,
        "render": render,
        "families": families,
        "zoo": zoo,
    }

    def command() -> None:
        if sys.argv[1:2] == ["train"]:
            train(_options(sys.argv[2:], Config()))
        elif sys.argv[1:2] == ["sweep"]:
            start, words = tyro.cli(sweep, args=sys.argv[2:], prog="maml-rl sweep", return_unknown_args=True)
            start(words)
        elif sys.argv[1:2] == ["experiment"] and sys.argv[2:3] and not sys.argv[2].startswith("-"):
            experiment(sys.argv[2])
        else:
            tyro.extras.subcommand_cli_from_dict(commands, description="Meta-reinforcement learning.")

    run(command)


def run(command: Callable[[], object]) -> NoReturn:
    """Runs a command. An error that the user can fix is printed as one sentence, without a traceback."""
    # TensorBoard writes in its own thread. An error there is raised again in the main thread.
    threading.excepthook = lambda args: (
        None if isinstance(args.exc_value, OSError) else threading.__excepthook__(args)
    )
    try:
        prepare_process()
        with interrupts():
            command()
        sys.stdout.flush()
    except UserError as error:
        _fail("\n".join([str(error), *getattr(error, "__notes__", [])]))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("Out of memory; lower num_tasks, num_rollouts, horizon, hidden_sizes or chunk_tasks.")
    except BrokenPipeError:
        # The reader has closed the pipe. Python flushes again at exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as error:
        print("\nstopped", file=sys.stderr)
        sys.exit(exit_code(error))
    finally:
        end_process()
    sys.exit(0)


def _is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out. Torch raises its own error on a GPU, and a RuntimeError on a CPU."""
    on_gpu = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or on_gpu or "can't allocate memory" in str(error)


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _program() -> list[str]:
    """Returns the command that trains: a script, or the command `train` of this module or of `maml-rl`."""
    if Path(sys.argv[0]).name == "__main__.py":
        return [sys.executable, "-m", "maml_rl", "train"]
    return [sys.executable, sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0], "train"]
