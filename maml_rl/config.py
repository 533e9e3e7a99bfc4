"""Every option of a run, in one flat dataclass. The command line is made from it."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from functools import cache, partial
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError

Scope = Literal["method", "run", "machine"]


def _option(default: Any, scope: Scope, fixed: bool, **limits: float) -> Any:
    """Makes a field with metadata about the option.

    Args:
        default: The default value, or a class that makes it.
        scope: `method` for what is trained and how, `run` for one run and its output, `machine` for how the
            computer does the work.
        fixed: Whether a resumed run must have the same value.
        **limits: `at_least`, `above` and `at_most`, for numbers.
    """
    metadata = {"scope": scope, "fixed": fixed, **limits}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


_method = partial(_option, scope="method", fixed=True)
_run = partial(_option, scope="run", fixed=False)
_machine = partial(_option, scope="machine", fixed=False)


@dataclass(frozen=True)
class Config:
    """Options of a meta-training run. M, K, H, S are the symbols of the documentation.

    Raises:
        UserError: If a value is out of range. The method checks combinations of options when it is created.
    """

    env_id: str = _method("maml_rl/Navigation2D-v0")
    """Registered id of the task family. `module:id` imports the module first."""
    run_dir: Path = _run(Path("runs/default"))  # noqa: RUF009 (a path does not change)
    """Folder that everything about the run is written into. Any path-like object works."""
    resume: bool = _run(False)
    """Continue from the last checkpoint in the run folder. Without a checkpoint, start from the beginning."""
    seed: int = _run(1, fixed=True, at_least=0)
    """Seed of all randomness in training: initial parameters, tasks, environments, actions."""
    start_from: Path | None = _method(None)  # noqa: RUF009 (a path does not change)
    """Run folder, or `zoo/NAME`, with whose θ training begins. Environment steps are counted on from there, and
    `maml-rl train` takes all options that are not given from that run."""
    iterations: int = _method(100, fixed=False, at_least=0)
    """Number of meta-iterations. 0 trains nothing: without `start_from`, this is the from-scratch baseline."""
    method: Literal["maml", "rl2"] | str | None = _method(None)
    """Meta-learning method. By default `rl2` if `rl2_episodes` is set, and `maml` otherwise."""

    num_tasks: int = _method(20, at_least=1)
    """M, tasks in a meta-batch."""
    num_rollouts: int = _method(20, at_least=1)
    """K, rollouts of a task before and after each adaptation step."""
    horizon: int | None = _method(None, at_least=1)
    """H, steps of an episode. By default the registered `max_episode_steps`."""
    env_kwargs: dict[str, bool | int | float | str] = _method(dict)  # noqa: RUF009 (becomes a default_factory)
    """Arguments of the family, as pairs of name and value: `--env-kwargs task_name push-v3`."""
    num_workers: int | None = _machine(None, at_least=0)
    """Worker processes that step a family without native code. By default one per core; 0 uses no workers."""
    worker_timeout: float = _machine(60.0, above=0)
    """Seconds that one call of an environment in a worker may take before the run stops."""
    max_failed_share: float = _machine(0.01, at_least=0, at_most=1)
    """Share of a batch's rollouts whose simulation may break down. The run stops if more do."""
    discount: float = _method(0.99, at_least=0, at_most=1)
    """Discount factor, per step."""
    gae_lambda: float = _method(0.95, at_least=0, at_most=1)
    """λ of generalised advantage estimation. 1 is unbiased; lower values have less variance."""
    normalise_advantages: bool = _method(True)
    """Divide each task's advantages by their standard deviation."""
    normalise_observations: bool = _method(False)
    """Show policies observations minus their running mean, divided by their running standard deviation."""

    hidden_sizes: tuple[int, ...] = _method((64, 64))
    """Widths of the policy's hidden layers. For images, one number: the width of the last layer, or with `conv4`
    the number of filters of each."""
    activation: Literal["tanh", "relu"] = _method("tanh")
    """Function of the hidden layers."""
    network: Literal["conv4"] | None = _method(None)
    """For images, `conv4` is the network of few-shot classification. By default, images of batched families get a
    small CNN, and everything else an MLP. Images of single environments are flattened."""
    initial_std: float = _method(1.0, at_least=1e-5)
    """Standard deviation of the Gaussian policy before training, in units of half the action range."""
    observe_task: bool = _method(False)
    """Append the task to the observation. With `num_steps 0` this is the oracle."""
    context_size: int = _method(0, at_least=0)
    """Number of extra policy inputs that are parameters, for `adapt_only context` (CAVIA). They start at 0."""
    rl2_episodes: int = _method(0, at_least=0)
    """Episodes of a task that RL² remembers. Above 0, RL² is trained instead of an inner loop."""

    num_steps: int = _method(1, at_least=0)
    """S, inner policy-gradient steps in training, each on new rollouts. 0 is ordinary pre-training."""
    inner_lr: float = _method(0.1, above=0)
    """α, step size of the inner policy-gradient step."""
    log_std_lr: float | None = _method(None, at_least=0)
    """α of the log standard deviations. By default `inner_lr`."""
    learn_lr: Literal["no", "one", "layer", "parameter", "task"] = _method("no")
    """Learn factors on α: `one` for all parameters, one per `layer`, one per `parameter` (Meta-SGD), or for each
    `task` one per layer, as a function of the rewards of its rollouts."""
    inner_advantage: Literal["gae", "learned"] = _method("gae")
    """Advantages of the inner loss: estimates (GAE), or a `learned` function of them and of every step."""
    policy_gradient: bool = _method(False)
    """Learn a supervised family from rewards, by policy gradients, instead of by the gradient of its loss."""
    adapt_only: Literal["head", "body", "context"] | str | None = _method(None)
    """Name of the only part of the policy that inner steps change: `head` is ANIL, `context` is CAVIA."""
    first_order: bool = _method(False)
    """Leave the second derivatives out of the meta-gradient (FOMAML)."""
    estimator: Literal["vpg", "lvc", "dice"] | str = _method("vpg")
    """Inner loss. The three have the same gradient and differ in their second derivatives."""
    dice_lambda: float = _method(1.0, at_least=0, at_most=1)
    """λ of `dice`. 1 is unbiased; lower values have less variance."""
    e_maml: float = _method(0.0, at_least=0)
    """Weight of E-MAML's exploration term. 1 gives the exact gradient; published programs use 1/K."""

    outer: Literal["trpo", "ppo", "adam", "reptile"] | str = _method("trpo")
    """Outer optimiser. `ppo` together with `estimator lvc` is ProMP."""
    outer_lr: float = _method(0.001, above=0, at_most=1e6)
    """β, step size of `ppo` and `adam`. For `reptile`, the fraction of the way to the adapted parameters."""
    ppo_epochs: int = _method(5, at_least=1)
    """Gradient steps of `ppo` on the same rollouts."""
    ppo_clip: float = _method(0.2, above=0)
    """Clipping range of `ppo`: probability ratios beyond 1 ± this value are not rewarded."""
    kl_penalty: float = _method(0.0005, at_least=0)
    """Weight in `ppo` of the mean KL between the sampling and the current policies at every inner step."""
    max_kl: float = _method(0.01, above=0)
    """Trust region: largest mean KL(old ‖ new) of the adapted policies in an outer step, in nats."""
    cg_iterations: int = _method(10, at_least=1)
    """Conjugate-gradient iterations that find the direction of the outer step."""
    cg_damping: float = _method(0.01, at_least=0)
    """Multiple of the identity added to the trust-region metric. It bounds steps of near-certain policies."""
    line_search_steps: int = _method(15, at_least=1)
    """Candidates that the line search tries. Each is 0.8 times as long as the one before."""

    eval_every: int = _run(10, at_least=0)
    """Iterations between evaluations on held-out tasks. 0 evaluates only at the end."""
    eval_num_steps: int = _run(3, at_least=0)
    """Adaptation steps in evaluations."""
    eval_num_tasks: int = _run(40, at_least=2)
    """Held-out tasks in evaluations."""
    eval_num_rollouts: int = _run(20, at_least=1)
    """Rollouts of a held-out task before and after each adaptation step."""
    eval_seed: int | None = _run(None, at_least=0)
    """Seed of the held-out tasks and their rollouts. By default `seed`; training uses other streams."""
    eval_lr_factors: tuple[float, ...] = _method((1.0, 0.5))
    """Factors on α for each step of an evaluation. The last one is used for all further steps."""

    checkpoint_every: int = _run(5, at_least=1)
    """Iterations between checkpoints."""
    threads: int | None = _machine(None, at_least=1)
    """Threads of the learner. By default one per core. Chunks of tasks are shared out among them."""
    chunk_tasks: int = _machine(10, at_least=1)
    """Tasks that the outer step differentiates at once."""
    device: Literal["cpu", "cuda"] | str = _machine("cpu")
    """Device of the learner. Environments, and policies that act in them, stay on the CPU."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = _converted(option.name, getattr(self, option.name), _annotations()[option.name])
            object.__setattr__(self, option.name, value)
            _check_value(option.name, value, _annotations()[option.name], option.metadata)
        if any(type(size) is not int or size < 1 for size in self.hidden_sizes):
            raise UserError(f"hidden_sizes is {self.hidden_sizes}, but every layer needs at least 1 unit.")
        if not self.eval_lr_factors or not all(
            isinstance(factor, int | float) and 0 <= factor < math.inf for factor in self.eval_lr_factors
        ):
            raise UserError(
                f"eval_lr_factors is {self.eval_lr_factors}, but must be at least one number, none below 0."
            )

    @property
    def chosen_method(self) -> str:
        """The name of the method, which is in `method` only if it was given."""
        return self.method or ("rl2" if self.rl2_episodes else "maml")

    @property
    def is_trained(self) -> bool:
        """Whether θ has been trained when the run ends: by this run, or by that which it starts from."""
        return self.iterations > 0 or self.start_from is not None

    def options(self, scope: Scope | None = None) -> dict[str, Any]:
        """Returns the options of a scope, or all of them, by name."""
        chosen = [option.name for option in fields(self) if scope in (None, option.metadata["scope"])]
        return {name: self.chosen_method if name == "method" else getattr(self, name) for name in chosen}

    def changed(self, *names: str) -> list[str]:
        """Returns the names of those options that differ from their defaults."""
        defaults = _defaults()
        return [name for name, value in self.options().items() if name in names and value != defaults[name]]


@cache
def _defaults() -> dict[str, Any]:
    return Config().options()


@cache
def _annotations() -> dict[str, Any]:
    return get_type_hints(Config)


def _kinds(annotation: Any) -> set[type]:
    """The types of the values that an annotation allows."""
    return {
        kind
        for part in _parts(annotation)
        for kind in (map(type, get_args(part)) if get_origin(part) is Literal else [get_origin(part) or part])
    }


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    is_union = isinstance(annotation, UnionType) or get_origin(annotation) is Union
    return get_args(annotation) if is_union else (annotation,)


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """The value in the type that JSON and the command line give it: no NumPy numbers, paths and tuples as such."""
    kinds = _kinds(annotation)
    if isinstance(value, str | PathLike) and Path in kinds:
        return Path(value).expanduser()
    if isinstance(value, list | tuple) and tuple in kinds:
        return tuple(_plain(part, {*get_args(annotation)}) for part in value)
    if isinstance(value, dict) and dict in kinds:
        value = {key: _plain(part) for key, part in value.items()}
        for key, part in value.items():
            if type(key) is not str or type(part) not in (bool, int, float, str):
                raise UserError(
                    f"{name} has {key!r}: {part!r}, but must be names with values of type bool, float, int or str."
                )
    value = _plain(value, kinds)
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        wanted = " or ".join(sorted("None" if kind is NoneType else kind.__name__ for kind in kinds))
        raise UserError(f"{name} is {value!r}, but must be of type {wanted}.")
    return value


def _plain(value: Any, kinds: Collection[Any] = ()) -> Any:
    """A value without NumPy, and as a float where only floats are wanted."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    wants_float = float in kinds and int not in kinds
    return float(value) if wants_float and type(value) is int and abs(value) < 2**63 else value


def _check_value(name: str, value: Any, annotation: Any, limits: Any) -> None:
    if value is None:
        return
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{name} has {len(str(abs(value)))} digits, but must fit into 64 bits.")
    parts = [part for part in _parts(annotation) if part is not NoneType]
    choices = [choice for part in parts for choice in get_args(part)]
    if all(get_origin(part) is Literal for part in parts) and value not in choices:
        raise UserError(f"{name} is {value!r}, but must be one of {', '.join(choices)}.")
    if not {"at_least", "above", "at_most"} & limits.keys():
        return
    least, most = limits.get("at_least", -math.inf), limits.get("at_most", math.inf)
    if not (math.isfinite(value) and least <= value <= most and value > limits.get("above", -math.inf)):
        if "above" in limits:
            wanted = f"above {limits['above']:g}" + (f" and at most {most:g}" if "at_most" in limits else "")
        elif "at_most" in limits:
            wanted = f"between {least:g} and {most:g}"
        else:
            wanted = f"at least {least:g}"
        raise UserError(f"{name} is {value}, but must be {wanted}.")
