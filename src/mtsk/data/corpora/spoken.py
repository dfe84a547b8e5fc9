"""Sentences that free voices say: which says what, and how. See `mtsk.data.spoken` for the voices."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtsk.data.corpora import Corpus, Source, read_text, stable_percent
from mtsk.data.corpora.text import plain_text
from mtsk.data.spoken import espeak, flite, kokoro, piper
from mtsk.data.spoken.variation import Variation, draw_manner, draw_variation, vary
from mtsk.data.spoken.voices import Manner, Speech
from mtsk.types import SAMPLE_RATE_HZ, Word

SHARES = {"flite": 0.48, "piper": 0.27, "kokoro": 0.20, "espeak": 0.05}
"""Kind of voice -> its share of the time; those that are left out give theirs to the others."""
MIN_WORDS, MAX_WORDS = 3, 42
MAX_DURATION_S = 24.0
"""Whisper hears 30 s, and training makes some longer."""

_FLITE_SHARES = {"slt": 0.3, "rms": 0.3, "awb": 0.2, "kal16": 0.2}
_MIXED_PROB = 0.75  # of Kokoro's sentences, those of a mixture of two voices
_TEST_PERCENT = 1
_S_PER_LETTER, _S_BESIDE = 0.053, 0.9  # for a forecast of the length
# A pause after one of these would be odd.
_LEADING = frozenset((
    "a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "from", "with", "and", "or", "but", "nor",
    "as", "if", "that", "which", "who", "whose", "his", "her", "its", "their", "my", "your", "our", "is", "was",
    "were", "are", "be", "been", "had", "has", "have", "will", "would", "shall", "should", "may", "might",
    "can", "could", "do", "did", "not", "no", "so", "than", "into", "upon", "very", "this", "these", "those",
    "i", "he", "she", "we", "they", "you", "it", "mister", "missus", "mrs", "doctor", "saint",
))  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A sentence in the mouth of a voice; makes its sound when called. How it is written says all that decides it."""

    text: str
    kind: str
    """One of `SHARES`."""
    voice: str
    manner: Manner
    variation: Variation
    voice_dir: Path | None = field(default=None, repr=False)

    def __call__(self) -> tuple[NDArray[np.float32], tuple[Word, ...]]:
        """Sound (N,) at 16 kHz and the words in it.

        Raises:
            ValueError: if the voice can't say it, or takes too long.
        """
        waveform, words = vary(self._speak(), self.variation)
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        unsaid = [word.text for word in words if word.end_s <= word.start_s]
        if unsaid:
            raise ValueError(f"the voice gives {unsaid[0]!r} no time")
        if duration_s > MAX_DURATION_S:
            raise ValueError(f"it takes {duration_s:.1f} s, more than {MAX_DURATION_S:g}")
        return waveform, words

    def _speak(self) -> Speech:
        match self.kind:
            case "flite":
                return flite.speak(self.text, self.voice, self.manner)
            case "espeak":
                return espeak.speak(self.text, self.voice, self.manner)
            case "piper":
                return piper.speak(self.text, self.voice, self.manner, self.voice_dir)
        return kokoro.speak(self.text, self.voice, self.manner, self.voice_dir)


def list_sources(
    texts: Path, *, hours: float = 16.0, kinds: Sequence[str] = tuple(SHARES), voice_dir: Path | None = None,
    seed: int = 0,
) -> Corpus:  # fmt: skip
    """Plans who says what. Each sentence is said once; about 1 % are split `test_spoken`, the others `train`.

    What a sentence becomes depends on its name, the seed and the kinds of voices, not on the other sentences; more
    hours add sentences to those there were.

    Args:
        texts: JSON, an object of name -> sentence. Those with fewer than 3 or more than 42 words are left out.
        hours: of sound, about; less if there are not so many sentences.
        kinds: some of `SHARES`.
        voice_dir: a folder with the files of piper and kokoro.
        seed: another one gives other voices to the sentences.

    Raises:
        ValueError: if the file is no such object, an option is not valid, or a voice is not installed.
    """
    shares = _shares(kinds)
    if not hours > 0:
        raise ValueError(f"--hours {hours:g}: must be above 0")
    _check_voices(shares, voice_dir)
    sentences = _sentences(texts)
    fitting = {id: text for id, text in sentences.items() if MIN_WORDS <= len(text.split()) <= MAX_WORDS}
    if not fitting:
        raise ValueError(f"{texts} has no sentence of {MIN_WORDS} to {MAX_WORDS} words")
    sources: list[Source] = []
    left_s = hours * 3600
    for id in sorted(fitting, key=lambda id: _digest(seed, id)):
        if left_s <= 0:
            break
        line = plan(id, fitting[id], shares, voice_dir, seed)
        left_s -= _forecast_s(line)
        split = "test_spoken" if stable_percent(id) < _TEST_PERCENT else "train"
        sources.append(Source(f"spoken_{id}", Path(), line.text, split=split, speaker=_speaker(line), make=line))
    counts = Counter(source.speaker.split("_")[0] for source in sources)
    notes = [f"{len(sources)} sentences are said: {', '.join(f'{n} by {kind}' for kind, n in sorted(counts.items()))}"]
    notes += [
        f"{len(sentences) - len(fitting)} sentences are shorter than {MIN_WORDS} words or longer than {MAX_WORDS}"
    ]
    notes += [f"there are too few sentences for {hours:g} h: all are said"] if left_s > 0 else []
    sources.sort(key=lambda source: "kokoro" in source.speaker)  # the slow ones last
    return Corpus(tuple(sources), tuple(notes), "spoken_")


