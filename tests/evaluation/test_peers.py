"""Whisper's own decoder: its spelling, and on real speech its text."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mtsk.evaluation.flops import WhisperShape
from mtsk.evaluation.peers import FasterWhisperPeer, WhisperPeer, spoken_form
from mtsk.evaluation.wer import corpus_rate
from mtsk.types import SAMPLE_RATE_HZ, Example

SHARED = Path(os.environ.get("MTSK_SHARED", Path(__file__).parents[2] / ".." / "shared"))
LIBRISPEECH = SHARED / "data" / "librispeech"


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        (" Bin Blue at F2 now.", "bin blue at f two now"),
        ("set green at O-2, now!", "set green at o two now"),
        ("Lay red by Z 0 again", "lay red by z zero again"),
        ("I don't know, Mr. Hale\u2019s \u2018boy\u2019.", "i don't know mister hale's boy"),
        ("12 of 1,024 and 70", "twelve of one thousand twenty four and seventy"),
        ("300 000007 40000", "three hundred zero zero zero zero zero seven forty thousand"),
        (
            "100 999999 1000000",
            "one hundred nine hundred ninety nine thousand nine hundred ninety nine one" + " zero" * 6,
        ),
        ("  ...  ", ""),
    ],
)
def test_spoken_form(written, spoken):
    assert spoken_form(written) == spoken


def test_grid_sentences_are_left_alone():
    for letter in "abcdefghijklmnopqrstuvxyz":
        for digit in ("zero", "one", "two", "nine"):
            assert spoken_form(f"bin blue at {letter} {digit} now") == f"bin blue at {letter} {digit} now"


@pytest.fixture(scope="module")
def peer():
    from mtsk.checkpoints.sources import is_cached, resolve

    if not is_cached("whisper-base"):
        pytest.skip("the base weights are not in the cache; `make weights` fetches them")
    return WhisperPeer(resolve("whisper-base"))


@pytest.mark.weights
def test_whisper_reads_english(peer):
    if not LIBRISPEECH.is_dir():
        pytest.skip("the development data is not beside the repository")
    with (LIBRISPEECH / "test-other.tsv").open() as file:
        lines = list(csv.DictReader(file, delimiter="\t"))[:3]
    waveforms = [soundfile.read(LIBRISPEECH / "test-other" / line["file"], dtype="float32")[0] for line in lines]
    examples = [
        Example(line["file"], waveform, None, line["transcript"])
        for line, waveform in zip(lines, waveforms, strict=True)
    ]
    texts = peer.transcribe(examples)
    rate = corpus_rate([example.text for example in examples], texts)
    assert rate.words > 60
    assert rate.value < 0.2  # 9 % on all fifty
    assert peer.transcribe(examples[2:3]) == texts[2:3]  # alone as in a batch


@pytest.mark.weights
def test_faster_whisper_reads_english():
    pytest.importorskip("faster_whisper", reason="needs the extra `bench`")
    from transformers import WhisperConfig

    from mtsk.checkpoints.sources import is_cached, resolve, whisper_ctranslate2

    if not is_cached("whisper-base-ctranslate2") or not is_cached("whisper-base"):
        pytest.skip("its model is not in the cache; `mtsk evaluate --peer faster-whisper-base-int8` fetches it")
    if not LIBRISPEECH.is_dir():
        pytest.skip("the development data is not beside the repository")
    shape = WhisperShape.of(WhisperConfig.from_pretrained(resolve("whisper-base")))
    peer = FasterWhisperPeer(whisper_ctranslate2(), shape)
    with (LIBRISPEECH / "test-other.tsv").open() as file:
        line = next(csv.DictReader(file, delimiter="\t"))
    waveform = soundfile.read(LIBRISPEECH / "test-other" / line["file"], dtype="float32")[0]
    (found,) = peer.recognize([Example(line["file"], waveform, None, line["transcript"])])
    assert corpus_rate([line["transcript"]], [found.text]).value < 0.2
    assert found.flops is not None
    # A window, and five beams of about as many tokens as the text has words.
    num_words = len(found.text.split())
    fewest, most = (shape.encoder_flops + shape.decoder_flops(3, num, 5) for num in (num_words, 2 * num_words))
    assert fewest < found.flops < most


def test_faster_whisper_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ValueError, match=r"this peer needs `pip install mtsk\[bench\]`"):
        FasterWhisperPeer(Path("nowhere"), WhisperShape(8, 80, 16, 1500, 1, 8, 1, 8))


@pytest.mark.weights
def test_whisper_is_cut_where_it_repeats_itself(peer, monkeypatch):
    """A decoder that never ends: what is left is what the duration allows, alone as beside a longer example."""
    word = peer._tokenizer.encode(" now", add_special_tokens=False)
    assert len(word) == 1

    def endless(features, *, max_new_tokens, **kwargs):
        return torch.tensor([word * max_new_tokens] * len(features))

    monkeypatch.setattr(peer._model, "generate", endless)
    short, long = (Example("x", np.zeros(seconds * SAMPLE_RATE_HZ, np.float32), None) for seconds in (1, 3))
    assert peer.transcribe([short, long]) == ["now " * 25 + "now", "now " * 45 + "now"]
    assert peer.transcribe([short]) == ["now " * 25 + "now"]


@pytest.mark.weights
@pytest.mark.parametrize(
    ("waveform", "message"),
    [(None, "'x' has none"), (np.zeros(31 * SAMPLE_RATE_HZ, np.float32), r"lasts 31\.0 s; Whisper takes up to 30 s")],
)
def test_whisper_refuses_what_it_cannot_take(peer, waveform, message):
    with pytest.raises(ValueError, match=message):
        peer.transcribe([Example("x", waveform, None)])
