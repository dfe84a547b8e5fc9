"""What one backward per scale costs, against one backward over the summed loss: peak memory and time of a step.

    python benchmarks/objective.py --json objective.json

The default model at the pairs {a4, a16} x {v2, v5}: its language model, projectors, adapters and prompt are real, the
encoders' features random. Each way is measured in a process of its own for memory, and all in turn in one for time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from mtsk.checkpoints.store import build_model
from mtsk.config import AudioEncoderConfig
from mtsk.model.avsr import AvsrModel, Encoded, Prediction
from mtsk.model.fusion import IGNORED, label_columns
from mtsk.recipes import get_recipe
from mtsk.scale import AUDIO_FEATURE_RATE_HZ, VIDEO_FEATURE_RATE_HZ, Scale, ScaleGrid
from mtsk.training.draws import sandwich
from mtsk.training.objective import backward_scales
from mtsk.training.run import make_accelerator
from mtsk.types import Features

GRID = ScaleGrid(tuple(Scale(audio, video) for audio in (4, 16) for video in (2, 5)))
LARGEST = max(GRID, key=lambda scale: scale.tokens_per_second)
TEXT = "place green with r nine again please and set the white one in by g two now"
WORDS_PER_SECOND = 2.5

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Weights = Mapping[Scale, float]
Backward = Callable[[AvsrModel, Encoded, Sequence[str], Weights, Accelerator], Any]


@dataclass(frozen=True)
class Settings:
    """What is measured. Sources are names or folders of base weights; the clock `processor` counts this process's own
    time on the processor, for a machine that does something else as well."""

    rows: int = 4
    time_rows: int = 1
    duration_s: float = 10.0
    repeats: int = 5
    llm: str = "smollm2-135m-instruct"
    audio: str = "whisper-base"
    clock: str = "wall"


def backward_summed(
    model: AvsrModel, encoded: Encoded, texts: Sequence[str], weights: Weights, accelerator: Accelerator
) -> None:
    """The plain way: the forwards of all scales, then one backward over the mean of their losses."""
    losses = []
    for scale, weight in weights.items():
        with accelerator.autocast():
            prediction = model(encoded, [scale] * len(texts), texts)
        logits_NV = prediction.logits_BLV.flatten(0, 1).float()
        losses.append(
            weight * functional.cross_entropy(logits_NV, prediction.labels_BL.flatten(), ignore_index=IGNORED)
        )
    accelerator.backward(torch.stack(losses).mean())


class EverywhereModel(AvsrModel):
    """The model with logits at every position, as a language model of transformers computes them."""

    def forward(self, encoded: Encoded, scales: Sequence[Scale], texts: Sequence[str]) -> Prediction:
        """As in `AvsrModel`; positions before the text are not learned."""
        targets = [self.prompts.target(text) for text in texts]
        inputs = self.embed(encoded, scales, [target[:-1] for target in targets])
        labels_BL = label_columns(targets, self.device)
        with self.select(scales):
            logits_BSV = self.llm(
                inputs_embeds=inputs.embeds_BSE,
                attention_mask=inputs.mask_BS,
                position_ids=inputs.positions_BS,
                use_cache=False,
            ).logits
        num_before = logits_BSV.shape[1] - labels_BL.shape[1]
        return Prediction(logits_BSV, functional.pad(labels_BL, (num_before, 0), value=IGNORED))


@dataclass(frozen=True)
class Way:
    """A way to get a step's gradients."""

    backward: Backward
    scales: tuple[Scale, ...] = GRID.scales
    everywhere: bool = False


PER_SCALE, SUMMED, EVERYWHERE = "one backward per scale", "summed loss", "one backward per scale, logits everywhere"
ALONE = {scale: f"{scale} alone" for scale in GRID}
WAYS = {
    ALONE[LARGEST]: Way(backward_scales, (LARGEST,)),
    PER_SCALE: Way(backward_scales),
    SUMMED: Way(backward_summed),
    EVERYWHERE: Way(backward_scales, everywhere=True),
}
TIMED = WAYS | {name: Way(backward_scales, (scale,)) for scale, name in ALONE.items()}


