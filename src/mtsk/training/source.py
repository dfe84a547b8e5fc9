"""Where a stage's batches come from: augmented examples by key, and, as an option, frozen features cached on disk.

An example's `view` is the number of its random variation. Without a cache every epoch is a new view; with one, the
views repeat, so that each is encoded once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from lhotse import CutSet
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mtsk.data.collate import data_loader
from mtsk.data.dataset import Key, UtteranceDataset
from mtsk.data.sampling import batch_keys
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.types import Batch, Example, Features, Word


@dataclass(frozen=True)
class BatchSource:
    """Training batches of a stage: a pure function of seed, step, rank and number of processes."""

    cuts: CutSet
    dataset: Dataset[Example]
    batch_s: float
    seed: int
    cache_views: int  # views repeat after so many epochs; 0: never
    num_workers: int
    accelerator: Accelerator
    repeats: Mapping[str, int] = field(default_factory=dict)  # see `batch_keys`

    def from_step(self, start_step: int) -> Iterator[Batch]:
        """The batches of the steps from `start_step` on, on the run's device, without end."""
        keys = batch_keys(
            self.cuts,
            batch_s=self.batch_s,
            seed=self.seed,
            start_step=start_step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            cache_views=self.cache_views,
            repeats=self.repeats,
        )
        for batch in data_loader(self.dataset, keys, num_workers=self.num_workers):
            yield batch.to(self.accelerator.device)


class CachedExamples(Dataset[Example]):
    """The dataset's examples, without sound and lips where their features are in the cache already."""

    def __init__(self, dataset: UtteranceDataset, cache: FeatureCache) -> None:
        self._dataset, self._cache = dataset, cache

    def __getitem__(self, key: Key) -> Example:
        """As the dataset's; its text and word times are the same in both cases."""
        if not self._cache.path(*key).exists():
            return self._dataset[key]
        bare = self._dataset.without_media(key)
        times_W2 = self._cache.read(*key)["word_times"].tolist()
        words = tuple(Word(word.text, *times) for word, times in zip(bare.words, times_W2, strict=True))
        return replace(bare, words=words)


class WithoutMedia(Dataset[Example]):
    """The dataset's examples as texts and word times alone; reads no file."""

    def __init__(self, dataset: UtteranceDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: Key) -> Example:
        return self._dataset.without_media(key)


class FeatureCache:
    """Frozen features of examples on disk, a file for each.

    They are a function of the example's key alone: each is encoded by itself, whatever batch it is in.

    Args:
        folder: it belongs to one configuration of encoders, data and augmentation.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, id: str, view: int) -> Path:
        """Where an example's features are, or will be."""
        return self._folder / f"{id}.{view}.safetensors"

    def read(self, id: str, view: int) -> dict[str, Tensor]:
        """What is there: `audio` and `video` (T, D), as far as they were encoded, and `word_times` (W, 2) in s."""
        return load_file(self.path(id, view))

    def write(self, example: Batch, encoded: Encoded) -> None:
        """Keeps the features of a batch of one, in half precision."""
        path = self.path(example.ids[0], example.views[0])
        times = [(word.start_s, word.end_s) for word in example.words[0]]
        tensors = {"word_times": torch.tensor(times, dtype=torch.float64).reshape(-1, 2)}
        for name, features in (("audio", encoded.audio), ("video", encoded.video)):
            if features is not None:
                values_TD = features.values_BTD[0, : int(features.lengths_B[0])]
                tensors[name] = values_TD.to(torch.bfloat16).cpu().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, temporary)
        temporary.replace(path)


class Encoder:
    """A model's frozen encoders, behind a cache if one is given."""

    def __init__(self, model: AvsrModel, cache: FeatureCache | None = None) -> None:
        self._model = model
        self._cache = cache

    def __call__(self, batch: Batch) -> Encoded:
        """Features for every scale of the model's grid."""
        cache = self._cache
        if cache is None:
            return self._model.encode(batch, self._model.grid)
        keys = list(zip(batch.ids, batch.views, strict=True))
        for row, key in enumerate(keys):
            if not cache.path(*key).exists():
                example = batch.row(row)
                cache.write(example, self._model.encode(example, self._model.grid))
        rows = [cache.read(*key) for key in keys]
        audio, video = (_join(rows, name, batch.waveform_BN.device) for name in ("audio", "video"))
        return Encoded(audio, video)


def _join(rows: list[dict[str, Tensor]], name: str, device: torch.device) -> Features | None:
    width = next((row[name].shape[1] for row in rows if name in row), None)
    if width is None:
        return None
    values = [row[name].float() if name in row else torch.zeros(0, width) for row in rows]
    lengths_B = torch.tensor([len(value) for value in values])
    return Features(pad_sequence(values, batch_first=True).to(device), lengths_B.to(device))
