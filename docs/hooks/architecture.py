"""A picture of the package, drawn from its imports: sub-packages and modules on floors, arrows only downwards."""

import ast
from pathlib import Path

WIDTH, HEIGHT, GAP, RISE = 118, 32, 22, 66


def rooms(root: Path) -> dict[str, set[str]]:
    """Each room with the rooms that it imports; the package's own `__init__` only collects names."""
    files = {path: path.relative_to(root).parts for path in sorted(root.glob("maml_rl/**/*.py"))}
    files |= {path: ("maml_rl", *path.relative_to(root).parts) for path in sorted(root.glob("envs/**/*.py"))}
    files = {path: parts for path, parts in files.items() if len(parts) > 2 or not parts[1].startswith("__")}
    names = {parts[1].removesuffix(".py") for parts in files.values()}
    found: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for path, parts in files.items():
        room = parts[1].removesuffix(".py")
        for module in _imported(ast.parse(path.read_text()), parts[:-1]):
            words = module.split(".")
            if words[0] == "maml_rl" and len(words) > 1 and words[1] in names - {room}:
                found[room].add(words[1])
    return found


def _imported(tree: ast.AST, package: tuple[str, ...]) -> list[str]:
    """The full names of everything that is imported when the program runs."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return []
    if isinstance(tree, ast.Import):
        return [alias.name for alias in tree.names]
    if isinstance(tree, ast.ImportFrom):
        base = [*package[: len(package) - tree.level + 1]] if tree.level else []
        base += [tree.module] if tree.module else []
        return [".".join([*base, alias.name]) for alias in tree.names]
    return [name for child in ast.iter_child_nodes(tree) for name in _imported(child, package)]


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: 0 if it needs no other, else one above the highest that it needs.

    Raises:
        ValueError: If rooms import each other in a circle.
    """
    found: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(f"Import cycle between rooms: {' → '.join([*above[above.index(room) :], room])}")
        if room not in found:
            found[room] = max((floor(other, (*above, room)) + 1 for other in sorted(imports[room])), default=0)
        return found[room]

    for room in imports:
        floor(room, ())
    return found


def svg(imports: dict[str, set[str]]) -> str:
    """The drawing; an arrow that follows from others is left out."""
    level = floors(imports)
    below: dict[str, set[str]] = {}  # all that a room needs, at any distance
    for room in sorted(level, key=lambda room: level[room]):
        below[room] = imports[room].union(*(below[other] for other in imports[room]))
    rows = [sorted(room for room in level if level[room] == k) for k in range(max(level.values()) + 1)][::-1]
    total, tall = (max(map(len, rows)) + 1) * (WIDTH + GAP), len(rows) * RISE
    place = {
        room: (total / 2 + (i - (len(row) - 1) / 2) * (WIDTH + GAP), GAP + j * RISE)
        for j, row in enumerate(rows)
        for i, room in enumerate(row)
    }
    lines, boxes = [], []
    for room, (x, y) in place.items():
        for other in sorted(imports[room]):
            if any(other in below[between] for between in imports[room] - {other}):
                continue
            (to_x, to_y), start = place[other], y + HEIGHT
            bend = (to_y - start) / 2
            far = level[room] - level[other] > 1  # goes around the rooms between
            sway = far * 1.4 * WIDTH * (1 if to_x >= x else -1)
            path = f"M{x},{start} C{x + sway},{start + bend} {to_x + sway},{to_y - bend} {to_x},{to_y - 4}"
            lines.append(f'<path d="{path}" fill="none" stroke="#7986cb" marker-end="url(#tip)"/>')
        shape = f'x="{x - WIDTH / 2:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5"'
        boxes.append(f'<rect {shape} fill="#e8eaf6" stroke="#3f51b5"/><text x="{x:g}" y="{y + 22}">{room}</text>')
    tip = '<marker id="tip" markerWidth="7" markerHeight="7" refX="4" refY="3" orient="auto">'
    tip += '<path d="M0,0 L6,3 L0,6 z" fill="#3f51b5"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{tall}" font-size="14"'
    content = "".join(["<defs>", tip, "</defs>", *lines, *boxes])
    return f'{head} font-family="sans-serif" text-anchor="middle">{content}</svg>\n'
