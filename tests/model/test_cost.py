"""The cost model against the operations that PyTorch counts on real runs, and against the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from mtsk.checkpoints.sources import face_models, is_cached
from mtsk.config import CompactVideoConfig, ContextConfig, CtcConfig, LoraConfig, ModelConfig, ProjectorConfig
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avhubert import AvHubertEncoder, AvHubertShape
from mtsk.model.avsr import AvsrModel
from mtsk.model.cost import STAGES, Cost, CostModel, LlmShape, StageCost, paper_llm_flops, paper_num_tokens
from mtsk.model.encoder_cost import EncoderShape, encoder_shape
from mtsk.model.fusion import LlmInput
from mtsk.model.llm import Llm
from mtsk.model.video_encoder import CompactVideoEncoder
from mtsk.scale import Scale, ScaleGrid
from mtsk.types import VIDEO_FPS, Batch
from tests.tiny import (
    tiny_batch,
    tiny_causal_lm,
    tiny_config,
    tiny_llm,
    tiny_model,
    tiny_tokenizer,
    tiny_video_encoder,
    tiny_whisper,
)

AGREEMENT = 1e-3  # for an even kernel AV-HuBERT computes one step too many
DURATION_S = 1.2
NUM_TEXT_TOKENS = 3

LORA_64 = LoraConfig(rank=64)
PAPER_SCALES = [Scale(1, 1), Scale(4, 2), Scale(4, 5), Scale(16, 2), Scale(16, 5)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other after every small product take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a run returns, and its operations. Of the attention kernels PyTorch counts on a processor only the plain."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def _batch(duration_s: float = DURATION_S) -> Batch:
    return tiny_batch(texts=("bin blue",), durations_s=(duration_s,), num_frames=(round(duration_s * VIDEO_FPS),))


def _measured(model: AvsrModel, scale: Scale) -> tuple[dict[str, int], DynamicCache]:
    """Operations of each stage of a real request, and the key-value cache at its end."""
    batch, flops = _batch(), dict.fromkeys(STAGES[1:], 0)
    for part in scale.parts:
        stage = "audio_encoder" if part.audio else "video_encoder"
        _, flops[stage] = _counted(lambda part=part: model.encode(batch, [part]))  # type: ignore[misc]
    encoded = model.encode(batch, [scale])
    inputs, flops["projector"] = _counted(lambda: model.embed(encoded, [scale], [[]]))
    cache = DynamicCache(config=model.llm.config)

    def prefill() -> None:
        with model.select([scale]):
            model.next_logits(inputs, cache)

    def decode(inputs: LlmInput) -> None:
        for _ in range(NUM_TEXT_TOKENS):
            inputs = LlmInput(model.embedding_VE[None, :1], inputs.mask_BS[:, -1:], inputs.positions_BS[:, -1:] + 1)
            model.next_logits(inputs, cache)

    _, flops["prefill"] = _counted(prefill)
    with model.select([scale]):  # the selection, where there is work in it, is one for the whole request
        _, flops["decode"] = _counted(lambda: decode(inputs))
    return flops, cache


def _assert_agrees(model: AvsrModel, scale: Scale) -> tuple[Cost, DynamicCache]:
    projected = model.reading(scale).projected
    cost = CostModel.of_model(model).cost(scale, DURATION_S, num_text_tokens=NUM_TEXT_TOKENS, projected=projected)
    measured, cache = _measured(model, scale)
    assert {stage: cost.stages[stage].flops for stage in measured} == pytest.approx(measured, rel=AGREEMENT)
    absent = {f"{name}_encoder" for name, rate in (("audio", scale.audio), ("video", scale.video)) if rate is None}
    assert cost.llm_flops == pytest.approx(measured["prefill"] + measured["decode"], rel=AGREEMENT)
    assert cost.total_flops - cost.stages["face"].flops == pytest.approx(sum(measured.values()), rel=AGREEMENT)
    assert {stage for stage, flops in measured.items() if flops == 0} == absent | {"characters"}
    return cost, cache


@pytest.mark.parametrize(
    ("strategy", "compression", "kind", "window", "scale"),
    [
        ("ms", "average", "llama", "real", "a4v2"),
        ("mss", "stack", "qwen2", "30s", "a16v5"),
        ("mss", "average", "llama", "real", "v2"),
        ("ss", "stack", "llama", "real", "a4"),
    ],
)
def test_every_stage_costs_what_pytorch_counts(
    strategy: str, compression: str, kind: str, window: str, scale: str
) -> None:
    model = tiny_model(strategy, compression, kind=kind, window=window)
    _assert_agrees(model, Scale.parse(scale))


def test_cost_of_scales_that_were_not_trained() -> None:
    model = tiny_model(scales=("a4", "a16", "v2", "a4v2"))
    model.untrained = "between"
    between, _ = _assert_agrees(model, Scale(audio=8))
    model.untrained = "pool"
    pooled, _ = _assert_agrees(model, Scale(audio=8))
    assert between.stages["projector"].num_tokens == 60 // 8  # both projectors around the rate read these
    assert pooled.stages["projector"].num_tokens == 60 // 4  # the finer one reads its own


def test_cost_of_dora() -> None:
    config = tiny_config()
    config = replace(config, lora=replace(config.lora, variant="dora", targets=("q_proj", "down_proj")))
    audio = WhisperAudioEncoder(tiny_whisper(), "real")
    _assert_agrees(AvsrModel(config, tiny_llm(), audio, tiny_video_encoder()), Scale(4, 2))


def _random_default() -> AvsrModel:
    """The default model's shapes (SmolLM2-135M, Whisper base, the compact lip encoder) with random weights."""
    llm_config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=True,
    )
    whisper_config = _whisper_config(512, 6, 8)
    config = ModelConfig(scales=ScaleGrid.joint(audio=(4, 16), video=(2, 5)).scales)
    with torch.device("meta"):
        parts: list[Any] = [LlamaForCausalLM(llm_config), WhisperModel(whisper_config)]
    for part in parts:
        part.to_empty(device="cpu")
        with torch.no_grad():
            for weight in (*part.parameters(), *part.buffers()):
                weight.fill_(0.01)  # operations do not depend on values, and drawing takes seconds
    llm = Llm.build(parts[0], tiny_tokenizer())
    assert isinstance(config.video, CompactVideoConfig)
    return AvsrModel(config, llm, WhisperAudioEncoder(parts[1], "real"), CompactVideoEncoder(config.video).eval())


