"""AV-HuBERT from a checkpoint of its authors (fairseq, pre-trained or fine-tuned) to a folder that we load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mtsk.checkpoints.unpickle import load_inert
from mtsk.config import to_dict
from mtsk.model.avhubert import CONFIG_FILE, MODEL_TYPE, WEIGHTS_FILE, AvHubertEncoder, AvHubertShape

_FINE_TUNED = "encoder.w2v_model."  # where a fine-tuned recogniser has the pre-trained model
# The branch for sound, and what only pre-training needs.
_DROPPED = ("feature_extractor_audio.", "final_proj.", "label_embs_concat", "mask_emb")
_FRONTEND = "feature_extractor_video.resnet.frontend3D.0.weight"
_POSITION = "encoder.pos_conv.0.weight"
# Settings of other variants than those that were published: key -> what ours is, also where the key is missing.
_FIXED = {"modality_fuse": "concat", "resnet_relu_type": "prelu", "activation_fn": "gelu", "sub_encoder_layers": 0}
# What fairseq takes where a configuration does not say.
_DEFAULTS: dict[str, Any] = {"encoder_attention_heads": 12, "layer_norm_first": False}


def convert(source: Path, target: Path) -> AvHubertShape:
    """Writes `config.json` and `model.safetensors`, in float32.

    Args:
        source: the authors' file; nothing in it is run.
        target: folder, made if missing; what an earlier conversion wrote there is replaced.

    Returns:
        What the encoder's shape turned out to be.

    Raises:
        ValueError: naming the file, if it is no checkpoint of AV-HuBERT or wants to run something; naming the folder,
            if something else is there.
    """
    _check_target(target)
    state, config = _read(source)
    try:
        weights = weights_from_fairseq(state)
        shape = shape_from_fairseq(weights, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    with torch.device("meta"):
        encoder = AvHubertEncoder(shape)
    unknown = sorted(set(weights) - set(encoder.state_dict()))
    if unknown:
        warnings.warn(f"{source}: {len(unknown)} unknown tensors are left out, such as {unknown[0]}", stacklevel=2)
    weights = {name: value for name, value in weights.items() if name not in unknown}
    misfits = encoder.misfits(weights)
    if misfits:
        raise ValueError(
            f"{source}: {len(misfits)} tensors are missing or of another shape than in AV-HuBERT with "
            f"{shape.num_layers} layers of width {shape.width}, such as {', '.join(misfits[:3])}"
        )
    target.mkdir(parents=True, exist_ok=True)
    made = {name: target / f"{name}.tmp" for name in (WEIGHTS_FILE, CONFIG_FILE)}
    save_file(weights, made[WEIGHTS_FILE])
    values = {"model_type": MODEL_TYPE, **to_dict(shape)}
    made[CONFIG_FILE].write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    made[WEIGHTS_FILE].chmod(made[CONFIG_FILE].stat().st_mode)  # safetensors makes files that only their owner reads
    for name, path in made.items():
        path.replace(target / name)
    return shape


def weights_from_fairseq(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our encoder, in float32, from those of AV-HuBERT under their published names without prefix.

    The first convolution loses its one input channel, the weight norm of the positions is folded into the weights, and
    what the encoder does not need is dropped. Anything else is kept as it is, adapters of others' too.

    Raises:
        ValueError: if the weights are not those of AV-HuBERT.
    """
    weights = {
        name: (value.float() if value.is_floating_point() else value.clone()).contiguous()
        for name, value in state.items()
        if not name.startswith(_DROPPED)
    }
    # torch's own names since 2.0, then those of before.
    norm = next((g for g in ("parametrizations.weight.original0", "weight_g") if _norm_name(g) in weights), "weight_g")
    direction = norm.replace("original0", "original1").replace("weight_g", "weight_v")
    needed = (_FRONTEND, _norm_name(norm), _norm_name(direction), "post_extract_proj.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(f"these are not the weights of AV-HuBERT: there is no {missing[0]}")
    if weights[_FRONTEND].ndim != 5 or weights[_FRONTEND].shape[1] != 1:
        raise ValueError(f"{_FRONTEND} has shape {tuple(weights[_FRONTEND].shape)}; AV-HuBERT's is (64, 1, 5, 7, 7)")
    weights[_FRONTEND] = weights[_FRONTEND].squeeze(1).contiguous()
    size_11K, direction_DIK = weights.pop(_norm_name(norm)), weights.pop(_norm_name(direction))
    if direction_DIK.ndim != 3 or size_11K.shape != (1, 1, direction_DIK.shape[2]):
        raise ValueError(
            f"{_norm_name(norm)} has shape {tuple(size_11K.shape)}; AV-HuBERT's has one number for each tap"
        )
    weights[_POSITION] = size_11K * direction_DIK / direction_DIK.norm(dim=(0, 1), keepdim=True)
    return weights


def _norm_name(part: str) -> str:
    return f"encoder.pos_conv.0.{part}"


def shape_from_fairseq(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> AvHubertShape:
    """What the encoder looks like: sizes from the converted weights, the rest from the configuration.

    Keys that nobody needs are ignored. Where a key is missing, fairseq's default is taken, with a warning if the
    weights can't tell whether that is right.

    Args:
        weights: from `weights_from_fairseq`.
        config: `model` and `task` of the configuration, or one table of all.

    Raises:
        ValueError: another variant of the model, or a configuration that contradicts the weights.
    """
    tables = (config[part] if isinstance(config.get(part), dict) else config for part in ("model", "task"))
    model, task = ({key: value for key, value in table.items() if value is not None} for table in tables)
    for key, ours in _FIXED.items():
        if model.get(key, ours) != ours:
            raise ValueError(f"its configuration says {key}={model[key]!r}; only {ours!r} is supported")
    width = weights["post_extract_proj.weight"].shape[0]
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    feed_forward = weights.get("encoder.layers.0.fc1.weight")
    if feed_forward is None:
        raise ValueError("these are not the weights of AV-HuBERT: there is no encoder.layers.0.fc1.weight")
    position_DIK = weights[_POSITION]
    sizes = {
        "encoder_layers": len(layers),
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": feed_forward.shape[0],
        "conv_pos": position_DIK.shape[2],
        "conv_pos_groups": width // position_DIK.shape[1],
    }
    for key, found in sizes.items():
        if model.get(key, found) != found:
            raise ValueError(f"its configuration says {key}={model[key]!r}, but the weights have {found}")
    silent = [key for key in _DEFAULTS if key not in model]
    if silent:
        taken = ", ".join(f"{key}={_DEFAULTS[key]}" for key in silent)
        warnings.warn(f"the configuration in the file does not say all; taken as in fairseq: {taken}", stacklevel=3)
    ours = AvHubertShape()
    return AvHubertShape(
        num_layers=sizes["encoder_layers"],
        width=width,
        ffn_width=sizes["encoder_ffn_embed_dim"],
        num_heads=_number(model, "encoder_attention_heads", int, _DEFAULTS["encoder_attention_heads"]),
        norm_first=_number(model, "layer_norm_first", bool, _DEFAULTS["layer_norm_first"]),
        position_kernel=sizes["conv_pos"],
        position_groups=sizes["conv_pos_groups"],
        crop_px=_number(task, "image_crop_size", int, ours.crop_px),
        pixel_mean=_number(task, "image_mean", float, ours.pixel_mean),
        pixel_std=_number(task, "image_std", float, ours.pixel_std),
    )


def _number(table: Mapping[str, Any], key: str, kind: type[Any], default: Any) -> Any:
    value = table.get(key, default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"its configuration says {key}={value!r}; a value of type {kind.__name__} is needed")
    return kind(value)


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights without prefix, and the configuration of the pre-trained model."""
    content = load_inert(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source} is no fairseq checkpoint: it holds {_kind(content)}, not a table")
    state, config = content.get("model"), _table(content.get("cfg")) or _table(content.get("args"))
    if not isinstance(state, dict) or not config:
        lacking = "no configuration (cfg or args)" if isinstance(state, dict) else "no table of weights (model)"
        keys = ", ".join(str(key) for key in list(content)[:4]) or "nothing"
        raise ValueError(f"{source} is no fairseq checkpoint: it has {lacking}; it has {keys}")
    strange = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f"{source} is no fairseq checkpoint: {strange[0]!r} among its weights is no tensor")
    if any(name.startswith(_FINE_TUNED) for name in state):
        state = {name.removeprefix(_FINE_TUNED): state[name] for name in state if name.startswith(_FINE_TUNED)}
        inner = _table((_table(config.get("model")) or config).get("w2v_args"))
        if not inner:
            raise ValueError(f"{source} is fine-tuned, but has no configuration of the pre-trained model (w2v_args)")
        config = inner
    return state, {key: _table(value) or value for key, value in config.items()}


def _table(value: Any) -> dict[str, Any] | None:
    """A table, also one that was saved as an `argparse.Namespace`."""
    if isinstance(value, dict):
        return value
    attributes = getattr(value, "__dict__", None)
    return dict(attributes) if attributes and not isinstance(value, Tensor) else None


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _check_target(target: Path) -> None:
    """Refuses to write over anything but an earlier conversion."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a folder to write into is needed")
    path = target / CONFIG_FILE
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError):
            found = None
        if found != MODEL_TYPE:
            raise ValueError(f"{target} has a {CONFIG_FILE} of something else; give a new folder")
