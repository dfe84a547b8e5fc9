"""The engine: media -> features, once -> text at any trained scale."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from mtsk.checkpoints.sources import face_models
from mtsk.checkpoints.store import load_model
from mtsk.data.collate import collate
from mtsk.device import best_device, has_bf16
from mtsk.inference.decoding import greedy
from mtsk.inference.segments import cut_points
from mtsk.media import Media, MediaError, MouthTrack, MouthTracker, load_media
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Example, Transcript

MIN_DURATION_S = 0.25  # nothing is said in less; a model would make something up
SILENCE_RMS = 1e-4  # -80 dB of full scale: digital silence and dither, below any microphone in a room
_MIN_SHARE_SEEN = 0.2  # of the frames; fewer are a mistake of the detector, or no talker
_FRAMES_PER_SIGHTING = 5  # a lost face is looked for on every fifth frame
_BATCH = 8  # segments; the memory for activations does not grow with the length of a file
_TOKENS_PER_SECOND, _TOKENS_SPARE = 8.0, 16  # fast speech is under 5 words a second; a word is under 1.6 tokens


@dataclass(frozen=True)
class EncodedExamples:
    """Features of some examples, and how long each lasts."""

    features: Encoded
    durations_s: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.durations_s)


class Engine:
    """Transcribes with a loaded model. The public way to one is `mtsk.load`.

    Args:
        model: in evaluation mode.
        device: default: an accelerator if there is one.
        dtype: of the weights; default: bfloat16 where the device computes it, else float32.
    """

    def __init__(
        self, model: AvsrModel, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.device = best_device() if device is None else torch.device(device)
        self.dtype = dtype or (torch.bfloat16 if has_bf16(self.device) else torch.float32)
        self.model = model.to(self.device, self.dtype).eval()
        self._trackers: dict[int, MouthTracker] = {}

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Engine:
        """An engine from a checkpoint folder.

        Raises:
            ValueError: if it is no checkpoint, or its base weights can't be had.
        """
        return cls(load_model(folder), device=device, dtype=dtype)

    @property
    def grid(self) -> ScaleGrid:
        """The trained scales."""
        return self.model.grid

    # Recognition of examples in memory.

    @torch.inference_mode()
    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Encodes the modalities that the examples have, once for all scales."""
        batch = collate(examples).to(self.device)
        durations_s = tuple(_duration_s(example) for example in examples)
        has_sound, has_lips = bool(batch.num_samples_B.any()), bool(batch.num_frames_B.any())
        present = [s for s in self.grid if (has_sound or s.audio is None) and (has_lips or s.video is None)]
        return EncodedExamples(self.model.encode(batch, present), durations_s)

    def usable(self, encoded: EncodedExamples, scale: Scale) -> list[int]:
        """The rows that have at least one token of each modality of the scale."""
        return [row for row in range(len(encoded)) if encoded.features.reaches(row, scale)]

    def decode(self, encoded: EncodedExamples, scale: Scale, rows: Sequence[int] | None = None) -> list[str]:
        """One text per example, or per chosen row; at least one.

        Raises:
            ValueError: if the scale was not trained, or an example lacks a modality or is too short for a token.
        """
        features, durations_s = encoded.features, encoded.durations_s
        if rows is not None:
            features, durations_s = features.rows(rows), tuple(durations_s[row] for row in rows)
        return self._decode_rows(features, [scale] * len(durations_s), durations_s)

    def _decode_rows(self, features: Encoded, scales: Sequence[Scale], durations_s: Sequence[float]) -> list[str]:
        with torch.inference_mode():
            inputs = self.model.embed(features, scales, [[]] * len(scales))
        tokens = greedy(self.model, inputs, scales, [_limit(duration_s) for duration_s in durations_s])
        return [self.model.prompts.decode(row) for row in tokens]

    def decode_no_input(self, examples: Sequence[Example]) -> list[str]:
        """What the model writes from the prompt alone: a baseline for what its language model guesses.

        It is asked as at the first scale of the grid, with that scale's adapters.
        Of an example only the duration counts: it limits the text, as in `decode`.
        """
        limits = [_limit(_duration_s(example)) for example in examples]
        with torch.inference_mode():
            inputs = self.model.no_input(self.grid.scales[0])
        # The beginning of a greedy text does not depend on its limit: the longest one serves all.
        tokens = greedy(self.model, inputs, [self.grid.scales[0]], [max(limits, default=0)])[0]
        return [self.model.prompts.decode(tokens[:limit]) for limit in limits]

    # Recognition of files.

    def transcribe(
        self, source: str | Path | BinaryIO, scale: str | Scale | None = None, *, face: int = 0
    ) -> Transcript:
        """Transcribes a media file at one scale.

        Args:
            source: path, or a binary file object, of sound or video.
            scale: such as `a4v2`, `4,2`, `a16`, `v5`; default: the finest for what the file has.
            face: which face to read, by size, 0 the largest.

        Raises:
            MediaError: if the file can't be read.
            ValueError: if the scale was not trained, or needs what the file lacks.
        """
        names = ["best"] if scale is None else [str(scale)]
        return self.transcribe_scales(source, names, face=face)[0]

    def transcribe_scales(
        self, source: str | Path | BinaryIO, scales: Sequence[str], *, face: int = 0
    ) -> list[Transcript]:
        """Transcribes a media file at several scales; it is read and encoded once.

        A scale with sound and lips falls back to one of the two where the other is missing, with a warning.

        Args:
            source: path, or a binary file object, of sound or video.
            scales: names of scales; `all` stands for every trained one that the file has the modalities for, `best` for
                the finest of them.
            face: which face to read, by size, 0 the largest.

        Raises:
            MediaError: if the file can't be read.
            ValueError: if a scale was not trained, or needs what the file lacks.
        """
        for name in scales:  # a typing error costs no decoding
            if name not in ("all", "best"):
                self.model.reading(Scale.parse(name))
        started_s = time.perf_counter()
        media = self._load(source, scales, face)
        heard = _Heard.of(media, face)
        chosen = [pair for name in scales for pair in self._choose(name, heard)]
        if media.duration_s < MIN_DURATION_S:  # not before: a modality that no scale asks for is not decoded
            raise MediaError(
                f"{media.name}: {media.duration_s:.2f} s is too short; at least {MIN_DURATION_S} s is needed"
            )
        media_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        segments = heard.segments()
        encoded = [self.encode(segments[i : i + _BATCH]) for i in range(0, len(segments), _BATCH)]
        encode_s = time.perf_counter() - started_s
        transcripts: list[Transcript] = []
        for scale, warnings in chosen:
            started_s = time.perf_counter()
            texts, num_tokens, fallbacks = self._decode_segments(encoded, scale)
            if num_tokens == 0 and "all" in scales and transcripts:
                continue  # the finer ones are those that the file allows
            if num_tokens == 0:
                raise MediaError(f"{media.name}: {media.duration_s:.2f} s is too short for a token at scale {scale}")
            seconds = {"media": media_s, "encode": encode_s, "decode": time.perf_counter() - started_s}
            text = " ".join(filter(None, texts))
            warnings = (*media.warnings, *warnings, *fallbacks)
            transcripts.append(Transcript(text, scale, num_tokens, media.duration_s, seconds, warnings))
        return transcripts

    def _decode_segments(self, encoded: Sequence[EncodedExamples], scale: Scale) -> tuple[list[str], int, list[str]]:
        """Texts, number of LLM tokens, warnings: a segment where one modality has ended is decoded by the other."""
        texts: list[str] = []
        num_tokens = 0
        num_segments = sum(map(len, encoded))
        num_used: Counter[Scale] = Counter()
        for part in encoded:
            features = part.features
            ladder = [scale, *(alone for alone in scale.parts if alone in self.grid)]
            usable = {
                row: next(filter(functools.partial(features.reaches, row), ladder), None) for row in range(len(part))
            }
            of_row = {row: its_scale for row, its_scale in usable.items() if its_scale is not None}
            if of_row:
                durations_s = [part.durations_s[row] for row in of_row]
                texts += self._decode_rows(features.rows(list(of_row)), list(of_row.values()), durations_s)
                num_tokens += sum(features.num_tokens(row, its_scale) for row, its_scale in of_row.items())
                num_used.update(of_row.values())
        fallbacks = [
            f"{other} is used instead of {scale} for {num} of {num_segments} segments"
            for other, num in sorted(num_used.items())
            if other != scale
        ]
        return texts, num_tokens, fallbacks

    def _load(self, source: str | Path | BinaryIO, scales: Sequence[str], face: int) -> Media:
        named = [Scale.parse(name) for name in scales if name not in ("all", "best")]
        lips = len(named) < len(scales) or any(scale.video is not None for scale in named)
        return load_media(source, tracker=self._tracker(face) if lips and self.grid.video_rates else None)

    def _tracker(self, face: int) -> MouthTracker:
        if face not in self._trackers:
            self._trackers[face] = MouthTracker(face_models, face=face)
        return self._trackers[face]

    def _choose(self, name: str, heard: _Heard) -> list[tuple[Scale, tuple[str, ...]]]:
        """The scales that a name stands for on this input, each with warnings."""
        if name in ("all", "best"):
            possible = [scale for scale in self.grid if not heard.lacking(scale)]
            if not possible:
                raise MediaError(f"{heard.name}: {heard.what_is_missing()}; this model has the scales {self.grid}")
            # The grid lists finer rates first, and both modalities last: the best is the first of the richest.
            best = max(possible, key=lambda scale: len(scale.parts))
            return [(scale, ()) for scale in (possible if name == "all" else [best])]
        scale = Scale.parse(name)
        self.model.reading(scale)
        lacking = heard.lacking(scale)
        if not lacking:
            return [(scale, ())]
        remaining = [part for part in scale.parts if not heard.lacking(part)]
        reason = f"{' and '.join(lacking)} for scale {scale}"
        if not remaining or remaining[0] not in self.grid:
            raise MediaError(f"{heard.name}: {reason}")
        return [(remaining[0], (f"{reason}; {remaining[0]} is used",))]


