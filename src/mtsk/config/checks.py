"""Checks of single values."""

from __future__ import annotations


def require(holds: bool, name: str, given: object, allowed: str) -> None:
    """Raises ValueError with what was given and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {given!r}; allowed is {allowed}")
