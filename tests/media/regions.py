"""Stretches of speech in seconds."""

from __future__ import annotations

from collections.abc import Iterable

from mtsk.media.vad import WINDOW_S, RegionFinder, SpeechRules


def speech_regions(probabilities: Iterable[float], rules: SpeechRules | None = None) -> list[tuple[float, float]]:
    """What `RegionFinder` finds in the probabilities of windows, from the first to the last."""
    finder = RegionFinder(rules or SpeechRules())
    found = [*(finder.push(float(probability)) for probability in probabilities), finder.finish()]
    return [(region[0] * WINDOW_S, region[1] * WINDOW_S) for region in found if region is not None]
