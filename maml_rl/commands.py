"""The commands that read finished runs, and the list of families."""

import os
import sys
from pathlib import Path
from typing import Any

import tyro

from .errors import UserError
from .process import tune_process


def evaluate(
    run_dir: tyro.conf.Positional[Path],
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
    tasks: Path | None = None,
    output: Path | None = None,
    trust: bool = False,
) -> None:
    """Evaluates a run on held-out tasks, and prints the returns. The run folder is not changed.

    Args:
        run_dir: The run folder, or `zoo/NAME`.
        num_steps: S, adaptation steps. By default as in the run's options, like the next three.
        num_tasks: Held-out tasks.
        num_rollouts: K, rollouts of a task before and after each step.
        seed: Seed of the held-out tasks and rollouts.
        tasks: A .npy file with your own tasks, one per row, instead of held-out ones.
        output: A folder for evaluation.json and adaptation.png. By default, nothing is written. If it is the run
            folder, these files replace the run's own.
        trust: Import the module that registers the run's family, if its config.json names one.
    """
    tune_process()
    from .results.plots import write_results
    from .runs.evaluation import evaluate as evaluate_run
    from .runs.files import make_folder

    if trust:
        add_working_folder()
    if output is not None:
        output = output.absolute()  # an environment may change the working folder
        make_folder(output)  # before the work, which would be lost without it
    results = evaluate_run(
        run_dir,
        tasks=None if tasks is None else _array(tasks),
        num_steps=num_steps,
        num_tasks=num_tasks,
        num_rollouts=num_rollouts,
        seed=seed,
        trust=trust,
    )
    if output is not None:
        write_results(output, results)
    print(table(results, every_step=num_steps is not None))
    if output is not None:
        print(f"picture      {output / 'adaptation.png'}")


def render(
    run_dir: tyro.conf.Positional[Path],
    num_tasks: int = 2,
    num_steps: int | None = None,
    seed: int | None = None,
    output: Path | None = None,
    trust: bool = False,
) -> None:
    """Films held-out tasks before and after adaptation, side by side, as adaptation.mp4 and for TensorBoard.

    Args:
        run_dir: The run folder, or `zoo/NAME`.
        num_tasks: Number of held-out tasks to show, one per row.
        num_steps: S, adaptation steps. By default as in the run's options.
        seed: Seed of the held-out tasks and rollouts. By default as in the run's options.
        output: A folder for the film. By default it is the run folder, where TensorBoard shows the film too, and
            for a policy of the zoo the working folder.
        trust: Import the module that registers the run's family, if its config.json names one.
    """
    tune_process()
    from .results.video import adaptation_video, add_video, write_video
    from .runs.evaluation import with_options
    from .runs.files import make_folder
    from .runs.folder import load_run

    if num_tasks < 1:
        raise UserError(f"num_tasks is {num_tasks}, but must be at least 1.")
    if trust:
        add_working_folder()
    folder = output or (run_dir if os.path.exists(run_dir) else Path())
    folder = folder.absolute()  # an environment may change the working folder
    config, policy, state = load_run(run_dir, trust=trust)
    config = with_options(config, num_steps=num_steps, seed=seed)
    is_run = folder == run_dir.absolute()
    make_folder(folder)
    frames, fps = adaptation_video(policy, config, num_tasks)
    write_video(folder / "adaptation.mp4", frames, fps)
    if is_run:
        add_video(folder, "eval/video", frames, fps, state.env_steps)
    print(f"video        {folder / 'adaptation.mp4'}")


def compare(
    run_dirs: tyro.conf.Positional[tuple[Path, ...]],
    picture: Path = Path("comparison.png"),
    trust: bool = False,
) -> None:
    """Compares finished runs of one family: prints a table of methods over their seeds, and draws their curves.

    Args:
        run_dirs: Any number of run folders. Runs whose options differ only in the seed are one method.
        picture: Where to write the picture.
        trust: Import the modules that config.json files name, where one registers a method of the user's own.
    """
    from .results.comparison import (
        as_markdown,
        by_method,
        comparison_figure,
        comparison_table,
        family_name,
        interval_words,
        kind_of_tasks,
        load_runs,
        success_rows,
    )
    from .results.plots import write_figure

    if picture.suffix not in ("", ".png"):
        raise UserError(f"picture is {picture}, but must be a .png file.")
    if trust:
        _import_families(run_dirs)
    runs = load_runs(run_dirs)
    family, methods = family_name(runs[0][1]), by_method(runs)
    write_figure(picture, comparison_figure(family, methods))
    print(comparison_table(family, methods))
    print(
        f"\nReturns are interquartile means over {kind_of_tasks(runs)} and seeds with their "
        f"{interval_words(methods)}. In each "
        "column, methods have seen at most the same number of episodes of a task. Gain: the last column of "
        "returns minus the first. Score: (method - random) / (oracle - random), of means over the seeds that the "
        "three share; random is the untrained policy of plain MAML, or of the first method in the alphabet."
    )
    if success := success_rows(methods):
        print(f"\n{as_markdown(success)}")
        print("\nSuccess is the mean share of rollouts, with a 95% bootstrap interval.")
    print(f"picture      {picture}")


