"""The run folder: stopped and killed runs go on, damaged files are refused, nothing is lost or shared."""

import fcntl
import io
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MISBEHAVING, TINY, scalars, theta_of

import maml_rl
from maml_rl import Config, UserError
from maml_rl.runs.checkpoint import State, load_checkpoint, with_checksum
from maml_rl.runs.evaluation import evaluate
from maml_rl.runs.files import LOCK, write_atomically
from maml_rl.runs.folder import new_policy
from maml_rl.runs.tensorboard import Events


# An iteration resets twice, an evaluation (before training and after iterations 2 and 4) three times.
@pytest.mark.parametrize(
    ("how", "reset", "done"),
    [
        ("SIGKILL", 19, 4),  # in iteration 5, two after the checkpoint of iteration 4 was due
        ("SIGTERM", 14, 3),  # in iteration 4, with no checkpoint due since iteration 2
        ("SIGINT", 16, 3),  # in the evaluation that belongs to iteration 4
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(command, tmp_path, finished, how, reset, done):
    """Parameters, curves and evaluation of a run that was stopped and resumed: as if never stopped."""
    arguments = (
        "train",
        *MISBEHAVING,
        *TINY,
        "--iterations",
        6,
        "--checkpoint-every",
        2,
        "--run-dir",
        "run",
        "--resume",
    )
    stopped = command(*arguments, MISBEHAVE=how, MISBEHAVE_AT=str(reset))
    if how == "SIGKILL":
        assert stopped.returncode == -9
    else:
        assert stopped.returncode == 128 + getattr(signal, how), stopped.stderr
        assert "--resume run" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    config, _ = finished
    assert load_checkpoint(tmp_path / "run", new_policy(config)).iteration == done
    if how != "SIGKILL":  # the printed command, as it stands
        program, *arguments = shlex.split(
            stopped.stderr.strip().splitlines()[-1].removeprefix("stopped; continue with: ")
        )
        assert program == sys.executable
        assert arguments.pop(0) == "-m"
        assert arguments.pop(0) == "maml_rl"
    resumed = command(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert torch.equal(theta_of(tmp_path / "run"), theta_of(config.run_dir))
    whole, pieces = scalars(config.run_dir), scalars(tmp_path / "run")
    assert whole.keys() == pieces.keys()
    for tag, points in whole.items():
        if not tag.startswith("time/"):
            np.testing.assert_allclose(pieces[tag], points, err_msg=tag, rtol=1e-6)
    assert json.loads((tmp_path / "run/evaluation.json").read_text()) == json.loads(
        (config.run_dir / "evaluation.json").read_text()
    )


def test_killed_before_the_first_checkpoint_starts_afresh(command, tmp_path, caplog):
    arguments = ("train", *MISBEHAVING, *TINY, "--iterations", 2, "--run-dir", "run", "--resume")
    assert command(*arguments, MISBEHAVE="SIGKILL", MISBEHAVE_AT="6").returncode == -9
    assert not (tmp_path / "run/checkpoint.pt").exists()
    caplog.set_level("INFO")
    assert command(*arguments).returncode == 0
    assert "run has no checkpoint to continue, so training begins." in caplog.text
    assert len(scalars(tmp_path / "run")["train/return_step_0"]) == 2


def test_a_run_is_not_overwritten(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = ("train", *MISBEHAVING, *TINY, "--checkpoint-every", 2, "--iterations", 6, "--run-dir", "run")
    for arguments, sentence in (
        (again, "already holds a run"),
        ((*again, "--resume", "--inner-lr", "0.2"), "has inner_lr=0.1"),
    ):
        result = command(*arguments)
        assert result.returncode == 2
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_full_disk_keeps_the_previous_checkpoint(command, tmp_path):
    """A limit on file size stands for the full disk: the system refuses to write on."""
    arguments = (
        "train",
        "--env-id",
        "maml_rl/TabularMDP-v0",
        *TINY,
        "--hidden-sizes",
        "200",
        "--run-dir",
        "run",
    )
    assert command(*arguments, "--iterations", 2).returncode == 0
    first = theta_of(tmp_path / "run")
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from maml_rl.cli import main\n"
        "main()\n"
    )
    result = command(*arguments, "--iterations", 4, "--resume", script=limited)
    assert result.returncode == 2
    assert "run/checkpoint.pt (File too large)" in result.stderr
    assert "Traceback" not in result.stderr
    assert torch.equal(theta_of(tmp_path / "run"), first)
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert command(*arguments, "--iterations", 4, "--resume").returncode == 0


def test_full_disk_under_the_event_file(command, tmp_path):
    limited = tmp_path / "limited.py"
    limited.write_text(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from maml_rl.cli import main\n"
        "main()\n"
    )
    result = command(
        *("train", *TINY, "--eval-every", 0, "--iterations", 40, "--checkpoint-every", 40, "--run-dir", "run"),
        script=limited,
    )
    assert result.returncode == 2
    assert "run (File too large); make room" in result.stderr
    assert "Traceback" not in result.stderr


def rewrite(path, **changes):
    """Changes what a checkpoint holds, with a checksum that fits."""
    content = torch.load(path, weights_only=True) | changes
    buffer = io.BytesIO()
    torch.save({name: value for name, value in content.items() if value is not None}, buffer)
    path.write_bytes(with_checksum(buffer.getvalue()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint at all",
        "truncated",
        "one bit",
        "foreign",
        "missing key",
        "other policy",
        "short theta",
        "short untrained",
        "float64",
    ],
)
def test_bad_checkpoints_are_refused(finished, tmp_path, content):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    path = run_dir / "checkpoint.pt"
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "one bit":
        damaged = bytearray(path.read_bytes())
        start = damaged.find(theta_of(run_dir).numpy().tobytes()[:16])
        assert start > 0
        damaged[start + 1] ^= 4
        path.write_bytes(damaged)
    elif content == "missing key":
        rewrite(path, env_steps=None)
    elif content == "foreign":
        torch.save({"model": torch.zeros(3)}, path)
    elif content == "other policy":
        rewrite(path, layout=[["weight", 3]], theta=torch.zeros(3))
    elif content in ("short theta", "short untrained"):
        rewrite(path, **{content.removeprefix("short "): torch.zeros(3)})
    elif content == "float64":
        rewrite(path, theta=theta_of(run_dir).double())
    else:
        path.write_bytes(content)
    with pytest.raises(
        UserError, match="damaged|not a checkpoint of this version|holds the parameters of another policy"
    ):
        evaluate(run_dir)


def test_a_checkpoint_with_code_is_not_run(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    torch.save({"format": Path("code")}, run_dir / "checkpoint.pt")  # any class not known to be harmless
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        evaluate(run_dir)


def test_every_flipped_bit_is_noticed(finished, tmp_path):
    """Whatever the bit means: most are in the zip archive's directory or in pickled numbers, not in θ."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    path = run_dir / "checkpoint.pt"
    whole, policy = path.read_bytes(), new_policy(finished[0])
    for bit in np.random.default_rng(0).integers(8 * len(whole), size=200).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or not a checkpoint"):
            load_checkpoint(run_dir, policy)
    path.write_bytes(whole)
    assert torch.load(path, weights_only=True)["iteration"] == load_checkpoint(run_dir, policy).iteration == 6


def test_checkpoints_without_a_checksum_are_read(finished, tmp_path):
    content = torch.load(finished[0].run_dir / "checkpoint.pt", weights_only=True)
    torch.save(content | {"format": "maml_rl checkpoint 3"}, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path, new_policy(finished[0])).iteration == 6


def test_what_is_no_file_is_not_read_or_replaced(finished, tmp_path, command):
    os.mkfifo(tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="checkpoint.pt is not a file"):
        load_checkpoint(tmp_path, new_policy(finished[0]))
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    os.mkfifo(tmp_path / "pipe.png")
    pictures = {"": "is not a file", "pipe.png": "is not a file", "checkpoint.pt": "must be a .png file"}
    for name, sentence in pictures.items():
        result = command("compare", "run", "--picture", name)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert sentence in result.stderr
    assert (tmp_path / "pipe.png").is_fifo()
    assert (tmp_path / "checkpoint.pt").is_fifo()


def test_an_unreadable_checkpoint_is_not_called_damaged(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda self: os.close(-1))  # a test may run as root, who may read all
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        load_checkpoint(tmp_path, new_policy(finished[0]))


def test_files_are_not_written_through_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".file.tmp").symlink_to(victim)
    (tmp_path / "file").symlink_to(victim)
    write_atomically(tmp_path / "file", b"new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_name_that_the_system_does_not_take_is_one_sentence(command, finished, tmp_path):
    with pytest.raises(UserError, match="Cannot write .*File name too long"):
        write_atomically(tmp_path / f"{'a' * 300}.png", b"new")
    with pytest.raises(UserError, match="there is no folder"):
        write_atomically(tmp_path / ("a" * 300) / "file", b"new")
    result = command("render", "a" * 300)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_one_folder_is_for_one_process(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    before = (tmp_path / "run/config.json").read_bytes()
    with open(tmp_path / "run" / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = command("train", "--resume", "run", *MISBEHAVING, "--iterations", 9)
    assert result.returncode == 2
    assert "Another process is training in" in result.stderr
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_resume_needs_no_other_option(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "moved")
    result = command("train", "--iterations", 7, "--resume", "moved", "--eval-num-tasks", 2)
    assert result.returncode == 0, result.stderr
    assert len(scalars(tmp_path / "moved")["train/return_step_0"]) == 7
    evaluation = json.loads((tmp_path / "moved/evaluation.json").read_text())
    assert (evaluation["iterations"], evaluation["num_tasks"]) == (7, 2)
    result = command("train", "--resume", "nowhere")
    assert result.returncode == 2
    assert "nowhere holds no run" in result.stderr


def test_resume_with_two_folders_is_refused(command, finished, tmp_path):
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    result = command("train", "--resume", "run", "--run-dir=other", "--iterations", 7)
    assert result.returncode == 2
    assert "--resume run continues in that folder; leave --run-dir out" in result.stderr
    assert not (tmp_path / "other").exists()


def test_a_policy_of_the_zoo_is_not_continued_or_compared(command):
    for arguments in (("train", "--resume", "zoo/navigation_2d"), ("compare", "zoo/navigation_2d")):
        result = command(*arguments)
        assert result.returncode == 2
        assert "zoo/navigation_2d comes with the package, and can only be loaded" in result.stderr


def test_torchrun_continues_only_a_run_that_it_began(command, finished, tmp_path, monkeypatch):
    """It starts the same command again after any failure, also after the refusal to continue another run."""
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    for name, value in {"TORCHELASTIC_RUN_ID": "launch 2", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    again = ("train", *MISBEHAVING, *TINY, "--checkpoint-every", 2, "--iterations", 7, "--run-dir")
    for restarts in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        assert "already holds a run" in command(*again, "run").stderr
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert command(*again, "own", "--iterations", 2).returncode == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert command(*again, "own").returncode == 0


def test_a_module_named_by_a_resumed_run_is_not_imported(command, tmp_path):
    (tmp_path / "foreign.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "run").mkdir()
    maml_rl.runs.folder.save_config(Config(env_id="foreign:Foreign-v0", run_dir=tmp_path / "run"))
    result = command("train", "--resume", "run", fresh=True)
    assert result.returncode == 2
    assert "name it yourself: --env-id foreign:Foreign-v0" in result.stderr


@pytest.mark.parametrize("left", [".config.json.tmp", ".checkpoint.pt.0123456789abcdef.tmp", "config.json", LOCK])
def test_a_run_that_trained_nothing_can_start_again(command, tmp_path, left):
    """Killed at any time before its first checkpoint, and also with options that failed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()  # the first file of any run
    (tmp_path / "run" / left).write_text("half")
    result = command("train", *TINY, "--iterations", 1, "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_options_that_fail_leave_the_folder_free(command, tmp_path):
    result = command("train", *TINY, "--horizon", 10**9, "--iterations", 1, "--run-dir", "run")
    assert result.returncode == 2, result.stderr
    assert "rollouts of 1000000000 steps need at least" in result.stderr
    result = command("train", *TINY, "--inner-lr", 1e300, "--iterations", 1, "--run-dir", "run")
    assert result.returncode == 2, result.stderr
    assert "are not finite; lower inner_lr" in result.stderr
    assert command("train", *TINY, "--iterations", 1, "--run-dir", "run").returncode == 0


def test_files_of_others_are_left_alone(command, tmp_path):
    (tmp_path / "thesis.tex").touch()
    (tmp_path / ".thesis.tex.tmp").touch()
    result = command("train", *TINY, "--run-dir", ".")
    assert result.returncode == 2
    assert "holds files, but no run" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".thesis.tex.tmp"}


def test_files_of_others_are_left_alone_under_the_names_of_a_run_s(command, tmp_path):
    content = {"config.json": '{"mine": 1}', "events.out.tfevents.1.host.1.0": "theirs", "rollouts.png": "drawn"}
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    for _ in range(2):  # a refusal leaves no lock, which would let the next one pass
        result = command("train", *TINY, "--run-dir", ".")
        assert result.returncode == 2
        assert "holds files, but no run" in result.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


@pytest.mark.timeout(60)  # TensorBoard's own interval is 120 seconds
def test_a_signal_in_tensorboard_s_queue_does_not_delay_the_end(tmp_path, monkeypatch):
    """It may come after the writing thread is woken, and before the queue has noted this."""
    config = Config(run_dir=tmp_path)
    events = Events(config, State(torch.zeros(1), torch.zeros(1), {}, 0, 0))
    not_empty = events._writer._get_file_writer().event_writer._async_writer._byte_queue.not_empty
    while not not_empty._waiters:  # until the thread waits
        pass

    def notify():
        not_empty._waiters[0].release()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(not_empty, "notify", notify)
        with pytest.raises(KeyboardInterrupt):
            events.add({"train/return_step_0": 1.0}, 1)
    while len(not_empty._waiters) < 2:  # until the thread waits again
        pass
    events.close()
    assert scalars(tmp_path)["train/return_step_0"] == [(1, 1.0)]


def test_a_clock_that_goes_back_hides_nothing_in_tensorboard(command, finished, tmp_path):
    """TensorBoard reads event files in the order of the times in their names."""
    shutil.copytree(finished[0].run_dir, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("events.out.tfevents.*")
    _, _, _, written, *rest = file.name.split(".")
    file.rename(file.with_name(".".join(["events.out.tfevents", str(int(written) + 10**8), *rest])))
    assert command("train", "--resume", "run", "--iterations", 8).returncode == 0
    assert len(scalars(tmp_path / "run")["train/return_step_0"]) == 8
    assert len([*(tmp_path / "run").glob("events.out.tfevents.*")]) == 2
