"""The one spelling of transcripts: what LRS2, LRS3 and VoxCeleb2 are trained and scored on."""

from __future__ import annotations

import re
import unicodedata

# What the aligner that made LRS's word times writes for noise, laughter, breath, cough, smacking lips and silence.
_NOISE_MARKS = re.compile(r"\{\s*(?:ns|lg|br|cg|ls|sl|sil|sp)\s*\}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W_][\w']*|'+\w[\w']*")
_DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
_ELIDED_BEFORE = re.compile(
    r"cause|cos|coz|cuz|till?|bout|round|fore|em|er|im|tis|twas|twere|twill|kay|n|s|m|d|t|re|ve|ll|\d0s"
)
_ELIDED_AFTER = re.compile(r"\w*(?:s|in)|ol?|lil")
_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'"})


def plain_text(text: str) -> str:
    """Lower-case words with single spaces between them; empty if none is left.

    - Capitals become small, as in the papers' `lower().split()`; LRS writes capitals alone.
    - Punctuation becomes a space, and a comma within a number nothing. LRS has none; VoxCeleb2's transcripts, made by
      a recogniser, do. (auto-avsr deletes it instead, so that "well-known" is one word there and two here.)
    - Apostrophes within a word stay ("don't"), as LRS has them; quotes around a word go. One before a word stays where
      it is of a short list such as "'cause", "'til", "'em" or a decade, "'90s"; one after it where the word ends in s
      ("the dogs' tails") or in ("goin'"), or is "o'", "ol'" or "lil'"; others are quotes, and go. Each word is looked
      at alone, so that a table of words gets the spelling of its text: of 'lay two cups' the last quote stays.
    - Digits stay. LRS3 spells most numbers out, and writes some, such as years, in digits. Papers score them as they
      are, so that "20" for "twenty" is an error, and so it is here. A point between digits becomes the word that is
      said in "3.5", "3 point 5", though not in every price or time of day.
    - Braces go, and what they hold stays, as in auto-avsr. The exception is a mark of noise such as `{NS}` or `{LG}`,
      which nobody said: it is dropped, where auto-avsr keeps "ns" as a word.

    Published figures of LRS3 (auto-avsr, and what follows its lists, such as Llama-AVSR) are words in error over words
    of the reference, in one case, with apostrophes and digits as in the corpus, without a normaliser such as Whisper's.
    `mtsk.evaluation.wer` compares in that way; on text that went through here it changes nothing further.
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    text = _THOUSANDS.sub("", _NOISE_MARKS.sub(" ", text)).replace("_", " ")
    return " ".join(_unquoted(word) for word in _WORD.findall(_DECIMAL.sub(" point ", text)))


def _unquoted(word: str) -> str:
    bare = re.sub("'+", "'", word.strip("'"))
    opens, closes = word.startswith("'"), word.endswith("'")
    if opens and not closes and _ELIDED_BEFORE.fullmatch(bare):
        return f"'{bare}"
    if closes and not opens and _ELIDED_AFTER.fullmatch(bare):
        return f"{bare}'"
    return bare