def test_default_model_costs_what_pytorch_counts() -> None:
    _assert_agrees(_random_default(), Scale(4, 2))


def _whisper_config(width: int, num_layers: int, num_heads: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=width,
        encoder_layers=num_layers,
        decoder_layers=1,
        encoder_attention_heads=num_heads,
        decoder_attention_heads=num_heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=80,
    )


@pytest.mark.parametrize("lora_rank", [None, 8])
def test_av_hubert_costs_what_pytorch_counts(lora_rank: int | None) -> None:
    encoder = AvHubertEncoder(AvHubertShape(num_layers=2, width=512, ffn_width=1024, num_heads=4))
    if lora_rank is not None:
        encoder.add_adapters(lora_rank, alpha=16.0)
    batch = _batch()
    _, flops = _counted(lambda: encoder(batch.mouth_BTHW, batch.num_frames_B))
    assert encoder_shape(encoder).flops(30) == pytest.approx(flops, rel=AGREEMENT)


def test_layers_before_the_projectors() -> None:
    config = tiny_config()
    context = ContextConfig(num_layers=2, num_heads=2, hidden=24, kernel=5)
    config = replace(config, projector=replace(config.projector, audio_context=context))
    audio = WhisperAudioEncoder(tiny_whisper(), "real")
    model = AvsrModel(config, tiny_llm(), audio, tiny_video_encoder()).eval()
    cost, _ = _assert_agrees(model, Scale(4, 2))
    at = model.rate_projectors()
    assert at["audio"].context is not None
    parts = (at["audio"].context, at["audio"].at_rate["4"], at["video"].at_rate["2"])
    assert cost.stages["projector"].weight_bytes == sum(p.nbytes for part in parts for p in part.parameters())


