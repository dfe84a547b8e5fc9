"""Voices of Kokoro-82M (Apache-2.0), and mixtures of two of them, which are talkers of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtsk.data.spoken.neural import Network, spell, voice_file, words_from_durations
from mtsk.data.spoken.voices import Manner, Speech

AMERICAN = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nova", "af_river", "af_sarah",
    "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck", "am_santa",
)  # fmt: skip
BRITISH = (
    "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis",
)  # fmt: skip

_SOURCE = (
    "they are in onnx-community/Kokoro-82M-v1.0-ONNX on the Hugging Face hub (onnx/model_quantized.onnx as "
    "kokoro.onnx, and the folder voices); or leave kokoro out of --voices"
)
_SAMPLE_RATE_HZ = 24_000
_STEP_S = 0.025  # of the durations
_STEPS_AHEAD = 3  # that the sound is before them (measured with Whisper's attention)
_DURATIONS = "/encoder/Clip_output_0"
_MAX_SYMBOLS, _STYLE_SIZE = 510, 256
_EDGE = 0  # the symbol before the first and after the last
_SYMBOLS = {
    " ": 16, ",": 3, ".": 4, "A": 24, "I": 25, "O": 31, "Q": 33, "T": 36, "W": 39, "Y": 41, "a": 43, "b": 44, "d": 46,
    "f": 48, "h": 50, "i": 51, "j": 52, "k": 53, "l": 54, "m": 55, "n": 56, "p": 58, "s": 61, "t": 62, "u": 63, "v": 64,
    "w": 65, "z": 68, "ɑ": 69, "ɒ": 71, "æ": 72, "ɔ": 76, "ð": 81, "ʤ": 82, "ə": 83, "ɛ": 86, "ɜ": 87, "ɡ": 92,
    "ɪ": 102, "ŋ": 112, "θ": 119, "ɹ": 123, "ʃ": 131, "ʧ": 133, "ʊ": 135, "ʌ": 138, "ʒ": 147, "ˈ": 156, "ˌ": 157,
    "ː": 158, "ᵊ": 42, "ᵻ": 177,
}  # fmt: skip
# What the network was trained on, of what eSpeak NG writes; in this order.
_BOTH = (
    ("ʔˌn\u0329", "tn"), ("ʔn\u0329", "tn"), ("n\u0329", "ᵊn"), ("l\u0329", "ᵊl"), ("ʔ", "t"), ("aɪ", "I"), ("aʊ", "W"),
    ("dʒ", "ʤ"), ("eɪ", "A"), ("tʃ", "ʧ"), ("ɔɪ", "Y"), ("əl", "ᵊl"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("ɬ", "l"), ("x", "k"),
    ("r", "ɹ"), ("g", "ɡ"),
)  # fmt: skip
_OF_AMERICAN = (("oʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""), ("ɾ", "T"), ("e", "A"), ("o", "ɔ"))
_OF_BRITISH = (("əʊ", "Q"), ("oʊ", "Q"), ("eə", "ɛː"), ("iə", "ɪə"), ("ɾ", "t"), ("e", "ɛ"), ("o", "ɔ"))


def check(voice_dir: Path | None) -> None:
    """Raises ValueError if files are missing."""
    voice_file(voice_dir, "kokoro.onnx", _SOURCE)
    for name in (*AMERICAN, *BRITISH):
        voice_file(voice_dir, f"voices/{name}.bin", _SOURCE)


def mixture(first: str, second: str, share: float) -> str:
    """The name of a mixture of two voices of one accent, `share` of it the second."""
    return f"{first}+{share:.2f}*{second}"


def speak(text: str, voice: str, manner: Manner, voice_dir: Path | None) -> Speech:
    """Says a sentence.

    Args:
        text: words with single spaces between them.
        voice: a name, or that of a `mixture`.
        manner: speed and pauses.
        voice_dir: the folder with its files.

    Raises:
        ValueError: if a file or library is missing, a word can't be pronounced, or the sentence is too long.
    """
    words = text.split()
    british = voice.startswith("b")
    symbols = spell(words, "en" if british else "en-us", manner, respell_british if british else respell_american)
    if len(symbols.text) > _MAX_SYMBOLS:
        raise ValueError(f"{len(symbols.text)} phonemes, and Kokoro takes up to {_MAX_SYMBOLS}")
    waveform, steps = _network(voice_file(voice_dir, "kokoro.onnx", _SOURCE))(
        {
            "tokens": np.array([[_EDGE, *(_SYMBOLS[symbol] for symbol in symbols.text), _EDGE]], np.int64),
            "style": _style(voice, voice_dir)[len(symbols.text) - 1][None],
            "speed": np.array([manner.speed], np.float32),
        }
    )
    steps[0] = max(0.0, steps[0] - _STEPS_AHEAD)
    spans = [(first + 1, end + 1) for first, end in symbols.spans]
    return Speech(waveform, _SAMPLE_RATE_HZ, words_from_durations(words, spans, steps * _STEP_S))


def respell_american(ipa: str) -> str:
    """The symbols of the American voices for phonemes of en-us."""
    return _respell(ipa, (*_BOTH, *_OF_AMERICAN))


def respell_british(ipa: str) -> str:
    """The symbols of the British voices for phonemes of en-gb."""
    return _respell(ipa, (*_BOTH, *_OF_BRITISH))


def _respell(ipa: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        ipa = ipa.replace(old, new)
    return "".join(symbol for symbol in ipa if symbol in _SYMBOLS)


def _style(voice: str, voice_dir: Path | None) -> NDArray[np.float32]:
    """(510, 256): one row for each number of symbols, from 1."""
    first, _, rest = voice.partition("+")
    if not rest:
        return _voice(voice_file(voice_dir, f"voices/{first}.bin", _SOURCE))
    share, _, second = rest.partition("*")
    styles = [_voice(voice_file(voice_dir, f"voices/{name}.bin", _SOURCE)) for name in (first, second)]
    return np.asarray((1 - float(share)) * styles[0] + float(share) * styles[1], dtype=np.float32)


@cache
def _voice(path: Path) -> NDArray[np.float32]:
    styles = np.fromfile(path, dtype=np.float32)
    if styles.size != _MAX_SYMBOLS * _STYLE_SIZE:
        raise ValueError(f"{path} is no voice of Kokoro: {styles.size} values, not {_MAX_SYMBOLS * _STYLE_SIZE}")
    return styles.reshape(_MAX_SYMBOLS, _STYLE_SIZE)


@cache
def _network(path: Path) -> Network:
    return Network(path, _DURATIONS)
