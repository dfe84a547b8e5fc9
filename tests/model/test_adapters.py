"""The adapter bank against peft, row by row, and which adapters learn."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from mtsk.config import LoraConfig
from mtsk.model.adapters import AdapterBank, DoraLinear, LoraLinear, adapter_table
from mtsk.scale import Scale, ScaleGrid
from tests.tiny import tiny_causal_lm

GRID = ScaleGrid(tuple(map(Scale.parse, ["a4", "a16", "a4v2"])))
A4, A16, A4V2 = GRID.scales
RANK, ALPHA = 3, 7.0
STRATEGIES = ("ms", "ss", "mss")
NUM_ADAPTERS = {"ms": 1, "ss": 3, "mss": 4}
VARIANTS = (("ms", "lora"), ("ss", "lora"), ("mss", "lora"), ("ms", "dora"), ("ss", "dora"))
QUERY_VALUE = ("q_proj", "v_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGET_SETS = {"query and value": QUERY_VALUE, "attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}


def _config(strategy: str, **changes: Any) -> LoraConfig:
    return LoraConfig(strategy=strategy, rank=RANK, alpha=ALPHA, **changes)  # type: ignore[arg-type]


def _causal_lm(kind: str) -> Any:
    """Those of `tests.tiny`, and a random Qwen3, whose heads together are wider than its embeddings."""
    if kind != "qwen3":
        return tiny_causal_lm(kind)
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "head_dim": 24,
    }
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def _adapted(strategy: str, *, kind: str = "llama", drawn: bool = True, **changes: Any) -> tuple[Any, AdapterBank]:
    """A language model with a bank, whose adapters are drawn at random."""
    llm = _causal_lm(kind)
    llm.requires_grad_(False)
    bank = AdapterBank(llm.get_decoder(), _config(strategy, **changes), GRID)
    if drawn:
        rng = torch.Generator().manual_seed(3)
        for layer in bank.layers.values():
            layer.up_AOR.data = 0.2 * torch.randn(layer.up_AOR.shape, generator=rng)
            layer.down_ARI.data = 0.2 * torch.randn(layer.down_ARI.shape, generator=rng)
            if isinstance(layer, DoraLinear):
                layer.magnitude_AO.data *= 0.7 + 0.6 * torch.rand(layer.magnitude_AO.shape, generator=rng)
            if layer.base.bias is not None:  # as drawn by transformers, biases are zero
                layer.base.bias.data = 0.5 * torch.randn(layer.base.bias.shape, generator=rng)
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


def _peft(bank: AdapterBank, kind: str, **changes: Any) -> Any:
    """The same language model in peft, with one adapter "0", "1", ... for each of the bank's, in evaluation mode."""
    ours = _config("ms", **changes)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=int(ALPHA),
        target_modules=list(ours.targets),
        use_rslora=ours.rank_stabilized,
        use_dora=ours.variant == "dora",
    )
    num_adapters = len(next(iter(bank.layers.values())).down_ARI)
    llm = _causal_lm(kind)
    for name, layer in bank.layers.items():
        llm.get_decoder().get_submodule(name).load_state_dict(layer.base.state_dict())
    model = peft.get_peft_model(llm, config, adapter_name="0")
    for i in range(1, num_adapters):
        model.add_adapter(str(i), config)
    for name, layer in bank.layers.items():
        module: Any = model.get_submodule(f"base_model.model.model.{name}")
        for i in range(num_adapters):
            for ours_A, theirs in _pairs(layer, module, i):
                theirs.data = ours_A.data[i].clone()
    return model.eval()


def _pairs(layer: LoraLinear, module: Any, i: int) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Our weights of all adapters, each with peft's of adapter `i`."""
    yield layer.down_ARI, module.lora_A[str(i)].weight
    yield layer.up_AOR, module.lora_B[str(i)].weight
    if isinstance(layer, DoraLinear):
        yield layer.magnitude_AO, module.lora_magnitude_vector[str(i)].weight


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


@pytest.mark.parametrize("target", ATTENTION + MLP)
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_any_projection_may_be_a_target(target: str, variant: str) -> None:
    llm, bank = _adapted("ss", kind="qwen3", targets=(target,), variant=variant)
    block = "self_attn" if target in ATTENTION else "mlp"
    assert set(bank.layers) == {f"layers.{i}.{block}.{target}" for i in (0, 1)}
    outputs = [_selected(llm, bank, [scale], _embeds(1)) for scale in GRID]
    outputs.append(_logits(llm, _embeds(1)))
    for i, output in enumerate(outputs):
        assert all(float((output - other).abs().max()) > 0.01 for other in outputs[:i])


