"""Strict translation of configurations to and from plain values."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

import cattrs
from cattrs.errors import IterableValidationNote
from cattrs.v import format_exception

from mtsk.scale import Scale

T = TypeVar("T")


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Scale, str)
    converter.register_structure_hook(Scale, lambda text, _: Scale.parse(str(text)))
    converter.register_structure_hook_func(lambda wanted: wanted == tuple[Scale, ...], _scales)
    # Left alone, the converter would turn 1.7 into the int 1 and "false" into the bool True.
    for plain in (bool, int, float, str):
        converter.register_structure_hook(plain, _plain)
    return converter


def _scales(texts: Any, _: object) -> tuple[Scale, ...]:
    """A list of scales, in which `a4-20` stands for every rate from 4 to 20."""
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"{texts!r} given, a list of scales such as [a4v2, a16] is needed")
    scales: list[Scale] = []
    errors: list[Exception] = []
    for index, text in enumerate(texts):
        try:
            scales += Scale.parse_ranges(str(text))
        except ValueError as error:
            error.__notes__ = [IterableValidationNote("a scale", index, Scale)]
            errors.append(error)
    if errors:
        raise cattrs.IterableValidationError("not all are scales", errors, tuple)
    return tuple(scales)


def _plain(value: Any, wanted: type) -> Any:
    if type(value) is int and wanted is float:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{value!r} given")
    return value


def _describe(error: BaseException, wanted: type | None) -> str:
    if type(error) is Exception:  # cattrs says so where a value is none of the allowed words
        return str(error)
    if isinstance(error, AttributeError):
        return "a table of keys and values is needed"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        allowed = ", ".join(each.name for each in fields(error.cl))
        return f"unknown key ({', '.join(sorted(error.extra_fields))}), allowed are {allowed}"
    description = format_exception(error, wanted)
    return f"{description}: {error}" if isinstance(error, ValueError) else description


CONVERTER = _converter()


def set_values(config: Any) -> Any:
    """Plain values of a configuration that differ from the defaults: the same in a later version with more fields."""
    if not is_dataclass(config) or isinstance(config, Scale):
        return CONVERTER.unstructure(config)
    values = {}
    for each in fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if value != default:
            values[each.name] = set_values(value)
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (numbers, text, lists, dicts) of a configuration."""
    plain = CONVERTER.unstructure(config)
    assert isinstance(plain, dict)
    return plain


def from_dict(cls: type[T], values: Any) -> T:
    """A configuration from plain values.

    Raises:
        ValueError: naming every unknown key, missing key or wrong value with its place in the tree.
    """
    if not isinstance(values, dict):
        raise ValueError(f"not a valid {cls.__name__}: {values!r} given, a table of keys and values is needed")
    try:
        return CONVERTER.structure(values, cls)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_describe)
        raise ValueError(f"not a valid {cls.__name__}: " + "; ".join(problems)) from error
