"""`mtsk info`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

import mtsk
from mtsk.checkpoints.shapes import load_cost_model, shape_model
from mtsk.checkpoints.store import WEIGHTS_FILE, base_sources, read_record
from mtsk.config import ModelConfig
from mtsk.model.cost import STAGES, paper_llm_flops, paper_num_tokens
from mtsk.recipes import RECIPES, get_recipe


def run(model: str, duration_s: float | None) -> int:
    """Prints what a checkpoint or a recipe is, and what a recording costs at each of its scales; loads no weights.

    Raises:
        ValueError: if there is no such model or recipe, or the duration is not above 0.
    """
    if duration_s is not None and duration_s <= 0:
        raise ValueError(f"--duration {duration_s:g}: more than 0 s is needed")
    config = _describe(model)
    print(f"  compression      {config.compression}")
    lora = config.lora
    kind = ("rank-stabilised " if lora.rank_stabilized else "") + lora.variant
    print(f"  adapters         {lora.strategy}, {kind} of rank {lora.rank} on {', '.join(lora.targets)}")
    counts = shape_model(config).num_trained()
    print(f"  trained          {sum(counts.values()) / 1e6:.2f} M: " + ", ".join(f"{n} {p}" for p, n in counts.items()))
    print("  scale    tokens/s")
    for scale in config.grid:
        print(f"  {scale!s:<8} {scale.tokens_per_second:7.1f}")
    if duration_s is not None:
        _print_costs(config, duration_s)
    return 0


def _describe(model: str) -> ModelConfig:
    """Prints what is special to a checkpoint, or to a recipe; a name that stands for both is the checkpoint's."""
    try:
        return _describe_checkpoint(mtsk.model_folder(model))
    except ValueError:
        if model not in RECIPES:
            raise
    config = get_recipe(model).model
    print(f"{model}, a recipe\n  base models      {', '.join(base_sources(config))}")
    return config


def _describe_checkpoint(folder: Path) -> ModelConfig:
    record = read_record(folder)
    size_mb = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    base = ", ".join(f"{source} ({digest})" for source, digest in record.base.items())
    print(f"{folder}\n  trained weights  {size_mb:.1f} MB\n  base weights     {base}")
    print(f"  trained by       {record.training.get('recipe', 'unknown')}")
    return record.model


def _print_costs(config: ModelConfig, duration_s: float) -> None:
    model = load_cost_model(config)
    costs = [model.cost(scale, duration_s) for scale in config.grid]
    console = Console(width=160, highlight=False)
    console.print(f"{duration_s:g} s of recording: GFLOPs by stage")
    table = Table()
    for name in ("scale", "LLM tokens", *STAGES[:-1], "decode, a token", "all, with text"):
        table.add_column(name.replace("_", " "), justify="right")
    for cost in costs:
        stages = [f"{cost.stages[name].flops / 1e9:.2f}" for name in STAGES[:-1]]
        per_token = f"{cost.stages['decode'].flops_per_token / 1e9:.3f}"
        tokens = str(cost.stages["prefill"].num_tokens)
        table.add_row(str(cost.scale), tokens, *stages, per_token, f"{cost.total_flops / 1e9:.2f}")
    console.print(table)
    console.print("Positions that each stage computes: frames, features, tokens")
    table = Table()
    for name in ("scale", *STAGES):
        table.add_column(name.replace("_", " "), justify="right")
    for cost in costs:
        table.add_row(str(cost.scale), *(str(cost.stages[name].num_tokens) for name in STAGES))
    console.print(table)
    console.print("Megabytes: weights that each stage reads (decoding: for the whole text), and the key-value cache")
    table = Table()
    for name in ("scale", *STAGES, "cache"):
        table.add_column(name.replace("_", " "), justify="right")
    for cost in costs:
        weights = [f"{cost.stages[name].weight_bytes / 1e6:.1f}" for name in STAGES]
        table.add_row(str(cost.scale), *weights, f"{cost.stages['decode'].cache_bytes / 1e6:.1f}")
    console.print(table)
    console.print(
        "As Table 4 of the paper counts: the language model alone, nothing written, 7 tokens beside the media"
    )
    table = Table()
    for name in ("scale", "tokens", "TFLOPs"):
        table.add_column(name, justify="right")
    for scale in config.grid:
        flops = paper_llm_flops(model.llm, config.lora, scale, duration_s)
        table.add_row(str(scale), str(paper_num_tokens(scale, duration_s)), f"{flops / 1e12:.2f}")
    console.print(table)
