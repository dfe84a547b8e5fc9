"""The weights of a released checkpoint of Llama-AVSR or Omni-AVSR in a model of ours: names, and checks of the rest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtsk.checkpoints.avhubert import weights_from_fairseq
from mtsk.model.adapters import adapter_table
from mtsk.model.avhubert import AvHubertEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.prompt import NUM_DELIMITERS

ProjectorWeights = dict[str, Tensor]
# Groups: layer, down or up, Q or V, task, shared.
LORA = re.compile(
    r"llm\.model\.layers\.(\d+)\.self_attn\.lora_(down|up)_([QV])(?:\.(audio|video|audiovisual)|(_shared))?\.weight"
)
VIDEO_LORA = re.compile(r"video_encoder\.encoder\.layers\.(\d+)\.self_attn\.lora_(down|up)_([QV])\.weight")
_EMBEDDING, _HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
_NUM_ADDED = NUM_DELIMITERS + 1  # tokens that they add at the end of the vocabulary: <pad>, then the delimiters
_TOLERANCE = 0.02  # relative, of a whole tensor: room for bfloat16, and for averages of several epochs in it
_LAYERS = {"0": "up", "2": "down", "3": "output_norm"}  # of a projector, by their number
_LETTERS = {"audio": "a", "video": "v", "audiovisual": "av"}


@torch.no_grad()
def compare_bases(model: AvsrModel, state: Mapping[str, Tensor]) -> float:
    """Checks that the file stands on the base models of ours.

    Returns:
        What the token embeddings are multiplied by: 1, unless the authors' script averaged several epochs, which counts
        tied embeddings twice.

    Raises:
        ValueError: naming a weight that is missing or another.
    """
    ratio = _embedding_ratio(model.embedding_VE, state[_EMBEDDING])
    tied = model.llm.get_output_embeddings().weight is model.embedding_VE
    known = {_EMBEDDING, *([_HEAD] if tied else [])}
    ours = {f"llm.{name.replace('.base.', '.')}": value for name, value in model.llm.state_dict().items()}
    adapters = re.compile(r"\.(down_ARI|up_AOR)$")
    _compare({name: v for name, v in ours.items() if name not in known and not adapters.search(name)}, state, "--llm")
    if model.audio_encoder is not None:
        whisper = {f"audio_encoder.{name}": v for name, v in model.audio_encoder.encoder.state_dict().items()}
        _compare(whisper, state, "--whisper")
    if isinstance(model.video_encoder, AvHubertEncoder):
        prefix, trained = "video_encoder.", model.video_encoder.trained_parameters()
        published = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        published = {n: v for n, v in published.items() if not VIDEO_LORA.fullmatch(prefix + n)}
        lips = {prefix + n: v for n, v in model.video_encoder.state_dict().items() if n not in trained}
        _compare(lips, {prefix + n: v for n, v in weights_from_fairseq(published).items()}, "--avhubert")
    _check_prompts(model, state)
    return ratio


def _compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], option: str) -> None:
    for name, value in ours.items():
        other = theirs.get(name)
        if other is None:
            raise ValueError(f"it has no {name}, which the model of {option} has")
        if name == _HEAD:  # they resize it to their vocabulary
            value, other = _common(value, other)
        if value.shape != other.shape:
            raise ValueError(
                f"its {name} has shape {tuple(other.shape)}, in the model of {option} {tuple(value.shape)}"
            )
        distance = float((value.float() - other.float()).norm()) if value.is_floating_point() else 0.0
        if distance > _TOLERANCE * float(value.float().norm()):
            raise ValueError(f"its {name} is not that of the model of {option}: it stands on another base model")


def _common(ours_VE: Tensor, theirs_VE: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ordinary tokens; base models often have some unused ones more."""
    num_rows = min(len(ours_VE), len(theirs_VE) - _NUM_ADDED)
    return ours_VE[:num_rows], theirs_VE[:num_rows]


