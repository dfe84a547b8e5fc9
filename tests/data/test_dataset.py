"""Examples by key, splits kept apart, batches with their lengths."""

from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtsk.config import AugmentConfig
from mtsk.data.collate import collate, data_loader
from mtsk.data.corpora import Corpus, folder
from mtsk.data.dataset import UtteranceDataset, load_cuts, splits
from mtsk.data.noise import Babble, prepare_noise
from mtsk.data.prepare import Settings, prepare
from mtsk.data.sampling import batch_keys
from mtsk.types import Batch, Example
from tests.data.conftest import random_example, write_tones


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A prepared folder: train, dev, test and noise."""
    root = tmp_path_factory.mktemp("data")
    for split, num in (("train", 6), ("train_more", 1), ("dev", 2), ("test", 2), ("other_talkers", 1)):
        write_tones(root / "src" / split / split, num)
        corpus: Corpus = folder.list_sources(root / "src" / split, split)
        prepare(corpus, root / "dst", Settings(None), num_workers=0, progress=False)
    prepare_noise(write_tones(root / "noise", 12), root / "dst", num_workers=0)
    return root / "dst"


def test_training_reads_no_test_split(data_dir):
    assert splits(data_dir) == ("dev", "other_talkers", "test", "train", "train_more")
    for split in ("train", "train_more", "dev"):
        assert len(load_cuts(data_dir, split, training=True)) > 0
    for split in ("test", "other_talkers"):
        with pytest.raises(ValueError, match=f"'{split}' is kept for evaluation; training may read dev, train"):
            load_cuts(data_dir, split, training=True)
        assert len(load_cuts(data_dir, split)) > 0
    with pytest.raises(ValueError, match="no split 'valid'; it has dev"):
        load_cuts(data_dir, "valid", training=True)
    with pytest.raises(ValueError, match="is no prepared folder"):
        load_cuts(data_dir / "audio", "train")


def test_an_example_follows_from_its_key(data_dir):
    cuts = load_cuts(data_dir, "train", training=True)
    babble = Babble.load(data_dir, "train")

    def example(id: str, view: int, seed: int = 0) -> NDArray[np.float32]:
        waveform = UtteranceDataset(cuts, seed=seed, changes=AugmentConfig(), babble=babble)[id, view].waveform
        assert waveform is not None
        return waveform

    first, second = UtteranceDataset(cuts).ids[:2]
    np.testing.assert_array_equal(example(first, 3), example(first, 3))
    assert not np.array_equal(example(first, 3), example(first, 4))
    assert not np.array_equal(example(first, 3), example(first, 3, seed=1))
    assert not np.array_equal(example(first, 3), example(second, 3))


def test_without_changes_every_view_is_the_recording(data_dir):
    dataset = UtteranceDataset(load_cuts(data_dir, "dev"))
    assert len(dataset) == len(dataset.ids) == 2
    id = dataset.ids[0]
    np.testing.assert_array_equal(dataset[id, 0].waveform, dataset[id, 7].waveform)
    assert dataset[id, 0].text == "utterance number 0"


def test_evaluation_noise_is_the_same_at_every_ratio(data_dir):
    cuts, babble = load_cuts(data_dir, "test"), Babble.load(data_dir, "test")
    id = UtteranceDataset(cuts).ids[0]
    clean = UtteranceDataset(cuts)[id, 0].waveform
    assert clean is not None
    noise = {}
    for snr_db in (10.0, 20.0):
        noisy = UtteranceDataset(cuts, babble=babble, snr_db=snr_db)[id, 0].waveform
        assert noisy is not None
        assert np.abs(noisy).max() < 1
        noise[snr_db] = noisy - clean
        ratio = np.mean(clean**2) / np.mean(noise[snr_db] ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.05)
    np.testing.assert_allclose(noise[10.0], noise[20.0] * np.sqrt(10), atol=1e-5)
    with pytest.raises(ValueError, match="needs babble"):
        UtteranceDataset(cuts, snr_db=0.0)
    with pytest.raises(ValueError, match="for evaluation"):
        UtteranceDataset(cuts, snr_db=0.0, babble=babble, changes=AugmentConfig())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loader_gives_the_same_batches_in_any_number_of_processes(data_dir, num_workers):
    cuts = load_cuts(data_dir, "train", training=True)
    dataset = UtteranceDataset(cuts, changes=AugmentConfig(), babble=Babble.load(data_dir, "train"))

    def batches(num_workers: int) -> list[Batch]:
        keys = batch_keys(cuts, batch_s=1.2, seed=0, start_step=2)
        return list(islice(data_loader(dataset, keys, num_workers=num_workers), 5))

    for batch, expected in zip(batches(num_workers), batches(0), strict=True):
        assert batch.ids == expected.ids
        torch.testing.assert_close(batch.waveform_BN, expected.waveform_BN, rtol=0, atol=0)


def test_collate_pads_with_zeros_and_tells_lengths():
    examples = [
        random_example(num_samples=1000, num_frames=None, seed=0),
        random_example(num_samples=None, num_frames=5, seed=1),
        random_example(num_samples=700, num_frames=3, seed=2),
    ]
    batch = collate(examples)
    assert len(batch) == 3
    assert batch.ids == ("u0", "u1", "u2")
    assert batch.waveform_BN.shape == (3, 1000)
    assert batch.mouth_BTHW.shape == (3, 5, 96, 96)
    assert batch.num_samples_B.tolist() == [1000, 0, 700]
    assert batch.num_frames_B.tolist() == [0, 5, 3]
    assert batch.num_samples_B.dtype == batch.num_frames_B.dtype == torch.int64
    assert batch.mouth_BTHW.dtype == torch.uint8
    for row, example in enumerate(examples):
        num_samples, num_frames = int(batch.num_samples_B[row]), int(batch.num_frames_B[row])
        assert not batch.waveform_BN[row, num_samples:].any()
        assert not batch.mouth_BTHW[row, num_frames:].any()
        if example.waveform is not None:
            np.testing.assert_array_equal(batch.waveform_BN[row, :num_samples].numpy(), example.waveform)
        if example.mouth is not None:
            np.testing.assert_array_equal(batch.mouth_BTHW[row, :num_frames].numpy(), example.mouth)
    assert batch.words[0] == examples[0].words
    assert batch.texts[0] == examples[0].text


def test_collate_of_absent_modalities():
    batch = collate([Example("x", None, None)])
    assert batch.waveform_BN.shape == (1, 1)
    assert batch.mouth_BTHW.shape == (1, 1, 96, 96)
    assert batch.num_samples_B.tolist() == batch.num_frames_B.tolist() == [0]
    with pytest.raises(ValueError, match="at least one"):
        collate([])
