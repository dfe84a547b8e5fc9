"""The adapter bank against peft, row by row, and which adapters learn."""

import copy
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from mtsk.config import LoraConfig
from mtsk.model.adapters import AdapterBank, LoraLinear, adapter_table
from mtsk.scale import Scale, ScaleGrid
from tests.tiny import tiny_causal_lm

GRID = ScaleGrid(tuple(map(Scale.parse, ["a4", "a16", "a4v2"])))
A4, A16, A4V2 = GRID.scales
RANK, ALPHA = 3, 7.0
STRATEGIES = ("ms", "ss", "mss")
NUM_ADAPTERS = {"ms": 1, "ss": 3, "mss": 4}


def _config(strategy: str, **changes: Any) -> LoraConfig:
    return LoraConfig(strategy=strategy, rank=RANK, alpha=ALPHA, **changes)  # type: ignore[arg-type]


def _adapted(strategy: str, *, kind: str = "llama", drawn: bool = True) -> tuple[Any, AdapterBank]:
    """A language model with a bank, whose adapters are drawn at random."""
    llm = tiny_causal_lm(kind)
    llm.requires_grad_(False)
    bank = AdapterBank(llm.get_decoder(), _config(strategy), GRID)
    if drawn:
        rng = torch.Generator().manual_seed(3)
        for layer in bank.layers.values():
            layer.up_AOR.data = 0.2 * torch.randn(layer.up_AOR.shape, generator=rng)
            layer.down_ARI.data = 0.2 * torch.randn(layer.down_ARI.shape, generator=rng)
    return llm.eval(), bank


def _embeds(num_rows: int = 3) -> Tensor:
    return torch.randn(num_rows, 7, 64, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def _logits(llm: Any, embeds: Tensor) -> Tensor:
    logits: Tensor = llm(inputs_embeds=embeds).logits
    return logits


def _selected(llm: Any, bank: AdapterBank, scales: list[Scale], embeds: Tensor) -> Tensor:
    with bank.select(scales, "cpu"):
        return _logits(llm, embeds)


def _peft(bank: AdapterBank, kind: str) -> Any:
    """The same language model in peft, with one adapter "0", "1", ... for each of the bank's."""
    config = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["q_proj", "v_proj"], bias="none")
    num_adapters = len(next(iter(bank.layers.values())).down_ARI)
    model = peft.get_peft_model(tiny_causal_lm(kind), config, adapter_name="0")
    for i in range(1, num_adapters):
        model.add_adapter(str(i), config)
    for name, layer in bank.layers.items():
        module: Any = model.get_submodule(f"base_model.model.model.{name}")
        for i in range(num_adapters):
            module.lora_A[str(i)].weight.data = layer.down_ARI.data[i]
            module.lora_B[str(i)].weight.data = layer.up_AOR.data[i]
    return model.eval()


# Which adapters a scale uses.


def test_tables() -> None:
    assert adapter_table("ms", GRID) == {A4: (0,), A16: (0,), A4V2: (0,)}
    assert adapter_table("ss", GRID) == {A4: (0,), A16: (1,), A4V2: (2,)}
    assert adapter_table("mss", GRID) == {A4: (0, 1), A16: (0, 2), A4V2: (0, 3)}
    with pytest.raises(ValueError, match=r"'s'; allowed: ms, ss, mss"):
        adapter_table("s", GRID)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bank_sits_on_the_targets_of_every_layer(strategy: str) -> None:
    llm, bank = _adapted(strategy)
    expected = {f"layers.{i}.self_attn.{target}" for i in (0, 1) for target in ("q_proj", "v_proj")}
    assert set(bank.layers) == expected
    found = {name.removeprefix("model.") for name, module in llm.named_modules() if isinstance(module, LoraLinear)}
    assert found == expected
    for layer in bank.layers.values():
        assert layer.down_ARI.shape == (NUM_ADAPTERS[strategy], RANK, 64)
        assert layer.up_AOR.shape == (NUM_ADAPTERS[strategy], layer.base.out_features, RANK)


def test_only_the_adapters_are_trained() -> None:
    llm, bank = _adapted("mss")
    trained = {id(weight) for weight in llm.parameters() if weight.requires_grad}
    assert trained == {id(weight) for weight in bank.parameters()}
    assert len(trained) == 2 * 4


def test_unknown_target_is_refused() -> None:
    for target in ("w_proj", "self_attn"):  # the second is there, but no linear layer
        with pytest.raises(ValueError, match=f"no linear layer named {target}"):
            AdapterBank(tiny_causal_lm(), _config("ms", targets=("q_proj", target)), GRID)


