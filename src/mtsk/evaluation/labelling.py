"""Texts for recordings that have none, by Whisper's own decoder, with what it thinks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import track

from mtsk.checkpoints.sources import resolve
from mtsk.data.corpora.labelled import MAX_DURATION_S, Label, line, read_labels
from mtsk.evaluation.peers import Decoded, WhisperPeer, spoken_form
from mtsk.media import MediaError, load_media
from mtsk.types import SAMPLE_RATE_HZ, Example


class Decoder(Protocol):
    """What labels, such as `WhisperPeer`."""

    def decode(self, examples: Sequence[Example]) -> list[Decoded]:
        """Text and log-probabilities of each example."""


def whisper_decoder() -> WhisperPeer:
    """Whisper base as it labels: greedy, in bfloat16. Five beams take twice the time for the same error rate, and
    float32 one and a half times."""
    return WhisperPeer(resolve("whisper-base"), dtype=torch.bfloat16)


def label(
    found: dict[str, Path], path: Path, make_decoder: Callable[[], Decoder], *, progress: bool = True
) -> dict[str, Label]:
    """Labels recordings that have no label yet.

    Args:
        found: name of the utterance -> its file.
        path: the file of labels, a line each; what is there, of a file of the same size, is not decoded again. The
            command may be interrupted at any time.
        make_decoder: called once, if there is something to decode.
        progress: show a bar on stderr.

    Returns:
        Label by name. What can't be read has none; what is too long has one without text.

    Raises:
        ValueError: if the file of labels has a broken line before its last.
        OSError: if it can't be written.
    """
    known = read_labels(path)
    sizes = {id: file.stat().st_size for id, file in found.items()}
    todo = [id for id in found if id not in known or known[id].num_bytes != sizes[id]]
    if todo:
        decoder = make_decoder()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as labels:
            for id in track(todo, "labelling", console=Console(stderr=True), disable=not progress):
                made = _label(id, found[id], sizes[id], decoder)
                if made is None:
                    known.pop(id, None)
                    continue
                known[id] = made
                labels.write(line(made))
                labels.flush()
    return {id: known[id] for id in found if id in known}


def _label(id: str, file: Path, num_bytes: int, decoder: Decoder) -> Label | None:
    try:
        waveform = load_media(file, tracker=None).waveform
    except (MediaError, OSError):
        return None
    if waveform is None:
        return None
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    decoded = Decoded("", (0.0,))
    if duration_s <= MAX_DURATION_S:
        (decoded,) = decoder.decode([Example(id, waveform, None)])
    log_probs = decoded.log_probs
    return Label(
        id,
        file.name,
        num_bytes,
        duration_s,
        decoded.text,
        spoken_form(decoded.text),
        sum(log_probs) / len(log_probs),
        min(log_probs),
    )
