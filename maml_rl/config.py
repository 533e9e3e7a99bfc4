"""Every option of a run, in one flat dataclass; the command line is made from it."""

from dataclasses import dataclass, field
from pathlib import Path

from .errors import UserError


@dataclass(frozen=True)
class Config:
    """Options of a meta-training run. M, K, H, S are the symbols of the documentation.

    Raises:
        UserError: If a value is out of range.
    """

    env_id: str = "maml_rl/Navigation2D-v0"
    """Registered id of the task family; `module:id` imports the module first."""
    run_dir: Path = Path("runs/default")
    """Folder that everything about the run is written into."""
    resume: bool = False
    """Go on from the run folder's last checkpoint; start afresh where there is none."""
    seed: int = 1
    """Seed of everything random in training: first parameters, tasks, environments, actions."""
    iterations: int = 100
    """Number of meta-iterations."""

    num_tasks: int = 20
    """M, tasks in a meta-batch."""
    num_rollouts: int = 20
    """K, rollouts of a task before and after each adaptation step."""
    horizon: int | None = None
    """H, steps of an episode; by default the registered `max_episode_steps`."""
    env_kwargs: dict[str, int | float | str] = field(default_factory=dict)
    """Arguments of the family itself, as pairs of name and value: `--env-kwargs task_name push-v3`."""
    num_workers: int | None = None
    """Processes that step a family without native code, by default one for each core; 0 for none but this one."""
    worker_timeout: float = 60.0
    """Seconds that a single environment of such a process may take for a step or reset before the run stops."""
    max_failed_share: float = 0.01
    """Largest share of a batch's rollouts whose simulation may break down; beyond it the run stops."""
    discount: float = 0.99
    """Discount factor, per step."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 1 unbiased, less for less variance."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden tanh layers."""
    initial_std: float = 1.0
    """Standard deviation of the Gaussian policy before training, in units of half the action range."""

    num_steps: int = 1
    """S, inner policy-gradient steps in training, each on new rollouts."""
    inner_lr: float = 0.1
    """α, step size of the inner policy-gradient step."""
    first_order: bool = False
    """Leave the second derivatives out of the meta-gradient (FOMAML)."""

    max_kl: float = 0.01
    """Trust region: largest mean KL(old ‖ new) of the adapted policies in an outer step, in nats."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations for the outer step's direction."""
    cg_damping: float = 0.01
    """Multiple of the identity added to the trust-region metric; where adapted policies become certain it is
    all that keeps steps small."""
    line_search_steps: int = 15
    """Candidates the line search tries, each 0.8 times as long as the one before."""

    eval_every: int = 10
    """Iterations between evaluations on held-out tasks; 0 evaluates at the end only."""
    eval_num_steps: int = 3
    """Adaptation steps in evaluations."""
    eval_num_tasks: int = 40
    """Held-out tasks in evaluations."""
    eval_num_rollouts: int = 20
    """Rollouts of a held-out task before and after each adaptation step."""
    eval_seed: int | None = None
    """Seed of the held-out tasks and their rollouts, by default `seed`; training never uses their streams."""
    eval_later_lr_factor: float = 0.5
    """Factor on α for evaluation steps after the first, as in the MAML paper."""

    checkpoint_every: int = 5
    """Iterations between checkpoints."""
    chunk_tasks: int = 10
    """Tasks that the outer step differentiates at once; 10 was fastest for 64×64 units and 2,000 steps a task."""

    def __post_init__(self) -> None:
        at_least = {
            "seed": 0,
            "iterations": 1,
            "num_tasks": 1,
            "num_rollouts": 1,
            "num_steps": 0,
            "cg_iterations": 1,
            "line_search_steps": 1,
            "eval_every": 0,
            "eval_num_steps": 0,
            "eval_num_tasks": 2,
            "eval_num_rollouts": 1,
            "checkpoint_every": 1,
            "chunk_tasks": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        for name, least in {"horizon": 1, "eval_seed": 0, "num_workers": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        for name in ("inner_lr", "initial_std", "max_kl", "worker_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}, but must be a positive number.")
        for name in ("discount", "gae_lambda", "max_failed_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be between 0 and 1.")
        for name in ("cg_damping", "eval_later_lr_factor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}, but must be 0 or a positive number.")
        if any(size < 1 for size in self.hidden_sizes):
            raise UserError(f"hidden_sizes is {self.hidden_sizes}, but every layer needs at least 1 unit.")