def _embedding_ratio(ours_VE: Tensor, theirs_VE: Tensor) -> float:
    if ours_VE.shape[1:] != theirs_VE.shape[1:] or not 0 <= len(theirs_VE) - _NUM_ADDED <= len(ours_VE):
        raise ValueError(
            f"its token embeddings have shape {tuple(theirs_VE.shape)}; the model of --llm has {tuple(ours_VE.shape)}, "
            f"to which {_NUM_ADDED} tokens are added"
        )
    base, found = (rows.float().flatten() for rows in _common(ours_VE, theirs_VE))
    ratio = float(torch.dot(base, found) / torch.dot(base, base))
    if float((found - ratio * base).norm()) > _TOLERANCE * float(found.norm()):
        raise ValueError("its token embeddings are not those of the model of --llm: it stands on another base model")
    if abs(ratio - 1) < 1e-2:
        return 1.0
    warnings.warn(
        f"the token embeddings are {ratio:.4g} times those of the base model, as the authors' averaging of epochs "
        "makes them; they are used so, as the file was evaluated",
        stacklevel=2,
    )
    return ratio


def _check_prompts(model: AvsrModel, state: Mapping[str, Tensor]) -> None:
    """Omni-AVSR keeps the embedded prompts."""
    for task, letters in _LETTERS.items():
        kept = state.get(f"prompt_{task}")
        if kept is not None:
            ids = model.prompts.prompt(audio="a" in letters, video="v" in letters)
            rows = model.embedding_VE[ids].float()
            if kept.shape[1:] != rows.shape or torch.cosine_similarity(kept[0].float(), rows).min() < 1 - _TOLERANCE:
                raise ValueError(f"it was trained with another prompt for the task {task} than ours")


@torch.no_grad()
def copy_trained(
    model: AvsrModel,
    state: Mapping[str, Tensor],
    projectors: Mapping[str, Sequence[ProjectorWeights]],
    rates: Mapping[str, Sequence[int]],
) -> None:
    """Copies adapters, projectors and delimiters into the model.

    Args:
        projectors: by modality, in their order.
        rates: of each of them.

    Raises:
        ValueError: naming a weight that is missing, too much, or of another shape.
    """
    _copy_adapters(model, state)
    _copy_lips(model, state)
    for modality, at in model.rate_projectors().items():
        for rate, weights in zip(rates[modality], projectors[modality], strict=True):
            for name, value in weights.items():
                layer, part = name.split(".")
                own = at.at_rate[str(rate)].get_submodule(_LAYERS[layer]).get_parameter(part)
                _put(own, value, f"{modality}_proj {name}")
    _put(model.fusion.delimiters_4E, state[_EMBEDDING][-NUM_DELIMITERS:], _EMBEDDING)


def _copy_adapters(model: AvsrModel, state: Mapping[str, Tensor]) -> None:
    table = adapter_table(model.config.lora.strategy, model.grid)
    numbers = {scale.task: used[-1] for scale, used in table.items()}
    wanted = {f"layers.{i}" for i in range(model.llm.config.num_hidden_layers)}
    for match in filter(None, map(LORA.fullmatch, state)):
        layer, side, letter, task, _ = match.groups()
        number = 0 if task is None else numbers.get(_LETTERS[task])
        if number is None:  # a task that none of the scales has
            continue
        name = f"layers.{layer}.self_attn.{letter.lower()}_proj"
        adapter = model.adapters.layers.get(name)
        if adapter is None:
            raise ValueError(f"it has {match[0]}, but the model of --llm has no {name}")
        wanted.discard(f"layers.{layer}")
        _put((adapter.down_ARI if side == "down" else adapter.up_AOR)[number], state[match[0]], match[0])
    _require_all(wanted, "adapter of the language model")


def _copy_lips(model: AvsrModel, state: Mapping[str, Tensor]) -> None:
    if not isinstance(model.video_encoder, AvHubertEncoder):
        return
    trained = model.video_encoder.trained_parameters()
    wanted = set(trained)
    for match in filter(None, map(VIDEO_LORA.fullmatch, state)):
        layer, side, letter = match.groups()
        part = "down_RD" if side == "down" else "up_DR"
        name = f"encoder.layers.{layer}.self_attn.{letter.lower()}_lora.{part}"
        if name not in trained:
            raise ValueError(f"it has {match[0]}, but the model of --avhubert has no such layer")
        _put(trained[name], state[match[0]], match[0])
        wanted.discard(name)
    _require_all(wanted, "adapter of the lip encoder")


def _put(ours: Tensor | nn.Parameter, theirs: Tensor, name: str) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"{name} has shape {tuple(theirs.shape)}; {tuple(ours.shape)} is needed")
    ours.copy_(theirs)


def _require_all(missing: Iterable[str], what: str) -> None:
    names = sorted(missing)
    if names:
        raise ValueError(f"it lacks {len(names)} {what}, such as of {names[0]}")
