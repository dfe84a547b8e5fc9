"""A checkpoint as plain peft adapters of its language model, with its projectors and delimiters beside.

Only files are read and written: neither base weights nor peft are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsk.checkpoints.card import hub_id_of, licence_of
from mtsk.checkpoints.store import WEIGHTS_FILE, Record, read_record
from mtsk.config import LoraConfig, ModelConfig
from mtsk.model.adapters import adapter_table
from mtsk.model.compress import COMPRESSORS
from mtsk.model.projector import RateProjectors
from mtsk.model.prompt import PROMPTS
from mtsk.scale import Scale

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS_CONFIG, PARTS_WEIGHTS, GUIDE = "parts.json", "parts.safetensors", "README.md"
_LLM, _PROJECTORS, _DELIMITERS = "llm.", "projectors.", "fusion.delimiters_4E"
_DOWN, _UP, _MAGNITUDE = ".down_ARI", ".up_AOR", ".magnitude_AO"
# Strategies whose scales share an adapter -> the name of its folder.
_FOLDER: dict[str, Callable[[Scale], str]] = {"ms": lambda _: "", "t": lambda s: s.task, "st": lambda s: s.task}
_METADATA = {"format": "pt"}  # as transformers' own readers want it


def export_peft(source: Path, target: Path, scales: Sequence[Scale] = ()) -> dict[Scale, Path]:
    """Writes the adapters of a checkpoint for `PeftModel.from_pretrained`, and what goes into the language model.

    Args:
        source: a checkpoint folder.
        target: is made if missing; files of an earlier export are replaced.
        scales: some of the trained scales; default: all.

    Returns:
        The folder of each scale's adapter: with one for all scales (`ms`) the target itself, else one in it for each
        task (`t`, `st`) or scale.

    Raises:
        ValueError: if the folder is no checkpoint, a scale was not trained, or something else is in the target.
    """
    record = read_record(source)
    config = record.model
    chosen = tuple(config.grid.require(scale) for scale in scales) or config.grid.scales
    if target.is_dir() and any(target.iterdir()) and not (target / PARTS_CONFIG).is_file():
        raise ValueError(f"{target} holds something else than an earlier export; give a new folder")
    try:
        tensors = load_file(source / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{source / WEIGHTS_FILE} can't be read: {error}") from error
    if not any(name.startswith(_LLM) and name.endswith(_DOWN) for name in tensors):
        raise ValueError(f"{source / WEIGHTS_FILE} has no adapters of a language model")
    table = adapter_table(config.lora.strategy, config.grid)
    folders = {scale: target / _FOLDER.get(config.lora.strategy, str)(scale) for scale in chosen}
    of_folder = {folder: table[scale] for scale, folder in folders.items()}
    for folder, indices in of_folder.items():
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / ADAPTER_CONFIG, adapter_config(config, len(indices)))
        _save(adapter_weights(tensors, indices), folder / ADAPTER_WEIGHTS)
    _save(_part_weights(tensors), target / PARTS_WEIGHTS)
    parts = _part_config(config, {scale: str(folder.relative_to(target)) for scale, folder in folders.items()})
    _write_json(target / PARTS_CONFIG, parts)
    (target / GUIDE).write_text(_guide(record, parts), encoding="utf-8")
    return folders


def adapter_config(config: ModelConfig, num_adapters: int = 1) -> dict[str, Any]:
    """peft's settings of one adapter, made of so many of ours side by side."""
    lora = config.lora
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id_of(config.llm) or config.llm,
        "inference_mode": True,
        "r": lora.rank * num_adapters,
        "lora_alpha": _alpha(lora, num_adapters),
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.variant == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def _alpha(lora: LoraConfig, num_adapters: int) -> float | int:
    """peft divides by the rank, or its root; the delta must be scaled as before, whatever the rank is now."""
    alpha = lora.alpha * (math.sqrt(num_adapters) if lora.rank_stabilized else num_adapters)
    return int(alpha) if alpha == int(alpha) else alpha


