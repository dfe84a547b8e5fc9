"""The engine: media -> features, once -> text at any trained scale."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from mtsk.checkpoints.sources import face_models
from mtsk.checkpoints.store import load_model, read_record
from mtsk.config import AutoConfig
from mtsk.device import best_device, has_bf16
from mtsk.inference.beam import GREEDY, Beams, beam_search
from mtsk.inference.characters import draft_texts
from mtsk.inference.deciding import Decider
from mtsk.inference.decoding import greedy
from mtsk.inference.encoded import EncodedExamples, Found, encode, only
from mtsk.inference.ladder import Ladder
from mtsk.inference.policy import Auto, Policy
from mtsk.inference.policy_run import PolicyRun
from mtsk.inference.prefixes import PrefixScorer
from mtsk.inference.recording import Part, Recording, Run, duration_s
from mtsk.inference.scales_run import ScalesRun
from mtsk.inference.words import align_words, text_confidence
from mtsk.media import MouthTracker
from mtsk.media.stream import stream_media
from mtsk.media.vad import SpeechDetector
from mtsk.model.avsr import AvsrModel
from mtsk.model.cost import CostModel
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import Example, Segment, Transcript, Word

_TOKENS_PER_SECOND, _TOKENS_SPARE = 8.0, 16  # fast speech is under 5 words a second; a word is under 1.6 tokens

Precision = torch.dtype | Literal["int8"]


class Engine:
    """Transcribes with a loaded model. The public way to one is `mtsk.load`.

    Args:
        model: in evaluation mode.
        device: default: an accelerator if there is one.
        dtype: of the weights; default: bfloat16 where the device computes it, else float32. `int8`: the default, but
            8-bit integers for the LLM.
        auto: thresholds of the policy `auto`, if the model was calibrated.

    Attributes:
        costs: what requests cost.

    Raises:
        ValueError: if the LLM or the device is not made for int8.
    """

    def __init__(
        self,
        model: AvsrModel,
        *,
        device: torch.device | str | None = None,
        dtype: Precision | None = None,
        auto: AutoConfig | None = None,
    ) -> None:
        self.device = best_device() if device is None else torch.device(device)
        self.dtype = _plain_dtype(self.device, dtype)
        self.model = model.cast(self.device, self.dtype).eval()
        self.costs = CostModel.of_model(self.model)  # while the weights are where they were
        self.precision = "int8" if dtype == "int8" else str(self.dtype).removeprefix("torch.")
        self._auto = auto
        if dtype == "int8":
            self.model.quantize()
        else:
            self.model.flatten()
        self._trackers: dict[int, MouthTracker] = {}

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str | None = None, dtype: Precision | None = None) -> Engine:
        """An engine from a checkpoint folder.

        Raises:
            ValueError: if it is no checkpoint, or its base weights can't be had; or as of `Engine`.
        """
        device = best_device() if device is None else torch.device(device)
        model = load_model(folder, _plain_dtype(device, dtype)).requires_grad_(False)
        return cls(model, device=device, dtype=dtype, auto=read_record(folder).policy)

    @property
    def grid(self) -> ScaleGrid:
        """The trained scales."""
        return self.model.grid

    @property
    def auto(self) -> Auto:
        """The policy `auto` of this model.

        Raises:
            ValueError: if the model was not calibrated.
        """
        if self._auto is None:
            raise ValueError("this model was not calibrated for the policy auto; `mtsk calibrate` does it")
        return Auto(self.grid, self._auto)

    # Recognition of examples in memory.

    def recognize(
        self, examples: Sequence[Example], scales: Sequence[Scale], *, beams: int = 1, num_best: int = 1
    ) -> list[Segment]:
        """Recognises examples, each at its own scale, in one batch: tasks, scales and lengths may be mixed.

        Each result is that of the example alone; on a graphics card, up to rounding. What an example has beyond its
        scale is not used.

        Args:
            examples: at most about 30 s each.
            scales: one for each.
            beams: texts that are followed at once; 1 is greedy.
            num_best: texts that are wanted for each, at most `beams`; see `Segment.alternatives`.

        Returns:
            A segment for each example, its times from the example's start.

        Raises:
            ValueError: naming the example, if it lacks a modality of its scale or is too short for a token of it; or
                if a scale was not trained, or `beams` or `num_best` is out of range.
        """
        if len(examples) != len(scales):
            raise ValueError(f"{len(examples)} examples, but {len(scales)} scales; each example needs one")
        width = Beams(beams, num_best)
        for scale in scales:
            self.model.reading(scale)
        if not examples:
            return []
        needed = [only(example, scale) for example, scale in zip(examples, scales, strict=True)]
        encoded = self.encode(needed)
        for row, (example, scale) in enumerate(zip(needed, scales, strict=True)):
            if not encoded.features.reaches(row, scale):
                raise ValueError(f"{example.id}: no sound or lips, or too short, for a token at scale {scale}")
        return self.write(encoded, scales, width)

    def recognize_by(
        self, examples: Sequence[Example], policies: Sequence[Policy], *, beams: int = 1, num_best: int = 1
    ) -> list[Segment | None]:
        """Recognises examples in one batch, each under its policy, see `recognize`; None where that has no scale."""
        parts = [Part(0.0, duration_s(example), example, {}) for example in examples]
        return Decider(self, self.costs, Beams(beams, num_best)).decide(parts, policies)[1]

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Encodes the modalities that the examples have, once for all scales; see `encoded.encode`."""
        return encode(self.model, examples)

    def usable(self, encoded: EncodedExamples, scale: Scale) -> list[int]:
        """The rows that have at least one token of each modality of the scale."""
        return [row for row in range(len(encoded)) if encoded.features.reaches(row, scale)]

    def decode(
        self, encoded: EncodedExamples, scale: Scale, rows: Sequence[int] | None = None, *, beams: Beams = GREEDY
    ) -> list[str]:
        """One text per example, or per chosen row; at least one.

        Raises:
            ValueError: if the scale was not trained, or an example lacks a modality or is too short for a token.
        """
        chosen = encoded if rows is None else encoded.rows(rows)
        return [found[0].text for found in self._search(chosen, [scale] * len(chosen), beams)]

    def _search(self, encoded: EncodedExamples, scales: Sequence[Scale], beams: Beams) -> list[list[Found]]:
        """What each row may say at its scale, the likeliest first."""
        with torch.inference_mode():
            inputs = self.model.embed(encoded.features, scales, [[]] * len(scales))
        limits = [_limit(length_s) for length_s in encoded.durations_s]
        write = self.model.prompts.decode
        if beams.width > 1:
            drafts = draft_texts(self.model, encoded.readings, scales, least_sureness=0.0)
            found = beam_search(self.model, inputs, scales, limits, beams, self._scorers(encoded, scales), drafts)
            # The end counts as a token too.
            return [[Found(write(list(e.tokens)), e.logprob / (len(e.tokens) + 1)) for e in row] for row in found]
        drafts = draft_texts(self.model, encoded.readings, scales)
        decoded = greedy(self.model, inputs, scales, limits, drafts)
        return [[Found(write(tokens), decoded.mean_log_prob(row))] for row, tokens in enumerate(decoded.tokens)]

    def _scorers(self, encoded: EncodedExamples, scales: Sequence[Scale]) -> list[PrefixScorer | None]:
        """What the character head says of texts, for each row."""
        read, prompts = encoded.readings, self.model.prompts
        rows = [read.at(row, scale) for row, scale in enumerate(scales)]
        return [None if each is None else PrefixScorer(each, read.alphabet, prompts.spelling) for each in rows]

    def write(self, encoded: EncodedExamples, scales: Sequence[Scale], beams: Beams) -> list[Segment]:
        """One segment per row, each at its scale, which the row reaches; times from the row's start."""
        segments = []
        for row, found in enumerate(self._search(encoded, scales, beams)):
            best, scale = found[0], scales[row]
            characters_SC, alphabet = encoded.readings.at(row, scale), encoded.readings.alphabet
            words: tuple[Word, ...] = ()
            confidence: float | None = math.exp(best.mean_logprob)
            if characters_SC is not None:
                words = align_words(characters_SC, best.text, alphabet)
                confidence = text_confidence(characters_SC, best.text, alphabet)
            segments.append(
                Segment(
                    start_s=0.0,
                    end_s=encoded.durations_s[row],
                    text=best.text,
                    scale=scale,
                    num_tokens=encoded.features.num_tokens(row, scale),
                    words=words,
                    confidence=confidence,
                    avg_logprob=best.mean_logprob,
                    # Tokens that spell the same text are one text.
                    alternatives=tuple(dict.fromkeys(each.text for each in found if each.text != best.text)),
                )
            )
        return segments

    def decode_no_input(self, examples: Sequence[Example]) -> list[str]:
        """What the model writes from the prompt alone: a baseline for what its language model guesses.

        It is asked as at the first scale of the grid, with that scale's adapters.
        Of an example only the duration counts: it limits the text, as in `decode`.
        """
        limits = [_limit(duration_s(example)) for example in examples]
        with torch.inference_mode():
            inputs = self.model.no_input(self.grid.scales[0])
        # The beginning of a greedy text does not depend on its limit: the longest one serves all.
        tokens = greedy(self.model, inputs, [self.grid.scales[0]], [max(limits, default=0)]).tokens[0]
        return [self.model.prompts.decode(tokens[:limit]) for limit in limits]

    # Recognition of files.

    def stream(
        self,
        source: str | Path | BinaryIO,
        scale: str | Scale | None = None,
        *,
        policy: Policy | Literal["auto"] | None = None,
        face: int = 0,
        beams: int = 1,
        num_best: int = 1,
        speech_only: bool | None = None,
    ) -> Generator[Segment, None, None]:
        """The segments of a media file at one scale, in the order of time, as they are recognised.

        Nothing is read before the first segment is asked for, and what is held in memory does not grow with the file.
        A segment that lacks sound or lips is read by the other, see `Segment.scale`.

        Args:
            source: path, or a binary file object, of sound or video.
            scale: such as `a4v2`, `4,2`, `a16`, `v5`; default: the finest for what the file has.
            policy: chooses the scale of each segment instead, see `Segment.decision`; `auto` as it was calibrated.
            face: which face to read, by size, 0 the largest.
            beams: texts that are followed at once; 1 is greedy.
            num_best: texts that are wanted for each segment, at most `beams`; see `Segment.alternatives`.
            speech_only: leave out where nobody is heard to speak. Default: so in recordings that are too long for one
                segment; a shorter one is read whole if somebody speaks in it. False: read all, noise too.

        Returns:
            A generator; closing it soon ends the decoding of the file.

        Raises:
            MediaError: if the file can't be read.
            ValueError: if the scale was not trained, or needs what the file lacks.
        """
        names = None if scale is None else [str(scale)]
        run = self.open(
            source, names, policy=policy, face=face, beams=beams, num_best=num_best, speech_only=speech_only
        )
        with contextlib.closing(run.read(growing=True)) as read:
            for written in read:
                yield from written.segments[0]
        run.transcripts()  # refuses what could not be used at all

    def transcribe(
        self,
        source: str | Path | BinaryIO,
        scale: str | Scale | None = None,
        *,
        policy: Policy | Literal["auto"] | None = None,
        face: int = 0,
        beams: int = 1,
        num_best: int = 1,
        speech_only: bool | None = None,
    ) -> Transcript:
        """Transcribes a media file at one scale, or under a policy. See `stream` for the arguments and errors."""
        names = None if scale is None else [str(scale)]
        run = self.open(
            source, names, policy=policy, face=face, beams=beams, num_best=num_best, speech_only=speech_only
        )
        return _finished(run)[0]

    def transcribe_scales(
        self,
        source: str | Path | BinaryIO,
        scales: Sequence[str],
        *,
        face: int = 0,
        beams: int = 1,
        num_best: int = 1,
        speech_only: bool | None = None,
    ) -> list[Transcript]:
        """Transcribes a media file at several scales; it is read and encoded once, part by part.

        A scale with sound and lips falls back to one of the two where the other is missing, with a warning.

        Args:
            source: path, or a binary file object, of sound or video.
            scales: names of scales; `all` stands for every trained one that the file has the modalities for, `best` for
                the finest of them.
            face: which face to read, by size, 0 the largest.
            beams: texts that are followed at once; 1 is greedy.
            num_best: texts that are wanted for each segment, at most `beams`; see `Segment.alternatives`.
            speech_only: see `stream`.

        Raises:
            MediaError: if the file can't be read.
            ValueError: if a scale was not trained, or needs what the file lacks.
        """
        return _finished(self.open(source, scales, face=face, beams=beams, num_best=num_best, speech_only=speech_only))

    def open(
        self,
        source: str | Path | BinaryIO,
        scales: Sequence[str] | None = None,
        *,
        policy: Policy | Literal["auto"] | None = None,
        face: int = 0,
        beams: int = 1,
        num_best: int = 1,
        speech_only: bool | None = None,
    ) -> Run:
        """A media file to be read step by step, at several scales or under a policy; what `stream` and
        `transcribe_scales` are made of. See there for the arguments and errors. To be closed, or read to its end.
        """
        search, started_s = Beams(beams, num_best), time.perf_counter()
        if policy is None:
            recording, ladders = self._open(source, ["best"] if scales is None else scales, face, speech_only)
            return ScalesRun(self, recording, ladders, self.grid, search, started_s)
        if scales is not None:
            raise ValueError(f"scale {', '.join(scales)} and a policy given; one of them is allowed")
        decider, policy = Decider(self, self.costs, search), self.auto if policy == "auto" else policy
        return PolicyRun(decider, policy, source, self._tracker(face), self.grid, speech_only=speech_only)

    def _open(
        self, source: str | Path | BinaryIO, names: Sequence[str], face: int, speech_only: bool | None
    ) -> tuple[Recording, list[Ladder]]:
        named = [Scale.parse(name) for name in names if name not in ("all", "best")]
        for scale in named:  # a typing error costs no decoding
            self.model.reading(scale)
        is_open = len(named) < len(names)
        lips = bool(self.grid.video_rates) and (is_open or any(scale.video is not None for scale in named))
        if speech_only is None and not is_open and all(scale.audio is None for scale in named):
            speech_only = False
        stream = stream_media(source, tracker=self._tracker(face) if lips else None)
        recording = Recording(stream, SpeechDetector, speech_only=speech_only, face=face)
        return recording, [ladder for name in names for ladder in Ladder.named(name, self.grid)]

    def _tracker(self, face: int) -> MouthTracker:
        if face not in self._trackers:
            self._trackers[face] = MouthTracker(face_models, face=face)
        return self._trackers[face]


def _finished(run: Run) -> list[Transcript]:
    """What a file gives that is read to its end; what proved impossible is left out."""
    with contextlib.closing(run.read()) as read:
        for _ in read:
            pass
    return [transcript for transcript in run.transcripts() if transcript is not None]


def _plain_dtype(device: torch.device, wanted: Precision | None) -> torch.dtype:
    """Of all weights that are not 8-bit integers."""
    if wanted is None or wanted == "int8":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    return wanted


def _limit(length_s: float) -> int:
    return _TOKENS_SPARE + math.ceil(length_s * _TOKENS_PER_SECOND)
