"""Reads what others saved by `torch.save` without running anything of theirs: tensors and plain values alone.

A pickle is a program: it may call whatever it can name. Here it gets OrderedDict and the functions that put a tensor
together. A class of anyone else becomes an inert object with its name and contents; a call is refused by name.
"""

from __future__ import annotations

import pickle
import tarfile
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

# Calls by these leave an inert object and are not made: they only hold data in the files that we know (enumerations,
# NumPy numbers, paths, bytes as Python 2 could read them).
_HARMLESS_ROOTS = {"argparse", "datetime", "enum", "fairseq", "numpy", "omegaconf", "pathlib", "sentencepiece"}
_HARMLESS = {"_codecs.encode", "collections.Counter", "collections.defaultdict", "torch.Size", "torch.device"} | {
    f"builtins.{name}" for name in ("bytearray", "bytes", "complex", "frozenset", "range", "set", "slice")
}
_STARTS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (`git lfs pull` fetches that)",
    b"<": "a page in HTML or XML; the download went wrong",
    b"{": "text in JSON",
}
_ZIP_START = b"PK\x03\x04"
_OLD_START = pickle.dumps(MAGIC_NUMBER, protocol=2)


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle wants to call something."""


def _blank(cls: Any) -> Any:
    return object.__new__(cls)


class _Unknown(type):
    """The class of stand-ins for unknown classes; such a class can't be called."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name in _HARMLESS or cls.__module__.partition(".")[0] in _HARMLESS_ROOTS:
            return _blank(cls)
        raise UnsafePickleError(f"it wants to call {name}")


class _Object:
    """Stands in for an object of an unknown class: nothing but the attributes that were saved."""

    def __new__(cls, *_: Any, **__: Any) -> _Object:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})

    # What a subclass of list, set or dict is filled by.
    def append(self, item: Any) -> None: ...
    def extend(self, items: Any) -> None: ...
    def add(self, item: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Function:
    """A function that a pickle may call, and can't change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, _: Any) -> None:
        raise UnsafePickleError("it wants to change a function")


def _rebuild_object(cls: Any, *_: Any) -> Any:
    if not isinstance(cls, _Unknown):
        raise UnsafePickleError(f"it wants to make a {cls!r}")
    return _blank(cls)


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # Without the hooks that may come next.
    rebuild: Any = torch._utils._rebuild_tensor  # has no annotations
    tensor: Tensor = rebuild(storage, offset, size, stride)
    return tensor


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_CALLABLE: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "copyreg._reconstructor": _Function(_rebuild_object),
    "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
}


class _Unpickler(pickle.Unpickler):
    """Finds stand-ins instead of what is named. Nothing is imported."""

    def find_class(self, module: str, name: str, /) -> Any:
        # The protocol that torch.save uses has Python 2's names.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        known = _CALLABLE.get(f"{module}.{name}")
        return known or _Unknown(name, (_Object,), {"__module__": module, "__qualname__": name})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What torch.load takes in place of the pickle module. It adds storages, by names of its own.
_PICKLE_MODULE: Any = types.SimpleNamespace(
    __name__="mtsk.checkpoints.unpickle", Unpickler=_Unpickler, load=_load, UnpicklingError=pickle.UnpicklingError
)


def load_inert(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain values as they are, other objects as inert ones with `__dict__`.

    Raises:
        ValueError: naming the file and what it is, if it is no such file, is cut off, or wants to call something.
    """
    mapped = _check_kind(path)
    try:
        # Mapped, so that an optimiser's state, which nobody asks for, is not read.
        return torch.load(path, map_location="cpu", pickle_module=_PICKLE_MODULE, weights_only=False, mmap=mapped)
    except UnsafePickleError as error:
        raise ValueError(f"{path} is refused: {error}, which has no place among weights") from error
    # A damaged pickle fails in whatever way its bytes happen to mean.
    except Exception as error:
        raise ValueError(f"{path} can't be read as a file of torch.save, or is cut off: {error}") from error


def _check_kind(path: Path) -> bool:
    """Whether it is in the format of today (a zip archive) rather than that before torch 1.6."""
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder; a file is needed' if path.exists() else 'does not exist'}")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty")
    for begins, what in _STARTS.items():
        if start.lstrip().startswith(begins):
            raise ValueError(f"{path} is {what}")
    # torch.load would unpack a tar archive, the format before that.
    if start.startswith(_OLD_START) and not tarfile.is_tarfile(path):
        return False
    if not start.startswith(_ZIP_START):
        raise ValueError(f"{path} is no file of torch.save")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off: a zip archive without its end")
    try:
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        raise ValueError(f"{path} is no file of torch.save: {error}") from error
    if "constants.pkl" in records:  # torch.load would hand it to another loader
        raise ValueError(f"{path} is a TorchScript program; a checkpoint is needed")
    return True
