"""Families without navigation's simplicity through the real command line, and what it wrote read back."""

import json
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TROUBLED = ("train", "--env-id", "misbehaving:tests/Troubled-v0", "--run-dir", "run", *TINY)


def events(tmp_path):
    accumulator = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def test_success_is_logged_and_evaluated(command, tmp_path):
    result = command(*TROUBLED, "--iterations", "2", "--num-workers", "2", "--horizon", "6")
    assert result.returncode == 0, result.stderr
    assert "success" in result.stdout
    maml = json.loads((tmp_path / "run/evaluation.json").read_text())["methods"]["maml"]
    success = np.array(maml["success"])
    assert success.shape == (3, 3)
    assert ((success >= 0) & (success <= 1)).all()
    np.testing.assert_allclose(maml["success_mean"], success.mean(axis=0))
    scalars = events(tmp_path)
    for k, mean in enumerate(maml["success_mean"]):
        assert scalars.Scalars(f"eval/success_step_{k}")[-1].value == pytest.approx(mean)
    for tag in ("train/success_step_0", "train/success_step_1", "eval/success_step_2"):
        assert all(0 <= event.value <= 1 for event in scalars.Scalars(tag))
    assert "train/failed_step_0" not in scalars.Tags()["scalars"]


def test_workers_change_nothing(command, tmp_path):
    losses = []
    for workers in ("0", "2"):
        run = (*TROUBLED[:3], "--run-dir", f"run{workers}", *TINY, "--iterations", "1")
        result = command(*run, "--num-workers", workers)
        assert result.returncode == 0, result.stderr
        losses.append((tmp_path / f"run{workers}/evaluation.json").read_text())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_environment_that_raises_stops_the_run_with_its_traceback(command, workers, tmp_path):
    result = command(*TROUBLED, "--env-kwargs", "trouble", "raise", "--num-workers", workers, "--num-tasks", "30")
    assert result.returncode == 2
    assert result.stderr.count("Traceback (most recent call last)") == 1  # the environment's, not ours
    assert "error: tests/Troubled-v0: environment " in result.stderr
    assert "ZeroDivisionError('the friction is 0') in step" in result.stderr
    assert not (tmp_path / "run/checkpoint.pt").exists()  # nothing was trained


def test_broken_simulations_are_counted(command, tmp_path, monkeypatch):
    monkeypatch.setenv("MISBEHAVE", "broken")
    run = ("train", "--env-id", "misbehaving:tests/Misbehaving-v0", "--run-dir", "run", *TINY)
    result = command(*run, "--iterations", "1")
    assert result.returncode == 2
    assert "broke down in 1 of 6 rollouts, more than the share of 0.01" in result.stderr
    result = command(*run, "--iterations", "1", "--resume", "--max-failed-share", "0.2")
    assert result.returncode == 0, result.stderr
    assert "1 of 12 simulations broke down and were ended" in result.stderr
    assert events(tmp_path).Scalars("train/failed_step_0")[0].value == pytest.approx(1 / 12)


@pytest.mark.parametrize("what", ["evaluate", "render"])
def test_broken_simulations_are_counted_wherever_held_out_tasks_are_adapted_to(what, command, monkeypatch):
    result = command(
        *("train", "--env-id", "misbehaving:tests/Misbehaving-v0", "--run-dir", "run", *TINY, "--iterations", "1")
    )
    assert result.returncode == 0, result.stderr
    monkeypatch.setenv("MISBEHAVE", "broken")
    result = command(what, "run", "--trust", "--num-tasks", "3")
    assert result.returncode == 2
    assert "more than the share of 0.01 that max_failed_share allows" in result.stderr