def test_the_cost_of_an_unknown_encoder_is_not_guessed() -> None:
    with pytest.raises(TypeError, match="Linear is not known"):
        encoder_shape(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bytes_are_those_of_the_tensors(kind: str) -> None:
    model = tiny_model(kind=kind)
    cost, cache = _assert_agrees(model, Scale(4, 2))
    layers: list[Any] = cache.layers
    cached = sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))
    assert cost.stages["decode"].cache_bytes == cached
    grown = cost.stages["decode"].cache_bytes - cost.stages["prefill"].cache_bytes
    assert grown == cached * NUM_TEXT_TOKENS // cache.get_seq_length()
    assert model.audio_encoder is not None
    assert cost.stages["audio_encoder"].weight_bytes == sum(p.nbytes for p in model.audio_encoder.parameters())
    at = model.rate_projectors()
    projectors = (at["audio"].at_rate["4"], at["video"].at_rate["2"])
    read = sum(p.nbytes for projector in projectors for p in projector.parameters())
    assert cost.stages["projector"].weight_bytes == read
    read = sum(p.nbytes for p in model.llm.parameters())  # one adapter, all used
    if not model.llm.config.tie_word_embeddings:
        read -= model.embedding_VE.nbytes
    assert cost.stages["prefill"].weight_bytes == read
    assert cost.stages["decode"].weight_bytes == NUM_TEXT_TOKENS * read
    assert cost.total_weight_bytes == sum(stage.weight_bytes for stage in cost.stages.values())


def test_number_of_tokens_is_that_of_the_prompt() -> None:
    model = tiny_model()
    batch = _batch()
    for scale in (Scale(4, None), Scale(None, 2), Scale(16, 5)):
        inputs = model.embed(model.encode(batch, [scale]), [scale], [[]])
        cost = CostModel.of_model(model).cost(scale, DURATION_S, num_text_tokens=0)
        assert cost.stages["prefill"].num_tokens == inputs.embeds_BSE.shape[1]
        assert cost.stages["decode"] == StageCost(cache_bytes=cost.stages["prefill"].cache_bytes)


def test_padding_to_30_s_costs_the_same_for_every_length() -> None:
    costs = CostModel.of_model(tiny_model(window="30s"))
    encoder = [costs.cost(Scale(4), duration_s).stages["audio_encoder"] for duration_s in (1.0, 30.0)]
    assert encoder[0] == encoder[1]
    assert encoder[0].num_tokens == 1500
    real = CostModel.of_model(tiny_model()).cost(Scale(4), 30.0).stages["audio_encoder"]
    assert real == encoder[0]


def test_refusals() -> None:
    costs = CostModel.of_model(tiny_model(scales=("a4",)))
    with pytest.raises(ValueError, match="a4v2 needs the modalities"):
        costs.cost(Scale(4, 2), 1.0)
    with pytest.raises(ValueError, match="at most 1500"):
        costs.cost(Scale(4), 30.1)


def test_shape_of_a_language_model_needs_no_weights() -> None:
    for kind in ("llama", "qwen2"):
        built = tiny_causal_lm(kind)
        assert LlmShape.of_config(built.config) == LlmShape.of(built)
    assert CostModel.of_model(tiny_model()).llm == LlmShape.of(tiny_causal_lm())  # adapters are not part of it


@pytest.mark.weights
def test_face_tracking_costs_what_its_graphs_hold() -> None:
    if not is_cached("face"):
        pytest.skip("needs the face models in the cache (`make weights` fetches them)")
    models = face_models()
    frame, search = _graph_flops(str(models.landmarks)), _graph_flops(str(models.detection))
    cost = CostModel.of_model(tiny_model()).cost(Scale(None, 2), DURATION_S)
    assert cost.stages["face"].flops == 30 * frame + search


def _graph_flops(path: str) -> int:
    interpreter: Any = Interpreter(path)
    interpreter.allocate_tensors()
    shapes = {tensor["index"]: [int(n) for n in tensor["shape"]] for tensor in interpreter.get_tensor_details()}
    flops = 0
    for operator in interpreter._get_ops_details():
        if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            # Output channels are first in the one's weights, and last in the other's.
            _, *kernel, channels = shapes[operator["inputs"][1]]
            num_inputs = channels if operator["op_name"] == "CONV_2D" else 1
            flops += 2 * torch.Size([*shapes[operator["outputs"][0]], *kernel, num_inputs]).numel()
    return flops


# The paper.


def _llama(hidden: int, ffn: int, num_layers: int, *, tied: bool) -> LlmShape:
    return LlmShape.of_config(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=num_layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128_256,
            tie_word_embeddings=tied,
        )
    )


def test_table_4_of_the_paper() -> None:
    llm = _llama(4096, 14_336, 32, tied=False)
    assert llm.num_parameters + 2 * llm.num_head_weights == 8_030_261_248
    assert llm.num_adapter_weights(LORA_64) == 27_262_976
    assert [paper_num_tokens(scale, 10.0) for scale in PAPER_SCALES] == [757, 257, 182, 163, 88]
    tera = [f"{paper_llm_flops(llm, LORA_64, scale, 10.0) / 1e12:.2f}" for scale in PAPER_SCALES]
    assert tera == ["11.40", "3.87", "2.74", "2.46", "1.33"]