def plan(id: str, text: str, shares: dict[str, float], voice_dir: Path | None = None, seed: int = 0) -> Line:
    """Who says a sentence, and how: the same for the same name, seed and shares.

    Args:
        id: its name.
        text: words with single spaces between them.
        shares: kind of voice -> its share, of all 1.
        voice_dir: a folder with the files of piper and kokoro.
        seed: for other draws.
    """
    rng = np.random.default_rng(int.from_bytes(_digest(seed, id)))
    kind = str(rng.choice(list(shares), p=list(shares.values())))
    voice = _draw_voice(kind, rng)
    words = text.split()
    breaks = tuple(place for place, word in enumerate(words) if word not in _LEADING)
    variation = draw_variation(rng)
    return Line(text, kind, voice, draw_manner(len(words), variation.tract, breaks, rng), variation, voice_dir)


def _draw_voice(kind: str, rng: np.random.Generator) -> str:
    match kind:
        case "flite":
            return str(rng.choice(list(_FLITE_SHARES), p=list(_FLITE_SHARES.values())))
        case "espeak":
            return f"{rng.choice(espeak.ACCENTS)}+{rng.choice(espeak.VARIANTS)}"
        case "piper":
            return str(rng.choice(piper.VOICES))
    voices = kokoro.AMERICAN if rng.random() < len(kokoro.AMERICAN) / 27 else kokoro.BRITISH
    first, second = (str(voice) for voice in rng.choice(voices, size=2, replace=False))
    return kokoro.mixture(first, second, rng.uniform(0.2, 0.8)) if rng.random() < _MIXED_PROB else first


def _speaker(line: Line) -> str:
    return f"{line.kind}_{line.voice}"


def _shares(kinds: Sequence[str]) -> dict[str, float]:
    unknown = [kind for kind in kinds if kind not in SHARES]
    if unknown or not kinds:
        raise ValueError(f"--voices {','.join(kinds)}: allowed are {', '.join(SHARES)}, with commas between them")
    total = sum(SHARES[kind] for kind in SHARES if kind in kinds)
    return {kind: share / total for kind, share in SHARES.items() if kind in kinds}


def _check_voices(shares: dict[str, float], voice_dir: Path | None) -> None:
    """Says a word with each kind of voice, so that what is missing shows before the work starts."""
    if "piper" in shares:
        piper.check(voice_dir)
    if "kokoro" in shares:
        kokoro.check(voice_dir)
    voices = {"flite": "slt", "espeak": espeak.ACCENTS[0], "piper": "joe", "kokoro": kokoro.AMERICAN[0]}
    for kind in shares:
        Line("good morning", kind, voices[kind], Manner(), Variation(), voice_dir)()


def _sentences(texts: Path) -> dict[str, str]:
    try:
        content = json.loads(read_text(texts))
    except json.JSONDecodeError as error:
        raise ValueError(f"{texts} is not JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise ValueError(f"{texts}: expected is one object, of name -> sentence")
    return {str(id): plain_text(text) for id, text in content.items()}


def _digest(seed: int, id: str) -> bytes:
    return hashlib.blake2b(f"{seed}|{id}".encode(), digest_size=16).digest()


def _forecast_s(line: Line) -> float:
    speed = line.manner.speed * line.variation.tract
    return len(line.text) * _S_PER_LETTER / speed + _S_BESIDE
