"""Sound to one waveform: mono, 16 kHz, float32, on the clock of the file."""

from __future__ import annotations

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from mtsk.media.container import MediaError, MediaFile
from mtsk.types import SAMPLE_RATE_HZ

_MAX_DRIFT_S = 0.05  # between time stamps and samples before silence is put in


class WaveformBuilder:
    """Collects decoded audio frames of one file.

    A stream that starts late, or has a hole, is filled with silence; what lies before the start of the file is
    dropped. So sample `n` sounds at `n / 16000` seconds, as pictures do.
    """

    def __init__(self, file: MediaFile) -> None:
        self._file = file
        self._limit = int(file.max_duration_s * SAMPLE_RATE_HZ)
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None
        self._pieces: list[NDArray[np.float32]] = []
        self._num_samples = 0
        self._started = False
        self._num_early = 0  # samples before time 0, still to be dropped

    @property
    def num_samples(self) -> int:
        """Samples so far, taken or not."""
        return self._num_samples

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next frame.

        Raises:
            MediaError: if the sound is longer than allowed or cannot be resampled.
        """
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._format:  # the first frame, or the stream has changed its format
            self._drain()
        self._align(self._file.seconds(frame.pts, frame.time_base))
        if self._resampler is None:
            # Of integers FFmpeg mixes channels down to full scale; of floats it would add them up beyond 1.
            self._resampler, self._format = AudioResampler("s32", "mono", SAMPLE_RATE_HZ), kind
        self._resample(frame)

    def finish(self) -> NDArray[np.float32]:
        """The waveform (N,) in [-1, 1], or what was not taken of it."""
        self._drain()
        return self.take()

    def take(self) -> NDArray[np.float32]:
        """Hands over the samples so far, (N,); the next call goes on after them."""
        pieces, self._pieces = self._pieces, []
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def _align(self, start_s: float | None) -> None:
        """Makes the samples so far end where the next frame starts. A jump back in time is ignored."""
        if start_s is None:
            return
        start = round(start_s * SAMPLE_RATE_HZ)
        if not self._started and start < 0:
            self._num_early = -start
        if start - self._num_samples > (_MAX_DRIFT_S * SAMPLE_RATE_HZ if self._started else 0):
            self._drain()
            self._check(start - self._num_samples)
            self._append(np.zeros(max(0, start - self._num_samples), np.float32))
        self._started = True

    def _drain(self) -> None:
        """Fetches what the resampler holds back."""
        if self._resampler is not None:
            self._resample(None)
            self._resampler = None
            self._format = None

    def _resample(self, frame: av.AudioFrame | None) -> None:
        assert self._resampler is not None
        if frame is not None:
            frame.pts = None  # the samples are counted here; a broken time stamp must not reach the resampler
        try:
            pieces = [piece.to_ndarray().ravel() for piece in self._resampler.resample(frame)]
        except Exception as error:  # PyAV raises more than av.error on damaged data
            raise MediaError(f"{self._file.name}: the sound cannot be resampled ({error})") from None
        for piece in pieces:
            self._append(piece.astype(np.float32) / 2.0**31)

    def _append(self, samples: NDArray[np.float32]) -> None:
        num_dropped = min(self._num_early, len(samples))
        self._num_early -= num_dropped
        samples = samples[num_dropped:]
        self._check(len(samples))
        self._pieces.append(samples)
        self._num_samples += len(samples)

    def _check(self, num_more: int) -> None:
        if self._num_samples + num_more > self._limit:
            raise MediaError(
                f"{self._file.name}: the sound is longer than the {self._file.max_duration_s:.0f} s allowed"
            )
