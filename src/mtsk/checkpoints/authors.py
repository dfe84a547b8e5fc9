"""A released checkpoint of Llama-AVSR or Omni-AVSR (Cappellazzo et al., Matryoshka or single-rate) -> one of ours.

Their file holds the base models too; ours names them, so they are compared, and only what was trained is kept. Sizes
come from the weights. A `.ckpt` says with which options it was trained; a flat `.pth` does not: some have to be told.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mtsk.checkpoints import authors_weights
from mtsk.checkpoints.authors_weights import LORA, VIDEO_LORA, ProjectorWeights
from mtsk.checkpoints.sources import absolute
from mtsk.checkpoints.store import CONFIG_FILE, build_model, read_record, save_model
from mtsk.checkpoints.unpickle import load_inert
from mtsk.config import AudioEncoderConfig, AvHubertConfig, LoraConfig, ModelConfig, ProjectorConfig
from mtsk.model.prompt import PROMPTS
from mtsk.scale import Scale, ScaleGrid

_MODALITIES = ("audio", "video")
_PARTS = ("llm.", "audio_encoder.", "video_encoder.", "audio_proj.", "video_proj.", "prompt_")
_PROJECTOR = re.compile(r"(audio|video)_proj\.(?:(\d+)\.)?([023])\.(weight|bias)")
_SOUND_WIDTH, _LIPS_WIDTH = "audio_encoder.layer_norm.weight", "video_encoder.encoder.layer_norm.weight"
_LIPS_SCALE = 2.0  # of the lip encoder's adapters; fixed in their code
_CONVERTED = "converted"  # key of our record
_TASKS = {"audio": (True, False), "video": (False, True), "audiovisual": (True, True)}


@dataclass(frozen=True)
class Told:
    """What a user says about a file, which wins over what the file says.

    Args:
        llm: base model, see `mtsk.checkpoints.sources.resolve`; also the other two. Local folders are recorded by their
            whole path.
        whisper: base model of the sound, with its encoder.
        avhubert: folder that `mtsk convert avhubert` wrote.
        scales: such as a4v2; the rates of a modality in the order of its projectors.
        alpha: the option of training, of which the delta's scale is alpha / rank.
    """

    llm: str | None = None
    whisper: str | None = None
    avhubert: str | None = None
    scales: Sequence[str] = ()
    alpha: float | None = None


def convert(source: Path, target: Path, told: Told, *, kind: str = "llama-avsr") -> ModelConfig:
    """Writes a checkpoint folder that `mtsk.load` opens. Nothing that the file holds is run.

    Args:
        target: folder, made if missing; what an earlier conversion wrote there is replaced.
        kind: whose checkpoint it is, for the record.

    Returns:
        The model's configuration.

    Raises:
        ValueError: naming the file, if it is something else, of a variant that is not supported, does not stand on the
            base models that were named, or leaves open what has to be told; naming the folder, if it is in use.
    """
    _check_target(target)
    state, options = _read(source)
    try:
        config, rates = _configure(state, options, told)
        model = build_model(config)
        ratio = authors_weights.compare_bases(model, state)
        model.config = replace(config, embedding_scale=ratio)
        authors_weights.copy_trained(model, state, _projectors(state), rates)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    precision = state["llm.model.embed_tokens.weight"].dtype
    save_model(model, target, training={_CONVERTED: kind, "recipe": f"{kind}, from {source.name}"}, dtype=precision)
    return model.config


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by their names without prefix, and the options of training, none in a flat file."""
    content = load_inert(source)
    whole = content if isinstance(content, dict) else {}
    state, prefix = (whole["state_dict"], "model.") if isinstance(whole.get("state_dict"), dict) else (whole, "")
    weights = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if "llm.model.embed_tokens.weight" not in weights or not any(_PROJECTOR.fullmatch(name) for name in weights):
        raise ValueError(
            f"{source} is no checkpoint of Llama-AVSR or Omni-AVSR: it has no language model or projectors"
        )
    odd = sorted(name for name in weights if not name.startswith(_PARTS))
    if odd:
        raise ValueError(f"{source} is of a variant that is not supported: it has {len(odd)} weights such as {odd[0]}")
    options = whole.get("hyper_parameters") if prefix else {}
    return weights, options if isinstance(options, dict) else dict(getattr(options, "__dict__", {}))


