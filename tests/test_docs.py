"""The documentation: its examples run, its commands parse, and what it names exists."""

import ast
import functools
import json
import re
import runpy
import shlex
import sys

import architecture
import gymnasium
import nbformat
import options_table
import pytest
import tyro
from conftest import ROOT, TINY
from maml_rl.envs import check_family

from maml_rl import cli
from maml_rl.runs.folder import save_config
from maml_rl.sweep import combinations

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def page_text(path):
    """A page. Of a notebook, the text of its cells; its code is in blocks as on other pages, without magics."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    return "\n\n".join(
        text if kind == "markdown" else "```python\n" + re.sub(r"^%.*\n?", "", text, flags=re.MULTILINE) + "\n```"
        for kind, text in cells
    )


PAGES = {
    str(path.relative_to(ROOT)): page_text(path)
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *NOTEBOOKS,
    ]
}
RUNNABLE = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)


def commands():
    """The lines of pages and experiments that call the command line or a script, comments removed."""
    scripts = [ast.get_docstring(ast.parse(path.read_text())) for path in (ROOT / "experiments").rglob("*.py")]
    for text in [*PAGES.values(), *filter(None, scripts)]:
        blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:maml-rl|python experiments/)[^`…]*)`", text)
        yield from (
            line for line in lines if re.match(r"maml-rl [a-z]+ .*[a-z/]|maml-rl families|python exp", line)
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tiny run where the pages have runs/navigation_2d."""
    folder = tmp_path_factory.mktemp("docs")
    words = ["--run-dir", str(folder / "runs/navigation_2d"), *TINY, "--iterations", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["maml-rl", "train", *words])
        patch.setattr("maml_rl.cli.tune_process", lambda: None, raising=False)  # the process is pytest's
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return folder


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    from maml_rl.maml.outer import OPTIMISERS
    from maml_rl.methods import METHODS

    before = [(dict(now), now) for now in (gymnasium.registry, METHODS, OPTIMISERS)]
    yield
    for kept, now in before:
        now.clear()
        now.update(kept)
    sys.modules.pop("my_family", None)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if RUNNABLE.search(text)])
