"""`mtsk train --list`. Apart from training, which takes seconds to import."""

from __future__ import annotations

from mtsk.recipes import RECIPES


def run() -> int:
    """Prints name and first line of each recipe."""
    for name, recipe in RECIPES.items():
        print(f"{name:<12} {(recipe.__doc__ or '').strip().splitlines()[0]}")
    return 0