class Bench:
    """The model on its device, and a batch.

    Args:
        settings: of the base weights and the batch.
        rows: of the batch.
    """

    def __init__(self, settings: Settings, rows: int) -> None:
        self.accelerator = make_accelerator()
        self._clock = settings.clock
        torch.manual_seed(0)
        config = dataclasses.replace(
            get_recipe("grid-s1").model, scales=GRID.scales, llm=settings.llm, audio=AudioEncoderConfig(settings.audio)
        )
        self.model = build_model(config).to(self.accelerator.device)
        for encoder in (self.model.audio_encoder, self.model.video_encoder):
            assert encoder is not None
            encoder.requires_grad_(False)
        if self.device.type == "cpu":  # as in training
            self.model.llm.set_attn_implementation("eager")
        for layer in self.model.adapters.layers.values():  # they start at zero, where half of their gradients are too
            torch.nn.init.normal_(layer.up_AOR, std=0.01)
        self.model.train()
        num_words = max(1, round(settings.duration_s * WORDS_PER_SECOND))
        words = TEXT.split() * (num_words + rows)
        self.texts = [" ".join(words[row : row + num_words]) for row in range(rows)]
        self.encoded = Encoded(
            self._features(self.model.audio_encoder, rows, round(settings.duration_s * AUDIO_FEATURE_RATE_HZ)),
            self._features(self.model.video_encoder, rows, round(settings.duration_s * VIDEO_FEATURE_RATE_HZ)),
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def _features(self, encoder: Any, rows: int, steps: int) -> Features:
        values_BTD = torch.randn(rows, steps, encoder.dim, device=self.device)
        return Features(values_BTD, torch.full((rows,), steps, device=self.device))

    def step(self, way: Way, seed: int = 0) -> float:
        """Adds up the gradients of one step from none; returns the seconds that it took. One seed, one dropout."""
        clock = CLOCKS[self._clock]
        self.model.__class__ = EverywhereModel if way.everywhere else AvsrModel
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        self._wait()
        start_s = clock()
        way.backward(self.model, self.encoded, self.texts, dict.fromkeys(way.scales, 1.0), self.accelerator)
        self._wait()
        return clock() - start_s

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def gradient(self) -> Tensor:
        """All gradients of the last step, flat."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def held_mib(self) -> float:
        """Weights, buffers and features, which stay through a step."""
        assert self.encoded.audio is not None
        assert self.encoded.video is not None
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [self.encoded.audio.values_BTD, self.encoded.video.values_BTD]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()) / 2**20

    def peak_mib(self, way: Way) -> float:
        """The most that the allocator holds during a step, beyond what it held before."""
        if self.device.type == "cuda":
            self.step(way)  # what libraries allocate once is no part of a step
            self.model.zero_grad(set_to_none=True)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step(way)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        if self.device.type != "cpu":
            raise ValueError(f"memory is measured on the processor and on CUDA, not on {self.device.type}")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.step(way)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiled.export_chrome_trace(str(path))
            events = json.loads(path.read_bytes())["traceEvents"]
        changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
        held = np.cumsum([num_bytes for _, num_bytes in sorted(changes, key=lambda change: change[0])])
        return float(held.max()) / 2**20


def measure_memory(name: str, settings: Settings) -> dict[str, float]:
    """Peak of a step, and what is held anyway, in MiB."""
    bench = Bench(settings, settings.rows)
    return {"step_mib": bench.peak_mib(WAYS[name]), "held_mib": bench.held_mib()}


def measure_time(settings: Settings) -> dict[str, Any]:
    """Seconds of a step of every way, in turn; the first round is discarded."""
    bench = Bench(settings, settings.time_rows)
    gradients: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    for repeat in range(settings.repeats + 1):
        names = list(TIMED) if repeat % 2 else list(TIMED)[::-1]  # so that no way always follows the same one
        for name in names:
            took_s = bench.step(TIMED[name], seed=repeat)
            if repeat:
                seconds[name].append(took_s)
            elif name in (PER_SCALE, SUMMED):
                gradients[name] = bench.gradient()
    difference = (gradients[PER_SCALE] - gradients[SUMMED]).norm() / gradients[SUMMED].norm()
    return {"seconds": seconds, "gradient_difference": float(difference), "about": _about(bench)}


def _about(bench: Bench) -> dict[str, Any]:
    """Hardware, precision, versions."""
    hardware = platform.processor() or platform.machine()
    if bench.device.type == "cuda":
        hardware = torch.cuda.get_device_name()
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        hardware = names[0] if names else hardware
    return {
        "hardware": hardware,
        "device": bench.device.type,
        "threads": torch.get_num_threads(),
        "weights": str(next(bench.model.parameters()).dtype).removeprefix("torch."),
        "autocast": bench.accelerator.mixed_precision,
        "attention": bench.model.llm.config._attn_implementation,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "transformers", "accelerate", "mtsk")},
        "tokens": {str(scale): bench.encoded.num_tokens(0, scale) for scale in GRID},
        "text_tokens": max(len(bench.model.prompts.target(text)) for text in bench.texts),
    }


def report(memory: Mapping[str, Mapping[str, float]], timed: Mapping[str, Any], settings: Settings) -> str:
    """Markdown: what it was measured on, and three tables."""
    about = timed["about"]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    pairs = ", ".join(f"{scale} {count}" for scale, count in about["tokens"].items())
    lines = [
        f"{about['hardware']} ({about['device']}, {about['threads']} threads); weights {about['weights']}, autocast "
        f"{about['autocast']}, {about['attention']} attention; Python {about['python']}, {versions}. {settings.llm}, "
        f"clips of {settings.duration_s:g} s, media tokens of a clip: {pairs}; text tokens: {about['text_tokens']}.",
        "",
        f"| peak memory of a step, {settings.rows} clips | MiB | of {ALONE[LARGEST]} | of the summed loss "
        "| MiB with weights | of the summed loss |",
        "|---|---|---|---|---|---|",
    ]
    steps = {name: each["step_mib"] for name, each in memory.items()}
    totals = {name: each["step_mib"] + each["held_mib"] for name, each in memory.items()}
    for name in memory:
        ratios = steps[name] / steps[ALONE[LARGEST]], steps[name] / steps[SUMMED]
        lines.append(
            f"| {name} | {steps[name]:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {totals[name]:.0f} "
            f"| {totals[name] / totals[SUMMED]:.2f} |"
        )
    lines += [
        "",
        f"| time of a step ({settings.clock}), {settings.time_rows} clips | s | of the summed loss (least, most) |",
        "|---|---|---|",
    ]
    seconds: dict[str, list[float]] = {name: timed["seconds"][name] for name in WAYS if name != ALONE[LARGEST]}
    # A step on drawn pairs is the steps of these pairs, one after the other.
    alone = {scale: timed["seconds"][name] for scale, name in ALONE.items()}
    drawn = sandwich(GRID, 2, np.random.default_rng(0))
    seconds["one random pair, mean of the four"] = [statistics.mean(each) for each in zip(*alone.values(), strict=True)]
    seconds[f"sandwich, {drawn[0]} and {drawn[1]}"] = [
        sum(each) for each in zip(*(alone[scale] for scale in drawn), strict=True)
    ]
    for name, each in seconds.items():
        ratios_of_rounds = [own / summed for own, summed in zip(each, timed["seconds"][SUMMED], strict=True)]
        spread = f"{min(ratios_of_rounds):.2f}, {max(ratios_of_rounds):.2f}"
        lines.append(
            f"| {name} | {statistics.median(each):.2f} | {statistics.median(ratios_of_rounds):.2f} ({spread}) |"
        )
    lines += [
        "",
        f"Medians of {settings.repeats} rounds after one that is discarded. Between one backward per scale and the "
        f"summed loss the gradients differ by {timed['gradient_difference']:.1e} of their norm.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    for option in dataclasses.fields(Settings):
        name = f"--{option.name.replace('_', '-')}"
        choices = list(CLOCKS) if option.name == "clock" else None
        kind = type(option.default)
        parser.add_argument(name, type=kind, default=option.default, choices=choices, help="default: %(default)s")
    values = vars(parser.parse_args(arguments))
    path: Path | None = values.pop("json")
    settings = Settings(**values)
    context = multiprocessing.get_context("spawn")
    memory = {}
    for name in WAYS:
        with context.Pool(1) as pool:
            memory[name] = pool.apply(measure_memory, (name, settings))
    timed = measure_time(settings)
    print(report(memory, timed, settings))
    if path is not None:
        figures = {"settings": dataclasses.asdict(settings), "memory": memory, **timed}
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
