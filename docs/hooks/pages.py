"""What the site shows beside its written pages: pictures of the results, and what is generated from the code."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads a hook by its path

import architecture
import notebooks
import options_table
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
GENERATED = {"options": options_table.markdown}


def on_startup(**_: Any) -> None:
    """Links the package as it is imported, with envs/ in it, before the API reference looks for it."""
    tree = ROOT / "build" / "api" / "maml_rl"
    tree.mkdir(parents=True, exist_ok=True)
    for link in tree.iterdir():
        link.unlink()
    for source in [*(ROOT / "maml_rl").iterdir(), ROOT / "envs"]:
        (tree / source.name).symlink_to(source)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures under experiments/results and the drawing of the architecture. Executes the notebooks."""
    for picture in sorted(RESULTS.rglob("*.png")):
        name = f"results/{picture.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    files.append(File.generated(config, "architecture.svg", content=architecture.svg(architecture.rooms(ROOT))))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        for file in notebooks.pages(config, notebook.src_uri, Path(str(notebook.abs_src_path))):
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in what is generated or included, and turns links of the repository into those of the site."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)
    markdown = re.sub(
        r"<!-- include: (\S+) -->",
        lambda match: (ROOT / match[1]).read_text().replace("](docs/", "]("),
        markdown,
    )
    return re.sub(
        r"\]\((?:\.\./)+experiments/(results/[^)]*)\)",
        lambda match: f"]({posixpath.relpath(match[1], folder)})",
        markdown,
    )
