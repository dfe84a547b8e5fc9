"""`mtsk serve`."""

from __future__ import annotations

import os

import torch

import mtsk
from mtsk.device import dtype_of
from mtsk.serving.settings import Settings


def run(model: str, settings: Settings, *, precision: str) -> int:
    """Serves a model until the process is told to stop. Returns the exit code.

    Raises:
        ValueError: if the settings can't be, or the packages of the extra `serve` are missing.
        OSError: if the address can't be had.
    """
    settings = settings.with_environment(os.environ)
    try:
        from mtsk.serving import app, logs
    except ModuleNotFoundError as error:
        raise ValueError(f"mtsk serve needs {error.name}; pip install 'mtsk[serve]'") from None
    logs.set_up()
    if settings.threads:  # before the model is loaded, which measures what it gives with so many
        torch.set_num_threads(settings.threads)
    app.serve(mtsk.load(model, dtype=dtype_of(precision)), settings)
    return 0
