"""The default model writes nothing where nobody speaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

import mtsk
from mtsk.checkpoints.sources import EMBEDDED, is_cached
from mtsk.inference.engine import Engine
from mtsk.inference.recording import NO_SPEECH, SILENT
from mtsk.media import MediaError
from mtsk.types import SAMPLE_RATE_HZ
from tests.media.nonspeech import NONSPEECH

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def engine() -> Engine:
    if not all(map(is_cached, EMBEDDED)):
        pytest.skip("needs the base weights in the cache (`make weights` fetches them)")
    return mtsk.load(mtsk.DEFAULT_MODEL)


@pytest.mark.parametrize("kind", NONSPEECH)
def test_no_words_where_nobody_speaks(engine: Engine, kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", NONSPEECH[kind](8.0), SAMPLE_RATE_HZ)
    if kind == "digital silence":  # refused: most often the wrong file, or a muted microphone
        with pytest.raises(MediaError, match=SILENT):
            engine.transcribe(tmp_path / "clip.wav", "a16")
        return
    found = engine.transcribe(tmp_path / "clip.wav", "a16")
    assert (found.text, found.warnings) == ("", (NO_SPEECH,))
