"""Files of torch.save are read without running anything in them; files of another kind are refused in words."""

from __future__ import annotations

import enum
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtsk.checkpoints.unpickle import _Unpickler, load_inert


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_plain_values_are_as_they_were(tmp_path: Path, zipped: bool) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(whole=weight, part=weight[1:, ::2], half=weight.half(), count=torch.tensor(3))
    state["parameter"] = nn.Parameter(weight)
    path = tmp_path / "file.pt"
    torch.save({"model": state, "plain": [1, 2.5, "text", None, True, {"a": (1,)}]}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    content = load_inert(path)
    assert content["plain"] == [1, 2.5, "text", None, True, {"a": (1,)}]
    assert set(content["model"]) == set(state)
    for name, value in content["model"].items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, state[name])


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _touch(path: Path) -> list[tuple[str, Any]]:
    """Calls that would leave a file, by one way or another."""
    import os
    import subprocess

    code = f"open({str(path)!r}, 'w').close()"
    return [
        (r"(posix|nt)\.system", _Call(os.system, f"touch {path}")),
        (r"builtins\.exec", _Call(exec, code)),
        (r"builtins\.eval", _Call(eval, code)),
        (r"builtins\.getattr", _Call(getattr, "x", "upper")),
        (r"subprocess\.Popen", _Call(subprocess.Popen, ["touch", str(path)])),
        (r"torch\.hub\.load", _Call(torch.hub.load, "owner/name", "model")),
        (r"torch\.storage\._load_from_bytes", _Call(torch.storage._load_from_bytes, b"x")),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("place", ["task_state", "model", "cfg"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_is_refused_by_name(tmp_path: Path, number: int, place: str, zipped: bool) -> None:
    called = tmp_path / "called"
    name, call = _touch(called)[number]
    path = tmp_path / "evil.pt"
    torch.save({place: {"x": call}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"evil\.pt is refused: it wants to call {name}"):
        load_inert(path)
    assert not called.exists()


@pytest.fixture
def library(tmp_path: Path) -> Iterator[types.ModuleType]:
    """A module of others that is there when the file is written, and gone when it is read."""
    modules = {name: types.ModuleType(name) for name in ("fairseq", "fairseq.tasks")}
    sys.modules.update(modules)
    yield modules["fairseq.tasks"]
    for name in modules:
        sys.modules.pop(name, None)


def test_objects_of_others_become_inert(tmp_path: Path, library: Any) -> None:
    """An object with what it held, a class that fills a list or dict, an enumeration: none needs its library."""

    class Task:
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("was run")

    class Names(list[str]): ...

    class Table(dict[str, int]): ...

    class Choice(enum.Enum):
        STATIC = "static"

    for cls in (Task, Names, Table, Choice):
        cls.__module__, cls.__qualname__ = library.__name__, cls.__name__
        setattr(library, cls.__name__, cls)
    task = Task()
    task.__dict__.update(words=["a", "b"])
    held = [task, Names(["a"]), Table(a=1), Choice.STATIC, {1, 2}, b"bytes", bytearray(b"x"), 2j, Path("a/b"), Task]
    file = tmp_path / "file.pt"
    torch.save({"model": {"a": torch.arange(3.0)}, "held": held}, file)
    for name in ("fairseq", library.__name__):
        sys.modules.pop(name)
    content = load_inert(file)
    assert torch.equal(content["model"]["a"], torch.arange(3.0))
    first, *others, last = content["held"]
    assert (type(first).__module__, type(first).__name__) == ("fairseq.tasks", "Task")
    assert vars(first) == {"words": ["a", "b"]}
    assert not any(isinstance(other, (list, dict, enum.Enum, set, bytes, Path)) for other in others)
    assert last is not Task


@pytest.mark.parametrize(
    "what", ["ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n", "cos\nsystem\n"]
)
def test_what_may_be_called_can_not_be_changed(what: str) -> None:
    """A pickle may set attributes of anything that it was given."""
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        _Unpickler(io.BytesIO(b"\x80\x02" + what.encode() + b"}X\x01\x00\x00\x00aK\x01sb.")).load()
    assert vars(torch._utils._rebuild_tensor_v2) == before


# Other files.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Not found</html>", "is a page in HTML or XML"),
        (b"\n <html>", "is a page in HTML or XML"),
        (b'{"error": 1}', "is text in JSON"),
        (b"\x80\x02}q\x00.", "is no file of torch.save"),
        (b"RIFF....WAVE", "is no file of torch.save"),
        (b"PK\x03\x04 and no more", "is cut off"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other\.pt {said}"):
        load_inert(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"cfg": {}, "model": {"weight": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.pt .*cut off"):
        load_inert(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt does not exist"):
        load_inert(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="is a folder; a file is needed"):
        load_inert(tmp_path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.script(nn.Linear(1, 1)).save(str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"program\.pt is a TorchScript program"):
        load_inert(path)