def test_examples_run_as_they_stand(page, trained, registry, monkeypatch):
    """Those of a page one after the other, in one program."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(trained))
    names = {"__name__": "__main__"}
    for code in RUNNABLE.findall(PAGES[page]):
        exec(compile(code, page, "exec"), names)


def test_every_python_block_is_python():
    for text in PAGES.values():
        for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            ast.parse(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_have_no_outputs(path):
    """Every cell also has an id of its own. `make docs` executes the notebooks."""
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        assert cell.cell_type == "markdown" or not (cell.outputs or cell.execution_count)


def exit_code(program):
    try:
        program()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_parse(line, registry, monkeypatch, tmp_path):
    """Through the real front, with every function behind it replaced by one that does nothing."""
    words = shlex.split(line)
    script = ROOT / words[1] if words[0] == "python" else None
    words = words[2:] if script else words[1:]
    if script and not re.search("tyro|run_experiment", script.read_text()):
        assert not words
        return

    def idle(function):
        return functools.wraps(function)(lambda *args, **kwargs: None)

    def cli_of(function, *args, **kwargs):
        return real_cli(function if isinstance(function, type) else idle(function), *args, **kwargs)

    def subcommands(functions, *args, **kwargs):
        return real_subcommands({name: idle(f) for name, f in functions.items()}, *args, **kwargs)

    def parsed(arguments):
        return cli._options(arguments, cli.Config())

    real_cli, real_subcommands = tyro.cli, tyro.extras.subcommand_cli_from_dict
    monkeypatch.setattr(tyro, "cli", real_cli if script is None else cli_of)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", subcommands)
    monkeypatch.setattr(cli, "train", idle(cli.train))
    monkeypatch.setattr(cli, "_sweep", lambda *options: [parsed(w) for w in combinations(options[-1]).values()])
    monkeypatch.setattr("maml_rl.cli.tune_process", lambda: None, raising=False)
    monkeypatch.setattr(sys, "argv", [str(script or "maml-rl"), *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    # A run with options of its own to go on with.
    for folder in re.findall(r"--(?:resume|start-from) ((?!zoo/)\w\S*)", line):
        (tmp_path / folder).mkdir(parents=True)
        save_config(cli.Config(run_dir=tmp_path / folder))
    assert not exit_code(lambda: runpy.run_path(str(script), run_name="__main__") if script else cli.main())


@pytest.fixture(params=["own_family", "own_environment"])
def example(request, tmp_path):
    """The name of an example family, saved as a module in an empty folder."""
    (code,) = re.findall(r"```python\n(\"\"\".*?)```", PAGES[f"docs/start/{request.param}.md"], re.DOTALL)
    name = re.search(r'entry_point="(\w+):', code).group(1)
    assert len(code.splitlines()) <= 50
    (tmp_path / f"{name}.py").write_text(code)
    return name


@pytest.mark.filterwarnings("ignore:.*Box (observation|action) space.*:UserWarning")
def test_example_keeps_the_contract(example, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(example)
    env_id = f"{example.title()}-v0"
    try:
        check_family(env_id)
    finally:
        gymnasium.registry.pop(env_id)
        sys.modules.pop(example)


def test_example_trains_by_the_page_s_command(example, tmp_path, command):
    text = "\n".join(PAGES.values())
    line = re.search(rf"^maml-rl (train --env-id {example}:.*)$", text, re.MULTILINE).group(1)
    result = command(*line.split(), *TINY, "--iterations", 2)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / f"runs/{example}/evaluation.json").read_text())
    assert evaluation["env_id"] == f"{example}:{example.title()}-v0"


def test_families_named_are_the_registered_ones():
    table = PAGES["docs/reference/families.md"]
    rows = re.findall(r"^\| (`.*?) \|.*?\| (\d+) \|", table, re.MULTILINE)
    named = {name: int(horizon) for names, horizon in rows for name in re.findall(r"`([A-Za-z0-9]+-v0)`", names)}
    ours = {
        spec.id.removeprefix("maml_rl/"): spec.max_episode_steps
        for spec in gymnasium.registry.values()
        if spec.id.startswith("maml_rl/")
    }
    assert named == ours
    for page, text in PAGES.items():
        for name in re.findall(r"maml_rl/([A-Za-z0-9]+-v0)", text):
            assert name in named, page


def test_options_named_exist():
    known = {name.replace("_", "-") for name in cli.Config.__dataclass_fields__}
    of_commands = {
        "seeds",
        "jobs",
        "experiment",
        "trust",
        "tasks",
        "picture",
        "output",
        "help",
        "num-tasks",
        "num-rollouts",
    }
    of_scripts = {"families", "methods", "parts", "seeds", "root", "batches", "repetitions", "sizes", "horizon"}
    of_tools = {"logdir", "directory", "name", "nproc-per-node", "nnodes", "max-restarts", "whole-episodes"}
    of_tools |= {"rdzv-backend", "rdzv-endpoint", "rdzv-id", "nodes", "ntasks-per-node", "cpus-per-task", "signal"}
    of_tools |= {"clear-output", "inplace"}
    for page, text in PAGES.items():
        for option in re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*[a-z0-9])", text):
            assert option.removeprefix("no-") in known | of_commands | of_scripts | of_tools, (page, option)


def test_defaults_named_are_the_defaults():
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", PAGES["docs/reference/options.md"], re.MULTILINE)
    assert len(rows) >= 9
    for names, values in rows:
        options = [name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", names)]
        for option, default in zip(options, values.split(", "), strict=True):
            value = getattr(cli.Config(), option)
            words = {"on": True, "off": False}
            assert default == value or words.get(default, default) == value or float(default) == value, option


def test_table_of_options_has_them_all():
    table = options_table.markdown()
    for name in cli.Config.__dataclass_fields__:
        (row,) = re.findall(rf"^\| `--{name.replace('_', '-')}` \| .+? \| .+? \| .+? \|$", table, re.MULTILINE)
        assert row.rstrip(" |").endswith((".", "."))


def test_metrics_named_are_the_ones_logged():
    """The table against the code's tags; test_training reads the tags back from event files."""
    sources = " ".join(path.read_text() for path in (ROOT / "maml_rl").rglob("*.py"))
    tags = re.findall(r"`(?:train|eval|outer|time)/([a-z_]+?)(?:_k)?`", PAGES["docs/reference/metrics.md"])
    assert len(tags) > 10
    for tag in tags:
        assert tag.removesuffix("_step") in sources, tag


def test_links_and_pictures_are_there():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not link.startswith("http") and link != "../architecture.svg":
                assert (ROOT / page).parent.joinpath(link).exists(), (page, link)


def test_files_named_are_there():
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:maml_rl|envs|experiments|tests|docs)/[\w/]+\.\w+)`", text):
            assert (ROOT / name).exists(), (page, name)


def test_rooms_import_only_downwards():
    rooms = architecture.rooms(ROOT)
    level = architecture.floors(rooms)
    assert {"envs", "maml", "cli"} <= rooms.keys()
    assert not rooms["envs"]
    assert all(level[other] < level[room] for room in rooms for other in rooms[room])
    assert architecture.svg(rooms).count("<rect") == len(rooms)
    named = re.findall(r"^\| (`.*?) \|", PAGES["docs/concepts/architecture.md"], re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} == rooms.keys()


def test_import_cycles_are_found():
    with pytest.raises(ValueError, match="a → b → a"):
        architecture.floors({"a": {"b"}, "b": {"a"}})