def _check_target(target: Path) -> None:
    """Refuses to write over anything but an earlier conversion."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a folder to write into is needed")
    if (target / CONFIG_FILE).exists():
        try:
            ours = _CONVERTED in read_record(target).training
        except ValueError:
            ours = False
        if not ours:
            raise ValueError(f"{target} has a {CONFIG_FILE} of something else; give a new folder")


def _projectors(state: Mapping[str, Tensor]) -> dict[str, list[ProjectorWeights]]:
    """Modality -> its projectors in their order, each a table such as `0.weight`: tensor."""
    found: dict[str, dict[int, ProjectorWeights]] = {}
    for name, value in state.items():
        match = _PROJECTOR.fullmatch(name)
        if match is not None:
            modality, index, layer, part = match.groups()
            found.setdefault(modality, {}).setdefault(int(index or 0), {})[f"{layer}.{part}"] = value
    needed = {"0.weight", "0.bias", "2.weight", "2.bias"}
    for modality, numbered in found.items():
        whole = all(set(one) in (needed, {*needed, "3.weight", "3.bias"}) for one in numbered.values())
        if not whole or sorted(numbered) != list(range(len(numbered))):
            raise ValueError(f"its projectors of {modality} are not whole")
    return {
        modality: [found[modality][i] for i in sorted(found[modality])] for modality in _MODALITIES if modality in found
    }


# From the weights and the options to our configuration.


def _configure(
    state: Mapping[str, Tensor], options: Mapping[str, Any], told: Told
) -> tuple[ModelConfig, dict[str, list[int]]]:
    """Also the rate of each projector, by modality."""
    projectors = _projectors(state)
    widths = {"audio": _width(state, _SOUND_WIDTH), "video": _width(state, _LIPS_WIDTH)}
    sources: dict[str, Any] = {
        "--llm": told.llm or options.get("llm_model"),
        "--whisper": told.whisper or options.get("audio_encoder_name") if "audio" in projectors else "",
        "--avhubert": told.avhubert if "video" in projectors else "",
        "--alpha": told.alpha if told.alpha is not None else options.get("alpha"),
    }
    stacked = _stacked_rates(projectors, widths)
    rates = _rates(projectors, stacked, options, told)
    missing = [option for option, value in sources.items() if value is None] + ([] if rates else ["--scales"])
    if missing:
        raise ValueError(f"the file does not say everything; missing is {', '.join(missing)}")
    scales = [*_told_scales(told)] or _trained_scales(state, rates)
    _check_prompts(scales, options)
    lips_rank = next(
        (len(value) for name, value in state.items() if VIDEO_LORA.fullmatch(name) and "down" in name), None
    )
    llm, whisper, avhubert = (absolute(str(sources[name])) for name in ("--llm", "--whisper", "--avhubert"))
    audio = AudioEncoderConfig(whisper, window="30s", normalize=True, cut="authors")
    video = AvHubertConfig(avhubert, lora_rank=lips_rank, lora_alpha=_LIPS_SCALE * (lips_rank or 1))
    config = ModelConfig(
        scales=ScaleGrid(tuple(scales)).scales,
        llm=llm,
        audio=audio if "audio" in projectors else None,
        video=video if "video" in projectors else None,
        compression="stack" if stacked else "average",
        projector=_projector_config(projectors, rates),
        lora=_lora_config(state, options, float(sources["--alpha"])),
        leading_space=False,
    )
    return config, {modality: rates[modality][: len(projectors[modality])] for modality in projectors}


def _width(state: Mapping[str, Tensor], name: str) -> int:
    return state[name].shape[0] if name in state else 0


def _stacked_rates(
    projectors: Mapping[str, Sequence[ProjectorWeights]], widths: Mapping[str, int]
) -> dict[str, list[int]]:
    """The rates of stacked features, which make projectors wider; empty if none is."""
    rates = {}
    for modality, ones in projectors.items():
        inputs = [one["0.weight"].shape[1] for one in ones]
        if not widths[modality] or any(size % widths[modality] for size in inputs):
            raise ValueError(f"its projectors of {modality} do not fit an encoder of width {widths[modality]}")
        rates[modality] = [size // widths[modality] for size in inputs]
    return rates if any(rate > 1 for each in rates.values() for rate in each) else {}


def _told_scales(told: Told) -> list[Scale]:
    return [scale for text in told.scales for scale in Scale.parse_ranges(text)]


def _rates(
    projectors: Mapping[str, Sequence[ProjectorWeights]],
    stacked: Mapping[str, list[int]],
    options: Mapping[str, Any],
    told: Told,
) -> dict[str, list[int]]:
    """Modality -> the rates in the order of the projectors; empty if nobody says."""
    scales = _told_scales(told)
    rates: dict[str, list[int]] = {}
    for modality, ones in projectors.items():
        given = [scale.rate(modality[0]) for scale in scales]
        named = list(dict.fromkeys(rate for rate in given if rate is not None))
        trained = options.get(f"downsample_ratio_{modality}")
        listed = [] if trained is None else list(trained) if isinstance(trained, (list, tuple)) else [trained]
        rates[modality] = named or [int(rate) for rate in listed] or stacked.get(modality, [])
        if not rates[modality]:
            return {}
        if len(ones) not in (1, len(rates[modality])) or stacked.get(modality, rates[modality]) != rates[modality]:
            told_rates = ", ".join(map(str, rates[modality]))
            found = f"at rates {stacked[modality]}" if stacked else "one for each rate, or one for all"
            raise ValueError(f"it has {len(ones)} projectors of {modality}, {found}; the rates given are {told_rates}")
    return rates


def _trained_scales(state: Mapping[str, Tensor], rates: Mapping[str, list[int]]) -> list[Scale]:
    """Every combination of the modalities' rates; in Omni-AVSR, which has a prompt of each task, each alone too."""
    audio, video = rates.get("audio", []), rates.get("video", [])
    every: list[Sequence[int | None]] = [audio or (None,), video or (None,)]
    pairs = [Scale(*pair) for pair in itertools.product(*every)]
    tasks = {match[4] for match in map(LORA.fullmatch, state) if match is not None}
    omni = any(name.startswith("prompt_") for name in state) or "audiovisual" in tasks
    return [*map(Scale, audio), *(Scale(video=rate) for rate in video), *pairs] if omni else pairs


