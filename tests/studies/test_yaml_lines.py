"""YAML whose errors know their line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtsk.studies.yaml_lines import YamlFile

TEXT = """\
# a comment

title: some
matrices:
  - name: one
    scales: [a4,
             a8]
  - name: two
    set:
      joint: {weights: {a: 1},
              draw: rates}
"""


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 3),
        (("title",), 3),
        (("matrices",), 4),
        (("matrices", 0), 5),
        (("matrices", 0, "scales"), 6),
        (("matrices", 0, "scales", 1), 7),
        (("matrices", 0, "scales", 9), 6),
        (("matrices", 1, "set", "joint", "draw"), 11),
        (("matrices", 1, "set", "joint", "optim", "lr"), 10),
        (("matrices", "one"), 4),
        (("title", "more"), 3),
        (("nowhere",), 3),
    ],
)
def test_the_line_of_the_deepest_part_that_is_there(tmp_path: Path, place: tuple[str | int, ...], line: int) -> None:
    path = _write(tmp_path, TEXT)
    assert str(YamlFile.read(path).error("wrong", *place)) == f"{path}:{line}: wrong"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("plain", 9),
        ("wrong @ $.joint.draw", 11),
        ("wrong @ $.joint; another @ $.joint.draw", 10),
        ("unknown key (weights) @ $.joint", 10),
        ("unknown key (draw, weights) @ $.joint", 11),
        ("unknown key (colour) @ $.joint", 10),
        ("wrong @ $", 9),
    ],
)
def test_an_error_gets_the_line_of_the_place_that_it_names(tmp_path: Path, said: str, line: int) -> None:
    file = YamlFile.read(_write(tmp_path, TEXT))
    with (
        pytest.raises(ValueError, match=rf"^{re.escape(str(file.path))}:{line}: {re.escape(said)}$"),
        file.located("matrices", 1, "set"),
    ):
        raise ValueError(said)


def test_unknown_keys_with_dashes_and_places_in_lists_are_found(tmp_path: Path) -> None:
    file = YamlFile.read(_write(tmp_path, "list:\n  - a: 1\n  - a: 1\n    my-key: 2\n"))
    with pytest.raises(ValueError, match=r":4: unknown key"), file.located():
        raise ValueError("unknown key (my-key) @ $.list[1]")


def test_other_errors_pass(tmp_path: Path) -> None:
    file = YamlFile.read(_write(tmp_path, TEXT))
    with pytest.raises(KeyError), file.located():
        raise KeyError("a bug of ours")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: [1, 2\nb: 3\n", 2, "expected ',' or '\\]'"),
        ("a: 1\n  b: 2\n", 2, "mapping values are not allowed"),
        ('a: 1\nb: "x\n', 3, "unexpected end of stream"),
        ("a: *missing\n", 1, "undefined alias 'missing'"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2, "could not determine a constructor"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "unhashable key"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "the key 'c' comes twice"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' comes twice"),
        ("l:\n  - {a: 1, a: 2}\n", 2, "the key 'a' comes twice"),
        ("a: &x\n  b: 1\n  b: 2\nc: *x\n", 3, "the key 'b' comes twice"),
    ],
)
def test_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:{line}: .*{said}"):
        YamlFile.read(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", b"a: \x00", b"a: 2020-13-45\n"])
def test_no_text_and_no_date_are_refused_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is no YAML text"):
        YamlFile.read(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "--- \n"])
def test_an_empty_file_has_no_values(tmp_path: Path, text: str) -> None:
    file = YamlFile.read(_write(tmp_path, text))
    assert file.values is None
    assert re.fullmatch(rf"{re.escape(str(file.path))}:[12]: empty", str(file.error("empty", "a")))


def test_an_alias_of_what_holds_it_ends(tmp_path: Path) -> None:
    file = YamlFile.read(_write(tmp_path, "a: &x\n  - b: 1\n  - *x\n"))
    assert file.values["a"][0] == {"b": 1}
    assert str(file.error("wrong", "a", 1, 1, 0, "b")).endswith(":2: wrong")


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    values = YamlFile.read(_write(tmp_path, TEXT)).values
    assert values["matrices"][1]["set"] == {"joint": {"weights": {"a": 1}, "draw": "rates"}}


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        YamlFile.read(tmp_path / "none.yaml")
