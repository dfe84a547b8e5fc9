"""The engine: one reading, any scale; fallbacks when sound or lips are missing; long recordings in segments."""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from mtsk.checkpoints.store import save_model
from mtsk.inference import engine as engine_module
from mtsk.inference import policy_run
from mtsk.inference.decoding import Decoded
from mtsk.inference.engine import Engine
from mtsk.inference.policy import Fixed, Policy
from mtsk.inference.recording import BATCH
from mtsk.media import Media, MediaError, MouthTrack
from mtsk.media.mouth import Crop, Sighting
from mtsk.media.stream import MediaPiece, MediaStopped
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example
from tests.inference.ear import FineEar
from tests.tiny import SCALES, save_tiny_bases, tiny_batch, tiny_example, tiny_examples, tiny_model


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model("mss"), device="cpu", dtype=torch.float32)


def _media(
    audio_s: float | None = 2.0, video_s: float | None = 2.0, *,
    num_faces: int = 1, num_detected: int | None = None, num_interpolated: int = 0,
) -> Media:  # fmt: skip
    """What a file of so many seconds would hold."""
    example = tiny_example("", audio_s, None if video_s is None else round(video_s * VIDEO_FPS))
    mouth = None
    if example.mouth is not None:
        seen = len(example.mouth) if num_faces and num_detected is None else num_detected or 0
        mouth = MouthTrack(
            example.mouth, seen, num_interpolated, len(example.mouth) - seen - num_interpolated, num_faces
        )
    return Media("clip.mp4", example.waveform, mouth, max(audio_s or 0.0, video_s or 0.0), video_s is not None)


class Played:
    """A `MediaStream` of what a file would hold, in pieces of a second."""

    def __init__(self, media: Media, tracked: bool) -> None:
        self._media = media
        self.name = media.name
        self.has_sound = media.waveform is not None
        self.has_lips = tracked and media.mouth is not None
        self.has_video_stream = media.has_video_stream
        self.declared_s = media.duration_s
        self.warnings: tuple[str, ...] = ()
        self.is_closed = self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True

    def close(self) -> None:
        self.is_closed = True

    def __iter__(self) -> Iterator[MediaPiece]:
        media = self._media
        for second in range(math.ceil(media.duration_s)):
            crops: list[Crop] = []
            if self.has_lips and media.mouth is not None:
                mouth = media.mouth
                counts = (mouth.num_detected, mouth.num_interpolated, mouth.num_missing)
                sightings = [each for each, num in zip(Sighting, counts, strict=True) for _ in range(num)]
                crops = list(zip(mouth.crops_THW, sightings, strict=True))[
                    second * VIDEO_FPS : (second + 1) * VIDEO_FPS
                ]
            sound = np.zeros(0, np.float32) if media.waveform is None else media.waveform
            heard = sound[second * SAMPLE_RATE_HZ : (second + 1) * SAMPLE_RATE_HZ]
            duration_s = max(len(heard) / SAMPLE_RATE_HZ, len(crops) / VIDEO_FPS)
            yield MediaPiece(second, duration_s, heard, tuple(crops), media.mouth.num_faces if media.mouth else 0)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Any:
    """Lets every file hold the given media; returns a list of whether lips were asked for."""
    asked: list[bool] = []

    def play(media: Media) -> list[bool]:
        def stream(source: object, *, tracker: object) -> Played:
            asked.append(tracker is not None)
            return Played(media, tracker is not None)

        monkeypatch.setattr(engine_module, "stream_media", stream)
        monkeypatch.setattr(engine_module, "SpeechDetector", FineEar)
        monkeypatch.setattr(Engine, "_tracker", lambda self, face: object())
        return asked

    return play


# Examples in memory.


def test_a_batch_is_decoded_as_each_alone(engine: Engine) -> None:
    examples = tiny_examples()
    encoded = engine.encode(examples)
    for scale in engine.grid:
        together = engine.decode(encoded, scale)
        assert together == [engine.decode(engine.encode([example]), scale)[0] for example in examples]
        assert all(together)


def test_modalities_that_no_example_has_are_not_encoded(engine: Engine) -> None:
    encoded = engine.encode(tiny_examples(num_frames=(None, None, None)))
    assert encoded.features.video is None
    assert encoded.durations_s == (1.31, 0.735, 2.0)
    assert len(engine.decode(encoded, Scale.parse("a4"))) == 3
    with pytest.raises(ValueError, match="needs video"):
        engine.decode(encoded, Scale.parse("a4v2"))
    with pytest.raises(ValueError, match="a3 was not trained"):
        engine.decode(encoded, Scale.parse("a3"))


