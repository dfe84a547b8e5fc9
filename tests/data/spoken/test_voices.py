"""The voices themselves: words and their times against the sound. Those that are not installed are skipped."""

import numpy as np
import pytest

from mtsk.data.spoken import espeak, flite, kokoro, neural, piper
from mtsk.data.spoken.voices import Manner, Speech, load_library

TEXT = "nor is mister quilter's manner less interesting than 'em of the matter's end"


def check(speech: Speech, text: str = TEXT) -> None:
    """The words are those of the text, one after the other, and the sound is where they are."""
    assert speech.waveform.dtype == np.float32
    assert np.abs(speech.waveform).max() <= 1.0
    assert [word.text for word in speech.words] == text.split()
    starts, ends = ([getattr(word, edge) for word in speech.words] for edge in ("start_s", "end_s"))
    assert all(start_s < end_s for start_s, end_s in zip(starts, ends, strict=True))
    assert all(end_s <= next_s + 1e-6 for end_s, next_s in zip(ends, starts[1:], strict=False))
    duration_s = len(speech.waveform) / speech.sample_rate_hz
    assert starts[0] >= 0
    assert ends[-1] <= duration_s + 0.02
    size = speech.sample_rate_hz // 50
    energy = np.square(speech.waveform[: len(speech.waveform) // size * size]).reshape(-1, size).mean(axis=1)
    active = np.flatnonzero(energy > 0.003 * energy.max())
    assert starts[0] == pytest.approx(active[0] / 50, abs=0.15)
    assert ends[-1] == pytest.approx((active[-1] + 1) / 50, abs=0.2)


@pytest.mark.parametrize("voice", sorted(flite.VOICES))
def test_flite(flite_installed, voice):
    plain = flite.speak(TEXT, voice, Manner())
    check(plain)
    slow = flite.speak(TEXT, voice, Manner(speed=0.7, pitch=1.2, melody=1.5, pauses=(4,)))
    check(slow)
    assert len(slow.waveform) > 1.25 * len(plain.waveform)
    gap_s = slow.words[5].start_s - slow.words[4].end_s
    assert gap_s > 0.1  # the pause is nobody's word
    again = flite.speak(TEXT, voice, Manner())
    assert len(again.waveform) == len(plain.waveform)  # one sentence's manner does not stay


def test_flite_refuses_a_text_that_it_reads_as_other_words(flite_installed):
    with pytest.raises(ValueError, match="Flite"):
        flite.speak("one ... two", "slt", Manner())


@pytest.mark.parametrize("voice", ["en-us+f2", "en-gb-x-rp+m3", "en-gb-scotland+m1", "en+f4"])
def test_espeak(espeak_installed, voice):
    plain = espeak.speak(TEXT, voice, Manner())
    check(plain)
    slow = espeak.speak(TEXT, voice, Manner(speed=0.7, pauses=(4,)))
    check(slow)
    assert len(slow.waveform) > 1.25 * len(plain.waveform)


def test_espeak_says_a_second_sentence_without_the_first(espeak_installed):
    first = espeak.speak(TEXT, "en-us", Manner())
    espeak.speak("good morning", "en", Manner())
    again = espeak.speak(TEXT, "en-us", Manner())
    check(again)
    assert len(again.waveform) == pytest.approx(len(first.waveform), abs=100)  # it keeps a little of what it said


def test_espeak_names_a_voice_that_it_lacks(espeak_installed):
    with pytest.raises(ValueError, match="tlh-x"):
        espeak.speak("good morning", "tlh-x", Manner())


def test_words_said_as_one_share_its_time():
    words = espeak.place_words("all of the manner's end.", [(0, 0.1), (4, 0.5), (11, 1.0), (18, 1.3), (20, 1.5)], 2.0)
    assert [word.text for word in words] == ["all", "of", "the", "manner's", "end"]
    assert [word.start_s for word in words] == pytest.approx([0.1, 0.5, 0.5 + 3 / 7 * 0.5, 1.0, 1.5])
    assert words[-1].end_s == 2.0
    assert words[3].end_s == words[4].start_s


def test_what_espeak_announces_at_a_pause_and_again_at_the_end_moves_no_word():
    starts_s = [(0, 0.0), (-1, 0.7), (10, 0.8), (14, 1.1), (10, 1.6), (18, 1.9)]
    words = espeak.place_words("goodness, the end.", starts_s, 1.8)
    assert [(word.text, word.start_s) for word in words] == [("goodness", 0.0), ("the", 0.8), ("end", 1.1)]
    assert words[-1].end_s == 1.8


def test_phonemes_are_one_group_a_word_and_weak_where_speech_is(espeak_installed):
    for word in ("of", "the", "in", "to", "a", "manner's", "o'clock", "i'd"):
        assert espeak.phonemes(word, "en-us")
        assert " " not in espeak.phonemes(word, "en-us")
    assert espeak.phonemes("the", "en-us") == "ðə"
    assert espeak.phonemes("to", "en-us") == "tə"  # alone it would be "tuː"
    assert "ˈ" in espeak.phonemes("manner", "en-us")


def test_symbols_of_a_sentence(espeak_installed):
    symbols = neural.spell(["a", "good", "morning"], "en-us", Manner(pauses=(1,)), kokoro.respell_american)
    assert symbols.text.endswith(".")
    assert [symbols.text[first:end] for first, end in symbols.spans] == symbols.text.rstrip(".").replace(",", "").split(
        " "
    )
    assert symbols.text[symbols.spans[1][1] :].startswith(", ")
    with pytest.raises(ValueError, match="can't be pronounced"):
        neural.spell(["a"], "en-us", Manner(), lambda _: "")


@pytest.mark.parametrize(
    ("ipa", "american", "british"),
    [
        ("ɹˈoʊst", "ɹˈOst", "ɹˈQst"),
        ("tʃˈɜːtʃ", "ʧˈɜɹʧ", "ʧˈɜːʧ"),
        ("ˈiːɾɪŋ", "ˈiTɪŋ", "ˈiːtɪŋ"),
        ("dʒˈeɪ", "ʤˈA", "ʤˈA"),
    ],
)
def test_kokoros_spelling(ipa, american, british):
    assert kokoro.respell_american(ipa) == american
    assert kokoro.respell_british(ipa) == british


def test_word_times_from_durations():
    words = neural.words_from_durations(["so", "it"], [(1, 3), (4, 6)], np.array([0.5, 0.1, 0.2, 0.05, 0.1, 0.1, 0.3]))
    assert [(word.start_s, word.end_s) for word in words] == [pytest.approx((0.5, 0.8)), pytest.approx((0.85, 1.05))]


def test_what_is_missing_is_named_with_where_it_is_to_be_had(tmp_path):
    with pytest.raises(ValueError, match=r"libnothing\.so\.1 is missing: install nothing"):
        load_library(("libnothing.so.1",), "install nothing")
    with pytest.raises(ValueError, match="--voice-dir is missing"):
        piper.check(None)
    with pytest.raises(ValueError, match=r"joe-medium\.onnx is missing: .*rhasspy/piper-voices"):
        piper.check(tmp_path)
    with pytest.raises(ValueError, match=r"kokoro\.onnx is missing: .*Kokoro-82M"):
        kokoro.check(tmp_path)


def test_mixtures_of_voices(tmp_path):
    (tmp_path / "voices").mkdir()
    for name, value in (("af_sky", 1.0), ("am_adam", 5.0)):
        np.full((510, 256), value, np.float32).tofile(tmp_path / "voices" / f"{name}.bin")
    assert kokoro._style("af_sky", tmp_path).mean() == 1.0
    assert kokoro._style(kokoro.mixture("af_sky", "am_adam", 0.25), tmp_path).mean() == pytest.approx(2.0)
    (tmp_path / "voices" / "am_echo.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match="no voice of Kokoro"):
        kokoro._style("am_echo", tmp_path)
