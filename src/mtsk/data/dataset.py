"""Prepared cuts as examples. The key of an example is (utterance, view); everything random follows from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.audio.utils import AudioLoadingError
from torch.utils.data import Dataset

from mtsk.config import AugmentConfig
from mtsk.data.augment import augment
from mtsk.data.noise import Babble, mix_at_snr
from mtsk.types import Example, Word

Key = tuple[str, int]
"""The name of an utterance, and which of its views (changed copies): one key, one example."""

_VIEW_STREAM, _EVALUATION_STREAM = 0, 1


def splits(data_dir: Path) -> tuple[str, ...]:
    """Names of the splits of a prepared folder."""
    return tuple(sorted(path.name[len("cuts_") : -len(".jsonl.gz")] for path in data_dir.glob("cuts_*.jsonl.gz")))


def load_cuts(data_dir: Path, split: str, *, training: bool = False) -> CutSet:
    """The cuts of a split, with paths that open.

    Args:
        data_dir: a prepared folder.
        split: e.g. `train`, `dev`, `test`.
        training: whether a model is fitted or chosen on them; then only `dev` and what begins with `train` is allowed.

    Raises:
        ValueError: if there is no such split, or training asks for one that is kept for evaluation.
    """
    present = splits(data_dir)
    if not present:
        raise ValueError(f"{data_dir} is no prepared folder: `mtsk prepare` makes one")
    if split not in present:
        raise ValueError(f"{data_dir} has no split {split!r}; it has {', '.join(present)}")
    if training and not is_for_training(split):
        allowed = ", ".join(name for name in present if is_for_training(name)) or "none here"
        raise ValueError(f"split {split!r} is kept for evaluation; training may read {allowed}")
    return CutSet([_with_prefix(cut, data_dir) for cut in CutSet.from_file(data_dir / f"cuts_{split}.jsonl.gz")])


def is_for_training(split: str) -> bool:
    """Whether a model may be fitted to, or chosen by, this split."""
    return split.startswith("train") or split == "dev"


class UtteranceDataset(Dataset[Example]):
    """Examples by key, the same for a key whatever process asks.

    Args:
        cuts: from `load_cuts`.
        seed: of all changes and noise.
        changes: how views differ; None: every view is the recording itself.
        babble: noise for the changes, or for `snr_db`.
        snr_db: evaluation in noise: adds babble at this ratio. The babble of an utterance is the same at each ratio.

    Raises:
        ValueError: if `snr_db` is given without babble, or together with changes.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        seed: int = 0,
        changes: AugmentConfig | None = None,
        babble: Babble | None = None,
        snr_db: float | None = None,
    ) -> None:
        if snr_db is not None and babble is None:
            raise ValueError(f"noise at {snr_db} dB needs babble: prepare noise and pass it")
        if snr_db is not None and changes is not None:
            raise ValueError("changes draw their own noise: a fixed snr_db is for evaluation, without changes")
        self._cuts: dict[str, MonoCut] = {cut.id: cut for cut in cuts}
        self._seed = seed
        self._changes = changes
        self._babble = babble
        self._snr_db = snr_db

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def ids(self) -> Sequence[str]:
        """Names of the utterances, in the order of the manifest."""
        return tuple(self._cuts)

    def __getitem__(self, key: Key) -> Example:
        id, view = key
        example = replace(read_example(self._cuts[id]), view=view)
        if self._changes is not None:
            rng = self._rng(_VIEW_STREAM, id, view)
            return augment(example, self._changes, self._babble, rng)
        if self._snr_db is not None and example.waveform is not None:
            assert self._babble is not None
            noise = self._babble.draw(len(example.waveform), self._rng(_EVALUATION_STREAM, id, view))
            waveform = mix_at_snr(example.waveform, noise, self._snr_db)
            return replace(example, waveform=waveform)
        return example

    def without_media(self, key: Key) -> Example:
        """The example of a key without sound and lips, its words as in the recording. Reads no file."""
        id, view = key
        return replace(_bare_example(self._cuts[id]), view=view)

    def _rng(self, stream: int, id: str, view: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, stream, zlib.crc32(id.encode()), view))


def read_example(cut: MonoCut) -> Example:
    """Reads sound and lips of a cut.

    Raises:
        ValueError: if its sound can't be read.
        OSError: if its lips can't be read.
    """
    custom: dict[str, Any] = cut.custom or {}
    try:
        waveform = cut.load_audio()[0] if custom.get("has_audio", True) else None
    except AudioLoadingError:  # its message is many lines long
        path = cut.recording.sources[0].source
        raise ValueError(f"{path}: the sound of utterance {cut.id!r} can't be read; prepare the data again") from None
    mouth = custom["mouth"].load() if "mouth" in custom else None
    return replace(_bare_example(cut), waveform=waveform, mouth=mouth)


def _bare_example(cut: MonoCut) -> Example:
    supervision = cut.supervisions[0]
    alignment = (supervision.alignment or {}).get("word", ())
    words = tuple(Word(item.symbol, item.start, item.start + item.duration) for item in alignment)
    return Example(cut.id, None, None, supervision.text, words)


def _with_prefix(cut: MonoCut, data_dir: Path) -> MonoCut:
    cut = cut.with_recording_path_prefix(data_dir)
    if cut.has_custom("mouth"):
        cut = cut.with_custom("mouth", cut.mouth.with_path_prefix(data_dir))
    return cut
