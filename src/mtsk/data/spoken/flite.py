"""Voices of Flite (Carnegie Mellon University, a licence like BSD's): slt, rms, awb, kal16."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_short, c_void_p
from functools import cache

import numpy as np

from mtsk.data.spoken.voices import Manner, Speech, load_library
from mtsk.types import Word

VOICES = {"slt": (172.0, 30.0), "rms": (95.0, 12.0), "awb": (130.0, 22.0), "kal16": (95.0, 11.0)}
"""Name -> mean and spread of its pitch in Hz."""

_INSTALL = "install Flite (Debian: `apt install flite`; Homebrew: `brew install flite`), or leave flite out of --voices"
_FIRST_SEGMENT = b"R:SylStructure.daughter.daughter.R:Segment.p.end"  # a segment starts where the one before it ends
_LAST_SEGMENT = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


class _Wave(Structure):
    _fields_ = (
        ("type", c_char_p),
        ("sample_rate_hz", c_int),
        ("num_samples", c_int),
        ("num_channels", c_int),
        ("samples", POINTER(c_short)),
    )


class _Voice(Structure):
    """The head of it."""

    _fields_ = (("name", c_char_p), ("features", c_void_p))


def speak(text: str, voice: str, manner: Manner) -> Speech:
    """Says a sentence.

    Args:
        text: words with single spaces between them.
        voice: one of `VOICES`.
        manner: all of it is heeded.

    Raises:
        ValueError: if Flite is not installed, or it finds other words in the text than are there.
    """
    library, pointer = _library(), _voice(voice)
    mean_hz, spread_hz = VOICES[voice]
    for name, value in (
        (b"duration_stretch", 1 / manner.speed),
        (b"int_f0_target_mean", mean_hz * manner.pitch),
        (b"int_f0_target_stddev", spread_hz * manner.melody),
    ):
        library.flite_feat_set_float(pointer.contents.features, name, value)
    words = text.split()
    utterance = library.flite_synth_text(" ".join(manner.punctuated(words)).encode(), pointer)
    if not utterance:
        raise ValueError(f"Flite can't say {text!r}")
    try:
        wave = library.utt_wave(utterance).contents
        waveform = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(32768)
        return Speech(waveform, wave.sample_rate_hz, _words(library, utterance, words))
    finally:
        library.delete_utterance(utterance)


def _words(library: ctypes.CDLL, utterance: int, words: list[str]) -> tuple[Word, ...]:
    """One for each token that Flite found; a token such as `manner's` may be several words to it."""
    spoken = []
    token = library.relation_head(library.utt_relation(utterance, b"Token"))
    while token:
        first, last = library.item_daughter(token), library.item_last_daughter(token)
        if first:
            times = (library.ffeature_float(first, _FIRST_SEGMENT), library.ffeature_float(last, _LAST_SEGMENT))
            spoken.append((library.item_feat_string(token, b"name").decode(), *times))
        token = library.item_next(token)
    if len(spoken) != len(words):
        raise ValueError(f"Flite finds {len(spoken)} words in a text of {len(words)}")
    if any(end_s <= start_s for _, start_s, end_s in spoken):
        raise ValueError("Flite leaves a word out")
    return tuple(Word(word, start_s, end_s) for word, (_, start_s, end_s) in zip(words, spoken, strict=True))


@cache
def _library() -> ctypes.CDLL:
    library = load_library(("libflite.so.1", "libflite.1.dylib", "libflite.dylib"), _INSTALL)
    for part in ("usenglish", "cmulex"):  # what the voices need to be there
        load_library((f"libflite_{part}.so.1", f"libflite_{part}.1.dylib", f"libflite_{part}.dylib"), _INSTALL)
    signatures = {
        "flite_init": (c_int, ()),
        "flite_feat_set_float": (None, (c_void_p, c_char_p, c_float)),
        "flite_synth_text": (c_void_p, (c_char_p, c_void_p)),
        "utt_wave": (POINTER(_Wave), (c_void_p,)),
        "utt_relation": (c_void_p, (c_void_p, c_char_p)),
        "relation_head": (c_void_p, (c_void_p,)),
        "item_next": (c_void_p, (c_void_p,)),
        "item_daughter": (c_void_p, (c_void_p,)),
        "item_last_daughter": (c_void_p, (c_void_p,)),
        "item_feat_string": (c_char_p, (c_void_p, c_char_p)),
        "ffeature_float": (c_float, (c_void_p, c_char_p)),
        "delete_utterance": (None, (c_void_p,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.flite_init()
    return library


@cache
def _voice(name: str) -> ctypes._Pointer[_Voice]:
    _library()
    file = f"libflite_cmu_us_{name}"
    register = load_library((f"{file}.so.1", f"{file}.1.dylib", f"{file}.dylib"), _INSTALL)[f"register_cmu_us_{name}"]
    register.restype, register.argtypes = POINTER(_Voice), (c_char_p,)
    pointer: ctypes._Pointer[_Voice] = register(None)
    return pointer