@dataclass(frozen=True)
class _Heard:
    """What of a file can be used: sound that is not silent, lips of a face."""

    name: str
    waveform: NDArray[np.float32] | None
    mouth: NDArray[np.uint8] | None
    duration_s: float
    missing: dict[str, str]  # modality -> why it can't be used

    @classmethod
    def of(cls, media: Media, face: int = 0) -> _Heard:
        missing = {}
        waveform, mouth = media.waveform, None
        if waveform is None:
            missing["audio"] = "no sound"
        elif math.sqrt(float(np.square(waveform, dtype=np.float64).mean())) < SILENCE_RMS:
            waveform, missing["audio"] = None, "the sound is silent"
        if not media.has_video_stream:
            missing["video"] = "no video"
        elif media.mouth is None or media.mouth.num_faces == 0:
            missing["video"] = "no face"
        elif media.mouth.num_detected == 0:
            missing["video"] = f"no face {face} (the video shows {media.mouth.num_faces}, counted from 0)"
        elif _share_seen(media.mouth) < _MIN_SHARE_SEEN:
            missing["video"] = f"a face on only {media.mouth.num_detected} of {media.mouth.num_frames} frames"
        else:
            mouth = media.mouth.crops_THW
        return cls(media.name, waveform, mouth, media.duration_s, missing)

    def lacking(self, scale: Scale) -> list[str]:
        wanted = [name for name, rate in (("audio", scale.audio), ("video", scale.video)) if rate is not None]
        return [self.missing[name] for name in wanted if name in self.missing]

    def what_is_missing(self) -> str:
        return " and ".join(self.missing.values())

    def segments(self) -> list[Example]:
        points = cut_points(self.waveform, self.duration_s)
        return [self._segment(start_s, end_s) for start_s, end_s in itertools.pairwise(points)]

    def _segment(self, start_s: float, end_s: float) -> Example:
        samples, frames = (slice(round(start_s * hz), round(end_s * hz)) for hz in (SAMPLE_RATE_HZ, VIDEO_FPS))
        waveform = None if self.waveform is None else self.waveform[samples]
        return Example(self.name, waveform, None if self.mouth is None else self.mouth[frames])


def _share_seen(mouth: MouthTrack) -> float:
    """Share of the frames whose crop shows lips.

    Frames within a second of a sighting count as interpolated, so a single one would stand for two seconds.
    """
    num_seen = min(mouth.num_detected + mouth.num_interpolated, _FRAMES_PER_SIGHTING * mouth.num_detected)
    return num_seen / mouth.num_frames


def _duration_s(example: Example) -> float:
    num_samples = 0 if example.waveform is None else len(example.waveform)
    num_frames = 0 if example.mouth is None else len(example.mouth)
    return max(num_samples / SAMPLE_RATE_HZ, num_frames / VIDEO_FPS)


def _limit(duration_s: float) -> int:
    return _TOKENS_SPARE + math.ceil(duration_s * _TOKENS_PER_SECOND)