def test_chosen_rows_are_decoded_as_in_the_batch(engine: Engine) -> None:
    scale, encoded = Scale.parse("a4v2"), engine.encode(tiny_examples())
    texts = engine.decode(encoded, scale)
    assert engine.decode(encoded, scale, [2, 0]) == [texts[2], texts[0]]


def test_usable_rows_have_a_token_of_each_modality(engine: Engine) -> None:
    examples = [tiny_example("", 1.0, 25), tiny_example("", 1.0, None), tiny_example("", 1.0, 4)]
    encoded = engine.encode([*examples, tiny_example("", None, 25)])
    usable = {name: engine.usable(encoded, Scale.parse(name)) for name in ("a4", "v2", "v5", "a4v2", "a16v5")}
    assert usable == {"a4": [0, 1, 2], "v2": [0, 2, 3], "v5": [0, 3], "a4v2": [0, 2], "a16v5": [0]}
    assert engine.usable(engine.encode(examples[1:2]), Scale.parse("v2")) == []


def test_no_input_is_one_text_cut_by_each_duration(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[list[int]] = []

    def greedy(model: object, inputs: object, scales: object, max_new_tokens: list[int]) -> Decoded:
        limits.append(max_new_tokens)
        return Decoded(([*range(max_new_tokens[0])],), (1,), ([],))  # a model that never ends

    monkeypatch.setattr(engine_module, "greedy", greedy)
    monkeypatch.setattr(type(engine.model.prompts), "decode", lambda self, ids: str(len(ids)))
    examples = [tiny_example("", 1.0, None), tiny_example("", 0.5, 75), tiny_example("", None, 50)]
    assert engine.decode_no_input(examples) == ["24", "40", "32"]
    assert limits == [[40]]


def test_no_input_is_the_same_in_any_batch(engine: Engine) -> None:
    examples = tiny_examples()
    texts = engine.decode_no_input(examples)
    assert all(texts)
    assert texts == [engine.decode_no_input([example])[0] for example in examples]


def test_half_precision_runs() -> None:
    engine = Engine(tiny_model("ss"), device="cpu", dtype=torch.bfloat16)
    assert engine.model.embedding_VE.dtype == torch.bfloat16
    encoded = engine.encode(tiny_examples())
    assert all(len(engine.decode(encoded, scale)) == 3 for scale in engine.grid)


def test_a_folder_loads(tmp_path: Path) -> None:
    model = tiny_model(sources=save_tiny_bases(tmp_path))
    save_model(model, tmp_path / "checkpoint")
    engine = Engine.load(tmp_path / "checkpoint", device="cpu", dtype=torch.float32)
    assert engine.grid == model.grid
    assert not engine.model.training
    assert len(tiny_batch()) == 3


# Files.


def test_a_sound_file(engine: Engine, tmp_path: Path) -> None:
    example = tiny_example("", 2.0, None)
    assert example.waveform is not None
    soundfile.write(tmp_path / "clip.wav", example.waveform, SAMPLE_RATE_HZ, subtype="FLOAT")
    # The sound is noise, and nobody is heard in it.
    transcripts = engine.transcribe_scales(tmp_path / "clip.wav", ["all"], speech_only=False)
    assert [str(transcript.scale) for transcript in transcripts] == ["a4", "a16"]
    assert [transcript.num_tokens for transcript in transcripts] == [25, 6]
    assert all(transcript.duration_s == pytest.approx(2.0) for transcript in transcripts)
    best = engine.transcribe(tmp_path / "clip.wav", speech_only=False)
    assert (best.scale, best.text, best.warnings) == (Scale(audio=4), transcripts[0].text, ())
    nothing = engine.transcribe(tmp_path / "clip.wav")
    assert (nothing.text, nothing.segments, nothing.warnings) == ("", (), ("nobody is heard to speak",))
    assert set(best.seconds) == {"media", "encode", "decode"}
    assert best.text == engine.decode(engine.encode([example]), Scale(audio=4))[0]


@pytest.mark.parametrize(
    ("media", "all_scales", "best"),
    [
        (_media(), list(SCALES), "a4v2"),
        (_media(video_s=None), ["a4", "a16"], "a4"),
        (_media(audio_s=None), ["v2", "v5"], "v2"),
        (_media(num_faces=0), ["a4", "a16"], "a4"),
        (_media(num_detected=0), ["a4", "a16"], "a4"),  # the face that was asked for was never seen
    ],
)
def test_all_and_best_are_what_the_file_allows(
    engine: Engine, play: Any, media: Media, all_scales: list[str], best: str
) -> None:
    play(media)
    names = [str(transcript.scale) for transcript in engine.transcribe_scales("clip.mp4", ["all", "best"])]
    assert names == [*all_scales, best]


@pytest.mark.parametrize(
    ("media", "scale", "used", "reason"),
    [
        (_media(video_s=None), "a4v2", "a4", "no video"),
        (_media(num_faces=0), "a16v5", "a16", "no face"),
        (_media(audio_s=None), "a4v2", "v2", "no sound"),
    ],
)
def test_a_missing_modality_falls_back_with_a_warning(
    engine: Engine, play: Any, media: Media, scale: str, used: str, reason: str
) -> None:
    play(media)
    transcript = engine.transcribe("clip.mp4", scale)
    assert str(transcript.scale) == used
    assert transcript.warnings == (f"{reason} for scale {scale}; {used} is used",)
    assert transcript.text == engine.transcribe("clip.mp4", used).text


@pytest.mark.parametrize(
    ("media", "scale", "said"),
    [
        (_media(video_s=None), "v2", r"clip\.mp4: no video for scale v2"),
        (_media(audio_s=None), "a4", r"clip\.mp4: no sound for scale a4"),
        (_media(audio_s=None, num_faces=0), "a4v2", r"clip\.mp4: no sound and no face for scale a4v2"),
        (_media(audio_s=None, num_faces=0), "best", r"clip\.mp4: no sound and no face; this model has the scales a4"),
        (_media(audio_s=0.2, video_s=None), "a16", r"clip\.mp4: 0\.20 s is too short"),
        (_media(audio_s=0.3, video_s=None), "a16", r"clip\.mp4: 0\.30 s is too short for a token at scale a16"),
    ],
)
def test_what_cannot_be_read_is_refused(engine: Engine, play: Any, media: Media, scale: str, said: str) -> None:
    play(media)
    with pytest.raises(MediaError, match=said):
        engine.transcribe_scales("clip.mp4", [scale])


@pytest.mark.parametrize(
    ("num_detected", "num_interpolated", "readable"),
    [
        (1, 40, False),  # one sighting, by mistake, and a second on either side that counts as interpolated
        (9, 0, False),
        (10, 0, True),  # of 50 frames: a fifth
        (4, 5, False),
        (4, 6, True),  # a face that is lost on most frames, but found again and again
    ],
)
def test_a_face_on_few_frames_counts_as_no_lips(
    engine: Engine, play: Any, num_detected: int, num_interpolated: int, readable: bool
) -> None:
    play(_media(num_detected=num_detected, num_interpolated=num_interpolated))
    transcript = engine.transcribe("clip.mp4", "a4v2")
    warning = f"a face on only {num_detected} of 50 frames for scale a4v2; a4 is used"
    assert transcript.warnings == (() if readable else (warning,))
    assert str(engine.transcribe("clip.mp4").scale) == ("a4v2" if readable else "a4")


def test_segments_of_one_modality_are_told(engine: Engine, play: Any) -> None:
    """The video ends within the first segment."""
    media = _media(20.0, 8.0)
    _quiet_between(media, 12.0)
    play(media)
    transcript = engine.transcribe("clip.mp4", "a16v5")
    assert transcript.warnings == ("a16 is used instead of a16v5 for 1 of 2 segments",)
    assert [str(segment.scale) for segment in transcript.segments] == ["a16v5", "a16"]
    assert transcript.num_tokens == sum(segment.num_tokens for segment in transcript.segments)
    assert transcript.segments[0].num_tokens == 8 * 25 // 5 + 12 * 50 // 16


def test_digital_silence_counts_as_no_sound(engine: Engine, play: Any) -> None:
    media = _media()
    assert media.waveform is not None
    media.waveform[:] = 1e-6
    play(media)
    transcript = engine.transcribe("clip.mp4", "a4v2")
    assert transcript.warnings == ("the sound is silent for scale a4v2; v2 is used",)
    with pytest.raises(MediaError, match="the sound is silent"):
        engine.transcribe("clip.mp4", "a4")


def test_a_typing_error_costs_no_decoding(engine: Engine, play: Any) -> None:
    asked = play(_media())
    for name, said in (("a5", "a5 was not trained"), ("nonsense", "is not a scale")):
        with pytest.raises(ValueError, match=said):
            engine.transcribe_scales("clip.mp4", ["a4", name])
    assert asked == []


def test_lips_are_looked_for_only_where_a_scale_wants_them(engine: Engine, play: Any) -> None:
    asked = play(_media())
    for names in (["a4"], ["a4", "a16"], ["a4", "v2"], ["best"], ["all"]):
        engine.transcribe_scales("clip.mp4", names)
    assert asked == [False, False, True, True, True]


# Long recordings.


def _quiet_between(media: Media, at_s: float) -> NDArray[np.float32]:
    assert media.waveform is not None
    media.waveform[round((at_s - 0.3) * SAMPLE_RATE_HZ) : round((at_s + 0.3) * SAMPLE_RATE_HZ)] *= 1e-4
    return media.waveform


def test_a_long_recording_is_its_segments_one_after_the_other(engine: Engine, play: Any) -> None:
    media = _media(20.0, 20.0)
    waveform = _quiet_between(media, 12.0)
    play(media)
    whole = engine.transcribe("clip.mp4", "a16v5")
    scale = Scale.parse("a16v5")
    assert media.mouth is not None
    texts = []
    for segment in whole.segments:
        samples, frames = (slice(round(segment.start_s * hz), round(segment.end_s * hz)) for hz in (16_000, 25))
        part = Example("", waveform[samples], media.mouth.crops_THW[frames])
        texts.append(engine.decode(engine.encode([part]), scale)[0])
    assert len(texts) == 2
    assert whole.segments[0].end_s == pytest.approx(12.0, abs=0.4)
    assert whole.text == " ".join(texts)
    assert [segment.text for segment in whole.segments] == texts
    streamed = engine.stream("clip.mp4", "a16v5")
    # One by one, or in one batch: the same up to rounding.
    one_by_one, together = (
        [replace(each, confidence=None, avg_logprob=None) for each in segments]
        for segments in (streamed, whole.segments)
    )
    assert one_by_one == together
    assert whole.duration_s == 20.0
    assert len(waveform) == 20 * SAMPLE_RATE_HZ


def test_many_segments_do_not_become_one_huge_batch(engine: Engine, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory must not grow with the length of the file."""
    sizes: list[int] = []
    encode = Engine.encode

    def spy(self: Engine, examples: Any) -> Any:
        sizes.append(len(examples))
        return encode(self, examples)

    monkeypatch.setattr(Engine, "encode", spy)
    monkeypatch.setattr(engine_module, "_limit", lambda duration_s: 1)
    play(_media(60 * 16.0, None))
    transcript = engine.transcribe("clip.mp4", "a16")
    assert sum(sizes) >= 60
    assert max(sizes) == BATCH
    assert len(transcript.text.split()) >= 1


def test_lips_one_frame_longer_than_a_segment(engine: Engine, play: Any) -> None:
    play(_media(None, 16.04))
    assert engine.transcribe("clip.mp4", "v5").num_tokens == 401 // 5


# Silence.


def test_pauses_of_long_recordings_are_left_out(engine: Engine, play: Any) -> None:
    media = _media(20.0, 20.0)
    assert media.waveform is not None
    media.waveform[6 * SAMPLE_RATE_HZ : 12 * SAMPLE_RATE_HZ] *= 1e-3
    play(media)
    spans = [(round(each.start_s), round(each.end_s)) for each in engine.transcribe("clip.mp4", "a16v5").segments]
    assert spans == [(0, 6), (12, 20)]
    for scale, speech_only in (("a16v5", False), ("v5", None)):
        segments = engine.transcribe("clip.mp4", scale, speech_only=speech_only).segments
        assert sum(each.end_s - each.start_s for each in segments) == pytest.approx(20.0)


def test_a_short_recording_is_read_whole_unless_speech_alone_is_wanted(engine: Engine, play: Any) -> None:
    media = _media()
    assert media.waveform is not None
    media.waveform[:] *= (
        9.5e-4 / np.abs(media.waveform).max()
    )  # not silent, but nothing that `FineEar` takes for speech
    play(media)
    whole = engine.transcribe("clip.mp4", "a4v2")
    assert [(each.start_s, each.end_s) for each in whole.segments] == [(0.0, 2.0)]
    nothing = engine.transcribe("clip.mp4", "a4v2", speech_only=True)
    assert (nothing.text, nothing.num_tokens, nothing.segments) == ("", 0, ())
    assert nothing.warnings == ("nobody is heard to speak",)
    assert list(engine.stream("clip.mp4", "a4v2", speech_only=True)) == []


def test_a_stream_gives_its_first_segment_early_and_closes_its_file(
    engine: Engine, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = Engine.encode
    monkeypatch.setattr(Engine, "encode", lambda self, examples: sizes.append(len(examples)) or encode(self, examples))  # type: ignore[func-returns-value]
    monkeypatch.setattr(engine_module, "_limit", lambda length_s: 1)
    play(_media(12 * 16.0, None))
    segments = list(engine.stream("clip.mp4", "a16"))
    assert sizes[:3] == [1, 2, 4]
    assert max(sizes) <= 8
    assert len(segments) == sum(sizes)
    assert [each.start_s for each in segments] == sorted(each.start_s for each in segments)


class Endless(Played):
    """Goes on until it is told to stop: what reads it to its end never ends."""

    def __init__(self, media: Media) -> None:
        super().__init__(media, tracked=False)
        self.is_told = threading.Event()

    def stop(self) -> None:
        self.is_told.set()

    def __iter__(self) -> Iterator[MediaPiece]:
        try:
            yield from super().__iter__()
            assert self.is_told.wait(60)
            raise MediaStopped(self.name)
        finally:
            self.close()


@pytest.mark.parametrize("policy", [None, Fixed(Scale(16))])
def test_a_stream_that_is_left_stops_decoding_its_file(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, policy: Policy | None
) -> None:
    endless = Endless(_media(40.0, None))
    for module in (engine_module, policy_run):
        monkeypatch.setattr(module, "stream_media", lambda source, *, tracker: endless)
        monkeypatch.setattr(module, "SpeechDetector", FineEar)
    monkeypatch.setattr(engine_module, "_limit", lambda length_s: 1)
    segments = engine.stream("clip.mp4", None if policy else "a16", policy=policy)
    assert next(segments).start_s == 0.0
    assert not endless.is_told.is_set()
    segments.close()
    assert endless.is_told.is_set()
    assert endless.is_closed


@pytest.mark.parametrize("policy", [None, Fixed(Scale(16))])
def test_a_file_that_is_refused_is_closed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, policy: Policy | None
) -> None:
    played = Played(_media(None, 2.0), tracked=True)
    sounds = Engine(tiny_model("mss", scales=("a4", "a16")), device="cpu", dtype=torch.float32)
    for module in (engine_module, policy_run):
        monkeypatch.setattr(module, "stream_media", lambda source, *, tracker: played)
    monkeypatch.setattr(Engine, "_tracker", lambda self, face: SimpleNamespace(face=face))
    with pytest.raises(MediaError, match="no sound"):
        sounds.open("clip.mp4", policy=policy)
    assert played.is_closed


def test_a_file_is_read_step_by_step(engine: Engine, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At several scales: what comes step by step is what the transcripts hold at the end."""
    monkeypatch.setattr(engine_module, "_limit", lambda length_s: 3)
    play(_media(12 * 16.0, None))
    run = engine.open("clip.mp4", ["all", "a4"])
    assert run.names == ("a4", "a16", "a4"), "of lips there is nothing to write"
    assert run.declared_s == 192.0
    read = list(run.read(growing=True))
    assert [each.until_s for each in read] == [each.segments[0][-1].end_s for each in read]
    assert len(read[0].segments[0]) == 1 < len(read[-1].segments[0])
    for column, transcript in enumerate(run.transcripts()):
        assert transcript is not None
        assert transcript.scale == Scale.parse(run.names[column])
        assert tuple(segment for each in read for segment in each.segments[column]) == transcript.segments


def test_an_optional_scale_is_silent_until_it_is_possible(engine: Engine, play: Any) -> None:
    """Pictures without a face: the scales with lips prove impossible, and nothing was given of them before."""
    play(_media(2.0, 2.0, num_faces=0))
    run = engine.open("clip.mp4", ["all"])
    assert run.names == SCALES
    read = list(run.read())
    given = [any(each.segments[column] for each in read) for column in range(len(SCALES))]
    assert given == [name in ("a4", "a16") for name in SCALES]
    assert [transcript is not None for transcript in run.transcripts()] == given