@pytest.fixture
def cheetah(command, tmp_path):
    result = command(
        *("train", "--env-id", "maml_rl/HalfCheetahVel-v0", "--run-dir", "run", *TINY, "--horizon", "8"),
        *("--iterations", "1", "--env-kwargs", "num_threads", "1"),
    )
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # imageio's
def test_render_films_before_and_after(command, cheetah, tmp_path):
    result = command("render", "run", "--num-tasks", "2")
    assert result.returncode == 0, result.stderr
    video = imageio.imread(cheetah / "adaptation.mp4", plugin="FFMPEG")
    assert video.shape == (8, 2 * (240 + 32), 2 * 320, 3)
    moved = np.abs(np.diff(video.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (moved > 0.1).all()
    left, right = video[-1, 40:270, :320].astype(int), video[-1, 40:270, 320:].astype(int)
    assert np.abs(left - right).mean() > 1  # the adapted policy does something else
    (picture,) = events(tmp_path).Images("eval/video")
    assert picture.encoded_image_string.startswith(b"GIF8")
    assert not list(cheetah.glob("*.tmp"))  # no half-written file is left


def test_render_says_what_to_install(command, cheetah):
    # PyOpenGL refuses both ways to render without a display.
    result = command("render", "run", PYOPENGL_PLATFORM="glx", DISPLAY="", MUJOCO_GL="")
    assert result.returncode == 2
    assert "cannot be rendered here: MuJoCo finds no OpenGL" in result.stderr
    assert "apt install libosmesa6" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (cheetah / "adaptation.mp4").exists()


def test_render_films_an_adapted_environment(command, tmp_path):
    assert command(*TROUBLED, "--iterations", "1", "--num-workers", "0").returncode == 0
    result = command("render", "run", "--num-tasks", "1", "--trust")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/adaptation.mp4").exists()


def test_render_of_an_environment_without_pictures_is_refused(command, tmp_path):
    options = ("--iterations", "1", "--num-workers", "0", "--env-kwargs", "trouble", "no picture")
    assert command(*TROUBLED, *options).returncode == 0
    result = command("render", "run", "--trust")
    assert result.returncode == 2
    assert "cannot be rendered here: tests/Troubled-v0: environment 0 with task" in result.stderr
    assert "a picture has shape () and type object, but must be (height, width, 3) of uint8" in result.stderr


def test_render_notices_chance_that_seeds_do_not_reach(command, tmp_path):
    result = command(
        *TROUBLED, "--iterations", "1", "--num-workers", "0", "--env-kwargs", "trouble", "global chance"
    )
    assert result.returncode == 0, result.stderr
    result = command("render", "run", "--trust")
    assert result.returncode == 2
    assert "does not repeat itself with the same seeds" in result.stderr


def test_meta_world_not_installed_names_the_extra():
    script = (
        "import sys; sys.modules['metaworld'] = None\n"
        "from maml_rl import envs\n"
        "assert 'maml_rl/ML1-v0' not in envs.families()\n"
        "from maml_rl import Config, UserError\n"
        "from maml_rl.sampling.families import make_env\n"
        "try: make_env(Config(env_id='maml_rl/ML1-v0', num_workers=0), 2)\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'maml_rl[metaworld]'" in result.stdout


def test_meta_world_trains_and_tests_on_other_goals(command, tmp_path):
    result = command(
        *("train", "--env-id", "maml_rl/ML1-v0", "--env-kwargs", "task_name", "reach-v3", "--run-dir", "run"),
        *("--num-tasks", "2", "--num-rollouts", "1", "--horizon", "5", "--hidden-sizes", "8", "--iterations", "1"),
        *("--eval-num-tasks", "2", "--eval-num-rollouts", "1", "--eval-num-steps", "1", "--num-workers", "0"),
    )
    assert result.returncode == 0, result.stderr
    assert "success_mean" in json.loads((tmp_path / "run/evaluation.json").read_text())["methods"]["maml"]
    result = command(
        "train", "--env-id", "maml_rl/ML1-v0", "--env-kwargs", "task_name", "fly-v3", "--run-dir", "other"
    )
    assert result.returncode == 2
    assert "Meta-World has no task 'fly-v3'" in result.stderr
    assert "pick-place-v3" in result.stderr
