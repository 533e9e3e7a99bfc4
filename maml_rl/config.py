"""Every option of a run, in one flat dataclass; the command line is made from it."""

from dataclasses import dataclass, field, fields
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
    """Number of meta-iterations; 0 trains nothing: the baseline from scratch."""

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
    normalise_advantages: bool = True
    """Divide each task's advantages by their standard deviation; without, larger rewards count for more."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden tanh layers."""
    initial_std: float = 1.0
    """Standard deviation of the Gaussian policy before training, in units of half the action range."""
    observe_task: bool = False
    """Append the task to the observation: with num_steps 0, the oracle, which need not adapt."""
    context_size: int = 0
    """Inputs of the policy that are parameters, 0 at first, for `adapt_only context` (CAVIA)."""
    rl2_episodes: int = 0
    """Train RL² in place of an inner loop: a GRU policy that remembers over this many episodes of a task."""

    num_steps: int = 1
    """S, inner policy-gradient steps in training, each on new rollouts; 0 is ordinary pre-training."""
    inner_lr: float = 0.1
    """α, step size of the inner policy-gradient step."""
    log_std_lr: float | None = None
    """α of the log standard deviations, by default `inner_lr`."""
    learn_lr: str = "no"
    """What α is multiplied by learned factors for: `one` for all, each `layer`, or each `parameter` (Meta-SGD)."""
    adapt_only: str | None = None
    """The part of the policy that inner steps change, by name: `head` is ANIL, `context` CAVIA; by default all."""
    first_order: bool = False
    """Leave the second derivatives out of the meta-gradient (FOMAML)."""
    estimator: str = "vpg"
    """The inner loss: `vpg`, `lvc` or `dice`, alike in value and gradient, not in their second derivatives."""
    dice_lambda: float = 1.0
    """λ of `dice`, how much of a step's credit goes to each one before it: 1 is unbiased, less varies less."""
    e_maml: float = 0.0
    """Weight of E-MAML's credit for exploring: 1 is the exact gradient, 1/K what published programs use."""

    outer: str = "trpo"
    """The outer optimiser: `trpo`, `ppo` (with `lvc`: ProMP), `adam` or `reptile`."""
    outer_lr: float = 0.001
    """β, step size of `ppo` and `adam`; for `reptile` the share of the way to the adapted parameters."""
    ppo_epochs: int = 5
    """Gradient steps of `ppo` on the same rollouts."""
    ppo_clip: float = 0.2
    """How far from 1 `ppo` rewards ratios of probabilities to go."""
    kl_penalty: float = 0.0005
    """Weight, with `ppo`, of the mean KL between sampling and current policies at every inner step."""
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
    eval_lr_factors: tuple[float, ...] = (1.0, 0.5)
    """Factors on α for the steps of an evaluation, the last one for all further steps; as in the MAML paper."""

    checkpoint_every: int = 5
    """Iterations between checkpoints."""
    chunk_tasks: int = 10
    """Tasks that the outer step differentiates at once; 10 is fast for 64×64 units and 2,000 steps a task."""
    device: str = "cpu"
    """Where the learner computes, cpu or cuda; environments, and policies while collecting, stay on the CPU."""

    def __post_init__(self) -> None:
        at_least = {
            "seed": 0,
            "iterations": 0,
            "num_tasks": 1,
            "num_rollouts": 1,
            "horizon": 1,
            "num_workers": 0,
            "context_size": 0,
            "rl2_episodes": 0,
            "num_steps": 0,
            "ppo_epochs": 1,
            "cg_iterations": 1,
            "line_search_steps": 1,
            "eval_every": 0,
            "eval_num_steps": 0,
            "eval_num_tasks": 2,
            "eval_num_rollouts": 1,
            "eval_seed": 0,
            "checkpoint_every": 1,
            "chunk_tasks": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        for name in ("inner_lr", "initial_std", "outer_lr", "ppo_clip", "max_kl", "worker_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}, but must be a positive number.")
        if self.outer_lr > 1e6:  # beyond what single precision can carry through an optimiser
            raise UserError(f"outer_lr is {self.outer_lr}, but must be at most 1e6.")
        for name in ("discount", "gae_lambda", "dice_lambda", "max_failed_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be between 0 and 1.")
        for name in ("cg_damping", "e_maml", "kl_penalty", "log_std_lr"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}, but must be 0 or a positive number.")
        if any(size < 1 for size in self.hidden_sizes):
            raise UserError(f"hidden_sizes is {self.hidden_sizes}, but every layer needs at least 1 unit.")
        if not self.eval_lr_factors or not all(0 <= factor < float("inf") for factor in self.eval_lr_factors):
            raise UserError(
                f"eval_lr_factors is {self.eval_lr_factors}, but must be at least one number, none below 0."
            )
        if self.learn_lr not in ("no", "one", "layer", "parameter"):
            raise UserError(f"learn_lr is {self.learn_lr!r}, but must be 'no', 'one', 'layer' or 'parameter'.")
        self._refuse_senseless()

    def _refuse_senseless(self) -> None:
        """Refuses options that contradict each other, each with what to choose instead."""
        default = {field.name: field.default for field in fields(Config)}
        # What options count only with; an outer optimiser of the user's own may use any of them.
        others = {"trpo", "ppo", "adam", "reptile"}
        trust_region = self.outer not in others - {"trpo"}, "outer trpo"
        ppo = self.outer not in others - {"ppo"}, "outer ppo"
        counts = {
            **dict.fromkeys(("max_kl", "cg_iterations", "cg_damping", "line_search_steps"), trust_region),
            **dict.fromkeys(("ppo_epochs", "ppo_clip"), ppo),
            "kl_penalty": (ppo[0] and self.num_steps > 0, "outer ppo and inner steps"),
            "outer_lr": (self.outer != "trpo", "outer ppo, adam or reptile"),
            "dice_lambda": (self.estimator == "dice", "estimator dice"),
            "estimator": (not self.first_order, "second derivatives, not with first_order"),
        }
        for name, (it_counts, with_what) in counts.items():
            if getattr(self, name) != default[name] and not it_counts:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, but counts only with {with_what}; choose that, or leave "
                    f"{name} out."
                )
        inner = [
            name
            for name in ("log_std_lr", "learn_lr", "adapt_only", "first_order", "estimator", "e_maml")
            if getattr(self, name) != default[name]
        ]
        if self.rl2_episodes:
            if self.num_steps or inner:
                wrong = "num_steps" if self.num_steps else inner[0]
                raise UserError(
                    f"{wrong} is {getattr(self, wrong)!r}, but RL² adapts by its memory and has no inner loop; "
                    "choose num_steps 0 and none of the inner loop's options, or leave rl2_episodes out."
                )
            if self.outer != "ppo":
                raise UserError(f"outer is {self.outer!r}, but RL² is trained by PPO; choose outer ppo.")
            for name in ("context_size", "observe_task"):
                if getattr(self, name):
                    raise UserError(f"{name} is no part of RL², which finds out by its memory; leave {name} out.")
        elif self.num_steps == 0:
            for name in ("learn_lr", "first_order", "estimator", "e_maml"):
                if name in inner:
                    raise UserError(
                        f"{name} is {getattr(self, name)!r}, but with num_steps 0 training has no inner step to "
                        f"differentiate; choose num_steps 1 or more, or leave {name} out."
                    )
        if self.outer == "reptile":
            if self.num_steps == 0:
                raise UserError(
                    "outer is 'reptile', which moves towards adapted parameters; choose num_steps 1 or more."
                )
            for name in ("estimator", "e_maml", "first_order", "learn_lr"):
                if name in inner:
                    raise UserError(
                        f"{name} is {getattr(self, name)!r}, but Reptile takes no derivative of the inner step, "
                        f"which is all that {name} changes; choose outer trpo, ppo or adam, or leave {name} out."
                    )
        if self.observe_task and self.num_steps:
            raise UserError(
                f"observe_task is on and num_steps is {self.num_steps}, but a policy that sees the task has "
                "nothing to adapt to; choose num_steps 0, or leave observe_task out."
            )

    @property
    def method(self) -> str:
        """What the method of a run is called in results."""
        if self.iterations == 0:
            return "scratch"
        if self.rl2_episodes:
            return "rl2"
        if self.observe_task:
            return "oracle"
        return "maml" if self.num_steps else "pretrain"