def test_names_and_shapes_in_a_checkpoint() -> None:
    """Checkpoints are read by these names."""
    shapes = {"down_ARI": (3, RANK, 64), "up_AOR": (3, 32, RANK)}
    for variant, expected in (("lora", shapes), ("dora", shapes | {"magnitude_AO": (3, 32)})):
        _, bank = _adapted("ss", variant=variant)
        layer = bank.layers["layers.0.self_attn.v_proj"]
        stored = {name: tuple(value.shape) for name, value in layer.state_dict().items() if "base." not in name}
        assert stored == expected
        assert len(bank.parameters()) == 4 * len(expected)
        assert all(weight.requires_grad for weight in bank.parameters())


def test_dora_is_refused_where_deltas_are_added() -> None:
    with pytest.raises(ValueError, match="'dora'; allowed is 'lora' with strategy 'mss'"):
        _config("mss", variant="dora")
    with pytest.raises(ValueError, match="'dorra'; allowed is 'lora' or 'dora'"):
        _config("ms", variant="dorra")


# What they compute.


@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_no_change_at_the_start(strategy: str, variant: str, kind: str) -> None:
    llm, bank = _adapted(strategy, drawn=False, variant=variant, kind=kind)
    base = _logits(tiny_causal_lm(kind), _embeds())
    assert torch.equal(_selected(llm, bank, [A4, A16, A4V2], _embeds()), base)
    for layer in bank.layers.values():
        assert float(layer.down_ARI.detach().std()) > 0.01  # else nothing could be learned


@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
def test_no_change_outside_of_a_selection(strategy: str, variant: str) -> None:
    llm, bank = _adapted(strategy, variant=variant)
    base = _logits(tiny_causal_lm(), _embeds())
    assert torch.equal(_logits(llm, _embeds()), base)
    assert float((_selected(llm, bank, [A4] * 3, _embeds()) - base).abs().max()) > 0.01
    assert torch.equal(_logits(llm, _embeds()), base)


