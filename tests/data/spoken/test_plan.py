"""Who says what; and a folder prepared from what they said."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mtsk import cli
from mtsk.data.corpora import Corpus, Source, spoken
from mtsk.data.corpora.spoken import SHARES, Line, list_sources, plan
from mtsk.data.dataset import UtteranceDataset, load_cuts
from mtsk.data.prepare import Settings, prepare
from mtsk.data.spoken import flite
from mtsk.data.spoken.variation import Variation
from mtsk.data.spoken.voices import Manner, Speech
from mtsk.types import SAMPLE_RATE_HZ, Word
from tests.data.conftest import tone


@pytest.fixture
def all_installed(monkeypatch):
    """As if all voices were there; planning needs none."""
    monkeypatch.setattr(spoken, "_check_voices", lambda shares, voice_dir: None)


def write_texts(path: Path, num: int, **more: str) -> Path:
    texts = {f"{index:04}": f"this is sentence {'very ' * (index % 9)}number {index}" for index in range(num)} | more
    path.write_text(json.dumps(texts), encoding="utf-8")
    return path


def test_a_plan_is_a_function_of_name_and_seed():
    first, second = (plan("84-1-0000", "good morning to you", SHARES, Path(folder)) for folder in ("a", "b"))
    assert repr(first) == repr(second)  # the key by which a prepared folder knows it
    assert repr(first) != repr(plan("84-1-0001", "good morning to you", SHARES))
    assert repr(first) != repr(plan("84-1-0000", "good morning to you", SHARES, seed=1))


def test_shares_of_voices():
    lines = [plan(str(index), "good morning to you", SHARES) for index in range(3000)]
    for kind, share in SHARES.items():
        assert np.mean([line.kind == kind for line in lines]) == pytest.approx(share, abs=0.03)
    said = [line.voice for line in lines if line.kind == "flite"]
    for voice, share in (("slt", 0.3), ("rms", 0.3), ("awb", 0.2), ("kal16", 0.2)):
        assert said.count(voice) / len(said) == pytest.approx(share, abs=0.04)
    kokoros = [line.voice for line in lines if line.kind == "kokoro"]
    assert len(set(kokoros)) > 300
    for voice in kokoros:  # a mixture is of one accent, whose phonemes it is given
        assert len({part.split("_")[0][0] for part in voice.replace("*", "+").split("+") if "_" in part}) == 1


def test_pauses_are_not_after_words_that_lead_on():
    for index in range(200):
        line = plan(str(index), "the house of the king and his men is in the north", SHARES)
        assert {line.text.split()[place] for place in line.manner.pauses} <= {"house", "king", "men", "in"}


def test_sentences_to_sources(all_installed, tmp_path):
    texts = write_texts(tmp_path / "texts.json", 400, short="two words", long="a " * 43, Odd="It's “HIS” turn, now!")
    corpus = list_sources(texts, hours=5)
    by_id = {source.id: source for source in corpus.sources}
    assert len(by_id) == 401
    assert not {"spoken_short", "spoken_long"} & by_id.keys()
    assert by_id["spoken_Odd"].text == "it's his turn now"
    assert 0 < sum(source.split == "test_spoken" for source in corpus.sources) < 20
    assert {source.split for source in corpus.sources} == {"train", "test_spoken"}
    assert {source.speaker.split("_")[0] for source in corpus.sources} == set(SHARES)
    assert any("too few sentences" in note for note in corpus.notes)
    assert any("2 sentences are shorter than 3 words or longer than 42" in note for note in corpus.notes)


def test_more_hours_add_sentences_and_leave_the_others(all_installed, tmp_path):
    texts = write_texts(tmp_path / "texts.json", 400)
    few, many = (
        {source.id: repr(source.make) for source in list_sources(texts, hours=hours).sources} for hours in (0.1, 0.2)
    )
    assert len(few) * 1.7 < len(many) < 400
    assert few.items() <= many.items()


def test_voices_left_out_give_their_share_to_the_others(all_installed, tmp_path):
    texts = write_texts(tmp_path / "texts.json", 300)
    sources = list_sources(texts, kinds=("piper", "espeak")).sources
    kinds = [source.speaker.split("_")[0] for source in sources]
    assert set(kinds) == {"piper", "espeak"}
    assert kinds.count("espeak") / len(kinds) == pytest.approx(0.05 / 0.32, abs=0.07)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", {}, "is not JSON"),
        ("[1]", {}, "one object"),
        ('{"a": 1}', {}, "one object"),
        ('{"a": "too short"}', {}, "no sentence of 3 to 42 words"),
        ("{}", {"kinds": ("siri",)}, "--voices siri: allowed are flite, piper, kokoro, espeak"),
        ("{}", {"kinds": ()}, "--voices"),
        ("{}", {"hours": 0}, "--hours 0"),
    ],
)
def test_what_can_not_be_planned(all_installed, tmp_path, content, options, message):
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list_sources(tmp_path / "texts.json", **options)


def test_a_voice_that_is_missing_shows_before_the_work(tmp_path, capsys):
    texts = write_texts(tmp_path / "texts.json", 3)
    with pytest.raises(ValueError, match=r"kokoro\.onnx is missing"):
        list_sources(texts, kinds=("kokoro",), voice_dir=tmp_path)


def test_a_sentence_that_takes_too_long_is_refused(monkeypatch):
    speech = Speech(np.zeros(25 * SAMPLE_RATE_HZ, np.float32), SAMPLE_RATE_HZ, (Word("a", 0.0, 24.5),))
    monkeypatch.setattr(flite, "speak", lambda *_: speech)
    with pytest.raises(ValueError, match="more than 24"):
        Line("a", "flite", "slt", Manner(), Variation())()


@dataclass(frozen=True)
class Hum:
    """A voice that hums one tone a word."""

    text: str
    hz: float = 300.0

    def __call__(self):
        words = self.text.split()
        if "sing" in words:
            raise ValueError("it can't sing")
        times = tuple(Word(word, 0.25 * place, 0.25 * place + 0.2) for place, word in enumerate(words))
        return tone(0.25 * len(words), self.hz), times


def hummed(**texts: str) -> Corpus:
    return Corpus(tuple(Source(f"spoken_{id}", Path(), text, make=Hum(text)) for id, text in texts.items()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_made_sound_is_prepared_with_its_words(tmp_path, num_workers):
    corpus = hummed(a="good morning to you", b="please sing for us", c="so it goes")
    summary = prepare(corpus, tmp_path, Settings(None), num_workers=num_workers, progress=False)
    assert summary.num_utterances == {"train": 2}
    assert summary.refused == {"spoken_b": "it can't sing"}
    example = UtteranceDataset(load_cuts(tmp_path, "train", training=True))["spoken_a", 0]
    assert example.waveform is not None
    np.testing.assert_allclose(example.waveform, tone(1.0), atol=1e-4)
    assert example.text == "good morning to you"
    assert [(word.text, word.start_s) for word in example.words] == [
        ("good", 0.0), ("morning", 0.25), ("to", 0.5), ("you", 0.75),
    ]  # fmt: skip


def test_what_was_made_is_not_made_again_unless_its_line_changes(tmp_path):
    corpus = hummed(a="good morning to you", b="so it goes")
    assert prepare(corpus, tmp_path, Settings(None), num_workers=0, progress=False).num_new == 2
    assert prepare(corpus, tmp_path, Settings(None), num_workers=0, progress=False).num_new == 0
    first, second = corpus.sources
    changed = Corpus((replace(first, make=Hum(first.text, 400.0)), second))
    assert prepare(changed, tmp_path, Settings(None), num_workers=0, progress=False).num_new == 1


def test_command(flite_installed, tmp_path, monkeypatch, capsys):
    texts = write_texts(tmp_path / "texts.json", 4)
    arguments = ["prepare", "spoken", str(texts), str(tmp_path / "out"), "--voices", "flite", "--workers", "0"]
    assert cli._run(arguments) == 0
    assert "4 by flite" in capsys.readouterr().out
    examples = UtteranceDataset(load_cuts(tmp_path / "out", "train", training=True))
    example = examples["spoken_0001", 0]
    assert " ".join(word.text for word in example.words) == example.text == "this is sentence very number 1"
