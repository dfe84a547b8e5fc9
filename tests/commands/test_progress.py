"""How far a recording is read: what the figures say. Where they are shown: `test_killed`."""

import pytest

from mtsk.commands.progress import figures


@pytest.mark.parametrize(
    ("done_s", "total_s", "at_s", "now_s", "told"),
    [
        (0.0, 3600.0, 0.0, 2.0, "0:00 of 1:00:00"),
        (750.0, 3600.0, 90.0, 90.0, "12:30 of 1:00:00, 8.3 x real time, 5:42 left"),
        (750.0, 3600.0, 90.0, 100.0, "12:30 of 1:00:00, 8.3 x real time, 5:32 left"),
        (750.0, 3600.0, 90.0, 900.0, "12:30 of 1:00:00, 8.3 x real time, 0:00 left"),
        (61.0, 60.0, 10.0, 10.0, "1:01 of 1:00, 6.1 x real time, 0:00 left"),
        (59.6, None, 119.2, 119.2, "1:00, 0.5 x real time"),
    ],
)
def test_figures(done_s: float, total_s: float | None, at_s: float, now_s: float, told: str) -> None:
    assert figures(done_s, total_s, at_s, now_s) == told
