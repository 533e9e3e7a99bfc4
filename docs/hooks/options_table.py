"""The table of all options, from the fields of `maml_rl.Config`."""

import ast
import dataclasses
import inspect
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from maml_rl import Config
from maml_rl.results.comparison import as_markdown

TITLES = {
    "method": "What is trained, and how",
    "run": "One run",
    "machine": "How the computer does the work",
}


def markdown() -> str:
    """A table for each scope: name, default, allowed values and the sentence under the field."""
    sentences, annotations = _sentences(), get_type_hints(Config)
    parts = []
    for scope, title in TITLES.items():
        rows = [
            [
                f"`--{field.name.replace('_', '-')}`",
                _default(field),
                _allowed(annotations[field.name], field.metadata),
                sentences[field.name],
            ]
            for field in dataclasses.fields(Config)
            if field.metadata["scope"] == scope
        ]
        head = ["option", "default", "allowed values", "meaning"]
        parts.append(f"## {title} (scope `{scope}`)\n\n{as_markdown([head, *rows])}")
    return "\n\n".join(parts)


def _sentences() -> dict[str, str]:
    """The string that stands under each field in the source."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(Config)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    words = field.default if isinstance(field.default, tuple) else (field.default,)
    return f"`{' '.join(str(word) if not isinstance(word, PurePath) else word.as_posix() for word in words)}`"


def _allowed(annotation: Any, metadata: Any) -> str:
    alternatives = [annotation] if get_origin(annotation) is Literal else get_args(annotation) or [annotation]
    choices = [name for one in alternatives if get_origin(one) is Literal for name in get_args(one)]
    if choices:
        names = ", ".join(f"`{name}`" for name in choices)
        return names + (", or a name of your own" if str in alternatives else "")
    if bool in alternatives:
        return "on, off"
    signs = {"at_least": "≥", "above": ">", "at_most": "≤"}
    limits = [f"{sign} {metadata[name]:g}" for name, sign in signs.items() if name in metadata]
    kinds = {int: "whole number", float: "number"}
    kind = next((word for one, word in kinds.items() if one in alternatives), "")
    if annotation == tuple[int, ...] or annotation == tuple[float, ...]:
        return "one or more numbers"
    return " ".join([kind, " and ".join(limits)]).strip() or "text"
