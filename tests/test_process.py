"""Importing and training leave the process as it was; the command line tunes its own."""

import signal
import subprocess
import sys

import pytest

UNCHANGED = """
import os, signal, sys, threading, warnings
import mujoco, torch

def state():
    return {
        # Gymnasium and torch set variables of their own.
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(("PYGAME", "TORCHINDUCTOR"))},
        "threads": torch.get_num_threads(),
        "mujoco": mujoco.get_mju_user_warning(),
        "opengl": vars(sys.modules[mujoco.Renderer.__module__])["gl_context"].GLContext,
        "path": list(sys.path),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hook": threading.excepthook,
        "random": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "running": [thread.name for thread in threading.enumerate() if thread.name != "tqdm_monitor"],
    }

before = state()
import maml_rl
maml_rl.train(maml_rl.Config(
    env_id="maml_rl/HalfCheetahVel-v0", run_dir="run", iterations=1, num_tasks=2, num_rollouts=2, horizon=5,
    hidden_sizes=(8,), eval_num_tasks=2, eval_num_rollouts=1, eval_num_steps=1,
))
after = state()
"""


def run(script, cwd):
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)


def test_training_as_a_library_changes_nothing_in_the_process(tmp_path):
    script = UNCHANGED + "print(*(name for name in before if before[name] != after[name]))"
    result = run(script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip()


def test_whoever_asks_for_it_gets_a_tuned_process(tmp_path):
    script = (
        "import maml_rl, os, sys\n"
        "maml_rl.tune_process()\n"
        "assert 'torch' not in sys.modules\n"
        "assert os.environ['THP_MEM_ALLOC_ENABLE'] == '1'\n"
        "import threadpoolctl\n"
        "blas = threadpoolctl.ThreadpoolController().select(user_api='blas')\n"
        "assert all(library['num_threads'] == 1 for library in blas.info())\n"
        "import gymnasium, mujoco\n"
        "gymnasium.make('maml_rl/HalfCheetahVel-v0')\n"
        "assert mujoco.get_mju_user_warning() is not None\n"
    )
    result = run(script, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("failure", "code", "sentence"),
    [
        ("raise FileNotFoundError(2, 'No such file', 'typo.json')", 1, "FileNotFoundError"),
        ("raise RuntimeError('a defect')", 1, "RuntimeError: a defect"),
        ("raise MemoryError", 2, "error: Out of memory; lower"),
        ("import torch; torch.empty(10**15)", 2, "error: Out of memory; lower"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory')", 2, "error: Out of memory; lower"),
        ("raise BrokenPipeError", 1, ""),
        ("raise KeyboardInterrupt", 130, "stopped"),
    ],
)
def test_only_what_a_user_can_fix_is_one_sentence(failure, code, sentence, tmp_path):
    script = f"from maml_rl.cli import run\ndef command():\n    {failure}\nrun(command)\n"
    result = run(script, tmp_path)
    assert result.returncode == code
    assert sentence in result.stderr
    assert ("Traceback" in result.stderr) == (code == 1 and bool(sentence))


@pytest.mark.parametrize(
    ("command", "streams", "code", "out", "err"),
    [
        ("print('±')", "PYTHONIOENCODING=ascii", 0, "?", ""),
        ("print(1); print(2, file=sys.stderr)", "2>/dev/full", 0, "1", ""),
        ("print(1); print(2, file=sys.stderr)", "2>&-", 0, "1", ""),
        ("print(1)", ">/dev/full", 2, "", "error: Cannot write the output (No space left on device)"),
        ("print(1); print(2, file=sys.stderr)", ">&-", 0, "", "2"),
        ("import matplotlib; print(matplotlib.get_backend())", "MPLBACKEND=nonsense", 0, "agg", ""),
    ],
)
def test_streams_and_settings_do_not_stop_a_command(command, streams, code, out, err, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nfrom maml_rl.cli import run\ndef command():\n    {command}\nrun(command)\n")
    words = [sys.executable, str(script)]
    words = [streams, *words] if "=" in streams else [*words, streams]
    result = subprocess.run(" ".join(words), shell=True, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (code, out), result.stderr
    assert err in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_that_a_library_turns_into_another_error_is_still_one(number, code, tmp_path):
    """As NumPy does while it compares structured arrays."""
    script = (
        "import os, sys\n"
        "from maml_rl import cli\n"
        "import maml_rl.training\n"
        "def train(config, callbacks):\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        while True: pass\n"
        "    except KeyboardInterrupt:\n"
        "        raise TypeError('Cannot compare structured arrays') from None\n"
        "maml_rl.training.train = train\n"
        "os.makedirs('runs/default')\n"
        "open('runs/default/checkpoint.pt', 'w').close()\n"
        "sys.argv = ['maml-rl', 'train']\n"
        "cli.main()\n"
    )
    result = run(script, tmp_path)
    assert result.returncode == code, result.stderr
    assert "stopped; continue with: maml-rl train --resume runs/default" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_signal_that_python_discards_stops_the_run_after_the_iteration(tmp_path):
    script = (
        "import os, sys\n"
        "from maml_rl import cli\n"
        "import maml_rl.training\n"
        "class Discards:\n"
        "    def __del__(self):\n"
        f"        os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "        for _ in range(1000): pass\n"
        "def train(config, callbacks):\n"
        "    Discards()\n"
        "    for callback in callbacks: callback(0, {})\n"
        "    sys.exit('it went on')\n"
        "maml_rl.training.train = train\n"
        "sys.argv = ['maml-rl', 'train']\n"
        "cli.main()\n"
    )
    result = run(script, tmp_path)
    assert "Exception ignored" in result.stderr
    assert result.returncode == 143, result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number, tmp_path):
    """A run under nohup outlives its terminal."""
    script = (
        f"import os, signal\nfrom maml_rl.cli import run\nsignal.signal({number:d}, signal.SIG_IGN)\n"
        f"run(lambda: os.kill(os.getpid(), {number:d}))\n"
    )
    assert run(script, tmp_path).returncode == 0


def test_a_signal_in_the_middle_of_an_import_has_its_exit_code(tmp_path):
    """Importing a module with dataclasses runs `exec`, after whose interrupt Python would end itself by SIGINT."""
    stopped = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhile True: pass"
    (tmp_path / "program.py").write_text(f"from maml_rl.cli import run\nrun(lambda: exec({stopped!r}))\n")
    result = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 143, result.stderr


def test_a_signal_after_a_run_ends_the_process_without_a_traceback(tmp_path):
    late = "lambda: exec('import os, signal; os.kill(os.getpid(), signal.SIGTERM); [None for _ in range(1000)]')"
    (tmp_path / "program.py").write_text(
        f"import atexit\nfrom maml_rl.cli import run\nrun(lambda: atexit.register({late}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGTERM
    assert not result.stderr
