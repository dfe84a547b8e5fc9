"""The map of the house (docs/architecture.md) holds: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "mtsk"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"scale", "types", "config", "device", "files"}  # under all rooms

# Room -> the rooms that it may import. Data flows one way: media, data, model, then what uses them, then the commands.
_USERS = {"media", "data", "model", "checkpoints"}
ROOMS = {
    "media": set[str](),
    "data": {"media"},
    "model": set[str](),
    "checkpoints": {"model"},
    "training": _USERS,
    "evaluation": _USERS,
    "inference": _USERS,
    "recipes": {"paper_recipes"},
    "paper_recipes": set[str](),
    "studies": _USERS | {"evaluation", "training", "recipes"},
    "serving": _USERS | {"inference"},
}
# The doors: they may open every room, but only when asked, so that importing them is quick.
DOORS = {"__init__", "cli", "commands"}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What is imported, absolute: (dotted name, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            module = str(node.module)
            if module == "mtsk":
                yield from ((f"mtsk.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def _violations(path: Path) -> list[str]:
    """Imports of rooms that this file's room may not import."""
    room = _room(path)
    if room in DOORS:
        return []
    allowed = BASE if room in BASE else BASE | ROOMS[room] | {room}
    found = []
    for name, line in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "mtsk" and other not in allowed:
            found.append(f"{path.relative_to(PACKAGE)}:{line}: {room} imports {name}")
    return found


def test_every_file_has_a_place_in_the_house() -> None:
    assert {_room(path) for path in FILES} <= BASE | DOORS | set(ROOMS)
    assert len(FILES) > 30  # the folder was found


def test_imports_go_one_way() -> None:
    assert [violation for path in FILES for violation in _violations(path)] == []


def test_a_violation_would_be_found() -> None:
    """The check itself: a room that imports against the flow is seen, on every form of import."""
    source = "import mtsk.cli\nfrom mtsk import training\ndef f():\n    from mtsk.inference.engine import Engine\n"
    names = [name for name, _ in _imports(ast.parse(source))]
    assert names == ["mtsk.cli", "mtsk.training", "mtsk.inference.engine"]
    assert not ROOMS["model"] & {name.split(".")[1] for name in names}


@pytest.mark.parametrize("module", ["mtsk", "mtsk.cli", "mtsk.scale", "mtsk.config"])
def test_import_is_light(module: str) -> None:
    """What the command line needs for its help comes without torch, and without what pulls torch in."""
    heavy = {"torch", "transformers", "accelerate", "lhotse", "av", "matplotlib"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not text or ast.get_docstring(ast.parse(text)), "no module docstring"
