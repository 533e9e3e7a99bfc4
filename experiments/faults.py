"""Breaks runs on purpose, and counts the outcomes: `python experiments/faults.py`.

* kills: runs are stopped by a signal at a random moment and resumed. In the end, each must have the parameters,
  curves and evaluation of a run that was never stopped, and must leave no process and no half-written file.
  One of two ranks of torchrun is killed in the same way, and the other must end too.
* files: single bits of run folders are flipped, and files are cut short. Each must be refused with one sentence,
  or be read as what was written.
* environments: families that raise, exit or return nonsense. Each must end in one sentence that names the fault.
* inputs: options and files that cannot work. Each must end in one sentence.
* endurance: a bandit trains for 10,000 iterations, and a run is resumed 200 times. Memory and the time of a start
  must not grow.

The bad families are those of tests/misbehaving.py. The counts are written as JSON, and printed as a table.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from maml_rl import Config, UserError, evaluate, train
from maml_rl.cli import run
from maml_rl.results.comparison import as_markdown
from maml_rl.runs.files import write_json
from maml_rl.runs.tensorboard import read_history

TESTS = Path(__file__).parents[1] / "tests"
LIMIT = 180.0  # seconds that any command may take
SMALL = (
    *("--num-tasks", "3", "--num-rollouts", "4", "--horizon", "6", "--hidden-sizes", "8", "--iterations", "12"),
    *("--checkpoint-every", "2", "--eval-every", "4", "--eval-num-tasks", "3", "--eval-num-rollouts", "2"),
)
RL2 = ("--rl2-episodes", "2", "--num-steps", "0", "--outer", "ppo")
RUNS = {
    "navigation": (),
    "half-cheetah": ("--env-id", "maml_rl/HalfCheetahVel-v0", "--env-kwargs", "num_threads", "1"),
    "worker processes": ("--env-id", "maml_rl/CartPoleParams-v0", "--num-workers", "2"),
    "RL²": ("--env-id", "maml_rl/BernoulliBandit-v0", *RL2),
    "ProMP": ("--estimator", "lvc", "--outer", "ppo"),
    "Adam": ("--env-id", "maml_rl/TabularMDP-v0", "--outer", "adam", "--learn-lr", "task"),
}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
TROUBLES = {
    "BadlyMade": (
        *("init raises", "init exits", "init hangs", "reset raises", "reset exits", "reset hangs"),
        *("sample_tasks raises", "sample_tasks exits", "sample_tasks hangs", "what cannot be sent"),
        *("None", "a string", "too few", "too many", "two numbers each", "not a number", "outside"),
    ),
    "Careless": (
        *("text reward", "no reward", "array reward", "no terminated", "text terminated", "text truncated"),
        *("short observation", "deep observation", "no observation", "complex observation", "four results"),
        *("no results",),
    ),
    "Troubled": ("raise", "connection", "die", "crash", "hang"),
}
INPUTS = [
    *("train --num-tasks 0", "train --num-tasks 2.5", "train --num-tasks 100000000", "train --horizon 1000000000"),
    *(f"train --seed {'9' * 400}", "train --seed -1", "train --iterations 1e3", f"train --chunk-tasks {10**30}"),
    *(
        "train --hidden-sizes 0",
        "train --hidden-sizes 1000000 1000000",
        "train --inner-lr nan",
        "train --max-kl 0",
    ),
    *("train --inner-lr inf", "train --discount 2", "train --device tpu", "train --device cuda:99"),
    *("train --env-id Nowhere-v0", "train --env-id :", "train --env-id CartPole-v1", "train --env-id .x:Y-v0"),
    *("train --env-id nowhere:Boat-v0", "train --env-kwargs num_arms", "train --env-kwargs no_such 1"),
    *(
        "train --method sgd",
        "train --estimator no",
        "train --outer sgd",
        "train --learn-lr some",
        "train --no-such 1",
    ),
    *("train --run-dir /proc/run", "train --run-dir file/run", "train --run-dir full", "train --resume nowhere"),
    *(
        "train --resume full",
        "train --run-dir run",
        "train --resume run --iterations 0",
        "train --resume run --seed 2",
    ),
    *("evaluate nowhere", "evaluate run --num-tasks 1", "evaluate run --seed -1", "evaluate run --tasks file"),
    *("evaluate run --tasks nowhere.npy", "evaluate run --num-steps -1", "evaluate run --output file/x"),
    *("render nowhere", "render run --num-tasks 0", "render run --num-steps -1", "compare", "compare nowhere"),
    *(
        "compare run run",
        "compare run --picture nowhere/x.png",
        "compare run --picture full",
        "nonsense",
        "evaluate",
    ),
    *(
        "train --adapt-only nothing",
        "train --log-std-lr -1",
        "train --eval-lr-factors",
        "train --eval-num-tasks 1",
    ),
    *("train --rl2-episodes 2", "train --num-workers -1", "train --worker-timeout 0", "train --threads 0"),
    *("train --context-size -1", "train --e-maml -1", "train --checkpoint-every 0", "train --ppo-clip 0"),
    *("train --gae-lambda -0.1", "train --dice-lambda 1.1", "train --outer-lr 0", "train --outer-lr 1e9"),
    *("train --ppo-epochs 0", "train --kl-penalty -1", "train --cg-iterations 0", "train --cg-damping -1"),
    *("train --line-search-steps 0", "train --eval-every -1", "train --eval-num-steps -1", "train --num-steps -1"),
    *(
        "train --eval-num-rollouts 0",
        "train --eval-seed -2",
        "train --eval-lr-factors -1",
        "train --initial-std 0",
    ),
    *("train --hidden-sizes x", "train --discount nan", "train --max-kl inf", "train --max-failed-share 2"),
    *(
        "train --num-rollouts 0",
        "train --horizon 0",
        "train --iterations -1",
        "train --seed x",
        "train --num-tasks",
    ),
    *("train --gae-lambda x", "train --initial-std nan", "train --ppo-clip -1", "train --eval-num-rollouts 2.5"),
    *("train --estimator lvc --estimator", "train --inner-advantage no", "train --adapt-only context", "render"),
    *(
        "compare run --picture file/x.png",
        "evaluate run --trust x",
        "families x",
        "train run",
        "train --resume file",
    ),
]


def maml_rl(folder: Path, *arguments: str, num_ranks: int = 1) -> subprocess.Popen[str]:
    """Starts the command line in a folder."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks))
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *launcher * (num_ranks > 1), "-m", "maml_rl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for a command. Returns its exit code and what it wrote to standard error; a hung one counts as 124."""
    try:
        errors = process.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return 124, process.communicate()[1]
    return process.returncode, errors


