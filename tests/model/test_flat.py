"""Reading an LLM in fewer calls is reading it: transformers' own code is the reference. And with 8-bit weights."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsk.config import LoraConfig
from mtsk.inference.decoding import read_prompts
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.flat import FlatDecoder
from mtsk.model.fusion import LlmInput
from mtsk.model.int8 import Int8Projection, int8_is_fast
from mtsk.model.rows_cache import RowsCache
from mtsk.scale import Scale
from tests.tiny import (
    randomize_adapters,
    tiny_batch,
    tiny_config,
    tiny_llm,
    tiny_model,
    tiny_video_encoder,
    tiny_whisper,
)

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
needs_vnni = pytest.mark.skipif(not int8_is_fast(), reason="this processor has no VNNI")


def _passes(model: AvsrModel) -> Iterator[Tensor]:
    """Logits of prompts of unlike length, of some columns at once where one row has fewer, and of single ones."""
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    cache = RowsCache()
    with model.select(SCALES):
        last = read_prompts(model, inputs, SCALES, cache)
        yield model.next_logits(last, cache)
        for added in ([[1, 1, 1], [1, 0, 0], [1, 1, 0]], [[1], [1], [1]], [[1], [1], [1]]):
            new = torch.tensor(added)
            ids = torch.arange(new.numel()).view(new.shape) * 7 + 20
            positions = last.positions_BS + torch.arange(1, new.shape[1] + 1)
            last = LlmInput(torch.nn.functional.embedding(ids, model.embedding_VE), new, positions)
            logits_BDV = model.last_logits(last, cache, new.shape[1])
            # What follows goes on from the last real column of each row.
            last = LlmInput(last.embeds_BSE[:, -1:], new[:, -1:], positions.gather(1, new.sum(dim=1, keepdim=True) - 1))
            yield logits_BDV[new.bool()]  # behind padding nothing is asked for


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
@torch.inference_mode()
def test_logits_are_those_of_transformers(kind: str, strategy: str) -> None:
    model = tiny_model(strategy, kind=kind)
    expected = list(_passes(model))
    model.flatten()
    found = list(_passes(model))
    for own, flat in zip(expected, found, strict=True):
        torch.testing.assert_close(flat, own, atol=2e-4, rtol=0)
    assert float(expected[0].std()) > 0.5, "or the tolerance says nothing"


@torch.inference_mode()
def test_every_projection_may_be_adapted() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        config = replace(tiny_config("ms"), lora=LoraConfig(rank=4, targets=targets))
        model = AvsrModel(config, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), tiny_video_encoder())
        randomize_adapters(model)
    expected = list(_passes(model))
    model.flatten()
    for own, flat in zip(expected, _passes(model), strict=True):
        torch.testing.assert_close(flat, own, atol=2e-4, rtol=0)


@torch.inference_mode()
def test_weights_are_not_kept_twice() -> None:
    model = tiny_model()
    before = model.llm.model.layers[0].mlp.up_proj.weight.clone()
    model.flatten()
    mlp = model.llm.model.layers[0].mlp
    assert torch.equal(mlp.up_proj.weight, before)
    assert mlp.up_proj.weight.untyped_storage().data_ptr() == mlp.gate_proj.weight.untyped_storage().data_ptr()
    assert len(model.trained_parameters()) == len(tiny_model().trained_parameters())


def test_other_families_are_read_by_their_own_code() -> None:
    def llm(**config: Any) -> Any:
        return SimpleNamespace(config=SimpleNamespace(**config))

    assert FlatDecoder.fits(llm(model_type="llama"))
    assert not FlatDecoder.fits(llm(model_type="gemma2"))
    assert not FlatDecoder.fits(llm(model_type="qwen2", layer_types=["full_attention", "sliding_attention"]))
    model = tiny_model()
    model.llm.config.model_type = "gemma2"
    model.flatten()
    assert model._flat is None
    with pytest.raises(ValueError, match="int8 is for language models of the families llama and qwen2"):
        model.quantize()


@needs_vnni
@torch.inference_mode()
def test_8_bits_are_near_and_the_same_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, bias_O = torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator)
    x_BSI = torch.randn(3, 5, 64, generator=generator) * torch.tensor([1.0, 100.0, 0.0])[:, None, None]
    project = Int8Projection(weight_OI, bias_O)
    found = project(x_BSI)
    exact = torch.nn.functional.linear(x_BSI, weight_OI, bias_O)
    # Half a level of each factor, as if independent: some 0.6 % of the size of the sums.
    assert float((found - exact)[:2].std(dim=-1).max() / exact[1].std()) < 0.02
    assert torch.equal(found[2], bias_O.expand(5, -1))
    alone = torch.stack([project(x_BSI[row, column]) for row in range(3) for column in range(5)])
    assert torch.equal(found.flatten(0, 1), alone)


@needs_vnni
@pytest.mark.parametrize("strategy", ["ms", "mss"])
@torch.inference_mode()
def test_an_8_bit_llm_reads_nearly_the_same(strategy: str) -> None:
    model = tiny_model(strategy)
    expected = list(_passes(model))
    size = sum(each.numel() for each in model.llm.parameters())
    model.quantize()
    for own, found in zip(expected, _passes(model), strict=True):
        similarity = torch.nn.functional.cosine_similarity(own, found, dim=-1)
        assert float(similarity.min()) > 0.98
    assert sum(each.numel() for each in model.llm.parameters()) < 0.7 * size, "the weights it replaces are freed"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@torch.inference_mode()
def test_padding_is_not_computed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of real columns are the same, and no projection sees another column."""
    model = tiny_model(kind=kind)
    expected = list(_passes(model))
    model.flatten()
    seen: list[int] = []
    flat = model._flat
    assert flat is not None
    inputs = model.embed(model.encode(tiny_batch(), SCALES), SCALES, [[]] * 3)
    act = flat._act

    def counting(gate: Tensor) -> Tensor:
        seen.append(gate[..., 0].numel())
        return act(gate)

    monkeypatch.setattr(flat, "_act", counting)
    found = list(_passes(model))
    num_layers = len(flat._layers)
    # Prompts row by row without their last columns, those, then six real columns of nine.
    assert seen[::num_layers][:5] == [*(n - 1 for n in inputs.mask_BS.sum(dim=1).tolist()), 3, 6]
    for own, its in zip(expected, found, strict=True):
        torch.testing.assert_close(its, own, atol=2e-4, rtol=0)


