"""Word times for utterances that came without: aligned once, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mtsk.files import write_whole
from mtsk.training.alignment import MAX_DURATION_S
from mtsk.types import Word

Align = Callable[[NDArray[np.float32], str], tuple[Word, ...]]
"""(16 kHz waveform (N,), text) -> its words with times, such as `WhisperAligner.align`; ValueError if it can't."""

_Key = tuple[str, str]  # utterance and text: another text under the same name is aligned anew


def with_word_times(
    cuts: CutSet, make_align: Callable[[], Align], path: Path, *, say: Callable[[str], None] = print
) -> CutSet:
    """The same cuts, those without word times aligned.

    An utterance that can't be aligned (longer than 30 s, without sound, or with more text than fits its sound) stays
    without words; how many is said in a line.

    Args:
        cuts: with one supervision each.
        make_align: called if there is something to align, once.
        path: a JSON line per utterance that was aligned; what is there is not aligned again. A last line cut short by
            an interruption is dropped.
        say: takes the line.

    Raises:
        ValueError: if the file has a broken line before the last.
    """
    lacking = [cut for cut in cuts if not (cut.supervisions[0].alignment or {}).get("word")]
    if not lacking:
        return cuts
    known = _read(path)
    usable = [cut for cut in lacking if has_sound(cut) and cut.duration <= MAX_DURATION_S]
    todo = [cut for cut in usable if _key(cut) not in known]
    if todo:
        align = make_align()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for cut in track(todo, "aligning words", console=Console(stderr=True)):
                known[_key(cut)] = _align(cut, align)
                file.write(_line(_key(cut), known[_key(cut)]))
                file.flush()
    timed = {cut.id: known[_key(cut)] for cut in usable if known[_key(cut)]}
    num_left = len(lacking) - len(timed)
    if num_left:
        say(
            f"{num_left} of {len(cuts)} utterances stay without word times: longer than {MAX_DURATION_S:.0f} s, "
            "without sound, or with more text than fits their sound"
        )
    return CutSet([_with_words(cut, timed[cut.id]) if cut.id in timed else cut for cut in cuts])


def _key(cut: MonoCut) -> _Key:
    return cut.id, cut.supervisions[0].text


def has_sound(cut: MonoCut) -> bool:
    """Whether the recording is more than the silence that stands in for missing sound."""
    return bool((cut.custom or {}).get("has_audio", True))


def _align(cut: MonoCut, align: Align) -> tuple[Word, ...]:
    waveform: NDArray[np.float32] = cut.load_audio()[0]
    try:
        return align(waveform, cut.supervisions[0].text)
    except ValueError:  # more text than fits: kept as no words, so that it is not tried again
        return ()


def _with_words(cut: MonoCut, words: tuple[Word, ...]) -> MonoCut:
    supervision = cut.supervisions[0]
    items = [AlignmentItem(word.text, word.start_s, word.end_s - word.start_s) for word in words]
    timed = fastcopy(supervision, alignment={**(supervision.alignment or {}), "word": items})
    return fastcopy(cut, supervisions=[timed])


def _line(key: _Key, words: tuple[Word, ...]) -> str:
    id, text = key
    values = {"id": id, "text": text, "words": [(word.text, word.start_s, word.end_s) for word in words]}
    return json.dumps(values, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[_Key, tuple[Word, ...]]:
    """What is known. A broken last line is taken out of the file, so that the next starts a line of its own."""
    known: dict[_Key, tuple[Word, ...]] = {}
    if not path.exists():
        return known
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError as error:
            if number < len(lines) or rest:
                raise ValueError(f"{path}, line {number} is not valid JSON; remove it: {error}") from error
            rest = line
            break
        known[values["id"], values["text"]] = tuple(Word(*word) for word in values["words"])
    if rest:
        write_whole(path, "".join(_line(*entry) for entry in known.items()))
    return known
