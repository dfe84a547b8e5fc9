"""eSpeak NG: voices that sound of a machine, and the phonemes that the neural voices are given."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_short, c_size_t, c_uint, c_void_p
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mtsk.data.spoken.voices import Manner, Speech, load_library
from mtsk.types import Word

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland")
VARIANTS = ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m7")

_INSTALL = (
    "install eSpeak NG (Debian: `apt install espeak-ng`; Homebrew: `brew install espeak-ng`); the voices espeak, piper "
    "and kokoro need it, flite in --voices does not"
)
_SYNCHRONOUS, _UTF8, _IPA, _CHARACTERS = 2, 1, 2, 1
_WORD, _END = 1, 0
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORDS_PER_MINUTE, _MIDDLE = 165, 50  # speed 1; pitch and range without change
_FRAME = ("say", "now")  # what stands around a word whose phonemes are asked for


class _Event(Structure):
    _fields_ = (
        ("type", c_int),
        ("number", c_uint),
        ("text_position", c_int),  # of its first character, from 1
        ("length", c_int),
        ("audio_position_ms", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", ctypes.c_int64),
    )


_Callback = CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class _Library:
    """The library, and what it has said since the last `start`; there can be one in a process."""

    def __init__(self) -> None:
        self.functions = load_library(("libespeak-ng.so.1", "libespeak-ng.1.dylib", "libespeak-ng.dylib"), _INSTALL)
        self.functions.espeak_TextToPhonemes.restype = c_char_p
        self.functions.espeak_TextToPhonemes.argtypes = (POINTER(c_char_p), c_int, c_int)
        self.functions.espeak_Synth.argtypes = (
            c_char_p, c_size_t, c_uint, c_int, c_uint, c_uint, POINTER(c_uint), c_void_p,
        )  # fmt: skip
        self.functions.espeak_SetVoiceByName.argtypes = (c_char_p,)
        self.sample_rate_hz = int(self.functions.espeak_Initialize(_SYNCHRONOUS, 0, None, 0))
        if self.sample_rate_hz <= 0:
            raise ValueError(f"eSpeak NG is there, but does not start: {_INSTALL}")
        self.samples: list[NDArray[np.int16]] = []
        self.starts: list[tuple[int, int]] = []
        """Position in the text, from 0, and time in ms of each word that it announced."""
        self._callback = _Callback(self._hear)  # kept: the library calls it later
        self.functions.espeak_SetSynthCallback(self._callback)

    def start(self, voice: str) -> None:
        """Takes a voice, and forgets what was said."""
        self.samples, self.starts = [], []
        if self.functions.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}: its data are missing or of another version")

    def _hear(self, samples: ctypes._Pointer[c_short], num_samples: int, events: ctypes._Pointer[_Event]) -> int:
        if samples and num_samples > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        place = 0
        while events[place].type != _END:
            if events[place].type == _WORD:
                self.starts.append((events[place].text_position - 1, events[place].audio_position_ms))
            place += 1
        return 0


def speak(text: str, voice: str, manner: Manner) -> Speech:
    """Says a sentence. A word ends where the next one starts.

    Args:
        text: words with single spaces between them.
        voice: an accent and a variant, such as `en-us+f2`.
        manner: all of it is heeded.

    Raises:
        ValueError: if eSpeak NG is not installed, or says nothing of the sentence.
    """
    library = _library()
    library.start(voice)
    for parameter, value in (
        (_RATE, _WORDS_PER_MINUTE * manner.speed),
        (_PITCH, _MIDDLE * manner.pitch),
        (_RANGE, _MIDDLE * manner.melody),
    ):
        library.functions.espeak_SetParameter(parameter, round(value), 0)
    written = " ".join(manner.punctuated(text.split()))
    data = written.encode()
    library.functions.espeak_Synth(data, len(data) + 1, 0, _CHARACTERS, 0, _UTF8, None, None)
    if not library.samples or not library.starts:
        raise ValueError(f"eSpeak NG says nothing of {text!r}")
    waveform = np.concatenate(library.samples).astype(np.float32) / np.float32(32768)
    duration_s = len(waveform) / library.sample_rate_hz
    starts_s = [(position, time_ms / 1000) for position, time_ms in library.starts]
    words = place_words(written, starts_s, duration_s)
    return Speech(waveform, library.sample_rate_hz, words)


def place_words(text: str, starts_s: Sequence[tuple[int, float]], duration_s: float) -> tuple[Word, ...]:
    """Times of the words of a text from those of some of its characters, between which they grow evenly.

    eSpeak NG says "of the" as one word, and "manner's" as two; each word here starts where its first letter does.

    Args:
        text: words with single spaces between them; commas and full stops behind them are not theirs.
        starts_s: place of a character in the text, from 0, and when it is said. What goes back in the text or in time
            is not heeded: at a pause there is -1, and at the end sometimes an earlier word again.
        duration_s: when the text ends.
    """
    places, times_s = [0], [min((time_s for place, time_s in starts_s if place >= 0), default=0.0)]
    for place, time_s in starts_s:
        if place > places[-1] and times_s[-1] < time_s < duration_s:
            places.append(place)
            times_s.append(time_s)
    position, edges = 0, []
    for word in text.split():
        edges.append(position)
        position += len(word) + 1
    start_s = np.interp([*edges, position], [*places, position], [*times_s, duration_s])
    return tuple(
        Word(word.rstrip(",."), float(start), float(end))
        for word, start, end in zip(text.split(), start_s, start_s[1:], strict=False)
    )


@cache
def phonemes(word: str, accent: str) -> str:
    """How a word is said within a sentence, in the International Phonetic Alphabet with marks of stress.

    Words are asked for one by one, as eSpeak NG joins some ("of the"); but inside a frame, so that words such as "to"
    and "a" are as weak as in speech.

    Args:
        word: one word.
        accent: one of `ACCENTS`.

    Raises:
        ValueError: if eSpeak NG is not installed.
    """
    library = _library()
    library.start(accent)
    groups = _groups(library, f"{_FRAME[0]} {word} {_FRAME[1]}")
    if len(groups) < 3:  # joined with the frame
        groups = ["", *_groups(library, word), ""]
    return "".join(groups[1:-1])


def _groups(library: _Library, text: str) -> list[str]:
    rest = c_char_p(text.encode())
    parts = []
    while rest.value is not None:
        parts.append(library.functions.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA).decode())
    return " ".join(parts).split()


@cache
def _library() -> _Library:
    return _Library()
