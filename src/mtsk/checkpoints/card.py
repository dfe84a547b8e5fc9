"""The model card of a shared checkpoint: what it is, how well it does, on what it stands, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mtsk.checkpoints.store import Record
from mtsk.config import AvHubertConfig
from mtsk.scale import Scale

WER_FILE = "wer.json"
MARK = "<!-- written by mtsk, and written anew when the model is shared again -->"
_TAGS = ["mtsk", "audio-visual-speech-recognition", "lip-reading", "matryoshka"]
_TASK = "automatic-speech-recognition"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_EMBEDDED_IDS = {
    "whisper-base": "openai/whisper-base",
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
_NON_COMMERCIAL = "AV-HuBERT licence of Meta, non-commercial"
# Hub id -> licence, the first that fits.
_LICENCES = {
    "openai/whisper-*": "MIT",
    "HuggingFaceTB/SmolLM2-*": "Apache-2.0",
    "meta-llama/Llama-3.2-*": "Llama 3.2 Community License",
    "meta-llama/Llama-3.1-*": "Llama 3.1 Community License",
}
_STAGES = {"video_encoder": "lip encoder", "warm_start": "projectors", "joint": "adapters, projectors, delimiters"}


@dataclass(frozen=True)
class Card:
    """What a checkpoint does not know of itself.

    Attributes:
        title: name of the model, on the hub its id.
        license: of the trained weights, as the hub writes it, such as `cc-by-4.0`.
        wer: a `wer.json` of `mtsk evaluate`, or the folder that has it.
        data: what the error rates were measured on.
    """

    title: str
    license: str | None = None
    wer: Path | None = None
    data: str | None = None

    def text(self, record: Record) -> str:
        """The README.md of a checkpoint.

        Raises:
            ValueError: if there is no such `wer.json`, it is none of ours, or `data` is told without one.
        """
        if self.data is not None and self.wer is None:
            raise ValueError(f"data={self.data!r} says what error rates were measured on; give them too, as wer=FOLDER")
        rows = [] if self.wer is None else _read_wer(self.wer)
        parts = (
            f"# {self.title}",
            _what(record),
            _how_to_load(self.title, record),
            _errors(rows, self.data),
            _parts(record),
            _training(record),
            _licence(self.license, record),
        )
        head = f"---\n{self._metadata(record, rows).to_yaml()}\n---\n{MARK}\n\n"
        return head + "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self, record: Record, rows: Sequence[dict[str, Any]]) -> ModelCardData:
        name = self.data or "not named"
        results = [
            EvalResult(
                task_type=_TASK,
                dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
                dataset_name=name,
                metric_type="wer",
                metric_name=f"WER at {row['scale']}, {_noise(row['snr_db'])}",
                metric_value=round(100 * row["wer"], 2),
            )
            for row in rows
            if _is_scale(row["scale"])
        ]
        bases = [hub_id for hub_id in map(hub_id_of, record.base) if hub_id is not None]
        return ModelCardData(
            license=self.license,
            library_name="mtsk",
            pipeline_tag=_TASK,
            tags=_TAGS,
            base_model=bases or None,
            model_name=self.title,
            eval_results=results or None,
        )


def is_hub_id(source: str) -> bool:
    """Whether a text has the form owner/name."""
    return _HUB_ID.fullmatch(source) is not None


def hub_id_of(source: str) -> str | None:
    """Where base weights are on the Hugging Face hub; None for a local folder."""
    known = _EMBEDDED_IDS.get(source)
    if known is not None:
        return known
    return source if is_hub_id(source) and not Path(source).is_dir() else None


def has_avhubert(record: Record) -> bool:
    """Whether the lips are read by AV-HuBERT."""
    return isinstance(record.model.video, AvHubertConfig) and bool(record.model.grid.video_rates)


def _what(record: Record) -> str:
    grid = record.model.grid
    media = " and ".join(name for name, rates in (("sound", grid.audio_rates), ("lips", grid.video_rates)) if rates)
    return (
        f"Elastic speech recognition from {media}, for mtsk: one model, whose compression is chosen for each request.\n"
        f"Its scales: {grid}. `a4` stands for 4 features of sound (50 a second) that become one token of the language\n"
        "model, `v2` for 2 of lips (25 a second), `a4v2` for both."
    )


def _how_to_load(title: str, record: Record) -> str:
    # The grid lists finer rates first: the finest of those with the most modalities.
    scale = max(record.model.grid, key=lambda each: len(each.parts))
    return (
        "## How to load\n\n```python\nimport mtsk\n\n"
        f'model = mtsk.load("{title}")  # or a folder with these files\n'
        f'print(model.transcribe("clip.mp4", scale="{scale}").text)\n```\n\n'
        "`config.json` has all settings, and names the base weights with their hashes; `model.safetensors` has what\n"
        "was trained. The base weights are fetched where they are missing; others than these are refused, or, of\n"
        "those that mtsk has a copy of, used with a warning."
    )


def _errors(rows: Sequence[dict[str, Any]], data: str | None) -> str:
    if not rows:
        return ""
    noises = list(dict.fromkeys(row["snr_db"] for row in rows))
    cells = {(row["scale"], row["snr_db"]): row for row in rows}
    lines = [
        "## Word error rate",
        "",
        f"In %, with 95 % intervals, on {data or 'data that the author does not name'}: "
        f"{rows[0]['utterances']} utterances, {rows[0]['words']} words. Noise touches the sound alone.",
        "",
        f"| scale | tokens/s | {' | '.join(map(_noise, noises))} |",
        f"| --- | ---: |{' ---: |' * len(noises)}",
    ]
    for name in dict.fromkeys(row["scale"] for row in rows):
        speed = f"{Scale.parse(name).tokens_per_second:.1f}" if _is_scale(name) else "-"
        found = [_percent(cells.get((name, noise))) for noise in noises]
        lines.append(f"| {name} | {speed} | {' | '.join(found)} |")
    return "\n".join(lines)


def _parts(record: Record) -> str:
    config = record.model
    bits = "" if config.llm_bits is None else f", quantised to {config.llm_bits} bits when loaded"
    rows = [("language model", _named(config.llm, record) + bits, licence_of(config.llm), "no")]
    if config.audio is not None and config.grid.audio_rates:
        rows.append(("audio encoder", _named(config.audio.source, record), licence_of(config.audio.source), "no"))
    if isinstance(config.video, AvHubertConfig):
        if has_avhubert(record):
            rows.append(("lip encoder", f"AV-HuBERT, {_named(config.video.source, record)}", _NON_COMMERCIAL, "no"))
    elif config.video is not None and config.grid.video_rates:
        rows.append(("lip encoder", f"compact, {config.video.width} wide", "as this model", "yes"))
    lora = config.lora
    kind = f"{lora.strategy.upper()}, rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    kind += ", DoRA" * (lora.variant == "dora") + ", rank-stabilized" * lora.rank_stabilized
    features = {"average": "averaged", "stack": "stacked"}[config.compression]
    rows.append(("projectors", f"from {features} features, {config.projector.hidden} wide", "as this model", "yes"))
    rows.append(("adapters", kind, "as this model", "yes"))
    lines = ["## Parts", "", "| part | what | licence | in these files |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _training(record: Record) -> str:
    training = record.training
    if not training:
        return "## Training\n\nNot recorded."
    lines = [f"Recipe: {training.get('recipe', 'not named')}. Seed: {training.get('seed', 'not recorded')}."]
    for key, what in _STAGES.items():
        optim = (training.get(key) or {}).get("optim")
        if optim:
            steps, lr, batch_s = optim["num_steps"], optim["lr"], optim["batch_s"]
            lines.append(f"- {what}: {steps} steps of {batch_s:g} s of recordings, learning rate {lr:g}")
    if training.get("start_from"):
        lines.append(f"- the weights it started with: those of {training['start_from']}")
    if training.get("lips_from"):
        lines.append(f"- lip encoder: taken from {training['lips_from']}")
    return "\n".join(["## Training", "", lines[0], "", *lines[1:], "", "`config.json` has every setting."])


def _licence(license: str | None, record: Record) -> str:
    own = f"Licence of the trained weights: {license}." if license else "The author states no licence of the weights."
    lines = ["## Licence", "", f"{own} The base weights are not in these files and keep their own licences, see above."]
    if has_avhubert(record):
        lines += [
            "",
            "**Not for commercial use:** the lips are read by AV-HuBERT, whose weights have a non-commercial licence. "
            "Get them from their authors, and convert them by `mtsk convert avhubert FILE FOLDER`.",
        ]
    return "\n".join(lines)


def licence_of(source: str) -> str:
    """The licence of base weights, where it is known."""
    hub_id = hub_id_of(source)
    if hub_id is None:
        return "not known"
    return next((name for pattern, name in _LICENCES.items() if fnmatch(hub_id, pattern)), "see its page on the hub")


def _named(source: str, record: Record) -> str:
    """Base weights: a link, or the last part of a folder's name; and their hash."""
    hub_id = hub_id_of(source)
    where = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"folder `{Path(source).name}`"
    if source in _EMBEDDED_IDS:
        where += f", mtsk's copy `{source}`"
    return f"{where}, hash {record.base.get(source, 'not recorded')}"


def _read_wer(path: Path) -> list[dict[str, Any]]:
    path = path / WER_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"wer={str(path)!r}: no such file; it is a folder that `mtsk evaluate` wrote, or its {WER_FILE}"
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            float(row["wer"]), float(row["low"]), float(row["high"]), int(row["words"]), int(row["utterances"])
            _noise(row["snr_db"]), str(row["scale"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no {WER_FILE} of `mtsk evaluate`: {error!r}") from error
    if not rows:
        raise ValueError(f"{path} has no error rates")
    return list(rows)


def _is_scale(name: str) -> bool:
    try:
        Scale.parse(name)
    except ValueError:
        return False
    return True


def _noise(snr_db: float | None) -> str:
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def _percent(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{100 * row['wer']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})"
