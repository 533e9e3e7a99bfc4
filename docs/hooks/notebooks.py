"""Executes the notebooks of the tutorials, and turns them into pages with their fresh outputs."""

import functools
import tempfile
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

SECONDS = 600  # that one cell may take


class NotebookPage(File):
    """The page that a notebook becomes. Links and the navigation name it by the notebook's file."""

    def is_documentation_page(self) -> bool:
        """Says that mkdocs makes a page of it, although it is no Markdown file."""
        return True


def pages(config: MkDocsConfig, name: str, path: Path) -> list[File]:
    """Returns the page of a notebook and the pictures in it.

    Args:
        config: The site's options.
        name: The notebook's path in the documentation, such as `tutorials/first_run.ipynb`.
        path: The file.

    Raises:
        CellExecutionError: If a cell raises an exception.
        ValueError: If a cell prints a warning.
    """
    markdown, pictures = executed(path.stem, path.read_text())
    files = [NotebookPage.generated(config, name, content=markdown)]
    folder = name.rpartition("/")[0]
    return files + [File.generated(config, f"{folder}/{file}", content=data) for file, data in pictures.items()]


@functools.cache  # `mkdocs serve` builds the site again at every change
def executed(name: str, source: str) -> tuple[str, dict[str, bytes]]:
    """Executes a notebook in an empty folder. Returns it as Markdown, and its pictures by file name."""
    notebook = nbformat.reads(source, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute = ExecutePreprocessor(
            timeout=SECONDS,
            kernel_name="python3",
            coalesce_streams=True,  # of a progress bar, only its end
            extra_arguments=["--log-level=ERROR"],  # no warning that other users of this machine can listen
        )
        execute.preprocess(notebook, {"metadata": {"path": folder}})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "Warning" in output.text:
                raise ValueError(f"A cell of the notebook {name} prints a warning:\n{output.text}")
    markdown, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": name})
    return markdown, resources["outputs"]