def _paper_encoders() -> dict[str, EncoderShape]:
    """Whisper medium, padded to 30 s, and AV-HuBERT Large."""
    with torch.device("meta"):
        audio = WhisperAudioEncoder(WhisperModel(_whisper_config(1024, 24, 16)), "30s")
        return {"a": encoder_shape(audio), "v": encoder_shape(AvHubertEncoder(AvHubertShape()))}


@pytest.mark.parametrize(
    ("scale", "padded", "real"), [(Scale(4, 2), "1.41", "0.64"), (Scale(16, 5), "1.20", "0.43")], ids=str
)
def test_what_the_encoders_add_by_the_papers_way_of_counting(scale: Scale, padded: str, real: str) -> None:
    """5 s at Llama 3.2 1B. Whisper counted like the LLM, two operations for each weight and position, without attention
    between positions; AV-HuBERT by its convolutions; projectors 2048 wide; no text is written."""
    encoders, llm = _paper_encoders(), _llama(2048, 8192, 16, tied=True)
    config = ModelConfig(scales=(scale,), projector=ProjectorConfig(hidden=2048), lora=LORA_64)
    costs = CostModel(config, llm, encoders, {"av": 7}).cost(scale, 5.0, num_text_tokens=0)
    rest = paper_llm_flops(llm, LORA_64, scale, 5.0) + sum(
        costs.stages[stage].flops for stage in ("video_encoder", "projector")
    )
    for num_features, expected in ((1500, padded), (250, real)):
        assert f"{(2 * encoders['a'].num_parameters * num_features + rest) / 1e12:.2f}" == expected


def test_what_the_encoders_add_in_full() -> None:
    """The same with everything counted: attention between positions, and the head for the last position only."""
    padded, llm = _paper_encoders(), _llama(2048, 8192, 16, tied=True)
    real = {**padded, "a": replace(padded["a"], fixed_features=None)}
    scales = (Scale(4, 2), Scale(16, 5))
    config = ModelConfig(scales=scales, projector=ProjectorConfig(hidden=2048), lora=LORA_64)
    tera = []
    for encoders in (padded, real):
        costs = [CostModel(config, llm, encoders, {"av": 7}).cost(scale, 5.0, num_text_tokens=0) for scale in scales]
        tera += [f"{(cost.total_flops - cost.stages['face'].flops) / 1e12:.2f}" for cost in costs]
    assert tera == ["1.56", "1.39", "0.58", "0.41"]


def test_character_heads_cost_what_pytorch_counts() -> None:
    model = tiny_model()
    model.add_ctc(CtcConfig(hidden=24, num_layers=2, kernel=5))
    scale = Scale(4, 2)
    encoded = model.encode(_batch(), [scale])
    heads = [(head, getattr(encoded, name)) for name, head in model.ctc_heads().items()]
    _, flops = _counted(lambda: [head.logits(features) for head, features in heads])
    costs = CostModel.of_model(model)
    stage = costs.cost(scale, DURATION_S).stages["characters"]
    assert stage.flops == pytest.approx(flops, rel=AGREEMENT)
    assert stage.num_tokens == sum(int(features.lengths_B[0]) for _, features in heads)
    parts = [costs.cost(part, DURATION_S).stages["characters"].flops for part in scale.parts]
    assert sum(parts) == stage.flops
    assert min(parts) > 0


def test_what_is_encoded_serves_every_pass() -> None:
    costs = CostModel.of_model(tiny_model())
    passes = [costs.cost(Scale.parse(name), 2.0) for name in ("a16", "v5", "a4v2")]
    together = Cost.of_passes(passes)
    fine = passes[-1]
    assert together.scale == fine.scale
    assert together.encode_flops == fine.encode_flops > 0
    for name in ("projector", "prefill", "decode"):
        assert together.stages[name].flops == sum(cost.stages[name].flops for cost in passes)
        assert together.stages[name].cache_bytes == max(cost.stages[name].cache_bytes for cost in passes)
    assert Cost.of_passes(passes[:2]).encode_flops == fine.encode_flops
    assert Cost.of_passes(passes[:1]) == passes[0]
