"""Examples -> a padded batch, and the loader that makes batches ahead of their use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from mtsk.data.dataset import Key
from mtsk.types import MOUTH_SIZE_PX, Batch, Example


def collate(examples: Sequence[Example]) -> Batch:
    """Pads with zeros to the longest. A row without sound or lips has length 0 there; tensors keep a step at least.

    Raises:
        ValueError: if there are no examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    num_samples = [0 if example.waveform is None else len(example.waveform) for example in examples]
    num_frames = [0 if example.mouth is None else len(example.mouth) for example in examples]
    waveform_BN = torch.zeros(len(examples), max(1, *num_samples), dtype=torch.float32)
    mouth_BTHW = torch.zeros(len(examples), max(1, *num_frames), MOUTH_SIZE_PX, MOUTH_SIZE_PX, dtype=torch.uint8)
    for row, example in enumerate(examples):
        if example.waveform is not None:
            waveform_BN[row, : num_samples[row]] = torch.from_numpy(example.waveform)
        if example.mouth is not None:
            mouth_BTHW[row, : num_frames[row]] = torch.from_numpy(example.mouth)
    return Batch(
        ids=tuple(example.id for example in examples),
        waveform_BN=waveform_BN,
        num_samples_B=torch.tensor(num_samples),
        mouth_BTHW=mouth_BTHW,
        num_frames_B=torch.tensor(num_frames),
        texts=tuple(example.text for example in examples),
        words=tuple(example.words for example in examples),
        views=tuple(example.view for example in examples),
    )


def data_loader(
    dataset: Dataset[Example], batches: Iterable[list[Key]], *, num_workers: int = 0
) -> DataLoader[Example]:
    """Yields a `Batch` for each list of keys, in their order, whatever the number of processes.

    Args:
        dataset: gives the examples.
        batches: keys of each batch, e.g. from `batch_keys`, or one pass over an evaluation set.
        num_workers: processes that read ahead; 0 reads in this one.
    """
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate)
