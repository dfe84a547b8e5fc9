"""The one spelling of transcripts: what LRS2, LRS3 and VoxCeleb2 are trained and scored on."""

from __future__ import annotations

import re
import unicodedata

# What the aligner that made LRS's word times writes for noise, laughter, breath, cough, smacking lips and silence.
_NOISE_MARKS = re.compile(r"\{\s*(?:ns|lg|br|cg|ls|sl|sil|sp)\s*\}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"[^\W_][\w']*|'+\w[\w']*")
_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'"})


def plain_text(text: str) -> str:
    """Lower-case words with single spaces between them; empty if none is left.

    - Capitals become small, as in the papers' `lower().split()`; LRS writes capitals alone.
    - Punctuation becomes a space, and a comma within a number nothing. LRS has none; VoxCeleb2's transcripts, made by
      a recogniser, do. (auto-avsr deletes it instead, so that "well-known" is one word there and two here.)
    - Apostrophes within or before a word stay ("don't", "'cause"), as LRS has them; quotes around a word go.
    - Digits stay. LRS3 spells most numbers out, and writes some, such as years, in digits. Papers score them as they
      are, so that "20" for "twenty" is an error, and so it is here.
    - Braces go, and what they hold stays, as in auto-avsr. The exception is a mark of noise such as `{NS}` or `{LG}`,
      which nobody said: it is dropped, where auto-avsr keeps "ns" as a word.

    Published figures of LRS3 (auto-avsr, and what follows its lists, such as Llama-AVSR) are words in error over words
    of the reference, in one case, with apostrophes and digits as in the corpus, without a normaliser such as Whisper's.
    `mtsk.evaluation.wer` compares in that way; on text that went through here it changes nothing further.
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    text = _THOUSANDS.sub("", _NOISE_MARKS.sub(" ", text)).replace("_", " ")
    words = (_unquoted(word) for word in _WORD.findall(text))
    return " ".join(word for word in words if word)


def _unquoted(word: str) -> str:
    if word.startswith("'") and word.endswith("'"):
        return word.strip("'")
    return re.sub("'+", "'", word)
