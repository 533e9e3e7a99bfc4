"""Trains the runs that tests/test_ranks.py compares; each process that torchrun starts executes this file."""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import gymnasium
from maml_rl.envs.navigation import Navigation2DEnv, Navigation2DVectorEnv

from maml_rl import Config, train

COMMON = {
    "num_tasks": 5, "num_rollouts": 4, "horizon": 10, "hidden_sizes": (8,), "iterations": 2, "eval_every": 0,
    "eval_num_tasks": 4, "eval_num_rollouts": 3, "eval_num_steps": 2, "checkpoint_every": 1, "chunk_tasks": 2,
}  # fmt: skip
METHODS = {
    "trpo": {
        "learn_lr": "task",
        "inner_advantage": "learned",
        "e_maml": 0.05,
        "normalise_observations": True,
        "eval_every": 1,
    },
    "promp": {"estimator": "lvc", "outer": "ppo"},
    "rl2": {
        "rl2_episodes": 2,
        "num_steps": 0,
        "outer": "ppo",
        "env_id": "maml_rl/TabularMDP-v0",
        "normalise_observations": True,
    },
    "adam": {"outer": "adam", "env_id": "maml_rl/Sinusoid-v0", "horizon": None, "inner_lr": 0.01},
    "workers": {"env_id": "maml_rl/CartPoleParams-v0", "num_workers": 1},
}


class DoomedVectorEnv(Navigation2DVectorEnv):
    """Navigation in which something happens to rank 1 at its seventh reset, unless it was started again."""

    resets = 0

    def reset(self, **kwargs):
        type(self).resets += 1
        doomed = os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if doomed and type(self).resets == 7 and os.environ["DOOM"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if doomed and type(self).resets == 7 and os.environ["DOOM"] == "hang":
            signal.pause()
        return super().reset(**kwargs)

    def reward(self, state, action, next_state, task, noise):
        doomed = os.environ.get("RANK") == "1" and os.environ["DOOM"] == "nan" and type(self).resets == 7
        return super().reward(state, action, next_state, task, noise) * (float("nan") if doomed else 1.0)


class DoomedEnv(Navigation2DEnv):
    vector_class = DoomedVectorEnv


gymnasium.register(
    "tests/Doomed-v0",
    entry_point="ranked:DoomedEnv",
    vector_entry_point="ranked:DoomedVectorEnv",
    max_episode_steps=10,
)


def config_of(method, folder):
    return Config(run_dir=Path(folder) / method, **COMMON | METHODS[method])


def train_all(folder):
    """Trains by each method, and keeps a copy of the checkpoint after the first iteration, `first.pt`.

    Before, a run fails in all processes at once, which the later ones must not notice.
    """

    def refuse(*_):
        raise ValueError("on purpose")

    with contextlib.suppress(ValueError):
        train(config_of("trpo", Path(folder) / "refused"), callbacks=[refuse])
    for method in METHODS:
        config = config_of(method, folder)
        first = config.run_dir / "first.pt"

        def keep(*_, config=config, first=first):
            if os.environ.get("RANK", "0") == "0" and not first.exists():
                shutil.copy(config.run_dir / "checkpoint.pt", first)

        train(config, callbacks=[keep])


if __name__ == "__main__":
    train_all(sys.argv[1])
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads  # they can abort a process that exits
