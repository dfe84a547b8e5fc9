"""Words that a model writes where nobody speaks: ten kinds of sound without speech, as `mtsk transcribe` hears them.

    python benchmarks/silence.py --model english --duration 8 40

Run it at the root of the repository: the sounds are those of the tests. It ends with an error if there is a word.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import soundfile

import mtsk
from mtsk.media import MediaError
from mtsk.types import SAMPLE_RATE_HZ

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.media.nonspeech import NONSPEECH

SPEECH_ONLY = {"default": None, "on": True, "off": False}


def main() -> None:
    """Transcribes every sound at every duration; a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=mtsk.DEFAULT_MODEL, help="name or checkpoint folder")
    parser.add_argument("--scale", help="default: the finest of sound")
    parser.add_argument("--duration", type=float, nargs="+", default=[8.0], help="seconds; up to 30 is one segment")
    parser.add_argument("--speech-only", choices=SPEECH_ONLY, default="default", help="leave out where nobody speaks")
    options = parser.parse_args()
    engine = mtsk.load(options.model)
    speech_only, total = SPEECH_ONLY[options.speech_only], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        for duration_s in options.duration:
            for name, make in NONSPEECH.items():
                soundfile.write(path, make(duration_s), SAMPLE_RATE_HZ)
                try:
                    text = engine.transcribe(path, options.scale, speech_only=speech_only).text
                    num_words, said = len(text.split()), text
                except MediaError as error:  # digital silence is refused
                    num_words, said = 0, f"refused: {error}"
                total += num_words
                print(f"{duration_s:5g} s  {name:<16} {num_words:3d} words  {said}", flush=True)
    print(f"{total} words in {len(options.duration) * len(NONSPEECH)} clips, speech only: {options.speech_only}")
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