# What they compute.


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_change_at_the_start(strategy: str) -> None:
    llm, bank = _adapted(strategy, drawn=False)
    base = _logits(tiny_causal_lm(), _embeds())
    assert torch.equal(_selected(llm, bank, [A4, A16, A4V2], _embeds()), base)
    for layer in bank.layers.values():
        assert float(layer.down_ARI.detach().std()) > 0.01  # else nothing could be learned


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_change_outside_of_a_selection(strategy: str) -> None:
    llm, bank = _adapted(strategy)
    base = _logits(tiny_causal_lm(), _embeds())
    assert torch.equal(_logits(llm, _embeds()), base)
    assert float((_selected(llm, bank, [A4] * 3, _embeds()) - base).abs().max()) > 0.01
    assert torch.equal(_logits(llm, _embeds()), base)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ms_equals_peft(kind: str) -> None:
    llm, bank = _adapted("ms", kind=kind)
    reference = _logits(_peft(bank, kind), _embeds())
    for scale in GRID:
        own = _selected(llm, bank, [scale] * 3, _embeds())
        torch.testing.assert_close(own, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ss_equals_peft_with_the_scales_adapter_set(kind: str) -> None:
    llm, bank = _adapted("ss", kind=kind)
    reference = _peft(bank, kind)
    outputs = []
    for i, scale in enumerate(GRID):
        reference.set_adapter(str(i))
        outputs.append(_selected(llm, bank, [scale] * 3, _embeds()))
        torch.testing.assert_close(outputs[-1], _logits(reference, _embeds()), atol=1e-5, rtol=1e-5)
    assert float((outputs[0] - outputs[1]).abs().max()) > 0.01


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_mss_equals_peft_with_shared_and_own_joined(kind: str) -> None:
    llm, bank = _adapted("mss", kind=kind)
    reference = _peft(bank, kind)
    for i, scale in enumerate(GRID):
        reference.add_weighted_adapter(["0", str(i + 1)], [1.0, 1.0], str(scale), combination_type="cat")
        reference.set_adapter(str(scale))
        own = _selected(llm, bank, [scale] * 3, _embeds())
        torch.testing.assert_close(own, _logits(reference, _embeds()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_may_mix_scales(strategy: str) -> None:
    llm, bank = _adapted(strategy)
    scales, embeds = [A4V2, A4, A16, A4V2], _embeds(4)
    mixed = _selected(llm, bank, scales, embeds)
    for row, scale in enumerate(scales):
        alone = _selected(llm, bank, [scale], embeds[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-5, rtol=1e-5)


# What learns.


def _gradients(strategy: str, scales: list[Scale]) -> Iterator[tuple[LoraLinear, list[bool]]]:
    """Each layer with, per adapter, whether it got a gradient."""
    llm, bank = _adapted(strategy)
    with bank.select(scales, "cpu"):
        llm(inputs_embeds=_embeds(len(scales))).logits.square().sum().backward()
    for layer in bank.layers.values():
        down, up = layer.down_ARI.grad, layer.up_AOR.grad
        assert down is not None
        assert up is not None
        reached = [bool(grad.any()) for grad in down]
        assert reached == [bool(grad.any()) for grad in up]
        yield layer, reached


@pytest.mark.parametrize(
    ("strategy", "scales", "expected"),
    [
        ("ms", [A16], [True]),
        ("ss", [A16], [False, True, False]),
        ("ss", [A4V2, A4], [True, False, True]),
        ("mss", [A16], [True, False, True, False]),
        ("mss", [A4V2, A4], [True, True, False, True]),
    ],
)
def test_only_selected_adapters_learn(strategy: str, scales: list[Scale], expected: list[bool]) -> None:
    for layer, reached in _gradients(strategy, scales):
        assert reached == expected
        assert layer.base.weight.grad is None


def test_gradient_of_a_mixed_batch_is_the_sum_of_its_rows() -> None:
    def gradients(rows: list[int], scales: list[Scale]) -> list[Tensor]:
        llm, bank = _adapted("mss")
        for row, scale in zip(rows, scales, strict=True):
            with bank.select([scale], "cpu"):
                llm(inputs_embeds=_embeds()[row : row + 1]).logits.square().sum().backward()
        return [weight.grad for weight in bank.parameters() if weight.grad is not None]

    llm, bank = _adapted("mss")
    with bank.select([A4, A16, A4V2], "cpu"):
        llm(inputs_embeds=_embeds()).logits.square().sum().backward()
    for weight, expected in zip(bank.parameters(), gradients([0, 1, 2], [A4, A16, A4V2]), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected, atol=1e-3, rtol=1e-4)


def test_dropout_acts_in_training_alone() -> None:
    llm, bank = _adapted("ms")
    still = _selected(llm, bank, [A4] * 3, _embeds())
    llm.train()
    torch.manual_seed(0)
    assert not torch.equal(_selected(llm, bank, [A4] * 3, _embeds()), still)
    llm.eval()
    assert torch.equal(_selected(llm, bank, [A4] * 3, _embeds()), still)


# The selection.


def test_selections_nest_and_end_after_an_error() -> None:
    llm, bank = _adapted("ss")
    first = _selected(llm, bank, [A4] * 3, _embeds())
    with bank.select([A4] * 3, "cpu"):
        _selected(llm, bank, [A16] * 3, _embeds())
        assert torch.equal(_logits(llm, _embeds()), first)
    with pytest.raises(RuntimeError, match="stop"), bank.select([A4] * 3, "cpu"):
        raise RuntimeError("stop")
    assert torch.equal(_logits(llm, _embeds()), _logits(tiny_causal_lm(), _embeds()))


def test_untrained_scale_is_refused() -> None:
    _, bank = _adapted("ms")
    with (
        pytest.raises(ValueError, match="v5 was not trained; this model has: a4 a16 a4v2"),
        bank.select([A4, Scale(video=5)], "cpu"),
    ):
        raise AssertionError("not reached")


def test_recomputed_activations_use_the_same_adapters() -> None:
    """Activation checkpointing with the backward inside the selection gives the gradients of a plain backward."""
    llm, bank = _adapted("ss")
    recomputed, its_bank = copy.deepcopy((llm, bank))
    recomputed.activation_checkpointing_enable({"use_reentrant": False})
    for model, adapters in ((llm.train(), bank), (recomputed.train(), its_bank)):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for scale in (A4, A16):
            with adapters.select([scale] * 3, "cpu"):
                model(inputs_embeds=_embeds(), use_cache=False).logits.square().mean().backward()
    for weight, other in zip(bank.parameters(), its_bank.parameters(), strict=True):
        assert weight.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(weight.grad, other.grad)