def adapter_weights(tensors: dict[str, Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of one adapter by peft's names: some of a checkpoint's, side by side along the rank."""
    weights: dict[str, Tensor] = {}
    for name, down_ARI in tensors.items():
        if not (name.startswith(_LLM) and name.endswith(_DOWN)):
            continue
        layer = name.removesuffix(_DOWN)
        ours = f"base_model.model.{layer.removeprefix(_LLM)}"
        up_AOR = tensors[layer + _UP]
        weights[f"{ours}.lora_A.weight"] = torch.cat([down_ARI[i] for i in indices])
        weights[f"{ours}.lora_B.weight"] = torch.cat([up_AOR[i] for i in indices], dim=1)
        if layer + _MAGNITUDE in tensors:
            (index,) = indices  # two added deltas would have no single magnitude
            weights[f"{ours}.lora_magnitude_vector"] = tensors[layer + _MAGNITUDE][index]
    return weights


def _part_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`audio.4.up.weight` and so on, and `delimiters` (4, E)."""
    projectors = {name: value for name, value in tensors.items() if name.startswith(_PROJECTORS)}
    named = {name.removeprefix(_PROJECTORS).replace(".at_rate.", "."): value for name, value in projectors.items()}
    return named | {"delimiters": tensors[_DELIMITERS]}


def _part_config(config: ModelConfig, adapters: dict[Scale, str]) -> dict[str, Any]:
    return {
        "compression": config.compression,
        "input_norm": config.projector.input_norm,
        "embedding_scale": config.embedding_scale,
        "delimiters": ["<audio>", "</audio>", "<video>", "</video>"],
        "scales": {str(scale): {"adapter": folder, **_reading(config, scale)} for scale, folder in adapters.items()},
    }


def _reading(config: ModelConfig, scale: Scale) -> dict[str, Any]:
    """How the language model's input comes about at a scale."""
    reading: dict[str, Any] = {"prompt": PROMPTS[scale.audio is not None, scale.video is not None]}
    for name, rate, rates in (
        ("audio", scale.audio, config.grid.audio_rates),
        ("video", scale.video, config.grid.video_rates),
    ):
        if rate is not None:
            shares = _shares(config, config.projector.rates.get(name, rates), rate)
            reading[name] = {"rate": rate, "projectors": {str(own): share for own, share in shares.items()}}
    return reading


def _shares(config: ModelConfig, rates: Iterable[int], rate: int) -> dict[int, float]:
    with torch.device("meta"):
        projectors = RateProjectors(rates, 1, COMPRESSORS[config.compression], (1, 1.0), config.projector)
    return projectors.shares(rate)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=_METADATA)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


_CODE = '''\
import json

import torch
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear

weights = {name: value.float() for name, value in load_file("parts.safetensors").items()}
with open("parts.json", encoding="utf-8") as file:
    parts = json.load(file)


def tokens(features, modality, reading):
    """Features (T, D) of one encoder -> (T // rate, E); an incomplete last group is dropped."""
    rate, total = reading["rate"], 0.0
    groups = features[: len(features) // rate * rate].reshape(len(features) // rate, rate, -1)
    x = groups.mean(1) if parts["compression"] == "average" else groups.flatten(1)
    if parts["input_norm"]:
        x = layer_norm(x, x.shape[-1:])
    for own, share in reading["projectors"].items():
        at = lambda name: weights[f"{modality}.{own}.{name}"]
        y = linear(linear(x, at("up.weight"), at("up.bias")).relu(), at("down.weight"), at("down.bias"))
        if f"{modality}.{own}.output_norm.weight" in weights:
            y = layer_norm(y, y.shape[-1:], at("output_norm.weight"), at("output_norm.bias"))
        total = total + share * y
    return total


def prompt_embeds(llm, tokenizer, scale, features):
    """Features {"audio": (T, D), "video": (T, D)} -> the language model's input (S, E) at a scale such as "a4v2"."""
    reading, embed = parts["scales"][scale], llm.get_input_embeddings()
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [embed(torch.tensor(start, dtype=torch.long))]
    for i, modality in enumerate(("audio", "video")):
        if modality in reading:
            opened, closed = weights["delimiters"][2 * i : 2 * i + 2].split(1)
            rows += [opened, tokens(features[modality], modality, reading[modality]), closed]
    rows.append(embed(torch.tensor(tokenizer.encode(reading["prompt"], add_special_tokens=False))))
    return torch.cat(rows)
'''


def _guide(record: Record, parts: dict[str, Any]) -> str:
    config = record.model
    llm = hub_id_of(config.llm) or config.llm
    scale, reading = next(iter(parts["scales"].items()))
    lines = ["| scale | adapter |", "| --- | --- |"]
    lines += [f"| {name} | `{each['adapter']}` |" for name, each in parts["scales"].items()]
    exact = ""
    if llm != config.llm:
        exact = (
            f' It was trained on the copy that `mtsk.checkpoints.sources.resolve("{config.llm}")` finds;\n'
            "one in another precision answers a little differently."
        )
    if config.llm_bits is not None:
        exact += f" In training its linear layers were quantised to {config.llm_bits} bits."
    scaled = ""
    if config.embedding_scale != 1:
        scaled = f"llm.get_input_embeddings().weight.data.mul_({config.embedding_scale!r})  # as in training\n"
    dora = " vLLM reads no DoRA adapters." if config.lora.variant == "dora" else ""
    return f"""# Adapters for peft

LoRA adapters of `{llm}` ({licence_of(config.llm)}), hash {record.base.get(config.llm, "not recorded")}, \
exported from a model of mtsk.{exact}

{chr(10).join(lines)}

- `{ADAPTER_CONFIG}`, `{ADAPTER_WEIGHTS}`: an adapter, as `PeftModel.from_pretrained(llm, FOLDER)` reads it.
- `{PARTS_WEIGHTS}`: the projectors, by modality and rate, and the four delimiters {" ".join(parts["delimiters"])}.
- `{PARTS_CONFIG}`: for each scale its adapter, its rates, the projectors that read them, and the prompt.

The encoders are not here: `mtsk.load(...).model.encode` gives the features of sound and lips, as the checkpoint's
`config.json` says under `audio` and `video`. The input of the language model is
`[BOS] <audio> A </audio> <video> V </video> prompt`, without what the scale lacks:

```python
{_CODE}```

The text follows, greedily, up to the end of sequence:

```python
{scaled}model = PeftModel.from_pretrained(llm, "{reading["adapter"]}")
embeds = prompt_embeds(llm, tokenizer, "{scale}", features)
ids = model.generate(inputs_embeds=embeds[None], do_sample=False, max_new_tokens=64)
```

A server that takes embeddings as prompts and LoRA adapters for each request (vLLM: `enable_prompt_embeds`, \
`enable_lora`)
gets `embeds` and the adapter of the scale.{dora}
"""
