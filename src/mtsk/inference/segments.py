"""Where a recording is cut into what a model reads in one pass: at its pauses, as found while it is decoded."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtsk.media.mouth import Crop, MouthTrack, Sighting, track_of
from mtsk.media.stream import MediaPiece
from mtsk.media.vad import WINDOW_SAMPLES, RegionFinder, SpeechDetector, SpeechRules
from mtsk.types import MOUTH_SIZE_PX, SAMPLE_RATE_HZ, VIDEO_FPS

MAX_SEGMENT_S = 16.0  # the longest segments that such models are trained on (arXiv 2503.06362)
MAX_PAUSE_S = 1.0  # a longer one ends a segment
PADDING_S = 0.2  # around speech
_WINDOW_S = 0.2
_MIN_CUT_S = 0.1  # of a pause within reach, for a cut in it
_FRAME_SAMPLES = SAMPLE_RATE_HZ // VIDEO_FPS  # segments begin with a crop and the sample of the same instant


@dataclass(frozen=True)
class SegmentRules:
    """How segments are cut.

    Attributes:
        max_s: the longest segment, down to whole frames of 0.04 s.
        max_pause_s: a longer pause ends a segment.
        padding_s: silence kept before and after speech, where there is room.
        keep_silence: cover everything, also what is taken for silence: in loud noise speech is missed, lips are not.
        speech: what is speech.

    Raises:
        ValueError: if a value makes no sense.
    """

    max_s: float = MAX_SEGMENT_S
    max_pause_s: float = MAX_PAUSE_S
    padding_s: float = PADDING_S
    keep_silence: bool = False
    speech: SpeechRules = field(default_factory=SpeechRules)

    def __post_init__(self) -> None:
        if self.max_s < 2.0 or not 0.0 <= self.padding_s <= self.max_pause_s / 2 - 1 / VIDEO_FPS:
            raise ValueError(
                f"segments of up to {self.max_s} s, pauses of {self.max_pause_s} s and padding of {self.padding_s} s "
                "given; needed are segments of at least 2 s, and pauses of more than twice the padding and two frames"
            )


@dataclass(frozen=True)
class SegmentInput:
    """A stretch of a recording for one pass. Sound and lips begin together, and may end before the segment does.

    Attributes:
        start_s: from the start of the recording, whole frames.
        end_s: at most `SegmentRules.max_s` later.
        waveform: float32 (N,), mono, 16 kHz; None if there is no sound.
        mouth: the crops; None if there are none.
        speech_s: how long somebody was heard to speak.
    """

    start_s: float
    end_s: float
    waveform: NDArray[np.float32] | None
    mouth: MouthTrack | None
    speech_s: float


def segment_stream(
    pieces: Iterable[MediaPiece], detector: SpeechDetector | None, rules: SegmentRules | None = None
) -> Iterator[SegmentInput]:
    """Cuts a recording while it is decoded, and gives each segment as soon as its end is certain.

    Segments are in order, do not overlap, and do not depend on how long the pieces are. A recording of up to
    `rules.max_s` is one segment, whole, if anything is said in it. In a longer one a segment joins stretches of speech
    with pauses of up to `rules.max_pause_s` between; what would become too long is cut at the longest pause of its
    second half, at the quietest moment there if there is none, and so that the rest is not tiny.

    At most some 25 s of sound and crops are held.

    Args:
        pieces: of one recording, see `stream_media`.
        detector: hears speech; None, which is for recordings without sound, keeps everything.
        rules: how segments are cut.

    Returns:
        An iterator. It is empty if nothing is said and silence is not kept.
    """
    rules = rules or SegmentRules()
    keeps_silence = rules.keep_silence or detector is None
    held = _Held()
    cutter = _Cutter(rules, held, keeps_silence)
    if detector is not None:
        detector.reset()
    for piece in pieces:
        start = held.end
        held.add(piece)
        if detector is not None:
            probabilities = detector.feed(held.sound(start, held.end))
        else:
            probabilities = np.zeros(held.end // WINDOW_SAMPLES - cutter.num_windows, np.float32)
        yield from map(held.cut, cutter.feed(probabilities))
        held.forget(cutter.needed)
    if detector is not None:
        yield from map(held.cut, cutter.feed(detector.finish()))
    yield from map(held.cut, cutter.finish(held.end))


Stretch = tuple[int, int]  # first sample and the one after the last


class _Held:
    """Sound and crops that segments may still need. Counts in samples from the start of the recording."""

    def __init__(self) -> None:
        self._sound = deque[tuple[int, NDArray[np.float32]]]()  # first sample, samples
        self._crops = deque[Crop]()
        self._first_crop = 0
        self._num_faces = 0
        self.end = 0

    def add(self, piece: MediaPiece) -> None:
        """Takes the next piece. Where the one before lacks crops and this one has some, they are filled in."""
        start = round(piece.start_s * SAMPLE_RATE_HZ)
        if len(piece.waveform):
            self._sound.append((start, piece.waveform))
        if piece.crops:
            num_lacking = start // _FRAME_SAMPLES - self._first_crop - len(self._crops)
            black = np.zeros((MOUTH_SIZE_PX, MOUTH_SIZE_PX), np.uint8)
            self._crops.extend([(black, Sighting.MISSING)] * num_lacking)
            self._crops.extend(piece.crops)
        self._num_faces = piece.num_faces
        self.end = start + round(piece.duration_s * SAMPLE_RATE_HZ)

    def sound(self, start: int, end: int) -> NDArray[np.float32]:
        """A stretch of the sound, with silence where there is none."""
        stretch = np.zeros(end - start, np.float32)
        for first, samples in reversed(self._sound):
            if first + len(samples) <= start:
                break
            low, high = max(first, start), min(first + len(samples), end)
            if low < high:
                stretch[low - start : high - start] = samples[low - first : high - first]
        return stretch

    def cut(self, segment: tuple[int, int, int]) -> SegmentInput:
        """The segment of the samples from a first one to an end, of which some are speech."""
        start, end, num_speech = segment
        sound_end = self._sound[-1][0] + len(self._sound[-1][1]) if self._sound else 0
        waveform = self.sound(start, max(start, min(end, sound_end)))
        first = start // _FRAME_SAMPLES - self._first_crop
        crops = list(itertools.islice(self._crops, first, -(-end // _FRAME_SAMPLES) - self._first_crop))
        return SegmentInput(
            start_s=start / SAMPLE_RATE_HZ,
            end_s=end / SAMPLE_RATE_HZ,
            waveform=waveform if len(waveform) else None,
            mouth=track_of(crops, self._num_faces) if crops else None,
            speech_s=num_speech / SAMPLE_RATE_HZ,
        )

    def forget(self, needed: int) -> None:
        """Drops what lies before the frame with a sample."""
        start = needed // _FRAME_SAMPLES * _FRAME_SAMPLES
        while self._sound and self._sound[0][0] + len(self._sound[0][1]) <= start:
            self._sound.popleft()
        while self._first_crop < start // _FRAME_SAMPLES:
            if self._crops:
                self._crops.popleft()
            self._first_crop += 1


class _Cutter:
    """Decides, window after window, where segments begin and end. Counts in samples."""

    def __init__(self, rules: SegmentRules, held: _Held, keeps_silence: bool) -> None:
        self._held = held
        self._keeps_silence = keeps_silence
        self._max, self._padding = _frame_before(_samples(rules.max_s)), _samples(rules.padding_s)
        self._max_pause = _samples(rules.max_pause_s)
        self._finder = RegionFinder(rules.speech)
        self._closed: list[Stretch] = []  # speech that is in no segment yet
        self._settled = 0  # where the next segment begins at the earliest
        self._waiting: list[tuple[int, int, int]] = []  # while the recording may prove short

    @property
    def num_windows(self) -> int:
        """Windows so far."""
        return self._finder.num_windows

    @property
    def _now(self) -> int:
        return self.num_windows * WINDOW_SAMPLES

    @property
    def needed(self) -> int:
        """The first sample that a segment may still have."""
        return 0 if self._now <= self._max else self._begin()

    def feed(self, probabilities: Iterable[float]) -> list[tuple[int, int, int]]:
        """Takes the next windows. Returns the segments that are certain: first sample, end, samples of speech."""
        for probability in probabilities:
            self._close(self._finder.push(float(probability)))
            speech = self._speech()
            is_over = bool(speech) and self._finder.start is None and self._now - speech[-1][1] >= self._max_pause
            if is_over and not self._keeps_silence:
                self._complete(speech[-1][1])
            elif (speech or self._keeps_silence) and self._now - self._begin() >= self._max + self._max // 4:
                self._split(self._now)
        return self._release() if self._now > self._max else []

    def finish(self, end: int) -> list[tuple[int, int, int]]:
        """The segments that are left of a recording that ends here."""
        self._close(self._finder.finish())
        speech = self._speech()
        if end <= self._max:
            said = self._waiting or speech or (self._keeps_silence and end)
            num_speech = sum(segment[2] for segment in self._waiting) + _overlap(speech, 0, end)
            return [(0, end, num_speech)] if said else []
        if self._keeps_silence:
            self._complete(end)
        elif speech:
            self._complete(min(end, speech[-1][1]))
        return [(start, min(stop, end), num) for start, stop, num in self._release()]

    def _release(self) -> list[tuple[int, int, int]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _close(self, region: Stretch | None) -> None:
        if region is not None:
            self._closed.append((region[0] * WINDOW_SAMPLES, region[1] * WINDOW_SAMPLES))

    def _speech(self) -> list[Stretch]:
        """Speech from the earliest start of the next segment on; the last stretch may still grow."""
        found = list(self._closed)
        if self._finder.is_certain and self._finder.start is not None:
            found.append((self._finder.start * WINDOW_SAMPLES, self._finder.end * WINDOW_SAMPLES))
        return [(max(start, self._settled), end) for start, end in found if end > self._settled]

    def _begin(self) -> int:
        """Where the next segment begins, or might begin if nothing is said yet."""
        if self._keeps_silence:
            return self._settled
        speech = self._speech()
        if speech:
            first = speech[0][0]
        else:
            first = self._now if self._finder.start is None else self._finder.start * WINDOW_SAMPLES
        return max(self._settled, _frame_before(first - self._padding))

    def _complete(self, end: int) -> None:
        """Makes segments of all that is left, up to an end after which there is nothing for a while."""
        while end - self._begin() > self._max:
            self._split(end, limit=_frame_before(end - self._max // 4))
        begin = self._begin()
        if not self._keeps_silence:
            end = min(_frame_after(end + self._padding), begin + self._max)
        if end > begin:
            self._emit(begin, end)
        self._settled = end
        self._closed = []

    def _split(self, end: int, limit: int | None = None) -> None:
        """Cuts a segment off what is known up to an end."""
        begin = self._begin()
        low, high = begin + _frame_before(self._max // 2), begin + self._max
        if limit is not None:
            high = min(high, limit)
        earliest = begin + _frame_before(self._max // 4)
        pause = self._longest_pause(end, low, high) or self._longest_pause(end, earliest, high)
        if pause is None:
            stop = cut = _frame_before(low + _quietest(self._held.sound(low, high)))
        else:
            # A long pause goes to the segment before it.
            cut = min(_frame_before(max(pause[1] - self._padding, sum(pause) // 2)), high)
            stop = cut if self._keeps_silence else min(_frame_after(pause[0] + self._padding), cut)
        self._emit(begin, stop)
        self._settled = cut
        self._closed = [stretch for stretch in self._closed if stretch[1] > cut]

    def _longest_pause(self, end: int, low: int, high: int) -> Stretch | None:
        """The pause with the largest part between two places, the last one of several; None if all are tiny."""
        speech = self._speech()
        if self._keeps_silence:
            speech = [(self._settled, self._settled), *speech, (max([end, *(stop for _, stop in speech)]), end)]
        gaps = [(before[1], after[0]) for before, after in itertools.pairwise(speech)]
        sizes = [min(stop, high) - max(start, low) for start, stop in gaps]
        best = max(range(len(gaps)), key=lambda index: (sizes[index], index), default=None)
        return None if best is None or sizes[best] < _samples(_MIN_CUT_S) else gaps[best]

    def _emit(self, start: int, end: int) -> None:
        assert 0 < end - start <= self._max, (start, end)
        self._waiting.append((start, end, _overlap(self._speech(), start, end)))


def _quietest(sound: NDArray[np.float32]) -> int:
    """The middle of the quietest 0.2 s, in samples from the start; the end of sound that is shorter."""
    size = _samples(_WINDOW_S)
    num_windows = len(sound) // size
    if num_windows == 0:
        return len(sound)
    power = np.square(sound[: num_windows * size].reshape(num_windows, size)).sum(axis=1)
    return int(power.argmin()) * size + size // 2


def _samples(duration_s: float) -> int:
    return round(duration_s * SAMPLE_RATE_HZ)


def _frame_before(sample: int) -> int:
    return sample // _FRAME_SAMPLES * _FRAME_SAMPLES


def _frame_after(sample: int) -> int:
    return -_frame_before(-sample)


def _overlap(stretches: Sequence[Stretch], start: int, end: int) -> int:
    return sum(max(0, min(stop, end) - max(first, start)) for first, stop in stretches)
