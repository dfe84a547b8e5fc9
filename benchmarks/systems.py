"""What the benchmark of speed compares: mtsk, faster-whisper, openai-whisper; each runs in a process of its own.

Packages are imported where a system is made, so that a process holds nothing of the others. All weights of Whisper are
those of `mtsk.checkpoints.sources`.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
STAGES = ("media", "faces", "speech", "encode", "decode")
"""Decoding the file; finding and cutting out the mouth; telling speech from silence; features, encoders; the rest. mtsk
does the first three in a thread: in a long recording they run beside the others, and add up to more than the whole."""
_WAIT = "wait"  # for the first three
BATCHED = "batched, "
"""Begins settings of faster-whisper that use its batched pipeline."""
_BATCH = 8  # segments, of the batched pipeline: its default, and mtsk's number


class Stopwatch:
    """Seconds of each stage since the last lap. What is timed within something else counts for its own stage alone,
    unless it runs beside it in another thread."""

    def __init__(self) -> None:
        self._seconds = defaultdict[str, float](float)
        self._lock = threading.Lock()
        self._thread = threading.local()  # its `within_s`: what was timed so far within the call that is running

    def lap(self) -> dict[str, float]:
        """Hands over the seconds, and begins anew."""
        with self._lock:
            seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def move(self, seconds: float, source: str, target: str) -> None:
        """Puts seconds from one stage to another."""
        with self._lock:
            self._seconds[source] -= seconds
            self._seconds[target] += seconds

    def call(self, stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function, on the account of a stage."""
        before_s, self._thread.within_s = getattr(self._thread, "within_s", 0.0), 0.0
        started_s = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            took_s = time.perf_counter() - started_s
            with self._lock:
                self._seconds[stage] += took_s - self._thread.within_s
            self._thread.within_s = before_s + took_s

    def patch(self, owner: Any, name: str, stage: str) -> None:
        """Times every call of a function of a module, class or object from now on."""
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: self.call(stage, function, *args, **kwargs))

    def patch_generator(self, owner: Any, name: str, stage: str) -> None:
        """Times what a generator function takes for each item from now on."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
            end = object()
            with contextlib.closing(function(*args, **kwargs)) as items:
                while (item := self.call(stage, next, items, end)) is not end:
                    yield item

        setattr(owner, name, timed)


class System(Protocol):
    """Something that transcribes."""

    watch: Stopwatch
    settle_s: float
    """How long its threads go on after a run: time to wait for, before the next system's."""

    def transcribe(self, setting: str, paths: Sequence[Path]) -> list[str]:
        """A text for each file; several files make one batch."""


class Mtsk:
    """The engine. A setting is a scale.

    Args:
        threads: of torch.
        model: as of `mtsk.load`.
        precision: by its name on the command line.
    """

    settle_s = 0.0

    def __init__(self, threads: int, model: str, precision: str) -> None:
        import torch

        import mtsk
        from mtsk.checkpoints.sources import face_models
        from mtsk.device import dtype_of
        from mtsk.inference.recording import Recording
        from mtsk.media import MouthTracker
        from mtsk.media.mouth import MouthStream
        from mtsk.media.vad import SpeechDetector

        torch.set_num_threads(threads)
        self._engine: Any = mtsk.load(model, device="cpu", dtype=dtype_of(precision))
        self._tracker = MouthTracker(face_models)
        self.watch = Stopwatch()
        for name in ("push", "finish"):
            self.watch.patch(MouthStream, name, "faces")
        for name in ("feed", "finish"):
            self.watch.patch(SpeechDetector, name, "speech")
        self.watch.patch_generator(Recording, "parts", "media")
        self.watch.patch(self._engine, "encode", "encode")

    def transcribe(self, setting: str, paths: Sequence[Path]) -> list[str]:
        """See `System`."""
        from mtsk.scale import Scale

        if len(paths) == 1:
            transcript = self.watch.call(_WAIT, self._engine.transcribe, paths[0], setting)
            self.watch.move(transcript.seconds["decode"], _WAIT, "decode")
            return [transcript.text]
        scale = Scale.parse(setting)
        examples = [self.watch.call("media", self._load, path, scale) for path in paths]
        segments = self.watch.call("decode", self._engine.recognize, examples, [scale] * len(examples))
        return [segment.text for segment in segments]

    def _load(self, path: Path, scale: Any) -> Any:
        from mtsk.media import load_media
        from mtsk.types import Example

        tracker = None if scale.video is None else self._tracker
        media = load_media(path, tracker=tracker, audio=scale.audio is not None)
        return Example(path.stem, media.waveform, None if media.mouth is None else media.mouth.crops_THW)


