"""`mtsk train --list`. Apart from training, which takes seconds to import."""

from __future__ import annotations

import functools

from mtsk.recipes import RECIPES


def run() -> int:
    """Prints name and first line of each recipe."""
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        function = recipe.func if isinstance(recipe, functools.partial) else recipe
        told = ", ".join(str(value) for value in recipe.args) if isinstance(recipe, functools.partial) else ""
        first = (function.__doc__ or "").strip().splitlines()[0]
        print(f"{name:<{width}}  {first}" + (f" [{told}]" if told else ""))
    return 0