def one_sentence(code: int, errors: str) -> str:
    """What became of a command that had to fail: "one sentence", or what it was instead."""
    if code == 124:
        return "too slow"
    # A bad environment's own traceback is part of the message.
    if "Traceback" in errors.replace("Its traceback:\nTraceback", ""):
        return "traceback"
    said = code == 2 and ("error:" in errors or "required" in errors or "─" in errors)
    return "one sentence" if said else f"exit code {code}"


def result_of(folder: Path) -> dict[str, Any]:
    """What two runs must have in common: parameters, curves and evaluation."""
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    curves = {tag: points for tag, points in read_history(folder).items() if not tag.startswith("time/")}
    theta = {name: checkpoint[name].tolist() for name in ("theta", "untrained")}
    return theta | {"curves": curves, "evaluation": json.loads((folder / "evaluation.json").read_text())}


def processes_of(session: int) -> list[int]:
    """The processes of a command, or of its workers, that still run."""
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, _, group, of_session = text.rpartition(")")[2].split()[:4]
        if state != "Z" and (int(of_session) == session or int(group) == session):
            left.append(int(path.parent.name))
    return left


def resumed(
    start: Callable[..., subprocess.Popen[str]], arguments: tuple[str, ...], folder: Path, expected: dict[str, Any]
) -> str:
    """Continues a stopped run to its end, and removes it. Returns "the same", or what was wrong with it."""
    begun = (folder / "config.json").exists()
    code, errors = ended(start(*(("--resume",) if begun else (*arguments, "--run-dir")), folder.name))
    if code:
        outcome = f"not resumed: {errors[-200:]}"
    elif result_of(folder) != expected:
        outcome = "not the same"
    else:
        outcome = "left a file" if list(folder.glob("*.tmp")) else "the same"
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def kills(kind: str, folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Stops one kind of run by each signal, and resumes it until it is finished."""
    arguments = RUNS[kind]
    started = time.monotonic()
    code, errors = ended(maml_rl(folder, "train", *SMALL, *arguments, "--run-dir", "run"))
    took, expected = time.monotonic() - started, result_of(folder / "run") if not code else {}
    for name, _ in itertools.product(SIGNALS, range(repetitions)):
        if code:
            yield name, f"did not train: {errors[-200:]}"
            continue
        stopped = folder / "stopped"
        number, outcome = getattr(signal, name), "the same"
        process = maml_rl(folder, "train", *SMALL, *arguments, "--run-dir", "stopped")
        time.sleep(rng.uniform(0, took))
        process.send_signal(number)
        found, errors = ended(process)
        # Before Python runs the program, and after it has ended, the signal acts by itself.
        if found not in (0, -number, 128 + number):
            outcome = f"exit code {found}: {errors[-200:]}"
        time.sleep(1.5 if name == "SIGKILL" else 0.0)  # in which workers notice it
        if processes_of(process.pid):
            outcome = "left a process"
        after = resumed(partial(maml_rl, folder, "train"), (*SMALL, *arguments), stopped, expected)
        yield name, outcome if after == "the same" else after


def ranks(folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Kills one of two ranks. The other must end within 30 seconds, and both go on to the same bits."""

    def ranked(*arguments: str) -> subprocess.Popen[str]:
        return maml_rl(folder, "train", *arguments, num_ranks=2)

    def children(number: int) -> list[int]:
        path = Path(f"/proc/{number}/task/{number}/children")
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    started = time.monotonic()
    code, errors = ended(ranked(*SMALL, "--run-dir", "run"))
    took, expected = time.monotonic() - started, result_of(folder / "run") if not code else {}
    for _ in range(repetitions):
        if code:
            yield "SIGKILL", f"did not train: {errors[-200:]}"
            continue
        stopped, outcome = folder / "stopped", "the same"
        process = ranked(*SMALL, "--run-dir", "stopped")
        time.sleep(rng.uniform(0, took))
        both = children(process.pid)
        for victim in rng.permutation(both)[:1]:  # there is none before they start, and after they have ended
            os.kill(int(victim), signal.SIGKILL)
        killed = time.monotonic()
        ended(process)
        if both and time.monotonic() - killed > 30.0:
            outcome = "too slow"
        elif any(Path(f"/proc/{number}").exists() for number in both):
            outcome = "left a process"
        after = resumed(ranked, SMALL, stopped, expected)
        yield "SIGKILL", outcome if after == "the same" else after


def files(folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Damages the files of a finished run, and evaluates it."""
    assert ended(maml_rl(folder, "train", *SMALL, "--run-dir", "run"))[0] == 0
    options = {"num_tasks": 2, "num_rollouts": 1, "num_steps": 1}
    expected = evaluate(folder / "run", **options)  # type: ignore[arg-type]
    for name, how in itertools.product(("checkpoint.pt", "config.json"), ("bit", "cut")):
        path = folder / "run" / name
        content = path.read_bytes()
        for _ in range(repetitions):
            damaged = bytearray(content)
            if how == "bit":
                bit = int(rng.integers(8 * len(content)))
                damaged[bit // 8] ^= 1 << bit % 8
            else:
                del damaged[int(rng.integers(len(content))) :]
            path.write_bytes(damaged)
            try:
                found = evaluate(folder / "run", **options)  # type: ignore[arg-type]
                # A changed number in a text file may be an option that a run could have.
                different = "another result" if name == "checkpoint.pt" else "read as other options"
                outcome = "the same" if found == expected else different
            except UserError:
                outcome = "one sentence"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            yield f"{name}, {'one bit flipped' if how == 'bit' else 'cut short'}", outcome
        path.write_bytes(content)


def environments(folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Trains on every bad family, with and without worker processes."""
    for (family, troubles), workers in itertools.product(TROUBLES.items(), ("0", "1", "2")):
        for trouble in troubles:
            # What ends, crashes or hangs the process of an environment can only be reported from outside.
            if workers == "0" and trouble.endswith(("die", "crash", "hang", "hangs")):
                continue
            process = maml_rl(
                folder,
                *("train", *SMALL, "--env-id", f"misbehaving:tests/{family}-v0", "--num-workers", workers),
                *("--env-kwargs", "trouble", trouble, "--run-dir", f"{family} {trouble} {workers}"),
                *("--worker-timeout", "5", "--num-tasks", "20"),
            )
            outcome = one_sentence(*ended(process))
            yield f"{family}, {workers} workers", "left a process" if processes_of(process.pid) else outcome


def inputs(folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Runs every command that cannot work."""
    (folder / "file").write_text("a text")
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    assert ended(maml_rl(folder, "train", *SMALL, "--run-dir", "run"))[0] == 0
    for line in INPUTS:
        words = line.split()
        code, errors = ended(maml_rl(folder, *words))
        outcome = one_sentence(code, errors)
        yield words[0], outcome if outcome == "one sentence" else f"{outcome}: {line[:60]}"
        if (folder / "runs").exists():
            shutil.rmtree(folder / "runs")


def endurance(folder: Path, repetitions: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Trains for long, and resumes a run often."""
    memory = []

    def measure(env_steps: int, scalars: dict[str, float]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    small = {"num_tasks": 3, "num_rollouts": 4, "horizon": 6, "hidden_sizes": (8,), "eval_every": 0}
    bandit = Config(env_id="maml_rl/BernoulliBandit-v0", run_dir=folder / "bandit", iterations=10_000, **small)  # type: ignore[arg-type]
    train(bandit, callbacks=[measure])
    early, late = memory[999], memory[-1]
    yield "memory of a bandit", f"{early:.0f} MB after 1,000 iterations, {late:.0f} MB after {len(memory):,}"

    def processor_seconds() -> float:
        """That of all runs so far. Unlike the time of day, it does not depend on what else this machine does."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for iterations in range(1, 202):
        started = processor_seconds()
        again = ("--resume", "run") if iterations > 1 else (*SMALL, "--checkpoint-every", "1", "--run-dir", "run")
        code, errors = ended(maml_rl(folder, "train", *again, "--iterations", str(iterations)))
        if code:
            yield "resumed again and again", f"not resumed: {errors[-200:]}"
            return
        seconds.append(processor_seconds() - started)
    first, last = np.median(seconds[1:21]), np.median(seconds[-20:])
    yield "resumed 200 times", f"{first:.2f} processor seconds at first, {last:.2f} at last (medians of 20)"


PARTS = {
    **{f"kills: {kind}": partial(kills, kind) for kind in RUNS},
    "kills: one of two ranks": ranks,
    "files": files,
    "environments": environments,
    "inputs": inputs,
    "endurance": endurance,
}


def table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """A row for each kind of fault."""
    rows = [["part", "fault", "times", "outcomes"]]
    for part, faults in counts.items():
        for fault, outcomes in faults.items():
            words = ", ".join(f"{outcome}: {n}" for outcome, n in outcomes.items())
            rows.append([part, fault, str(sum(outcomes.values())), words])
    return as_markdown(rows)


def main(
    parts: tuple[Literal[*PARTS], ...] = tuple(PARTS),
    repetitions: int = 13,
    seed: int = 0,
    output: Path = Path(__file__).parent / "results/faults.json",
) -> None:
    """Breaks runs on purpose, and counts the outcomes.

    Args:
        parts: Which parts.
        repetitions: How often each kind of run is stopped by each signal, and a sixth of how often each file is
            damaged in each way.
        seed: Seed of the moments and places.
        output: Where to write the counts. Those of other parts in the file are kept.
    """
    counts = json.loads(output.read_text()) if output.exists() else {}
    for part in parts:
        found: dict[str, Counter[str]] = {}
        with tempfile.TemporaryDirectory() as folder:
            times = repetitions * (6 if part == "files" else 1)
            for fault, outcome in tqdm(PARTS[part](Path(folder), times, np.random.default_rng(seed)), desc=part):
                found.setdefault(fault, Counter())[outcome] += 1
                counts[part] = {fault: dict(outcomes) for fault, outcomes in found.items()}
                write_json(output, counts)
    print(table(counts))


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