class FasterWhisper:
    """CTranslate2's Whisper base in 8-bit integers. Settings: `greedy` and `default`, its own settings but English;
    with `batched, ` before them the batched pipeline, which takes several files as stretches of one recording.

    Args:
        threads: of its own.
        folder: of `convert_whisper`.
    """

    settle_s = 0.25  # its threads spin for 0.2 s

    def __init__(self, threads: int, folder: Path) -> None:
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        self._model: Any = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        self._pipeline: Any = BatchedInferencePipeline(self._model)
        self.watch = Stopwatch()
        self.watch.patch(type(self._model.feature_extractor), "__call__", "encode")
        self.watch.patch(self._model, "encode", "encode")
        self.watch.patch(importlib.import_module("faster_whisper.transcribe"), "get_speech_timestamps", "speech")

    def transcribe(self, setting: str, paths: Sequence[Path]) -> list[str]:
        """See `System`."""
        from faster_whisper import decode_audio

        assert len(paths) == 1 or setting.startswith(BATCHED), setting
        waveforms = [self.watch.call("media", decode_audio, str(path)) for path in paths]
        texts: list[str] = self.watch.call("decode", self._write, setting, waveforms)
        return texts

    def _write(self, setting: str, waveforms: Sequence[NDArray[np.float32]]) -> list[str]:
        options: dict[str, Any] = {"language": "en"}
        if setting.removeprefix(BATCHED) == "greedy":
            options |= {"beam_size": 1, "temperature": 0.0}
        if not setting.startswith(BATCHED):
            segments, _ = self._model.transcribe(waveforms[0], **options)
            return [_joined(segments)]
        if len(waveforms) == 1:
            segments, _ = self._pipeline.transcribe(waveforms[0], batch_size=_BATCH, **options)
            return [_joined(segments)]
        ends_s = np.cumsum([len(waveform) for waveform in waveforms]) / SAMPLE_RATE_HZ
        starts_s = [0.0, *ends_s[:-1]]
        clips = [{"start": float(start), "end": float(end)} for start, end in zip(starts_s, ends_s, strict=True)]
        segments, _ = self._pipeline.transcribe(
            np.concatenate(waveforms), batch_size=len(waveforms), clip_timestamps=clips, **options
        )
        found = list(segments)
        middles_s = np.array([(segment.start + segment.end) / 2 for segment in found])
        of_clip = np.searchsorted(ends_s, middles_s).clip(max=len(waveforms) - 1)
        return [
            _joined(segment for segment, own in zip(found, of_clip, strict=True) if own == clip)
            for clip in range(len(waveforms))
        ]


class OpenaiWhisper:
    """The original in float32. Settings: `greedy`, in English and without another try at higher temperatures.

    Args:
        threads: of torch.
        folder: the weights as transformers has them.
    """

    settle_s = 0.0

    def __init__(self, threads: int, folder: Path) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model: Any = openai_model(folder)
        self.watch = Stopwatch()
        self.watch.patch(self._model.encoder, "forward", "encode")
        # The function of the same name hides the module.
        self.watch.patch(importlib.import_module("whisper.transcribe"), "log_mel_spectrogram", "encode")

    def transcribe(self, setting: str, paths: Sequence[Path]) -> list[str]:
        """See `System`."""
        assert setting == "greedy", setting
        waveforms = [self.watch.call("media", decode_sound, path) for path in paths]
        texts: list[str] = self.watch.call("decode", self._write, waveforms)
        return texts

    def _write(self, waveforms: Sequence[NDArray[np.float32]]) -> list[str]:
        import torch
        import whisper

        if len(waveforms) == 1:
            return [self._model.transcribe(waveforms[0], language="en", temperature=0.0, fp16=False)["text"]]
        mel = [self.watch.call("encode", whisper.log_mel_spectrogram, whisper.pad_or_trim(each)) for each in waveforms]
        options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
        return [result.text for result in self._model.decode(torch.stack(mel), options)]


def _joined(segments: Any) -> str:
    return " ".join(segment.text.strip() for segment in segments)


def decode_sound(path: Path) -> NDArray[np.float32]:
    """Sound of a file, (N,), mono, 16 kHz. openai-whisper would run the program ffmpeg, which not every machine has."""
    import av

    parts = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
        for frame in [*container.decode(audio=0), None]:
            parts += [resampled.to_ndarray()[0] for resampled in resampler.resample(frame)]
    return np.concatenate(parts).astype(np.float32)


def convert_whisper(source: str, folder: Path) -> None:
    """Writes the folder that faster-whisper loads, in the float16 of the published one."""
    from ctranslate2.converters import TransformersConverter

    from mtsk.checkpoints.sources import resolve

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(resolve(source)), copy_files=files).convert(
        str(folder), quantization="float16", force=True
    )


_OPENAI_NAMES = (
    ("model.", ""),
    (".layers.", ".blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("self_attn", "attn"),
    ("encoder_attn", "cross_attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
)


def openai_name(name: str) -> str:
    """What openai-whisper calls a weight of transformers' Whisper."""
    for theirs, ours in _OPENAI_NAMES:
        name = name.replace(theirs, ours)
    return name


def openai_model(folder: Path) -> Any:
    """openai-whisper's model with the weights of a folder of transformers."""
    import json

    from safetensors.torch import load_file
    from whisper.model import ModelDimensions, Whisper

    config = json.loads((folder / "config.json").read_text())
    width, num_heads, num_layers = (config[name] for name in ("d_model", "encoder_attention_heads", "encoder_layers"))
    sound = (config["num_mel_bins"], config["max_source_positions"], width, num_heads, num_layers)
    text = (config["vocab_size"], config["max_target_positions"], width, num_heads, config["decoder_layers"])
    model = Whisper(ModelDimensions(*sound, *text))
    model.load_state_dict({openai_name(name): value for name, value in load_file(folder / "model.safetensors").items()})
    return model.eval()
