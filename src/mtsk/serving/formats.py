"""Answers: a transcript in each of OpenAI's response formats, and as events of a stream."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import JSONResponse, PlainTextResponse, Response

from mtsk.inference.engine import Engine
from mtsk.inference.writers import render
from mtsk.serving.jobs import Compare
from mtsk.types import Segment, Transcript

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]
_SEEKS_PER_S = 100  # OpenAI counts seek offsets in steps of 10 ms


class Texts:
    """Counts the tokens of texts. A copy of the model's tokenizer, as one may not be used by two threads."""

    def __init__(self, engine: Engine) -> None:
        self._prompts = copy.deepcopy(engine.model.prompts)

    def tokens(self, text: str) -> list[int]:
        """Token ids, without the end of sequence."""
        return self._prompts.target(text)[:-1] if text.strip() else []


@dataclass(frozen=True)
class Answer:
    """What is answered.

    Attributes:
        transcript: what was said.
        asked: the plan that was asked for, and
        plan: the one that was used: scales, or `auto`.
        is_degraded: whether the load made it coarser.
        texts: counts tokens.
        wait_s: until the model began.
    """

    transcript: Transcript
    asked: str
    plan: str
    is_degraded: bool
    texts: Texts
    wait_s: float = 0.0

    @property
    def tflops(self) -> float:
        """10^12 operations of all stages."""
        return (self.transcript.flops or 0) / 1e12

    @property
    def headers(self) -> dict[str, str]:
        """Of a response that is not a stream."""
        return {
            "x-mtsk-scale": str(self.transcript.scale),
            "x-mtsk-tokens": str(self.transcript.num_tokens),
            "x-mtsk-tflops": f"{self.tflops:.6f}",
            "x-mtsk-degraded": str(self.is_degraded).lower(),
        }

    def own(self) -> dict[str, Any]:
        """The object `mtsk`."""
        return {
            "scale": str(self.transcript.scale),
            "asked": self.asked,
            "policy": self.plan,
            "degraded": self.is_degraded,
            "tokens": self.transcript.num_tokens,
            "tflops": round(self.tflops, 6),
            "seconds": {name: round(s, 4) for name, s in {"wait": self.wait_s, **self.transcript.seconds}.items()},
            "warnings": list(self.transcript.warnings),
        }

    def usage(self) -> dict[str, Any]:
        """In tokens: those that media became, and those of the text."""
        num_in, num_out = self.transcript.num_tokens, len(self.texts.tokens(self.transcript.text))
        return {
            "type": "tokens",
            "input_tokens": num_in,
            "input_token_details": {"audio_tokens": num_in, "text_tokens": 0},
            "output_tokens": num_out,
            "total_tokens": num_in + num_out,
        }

    def details(self, granularities: Sequence[Granularity]) -> dict[str, Any]:
        """Segments, words or both, as asked."""
        found: dict[str, Any] = {}
        if "segment" in granularities or "word" not in granularities:
            found["segments"] = [
                segment_record(i, segment, self.texts) for i, segment in enumerate(self.transcript.segments)
            ]
        if "word" in granularities:
            found["words"] = words_of(self.transcript.segments)
        return found

    def response(self, name: ResponseFormat, granularities: Sequence[Granularity]) -> Response:
        """In a format."""
        text, headers = self.transcript.text, self.headers
        if name == "json":
            return JSONResponse({"text": text, "usage": self.usage()}, headers=headers)
        if name == "verbose_json":
            record = {
                "task": "transcribe",
                "language": "english",
                "duration": round(self.transcript.duration_s, 3),
                "text": text,
                **self.details(granularities),
                "usage": {"type": "duration", "seconds": round(self.transcript.duration_s, 3)},
                "mtsk": self.own(),
            }
            return JSONResponse(record, headers=headers)
        if name == "text":
            return PlainTextResponse(f"{text}\n", headers=headers)
        kind = "text/vtt" if name == "vtt" else "text/plain"
        return PlainTextResponse(self.document(name), headers=headers, media_type=f"{kind}; charset=utf-8")

    def document(self, name: Literal["srt", "vtt"]) -> str:
        """As subtitles."""
        return (
            render(name, "", [self.transcript])
            if self.transcript.text.strip()
            else {"srt": "\n", "vtt": "WEBVTT\n\n"}[name]
        )

    def done_event(self, name: ResponseFormat, granularities: Sequence[Granularity]) -> str:
        """The last event of a stream; formats with times add what they have."""
        record: dict[str, Any] = {
            "type": "transcript.text.done",
            "text": self.transcript.text,
            "usage": self.usage(),
            "mtsk": self.own(),
        }
        if name == "verbose_json":
            record |= {"duration": round(self.transcript.duration_s, 3), **self.details(granularities)}
        if name == "srt" or name == "vtt":
            record["document"] = self.document(name)
        return event(record)


def event(record: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"


def delta_event(text: str) -> str:
    """More text of a stream."""
    return event({"type": "transcript.text.delta", "delta": text})


def segment_record(index: int, segment: Segment, texts: Texts) -> dict[str, Any]:
    """A segment with OpenAI's names, and ours: `scale`, `confidence`, `num_tokens`."""
    raw = segment.text.encode()
    return {
        "id": index,
        "seek": round(segment.start_s * _SEEKS_PER_S),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": texts.tokens(segment.text),
        "temperature": 0.0,
        "avg_logprob": round(segment.avg_logprob or 0.0, 4),
        "compression_ratio": round(len(raw) / len(zlib.compress(raw)), 4) if raw else 0.0,
        "no_speech_prob": 0.0,  # where nobody is heard to speak there is no segment
        "scale": str(segment.scale),
        "num_tokens": segment.num_tokens,
        "confidence": None if segment.confidence is None else round(segment.confidence, 4),
    }


def words_of(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """All words with their times; none if the model has no character heads."""
    return [word.to_dict() for segment in segments for word in segment.words]


def comparison(found: Sequence[Compare], texts: Texts) -> dict[str, Any]:
    """A file at several scales."""
    scales = []
    for each in found:
        transcript = each.transcript
        encode_s, decode_s = transcript.seconds["encode"], transcript.seconds["decode"]
        scales.append(
            {
                "scale": str(each.asked),
                "used": str(transcript.scale),
                "text": transcript.text,
                "words": words_of(transcript.segments),
                "tokens": transcript.num_tokens,
                "tflops": round((transcript.flops or 0) / 1e12, 6),
                "ms": round(1000 * (encode_s + decode_s), 1),
                "decode_ms": round(1000 * decode_s, 1),
                "segments": [segment_record(i, segment, texts) for i, segment in enumerate(transcript.segments)],
                "warnings": list(transcript.warnings),
            }
        )
    first = found[0].transcript
    return {
        "duration_s": round(first.duration_s, 3),
        "encode_ms": round(1000 * first.seconds["encode"], 1),
        "media_ms": round(1000 * first.seconds["media"], 1),
        "scales": scales,
    }
