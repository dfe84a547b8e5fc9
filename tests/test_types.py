"""The nouns that have behaviour of their own."""

import json

import pytest
import torch

from mtsk.scale import Scale
from mtsk.types import Features, Segment, Transcript, Word
from tests.tiny import tiny_batch


def test_rows_of_features_are_cut_to_the_longest_chosen() -> None:
    values = torch.arange(3 * 4 * 2).reshape(3, 4, 2).float()
    features = Features(values, torch.tensor([4, 1, 3]))
    chosen = features.rows([2, 1, 2])
    assert len(chosen) == 3
    assert chosen.lengths_B.tolist() == [3, 1, 3]
    assert torch.equal(chosen.values_BTD, values[[2, 1, 2], :3])


def test_features_need_their_lengths() -> None:
    with pytest.raises(AssertionError):
        Features(torch.zeros(3, 4, 2), torch.tensor([4, 1]))
    with pytest.raises(AssertionError):
        Features(torch.zeros(3, 4), torch.tensor([4, 1, 3]))


def test_transcript_is_plain_for_json() -> None:
    transcript = Transcript("bin blue", Scale(4, 2), 25, 1.23456, {"encode": 0.123456}, ("no face",))
    assert json.loads(json.dumps(transcript.to_dict())) == {
        "text": "bin blue",
        "scale": "a4v2",
        "num_tokens": 25,
        "duration_s": 1.235,
        "seconds": {"encode": 0.1235},
        "warnings": ["no face"],
        "segments": [],
    }


def test_segments_are_plain_for_json() -> None:
    words = (Word("bin", 0.12345, 0.4, 0.98765), Word("blue", 0.4, 1.0))
    segment = Segment(0.0, 1.23456, "bin blue", Scale(4), 12, words, confidence=0.123456)
    transcript = Transcript("bin blue", Scale(4, 2), 25, 1.23456, {}, segments=(segment, segment))
    plain = {
        "start": 0.0,
        "end": 1.235,
        "text": "bin blue",
        "scale": "a4",
        "num_tokens": 12,
        "confidence": 0.1235,
    }
    assert transcript.to_dict()["segments"] == [{"id": 0, **plain}, {"id": 1, **plain}]
    plain["words"] = [
        {"word": "bin", "start": 0.123, "end": 0.4, "confidence": 0.9877},
        {"word": "blue", "start": 0.4, "end": 1.0, "confidence": None},
    ]
    assert transcript.to_dict(words=True)["segments"] == [{"id": 0, **plain}, {"id": 1, **plain}]


def test_a_batch_moves_with_all_of_its_tensors() -> None:
    batch = tiny_batch()
    moved = batch.to("meta")
    assert len(moved) == 3
    for name in ("waveform_BN", "num_samples_B", "mouth_BTHW", "num_frames_B"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(batch, name).device.type == "cpu"
    assert moved.texts == batch.texts