def _check_against_peft(strategy: str, kind: str, **changes: Any) -> None:
    """One backward of a mixed batch of ours, against peft with one row and its adapters at a time."""
    llm, bank = _adapted(strategy, kind=kind, **changes)
    reference = _peft(bank, kind, **changes)
    scales, embeds = [A16, A4V2, A4, A16], _embeds(4)
    with bank.select(scales, "cpu"):
        logits = llm(inputs_embeds=embeds).logits
        logits.square().mean(dim=(1, 2)).sum().backward()
    table = adapter_table(strategy, GRID)
    for row, scale in enumerate(scales):
        reference.base_model.set_adapter([str(i) for i in table[scale]])
        expected = reference(inputs_embeds=embeds[row : row + 1]).logits
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-4, rtol=1e-4)
        expected.square().mean(dim=(1, 2)).sum().backward()
    for name, layer in bank.layers.items():
        module = reference.get_submodule(f"base_model.model.model.{name}")
        for i in range(NUM_ADAPTERS[strategy]):
            for ours_A, theirs in _pairs(layer, module, i):
                assert ours_A.grad is not None
                assert theirs.grad is not None
                assert bool(theirs.grad.any())
                torch.testing.assert_close(ours_A.grad[i], theirs.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("targets", TARGET_SETS.values(), ids=TARGET_SETS)
@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
def test_logits_and_gradients_equal_peft(
    strategy: str, variant: str, targets: Sequence[str], rank_stabilized: bool
) -> None:
    _check_against_peft(strategy, "llama", variant=variant, targets=targets, rank_stabilized=rank_stabilized)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
def test_other_architectures_equal_peft(strategy: str, variant: str, kind: str) -> None:
    """Qwen2 has biases, which DoRA must not scale."""
    _check_against_peft(strategy, kind, variant=variant, targets=ATTENTION + MLP)


@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
def test_rows_may_mix_scales(strategy: str, variant: str) -> None:
    llm, bank = _adapted(strategy, variant=variant, targets=ATTENTION + MLP)
    scales, embeds = [A4V2, A4, A16, A4V2], _embeds(4)
    mixed = _selected(llm, bank, scales, embeds)
    for row, scale in enumerate(scales):
        alone = _selected(llm, bank, [scale], embeds[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_mss_delta_is_shared_plus_own() -> None:
    _, bank = _adapted("mss", targets=ATTENTION + MLP)
    for layer in bank.layers.values():
        x_3SI = torch.randn(3, 5, layer.base.in_features, generator=torch.Generator().manual_seed(1))
        with bank.select([A4, A16, A4V2], "cpu"):
            delta_3SO = layer(x_3SI) - layer.base(x_3SI)
        for row, own in enumerate((1, 2, 3)):
            shared_OI, own_OI = (ALPHA / RANK * layer.up_AOR[i] @ layer.down_ARI[i] for i in (0, own))
            expected = x_3SI[row] @ shared_OI.T + x_3SI[row] @ own_OI.T
            torch.testing.assert_close(delta_3SO[row], expected, atol=1e-4, rtol=1e-4)


def test_dora_takes_norms_once_per_selection_and_adapter() -> None:
    """A change of weights counts from the next selection on; norms of unused adapters are not taken."""
    llm, bank = _adapted("ss", variant="dora")
    layer = next(iter(bank.layers.values()))
    assert isinstance(layer, DoraLinear)
    untouched = layer.norm_AO[1].clone()
    before = _selected(llm, bank, [A4] * 3, _embeds())
    assert not torch.equal(layer.norm_AO[0], untouched)
    assert torch.equal(layer.norm_AO[1], untouched)
    layer.up_AOR.data *= 2
    after = _selected(llm, bank, [A4] * 3, _embeds())
    assert float((after - before).abs().max()) > 0.01
    torch.testing.assert_close(after, _logits(_peft(bank, "llama", variant="dora"), _embeds()), atol=1e-4, rtol=1e-4)


def test_dora_keeps_a_row_of_zeros_zero() -> None:
    base = nn.Linear(4, 3, bias=False)
    base.weight.data[1] = 0
    bank = AdapterBank(nn.ModuleDict({"q_proj": base}), _config("ms", variant="dora", targets=("q_proj",)), GRID)
    layer = bank.layers["q_proj"]
    x_BSI = torch.ones(1, 2, 4)
    with bank.select([A4], "cpu"):
        out_BSO = layer(x_BSI)
        out_BSO.sum().backward()
    assert torch.equal(out_BSO, base(x_BSI))
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in bank.parameters())


# What learns.


def _gradients(strategy: str, variant: str, scales: list[Scale]) -> Iterator[tuple[LoraLinear, list[bool]]]:
    """Each layer with, per adapter, whether it got a gradient."""
    llm, bank = _adapted(strategy, variant=variant, targets=ATTENTION + MLP)
    with bank.select(scales, "cpu"):
        llm(inputs_embeds=_embeds(len(scales))).logits.square().sum().backward()
    for layer in bank.layers.values():
        reached = []
        for weight in layer.parameters(recurse=False):
            assert weight.grad is not None
            reached.append([bool(grad.any()) for grad in weight.grad])
        assert all(one == reached[0] for one in reached)
        yield layer, reached[0]


@pytest.mark.parametrize(
    ("strategy", "variant", "scales", "expected"),
    [
        ("ms", "lora", [A16], [True]),
        ("ss", "lora", [A16], [False, True, False]),
        ("ss", "lora", [A4V2, A4], [True, False, True]),
        ("mss", "lora", [A16], [True, False, True, False]),
        ("mss", "lora", [A4V2, A4], [True, True, False, True]),
        ("ms", "dora", [A16], [True]),
        ("ss", "dora", [A16], [False, True, False]),
        ("ss", "dora", [A4V2, A4], [True, False, True]),
    ],
)
def test_only_selected_adapters_learn(strategy: str, variant: str, scales: list[Scale], expected: list[bool]) -> None:
    for layer, reached in _gradients(strategy, variant, scales):
        assert reached == expected
        assert layer.base.weight.grad is None


@pytest.mark.parametrize(("strategy", "variant"), VARIANTS)
def test_gradient_of_a_mixed_batch_is_the_sum_of_its_rows(strategy: str, variant: str) -> None:
    def gradients(rows: list[int], scales: list[Scale]) -> list[Tensor]:
        llm, bank = _adapted(strategy, variant=variant)
        for row, scale in zip(rows, scales, strict=True):
            with bank.select([scale], "cpu"):
                llm(inputs_embeds=_embeds()[row : row + 1]).logits.square().mean(dim=(1, 2)).sum().backward()
        return [weight.grad for weight in bank.parameters() if weight.grad is not None]

    llm, bank = _adapted(strategy, variant=variant)
    with bank.select([A4, A16, A4V2], "cpu"):
        llm(inputs_embeds=_embeds()).logits.square().mean(dim=(1, 2)).sum().backward()
    for weight, expected in zip(bank.parameters(), gradients([0, 1, 2], [A4, A16, A4V2]), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-3)


def test_dropout_acts_in_training_alone() -> None:
    llm, bank = _adapted("ms")
    still = _selected(llm, bank, [A4] * 3, _embeds())
    llm.train()
    torch.manual_seed(0)
    assert not torch.equal(_selected(llm, bank, [A4] * 3, _embeds()), still)
    llm.eval()
    assert torch.equal(_selected(llm, bank, [A4] * 3, _embeds()), still)


# The selection.


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_selections_nest_and_end_after_an_error(variant: str) -> None:
    llm, bank = _adapted("ss", variant=variant)
    first = _selected(llm, bank, [A4] * 3, _embeds())
    with bank.select([A4] * 3, "cpu"):
        _selected(llm, bank, [A16] * 3, _embeds())
        with pytest.raises(RuntimeError, match="inner"), bank.select([A16] * 3, "cpu"):
            raise RuntimeError("inner")
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


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_recomputed_activations_use_the_same_adapters(variant: str) -> None:
    """Activation checkpointing with the backward inside the selection gives the gradients of a plain backward."""
    llm, bank = _adapted("ss", variant=variant)
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
