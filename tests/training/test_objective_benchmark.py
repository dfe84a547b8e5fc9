"""The benchmark of the objective runs, and what it says of memory holds at tiny shapes too."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.objective import PER_SCALE, SUMMED, WAYS, Settings, measure_memory, measure_time, report

from tests.tiny import save_tiny_bases


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    llm, audio = save_tiny_bases(tmp_path)
    return Settings(rows=4, time_rows=2, duration_s=4.0, repeats=1, llm=llm, audio=audio)


def test_report_and_memory(settings: Settings) -> None:
    """What the allocator holds does not depend on the machine's load, so it can be compared; time can not."""
    memory = {name: measure_memory(name, settings) for name in WAYS}
    steps = {name: each["step_mib"] for name, each in memory.items()}
    assert 0 < steps[PER_SCALE] <= 1.15 * steps["a4v2 alone"]
    assert steps[PER_SCALE] <= 0.5 * steps[SUMMED]
    timed = measure_time(settings)
    assert timed["gradient_difference"] < 0.02  # bfloat16, where the processor has it
    text = report(memory, timed, settings)
    assert all(f"| {name} | {steps[name]:.0f} |" in text for name in WAYS)
    assert "sandwich, a4v2 and a16v5" in text
