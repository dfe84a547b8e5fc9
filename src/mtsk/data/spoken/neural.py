"""What the neural voices share: a network that makes sound of phonemes, and the times of words from its durations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtsk.data.spoken.espeak import phonemes
from mtsk.data.spoken.voices import Manner
from mtsk.types import Word

BOUNDARY = " "
INSTALL = "`pip install 'mtsk[speech]'`"


@dataclass(frozen=True)
class Symbols:
    """A sentence as a network reads it."""

    text: str
    """Phonemes, with spaces between words and commas where there is a pause."""
    spans: tuple[tuple[int, int], ...]
    """Of each word in `text`: its first symbol, and the one after its last."""


def spell(words: Sequence[str], accent: str, manner: Manner, respell: Callable[[str], str]) -> Symbols:
    """The phonemes of a sentence.

    Args:
        words: of the sentence.
        accent: one of `espeak.ACCENTS`.
        manner: its pauses.
        respell: makes of IPA the symbols that the network knows; none for a word is an error.

    Raises:
        ValueError: if a word has no phonemes, or eSpeak NG is not installed.
    """
    text, spans = "", []
    for word, marked in zip(words, manner.punctuated(words), strict=True):
        symbols = respell(phonemes(word, accent))
        if not symbols:
            raise ValueError(f"{word!r} can't be pronounced")
        text += BOUNDARY if text else ""
        spans.append((len(text), len(text) + len(symbols)))
        text += symbols + marked[len(word) :]
    return Symbols(text, tuple(spans))


def words_from_durations(
    words: Sequence[str], spans: Sequence[tuple[int, int]], durations_s: NDArray[np.float64]
) -> tuple[Word, ...]:
    """Times of words.

    Args:
        words: of the sentence.
        spans: of each, its first symbol and the one after its last.
        durations_s: (S,), of each symbol.
    """
    edges_s = np.concatenate([[0.0], np.cumsum(durations_s)])
    return tuple(
        Word(word, float(edges_s[first]), float(edges_s[end])) for word, (first, end) in zip(words, spans, strict=True)
    )


class Network:
    """An ONNX graph on one thread of the CPU; a tensor from its inside is an output too.

    Args:
        path: the file.
        durations: name of the tensor.

    Raises:
        ValueError: if the file or what reads it is missing, or it is another network.
    """

    def __init__(self, path: Path, durations: str) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise ValueError(f"{error.name} is missing, which neural voices need: {INSTALL}") from None
        graph = onnx.load(str(path))
        if not any(durations in node.output for node in graph.graph.node):
            raise ValueError(f"{path} has no tensor {durations}: it is not the network that is expected there")
        graph.graph.output.append(onnx.ValueInfoProto(name=durations))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._names = [graph.graph.output[0].name, durations]
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Sound (N,) and what the tensor holds (S,)."""
        waveform, durations = self._session.run(self._names, dict(inputs))
        return np.asarray(waveform, dtype=np.float32).reshape(-1), np.asarray(durations, dtype=np.float64).reshape(-1)


def voice_file(folder: Path | None, name: str, source: str) -> Path:
    """A file of a voice.

    Args:
        folder: where the voices' files are.
        name: of the file in it.
        source: where it is to be had.

    Raises:
        ValueError: if it is not there, saying where it is to be had.
    """
    if folder is None:
        raise ValueError(f"--voice-dir is missing: a folder with {name}, {source}")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: {source}")
    return path
