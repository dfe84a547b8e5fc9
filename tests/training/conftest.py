"""Accelerators that forget each other, and a prepared folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mtsk.training.run import TrainingData
from tests.training.prepared import write_data


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """accelerate keeps precision and devices for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="session")
def data(data_dir: Path) -> TrainingData:
    return TrainingData.load(data_dir)
