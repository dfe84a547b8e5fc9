"""YAML whose errors know their line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Place = tuple[str | int, ...]

_PLACE = re.compile(r"@ \$(\S*)")
_STEP = re.compile(r"\.(\w[\w-]*)|\[(\d+)\]")


@dataclass(frozen=True)
class YamlFile:
    """Values of a file, and where they stand."""

    path: Path
    values: Any
    _root: yaml.Node | None

    @classmethod
    def read(cls, path: Path) -> YamlFile:
        """Reads plain values; nothing else is built, whatever tags the file has.

        Raises:
            ValueError: naming file and line, if it is no YAML, or a key comes twice.
            OSError: if it can't be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            values = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = 1 + (error.problem_mark.line if error.problem_mark else 0)
            raise ValueError(f"{path}:{line}: {error.problem}") from error
        except (yaml.YAMLError, ValueError) as error:  # no UTF-8; or a date that is none
            raise ValueError(f"{path} is no YAML text: {error}") from error
        file = cls(path, values, root)
        file._refuse_repeated_keys(root, set())
        return file

    def error(self, problem: str, *place: str | int) -> ValueError:
        """An error at a place, such as `("matrices", 0, "scales")`."""
        return ValueError(f"{self.path}:{self._line(place)}: {problem}")

    @contextmanager
    def located(self, *place: str | int) -> Iterator[None]:
        """Within, a ValueError gets file and line: of the place that it names as `@ $.a.b[0]`, else of `place`."""
        try:
            yield
        except ValueError as error:
            inner = _PLACE.search(str(error))
            steps = _STEP.findall(inner[1].rstrip(";")) if inner else []
            named = tuple(int(index) if index else key for key, index in steps)
            # A key that should not be there is named in the text, not in the place.
            unknown = re.search(r"unknown key \(([^,)]+)", str(error))
            raise self.error(str(error), *place, *named, *((unknown[1],) if unknown else ())) from error

    def _line(self, place: Place) -> int:
        """Of the deepest part of a place that the file has."""
        node, line = self._root, 1 if self._root is None else self._root.start_mark.line + 1
        for step in place:
            found: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == step:
                        line, found = key.start_mark.line + 1, value
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = node.value[step]
                line = found.start_mark.line + 1
            if found is None:
                break
            node = found
        return line

    def _refuse_repeated_keys(self, node: yaml.Node | None, done: set[int]) -> None:
        if id(node) in done:  # an alias, perhaps of what holds it
            return
        done.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise ValueError(f"{self.path}:{key.start_mark.line + 1}: the key {key.value!r} comes twice")
                seen.add(key.value)
                self._refuse_repeated_keys(value, done)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._refuse_repeated_keys(value, done)