def _import_families(run_dirs: tuple[Path, ...]) -> None:
    from .runs.folder import load_config
    from .sampling.families import import_family

    add_working_folder()
    for run_dir in run_dirs:
        import_family(load_config(run_dir).env_id)


def report(
    run_dirs: tyro.conf.Positional[tuple[Path, ...]], output: Path = Path("report.html"), trust: bool = False
) -> None:
    """Writes a page about finished runs of any families: tables, curves, options, pictures and films in one file.

    Args:
        run_dirs: Any number of run folders.
        output: Where to write the page.
        trust: Import the modules that config.json files name, where one registers a method of the user's own.
    """
    from .results.report import report as page
    from .runs.files import write_atomically

    if not run_dirs:
        raise UserError("There is nothing to report on; give the folders of at least one run.")
    if trust:
        _import_families(run_dirs)
    write_atomically(output, page(run_dirs).encode())
    print(f"page         {output}")


def zoo() -> None:
    """Lists the trained policies that come with the package, and the returns that they reach."""
    from .zoo import card, names

    for name in names():
        found = card(name)
        returns = ", ".join(f"{value:.1f}" for value in found["returns"][:4])
        print(f"zoo/{name}")
        print(f"  family       {found['env_id']}")
        print(f"  method       {found['method']}, {found['env_steps'] / 1e6:.1f} million steps of training")
        print(f"  returns      {returns} after 0, 1, ... adaptation steps")
        kind = "tasks that training has seen too" if found["tasks_seen"] else "held-out tasks"
        print(f"  evaluation   {found['num_tasks']} adaptations to {kind}")


def families() -> None:
    """Lists the registered task families with their spaces and horizons."""
    import gymnasium

    from .envs import families as registered
    from .envs import in_words

    for env_id in registered():
        print(env_id)
        try:
            env: Any = gymnasium.make(env_id)
        except ValueError as error:  # it needs files that are not there
            print(f"  {error}")
            continue
        print(f"  task         {in_words(env.unwrapped.task_space)}")
        print(f"  observation  {in_words(env.observation_space)}")
        print(f"  action       {in_words(env.action_space)}")
        print(f"  horizon      {env.spec.max_episode_steps}")
        env.close()


def table(results: dict[str, Any], every_step: bool = False) -> str:
    """Returns a table of mean returns with 95% intervals: methods in rows, numbers of steps in columns.

    Args:
        results: As `evaluate` returns them.
        every_step: Show all columns, also if there are many.
    """
    from .results.plots import describe_tasks

    last = results["num_steps"]
    shown = [k for k in range(last + 1) if every_step or k in (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, last)]
    unit = results["unit"]
    head = "".join(f"{k:>14} {unit}{'s' if k != 1 else ' '}".rjust(21) for k in shown)
    rows = []
    for title, prefix in (("return after", ""), ("success", "success_")):
        curves = {name: curve for name, curve in results["methods"].items() if prefix + "mean" in curve}
        rows += [f"{title:<12}{head}"] * bool(curves)
        for method, curve in curves.items():
            cells = (
                f"{curve[prefix + 'mean'][k]:>12.2f} ± {high - curve[prefix + 'mean'][k]:<6.2f}"
                for k, (_, high) in enumerate(curve[prefix + "ci95"])
                if k in shown
            )
            rows.append(f"{method:<12}" + "".join(cells))
    rows.append(f"mean ± 95% interval over {describe_tasks(results)}")
    return "\n".join(rows)


def add_working_folder() -> None:
    """Lets `--env-id my_family:id` find my_family.py in the working folder.

    The folder comes last, so that its files do not hide installed modules.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _array(path: Path) -> Any:
    """Loads the array in a .npy file. Files with pickled objects are refused."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except (ValueError, EOFError):
        array = None  # NumPy's own message advises to unpickle the file
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is not a .npy file with one array of numbers; save the tasks with numpy.save.")
    return array