def test_rotary_frequencies_stay_exact() -> None:
    model, exact = tiny_model(), tiny_model().llm.model.rotary_emb.inv_freq
    cast = model.cast("cpu", torch.bfloat16).llm.model
    assert torch.equal(cast.rotary_emb.inv_freq, exact)
    assert {weight.dtype for weight in cast.parameters()} == {torch.bfloat16}


@torch.inference_mode()
def test_an_added_adapter_is_kept_once() -> None:
    """The model's own code reads on with the weights that it was added to."""
    model = tiny_model("ms").requires_grad_(False)
    expected = list(_passes(model))
    model.flatten()
    decoder = model._flat
    model._flat = None
    for own, again in zip(expected, _passes(model), strict=True):
        torch.testing.assert_close(again, own, atol=2e-4, rtol=0)
    assert decoder is not None
    name, layer = next(iter(model.adapters.layers.items()))
    joined = decoder._layers[0].query_key_value
    assert "q_proj" in name
    assert layer.base.weight.data_ptr() == joined.keywords["weight"].data_ptr()  # type: ignore[attr-defined]


def test_what_may_yet_be_saved_stays_as_it_is() -> None:
    """Figures on the development split are of a model that is saved afterwards."""
    model = tiny_model("ms")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.flatten()
    assert model._flat is not None
    assert any(bool(value.any()) for name, value in before.items() if name.endswith("up_AOR"))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
