"""Where somebody speaks: Silero's network (https://github.com/snakers4/silero-vad, MIT) read from its package, and the
rules that make stretches of speech of its probabilities.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mtsk.types import SAMPLE_RATE_HZ

WINDOW_SAMPLES = 512  # what the network looks at for one probability
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ
_CONTEXT_SAMPLES = 64  # of the window before, which the network sees too
_BLOCK_WINDOWS = 32  # always run together: results do not depend on how the sound arrives, not even by rounding
_STATE_SHAPE = (1, 1, 128)
_PACKAGE, _MODEL = "silero_vad", "data/silero_vad_16k_sequence.onnx"


class SpeechDetector:
    """Probabilities of speech, window after window of 32 ms, on one thread of the processor. Holds the state of one
    recording: one detector per recording at a time.

    Raises:
        ValueError: at the first sound, if the package with the network is not installed or has none of this kind.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what was heard: the next sound begins another recording."""
        self._rest = np.zeros(0, np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._hidden = np.zeros(_STATE_SHAPE, np.float32)
        self._cell = np.zeros(_STATE_SHAPE, np.float32)

    def feed(self, samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes more sound.

        Args:
            samples_N: float32, mono, 16 kHz, in [-1, 1]; of any length.

        Returns:
            float32 (K,), the probabilities of the next windows. They come in blocks of about a second.
        """
        self._rest = np.concatenate([self._rest, samples_N])
        size = _BLOCK_WINDOWS * WINDOW_SAMPLES
        num_blocks = len(self._rest) // size
        blocks = [self._run(self._rest[index * size : (index + 1) * size]) for index in range(num_blocks)]
        self._rest = self._rest[num_blocks * size :].copy()
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """The probabilities of what is left, (K,); the last window is filled up with silence. Resets the detector."""
        num_windows = -(-len(self._rest) // WINDOW_SAMPLES)
        rest = np.zeros(_BLOCK_WINDOWS * WINDOW_SAMPLES, np.float32)
        rest[: len(self._rest)] = self._rest
        last = self._run(rest)[:num_windows] if num_windows else np.zeros(0, np.float32)
        self.reset()
        return last

    def _run(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        windows = block.reshape(_BLOCK_WINDOWS, WINDOW_SAMPLES)
        contexts = np.vstack([self._context, windows[:-1, -_CONTEXT_SAMPLES:]])
        self._context = windows[-1, -_CONTEXT_SAMPLES:].copy()
        inputs = {"input": np.concatenate([contexts, windows], axis=1), "h": self._hidden, "c": self._cell}
        values, self._hidden, self._cell = _session().run(["speech_probs", "hn", "cn"], inputs)
        return np.asarray(values, np.float32).reshape(_BLOCK_WINDOWS)


@cache
def _session() -> onnxruntime.InferenceSession:
    """The network, once per process: it holds no state of a recording, and threads may run it at the same time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(_model_path()), options, providers=["CPUExecutionProvider"])


def _model_path() -> Path:
    # The package is not imported: it would set the number of torch's threads of the whole process to one.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (Path(folder) / _MODEL).is_file():
            return Path(folder) / _MODEL
    raise ValueError(f"speech detection needs {_MODEL} of the package silero-vad, 6.2.3 or later; install it with pip")


@dataclass(frozen=True)
class SpeechRules:
    """When probabilities are a stretch of speech.

    Attributes:
        on: a stretch begins where the probability reaches this,
        off: and goes on while it is not below this.
        min_speech_s: shorter stretches are dropped.
        min_silence_s: shorter silences are part of a stretch.

    Raises:
        ValueError: if a value makes no sense.
    """

    on: float = 0.5
    off: float = 0.35
    min_speech_s: float = 0.1
    min_silence_s: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.off <= self.on <= 1.0:
            raise ValueError(f"probabilities off {self.off} and on {self.on} given; needed is 0 < off <= on <= 1")
        if self.min_silence_s < 0.0 or self.min_speech_s < 0.0:
            raise ValueError(
                f"silence of {self.min_silence_s} s and speech of {self.min_speech_s} s given; none may be negative"
            )


class RegionFinder:
    """Finds stretches of speech in probabilities that arrive one by one. Counts in windows."""

    def __init__(self, rules: SpeechRules) -> None:
        self._rules = rules
        self._min_speech = rules.min_speech_s / WINDOW_S
        self._min_silence = rules.min_silence_s / WINDOW_S
        self._end = 0  # of the last window of the open stretch that is speech
        self.num_windows = 0
        self.start: int | None = None
        """First window of the stretch that is open, certain or not."""

    @property
    def is_certain(self) -> bool:
        """Whether the open stretch is long enough to be kept, whatever follows."""
        return self.start is not None and self._end - self.start >= self._min_speech

    @property
    def end(self) -> int:
        """The window after the last one of the open stretch that is speech."""
        return self._end

    def push(self, probability: float) -> tuple[int, int] | None:
        """Takes the next window. Returns first window and end of a stretch if this window shows that one has ended."""
        self.num_windows += 1
        quiet = self.num_windows - 1 > self._end  # the window before was silence
        if probability >= (self._rules.on if self.start is None or quiet else self._rules.off):
            if self.start is None:
                self.start = self.num_windows - 1
            self._end = self.num_windows
        elif self.start is not None and self.num_windows - self._end >= self._min_silence:
            return self._close()
        return None

    def finish(self) -> tuple[int, int] | None:
        """The stretch that is open at the end, if there is one."""
        return None if self.start is None else self._close()

    def _close(self) -> tuple[int, int] | None:
        assert self.start is not None
        region = (self.start, self._end) if self.is_certain else None
        self.start = None
        return region
