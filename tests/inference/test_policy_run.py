"""A file under a policy: lips are looked for where they are needed, and files of every kind are read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtsk.config import AutoConfig, BandConfig, StepConfig
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Attempt, Choice, Fixed, Known, Looks, token_budget
from mtsk.media import MediaError, lips
from mtsk.media.mouth import Crop, Sighting
from mtsk.scale import Scale
from mtsk.types import MOUTH_SIZE_PX
from tests.media.clips import Kind, write_clip
from tests.tiny import tiny_model

A4, A16, A4V2, V5 = map(Scale.parse, ("a4", "a16", "a4v2", "v5"))
CLIP = Kind("mp4", "libx264", "aac")
BLIND = AutoConfig((BandConfig((StepConfig(A16),)),))
CURIOUS = AutoConfig((BandConfig((StepConfig(A16, 1.1), StepConfig(A4V2))),))


class Mouths:
    """Stands in for a tracker: every picture is a mouth, unless it is blind."""

    face = 0

    def __init__(self, num_faces: int = 1) -> None:
        self.num_faces = num_faces

    def stream(self) -> "Mouths":
        return self

    def push(self, image: NDArray[np.uint8]) -> list[Crop]:
        seen = Sighting.DETECTED if self.num_faces else Sighting.MISSING
        return [(np.full((MOUTH_SIZE_PX, MOUTH_SIZE_PX), image.mean(), np.uint8), seen)]

    def finish(self) -> list[Crop]:
        return []


def _engine(config: AutoConfig | None = None, num_faces: int = 1) -> Engine:
    engine = Engine(tiny_model(), device="cpu", dtype=torch.float32, auto=config)
    trackers: Any = engine._trackers
    trackers[0] = Mouths(num_faces)
    return engine


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", CLIP)


def test_pictures_that_nobody_needs_are_not_opened(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the pictures were opened")

    monkeypatch.setattr(lips, "open_media", refuse)
    engine = _engine(BLIND)
    transcript = engine.transcribe(clip, policy="auto", speech_only=False)
    assert transcript.text == engine.transcribe(clip, "a16", speech_only=False).text
    assert transcript.scale == A16
    assert transcript.flops
    assert transcript.warnings == ()
    with pytest.raises(AssertionError, match="were opened"):
        _engine(CURIOUS).transcribe(clip, policy="auto", speech_only=False)


def test_a_second_look_gives_what_a_first_would_have(clip: Path) -> None:
    engine = _engine(CURIOUS)
    transcript = engine.transcribe(clip, policy="auto", speech_only=False)
    whole = engine.transcribe(clip, "a4v2", speech_only=False)
    assert (transcript.text, transcript.scale, transcript.duration_s) == (whole.text, A4V2, whole.duration_s)
    assert transcript.num_tokens == whole.num_tokens + engine.transcribe(clip, "a16", speech_only=False).num_tokens
    [segment] = engine.stream(clip, policy="auto", speech_only=False)
    assert segment == transcript.segments[0]
    plain = transcript.to_dict()
    assert plain["flops"] == transcript.flops
    assert plain["segments"][0]["decision"]["tried"] == ["a16", "a4v2"]
    assert set(transcript.seconds) == {"media", "encode", "decode"}
    with clip.open("rb") as file:  # can't be read twice at once: both are read in one go
        again = engine.transcribe(file, policy="auto", speech_only=False)
    assert (again.text, again.flops) == (transcript.text, transcript.flops)


def test_without_a_face_the_sound_alone_is_kept(clip: Path) -> None:
    engine = _engine(CURIOUS, num_faces=0)
    transcript = engine.transcribe(clip, policy="auto", speech_only=False)
    assert transcript.scale == A16
    assert transcript.text == engine.transcribe(clip, "a16", speech_only=False).text


def test_sound_alone_and_pictures_alone(tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "sound.wav", Kind("wav", None, "pcm_s16le"))
    silent = write_clip(tmp_path / "silent.mp4", Kind("mp4", "libx264", None))
    engine = _engine(replace(CURIOUS, bands=(BandConfig((StepConfig(A4, 1.1), StepConfig(V5))),)))
    assert [engine.transcribe(path, policy="auto", speech_only=False).scale for path in (sound, silent)] == [A4, V5]
    assert engine.transcribe(silent, policy=token_budget(engine.grid, 11), speech_only=False).scale == V5


def test_fixed_and_budgets(clip: Path) -> None:
    engine = _engine()
    fixed = engine.transcribe(clip, policy=Fixed(A4V2), speech_only=False)
    assert fixed.text == engine.transcribe(clip, "a4v2", speech_only=False).text
    [segment] = engine.transcribe(clip, policy=token_budget(engine.grid, 30), speech_only=False).segments
    assert segment.scale == A4
    assert segment.num_tokens <= 30
    assert segment.decision is not None
    assert segment.decision.why.startswith("budget: 25 of 30 tokens")


def test_what_is_refused(clip: Path, tmp_path: Path) -> None:
    engine = _engine()
    with pytest.raises(ValueError, match="mtsk calibrate"):
        engine.transcribe(clip, policy="auto", speech_only=False)
    with pytest.raises(ValueError, match="scale a4 and a policy"):
        engine.transcribe(clip, "a4", policy=Fixed(A4), speech_only=False)
    with pytest.raises(MediaError, match="no such file"):
        engine.transcribe(tmp_path / "none.mp4", policy=Fixed(A4), speech_only=False)
    with pytest.raises(MediaError):
        engine.transcribe(clip, policy=Never(), speech_only=False)


class Never:
    """Has no scale for anything."""

    looks: Looks = "never"

    def first(self, known: Known) -> Choice | None:
        return None

    def next(self, known: Known, attempts: Sequence[Attempt]) -> Choice | None:
        return None
