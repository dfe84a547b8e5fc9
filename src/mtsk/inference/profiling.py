"""Measures the stages of a model on this machine."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import torch

from mtsk.inference.encoded import EncodedExamples
from mtsk.inference.profile import Profile, StageTime, describe_machine, measure_ms
from mtsk.media.face import FaceMesh
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import LlmInput
from mtsk.types import MOUTH_SIZE_PX, SAMPLE_RATE_HZ, VIDEO_FPS, Example, FaceModels

_DURATIONS_S = (1.0, 3.0, 8.0)
_NUM_POSITIONS = (1, 16, 48, 96)  # of a pass of the LLM
_NUM_FRAMES = (5, 25)
_PICTURE_PX = 360


class Reader(Protocol):
    """What is measured: an engine."""

    model: AvsrModel
    device: torch.device

    def encode(self, examples: list[Example]) -> EncodedExamples:
        """See `Engine.encode`."""
        ...

    @property
    def precision(self) -> str:
        """Of the weights, by name."""
        ...


def measure_profile(reader: Reader, faces: FaceModels | None) -> Profile:
    """Runs every stage at several lengths, some seconds in all, on made-up input: no stage's time depends on values.

    Args:
        faces: models that follow a face; None if the model reads no lips.
    """
    rng = np.random.default_rng(0)
    stages = dict.fromkeys(("face", "audio_encoder", "video_encoder"), StageTime(0.0, 0.0))
    if reader.model.grid.audio_rates:
        sounds = [
            Example("", rng.normal(0, 0.1, round(s * SAMPLE_RATE_HZ)).astype(np.float32), None) for s in _DURATIONS_S
        ]
        stages["audio_encoder"] = _encoder(reader, sounds)
    if reader.model.grid.video_rates:
        shapes = [(round(s * VIDEO_FPS), MOUTH_SIZE_PX, MOUTH_SIZE_PX) for s in _DURATIONS_S]
        crops = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
        stages["video_encoder"] = _encoder(reader, [Example("", None, each) for each in crops])
    if faces is not None:
        stages["face"] = _face(FaceMesh(faces.landmarks), rng)
    stages["llm"] = _llm(reader.model)
    return Profile(stages, describe_machine(reader.device, reader.precision))


def _encoder(reader: Reader, examples: list[Example]) -> StageTime:
    lengths, times = [], []
    for example in examples:
        features = reader.encode([example]).features
        present = features.video if features.audio is None else features.audio
        assert present is not None
        lengths.append(int(present.lengths_B[0]))
        times.append(measure_ms(lambda example=example: reader.encode([example]), time.perf_counter))  # type: ignore[misc]
    return StageTime.fit(lengths, times)


def _face(mesh: FaceMesh, rng: np.random.Generator) -> StageTime:
    """Of the mesh, which runs on every frame; what it shows makes no difference."""
    picture = rng.integers(0, 256, (_PICTURE_PX, _PICTURE_PX, 3)).astype(np.uint8)
    roi_23 = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    def follow(num: int) -> None:
        for _ in range(num):
            mesh.locate(picture, roi_23)

    times = [measure_ms(lambda num=num: follow(num), time.perf_counter) for num in _NUM_FRAMES]  # type: ignore[misc]
    return StageTime.fit(_NUM_FRAMES, times)


@torch.inference_mode()
def _llm(model: AvsrModel) -> StageTime:
    """Of one pass: a fixed time, for the weights are read once, and one for each position."""
    scale, table_VE = model.grid.scales[0], model.embedding_VE

    def read(num: int) -> None:
        positions_1S = torch.arange(num, device=table_VE.device)[None]
        inputs = LlmInput(table_VE[None, :num], torch.ones_like(positions_1S), positions_1S)
        with model.select([scale]):
            # The value is fetched: an accelerator may still be at work when the call returns.
            float(model.next_logits(inputs, model.new_cache(num))[0, 0])

    times = [measure_ms(lambda num=num: read(num), time.perf_counter) for num in _NUM_POSITIONS]  # type: ignore[misc]
    return StageTime.fit(_NUM_POSITIONS, times)