def _check_prompts(scales: Iterable[Scale], options: Mapping[str, Any]) -> None:
    for task, key in _TASKS.items():
        used = any((scale.audio is not None, scale.video is not None) == key for scale in scales)
        found = options.get(f"prompt_{task}", PROMPTS[key])
        if used and found != PROMPTS[key]:
            raise ValueError(f"it was trained with the prompt {found!r}; only {PROMPTS[key]!r} is supported")


def _projector_config(
    projectors: Mapping[str, Sequence[ProjectorWeights]], rates: Mapping[str, list[int]]
) -> ProjectorConfig:
    hidden = {one["0.weight"].shape[0] for ones in projectors.values() for one in ones}
    norms = {modality: {"3.weight" in one for one in ones} for modality, ones in projectors.items()}
    if len(hidden) != 1 or any(len(each) != 1 for each in norms.values()):
        raise ValueError("its projectors differ in their hidden width, or only some rates have a LayerNorm")
    # Theirs say what is true: where the option for a LayerNorm had no effect, the weights have none.
    has_norm = {modality: each.pop() for modality, each in norms.items()}
    output_norm = has_norm.get("audio", has_norm.get("video", False))
    one_for_all = {m: (rates[m][0],) if len(ones) < len(rates[m]) else None for m, ones in projectors.items()}
    return ProjectorConfig(
        hidden=hidden.pop(),
        input_norm=False,
        output_norm=output_norm,
        input_dropout=0.0,
        audio_rates=one_for_all.get("audio"),
        video_rates=one_for_all.get("video"),
        video_output_norm=None if has_norm.get("video", output_norm) == output_norm else not output_norm,
    )


def _lora_config(state: Mapping[str, Tensor], options: Mapping[str, Any], alpha: float) -> LoraConfig:
    """Their `rank` is what the hidden width is divided by, and the scale is alpha / that."""
    found = {match: state[match[0]] for match in map(LORA.fullmatch, state) if match is not None}
    ranks = {value.shape[0] if match[2] == "down" else value.shape[1] for match, value in found.items()}
    if len(ranks) != 1:
        raise ValueError(f"its language model has {'adapters of unlike rank' if ranks else 'no adapters'}")
    rank, hidden = ranks.pop(), state["llm.model.embed_tokens.weight"].shape[1]
    divisor = options.get("rank", options.get("reduction_lora")) or round(hidden / rank)
    if abs(hidden / divisor - rank) >= 1:
        raise ValueError(
            f"its options say that the width {hidden} is divided by {divisor}, but its adapters have {rank}"
        )
    tasks, shared = any(match[4] for match in found), any(match[5] for match in found)
    strategy = "ms" if not tasks else "st" if shared else "t"
    return LoraConfig(strategy, rank=rank, alpha=alpha / divisor * rank, dropout=0.0)  # type: ignore[arg-type]
