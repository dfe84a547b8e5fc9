"""Where a stage's batches come from: augmented examples by key, and, as an option, frozen features cached on disk.

An example's `view` is the number of its random variation. Without a cache every epoch is a new view; with one, the
views repeat, so that each is encoded once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from lhotse import CutSet
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtsk.data.collate import data_loader
from mtsk.data.dataset import UtteranceDataset
from mtsk.data.sampling import batch_keys
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.types import Batch, Features


@dataclass(frozen=True)
class BatchSource:
    """Training batches of a stage: a pure function of seed, step, rank and number of processes."""

    cuts: CutSet
    dataset: UtteranceDataset
    batch_s: float
    seed: int
    cache_views: int  # views repeat after so many epochs; 0: never
    num_workers: int
    accelerator: Accelerator

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
        )
        for batch in data_loader(self.dataset, keys, num_workers=self.num_workers):
            yield batch.to(self.accelerator.device)


class Encoder:
    """A model's frozen encoders, with a cache on disk if a folder is given.

    Args:
        folder: one file per utterance and view; it belongs to one configuration of encoders and augmentation.
    """

    def __init__(self, model: AvsrModel, folder: Path | None = None) -> None:
        self._model = model
        self._folder = folder

    def __call__(self, batch: Batch) -> Encoded:
        """Features for every scale of the model's grid."""
        if self._folder is None:
            return self._model.encode(batch, self._model.grid)
        paths = [self._folder / f"{name}.{view}.safetensors" for name, view in zip(batch.ids, batch.views, strict=True)]
        if not all(path.exists() for path in paths):
            self._folder.mkdir(parents=True, exist_ok=True)
            encoded = self._model.encode(batch, self._model.grid)
            for row, path in enumerate(paths):
                _save_row(path, encoded, row)
        rows = [load_file(path) for path in paths]
        return Encoded(*(_join(rows, name, batch.waveform_BN.device) for name in ("audio", "video")))


def _save_row(path: Path, encoded: Encoded, row: int) -> None:
    tensors: dict[str, Tensor] = {}
    for name, features in (("audio", encoded.audio), ("video", encoded.video)):
        if features is not None:
            values_TD = features.values_BTD[row, : int(features.lengths_B[row])]
            tensors[name] = values_TD.to(torch.bfloat16).cpu().contiguous()
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def _join(rows: list[dict[str, Tensor]], name: str, device: torch.device) -> Features | None:
    if name not in rows[0]:
        return None
    values = [row[name].float() for row in rows]
    lengths_B = torch.tensor([len(value) for value in values])
    return Features(pad_sequence(values, batch_first=True).to(device), lengths_B.to(device))
