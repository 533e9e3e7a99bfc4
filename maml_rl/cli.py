"""The command line: `maml-rl train | evaluate | compare | render | families`, and the experiments' front."""

import json
import os
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from .config import Config
from .errors import UserError


def train(config: Annotated[Config, tyro.conf.arg(name="")]) -> None:
    """Meta-trains on a task family, evaluates on held-out tasks, and writes it all into the run folder."""
    from .training import train as meta_train  # torch takes seconds to import: --help need not wait

    try:
        meta_train(config)
    except KeyboardInterrupt:
        arguments = [*sys.argv[1:], *(["--resume"] if "--resume" not in sys.argv else [])]
        if (config.run_dir / "checkpoint.pt").exists():
            print(f"\nstopped; go on with: {shlex.join([*_program(), *arguments])}", file=sys.stderr)
        sys.exit(130)
    results = json.loads((config.run_dir / "evaluation.json").read_text())
    print(table(results))
    for name in ("adaptation.png", "rollouts.png"):
        if (config.run_dir / name).exists():
            print(f"picture      {config.run_dir / name}")
    print(
        f"TensorBoard  {shlex.join([sys.executable, '-m', 'tensorboard.main', '--logdir', str(config.run_dir)])}"
    )


def evaluate(
    run_dir: tyro.conf.Positional[Path],
    num_steps: int | None = None,
    num_tasks: int | None = None,
    num_rollouts: int | None = None,
    seed: int | None = None,
) -> None:
    """Evaluates a run on held-out tasks; replaces its evaluation.json and adaptation.png.

    Args:
        run_dir: The run folder.
        num_steps: S, adaptation steps; by default as the run was configured, and so on.
        num_tasks: Held-out tasks.
        num_rollouts: K, rollouts of a task before and after each step.
        seed: Seed of the held-out tasks and rollouts.
    """
    from .evaluation import evaluate as evaluate_run
    from .plots import write_results

    results = evaluate_run(run_dir, num_steps=num_steps, num_tasks=num_tasks, num_rollouts=num_rollouts, seed=seed)
    write_results(run_dir, results)
    print(table(results))
    print(f"picture      {run_dir / 'adaptation.png'}")


def render(
    run_dir: tyro.conf.Positional[Path], num_tasks: int = 2, num_steps: int | None = None, seed: int | None = None
) -> None:
    """Films held-out tasks before and after adaptation, side by side: adaptation.mp4, and in TensorBoard.

    Args:
        run_dir: The run folder.
        num_tasks: How many of the held-out tasks to show, a row each.
        num_steps: S, adaptation steps; by default as the run was configured.
        seed: Seed of the held-out tasks and rollouts; by default as the run was configured.
    """
    import dataclasses

    from torch.utils.tensorboard import SummaryWriter

    from .runs import load_run
    from .video import adaptation_video, add_video, write_video

    if num_tasks < 1:
        raise UserError(f"num_tasks is {num_tasks}, but must be at least 1.")
    config, policy, state = load_run(run_dir)
    config = dataclasses.replace(
        config,
        eval_num_steps=config.eval_num_steps if num_steps is None else num_steps,
        eval_seed=config.eval_seed if seed is None else seed,
    )
    frames, fps = adaptation_video(policy, config, num_tasks)
    write_video(run_dir / "adaptation.mp4", frames, fps)
    writer = SummaryWriter(str(run_dir))
    add_video(writer, "eval/video", frames, fps, state.env_steps)
    writer.close()
    print(f"video        {run_dir / 'adaptation.mp4'}")


def compare(run_dirs: tyro.conf.Positional[tuple[Path, ...]], picture: Path = Path("comparison.png")) -> None:
    """Compares finished runs of one family: prints a table of methods over their seeds, and draws their curves.

    Args:
        run_dirs: Run folders, in any number; their options tell which of them are seeds of the same method.
        picture: Where to write the picture.
    """
    from .comparison import by_method, comparison_figure, comparison_table, load_runs
    from .plots import write_figure

    runs = load_runs(run_dirs)
    env_id, methods = runs[0][1].env_id, by_method(runs)
    write_figure(picture, comparison_figure(env_id, methods))
    print(comparison_table(env_id, methods))
    print(
        "\nInterquartile means over held-out tasks and seeds, 95% stratified bootstrap intervals; after as many "
        "episodes of a task as inner steps take. Score: (method - random) / (oracle - random), means."
    )
    print(f"picture      {picture}")


def families() -> None:
    """Lists the registered task families with their spaces and horizons."""
    import gymnasium

    from .envs import families as registered
    from .envs import in_words

    for env_id in registered():
        env: Any = gymnasium.make(env_id)
        print(env_id)
        print(f"  task         {in_words(env.unwrapped.task_space)}")
        print(f"  observation  {in_words(env.observation_space)}")
        print(f"  action       {in_words(env.action_space)}")
        print(f"  horizon      {env.spec.max_episode_steps}")
        env.close()


def table(results: dict[str, Any]) -> str:
    """Mean returns with 95% intervals, a row for each method, columns for some numbers of steps."""
    last = results["num_steps"]
    shown = [k for k in range(last + 1) if k in (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, last)]
    unit = "episode" if "rl2" in results["methods"] else "step"
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
    rows.append(
        f"mean ± 95% interval over {results['num_tasks']} held-out tasks, {results['num_rollouts']} rollouts each"
    )
    return "\n".join(rows)


def run_experiment(defaults: Config) -> NoReturn:
    """The whole of an experiment script: its own defaults, every option of `Config` on the command line."""
    run(lambda: train(tyro.cli(Config, default=defaults, description=f"Meta-trains on {defaults.env_id}.")))


def main() -> NoReturn:
    """The command `maml-rl`."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {"train": train, "evaluate": evaluate, "compare": compare, "render": render, "families": families},
            description="Meta-reinforcement learning.",
        )
    )


def run(command: Callable[[], object]) -> NoReturn:
    """Runs a command; what the user can mend is one sentence on standard error, not a traceback."""
    # A family of one's own lies where one works: `--env-id my_family:id` finds my_family.py there. Last, so
    # that no file there hides a module of Python's own.
    sys.path.append(os.getcwd())
    # TensorBoard writes in a thread of its own; what fails there is raised in the main thread again.
    threading.excepthook = lambda args: (
        None if isinstance(args.exc_value, OSError) else threading.__excepthook__(args)
    )
    try:
        command()
    except UserError as error:
        _fail(str(error))
    except MemoryError:
        _fail("Out of memory; lower num_tasks, num_rollouts or horizon.")
    except BrokenPipeError:
        # Whoever read the output has enough of it; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # Events and pictures are written by libraries: a full or vanished disk shows here.
        _fail(f"{error.filename or 'A file of the run'}: {error.strerror or error}; mend it, then run again.")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _program() -> list[str]:
    """How this process was started: a script, a module or an installed command."""
    if Path(sys.argv[0]).name == "__main__.py":
        return [sys.executable, "-m", "maml_rl"]
    return [sys.executable, sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
