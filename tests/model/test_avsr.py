"""The whole model: each row as if alone, labels in their place, what is trained, and refusals."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.fusion import IGNORED
from mtsk.scale import Scale
from mtsk.types import Batch
from tests.tiny import (
    SCALES,
    TEXTS,
    row_of,
    tiny_batch,
    tiny_llm,
    tiny_model,
    tiny_video_encoder,
    tiny_whisper,
    with_garbage,
)

MIXED = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]


@torch.no_grad()
def _label_logits(model: AvsrModel, batch: Batch, scales: list[Scale]) -> list[Tensor]:
    """For each row the logits at its labels."""
    prediction = model(model.encode(batch, scales), scales, batch.texts)
    rows = zip(prediction.logits_BLV, prediction.labels_BL, strict=True)
    return [logits[labels != IGNORED] for logits, labels in rows]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("compression", ["average", "stack"])
@pytest.mark.parametrize(("strategy", "window"), [("ms", "real"), ("ss", "real"), ("mss", "real"), ("mss", "30s")])
def test_a_row_is_as_if_alone(kind: str, compression: str, strategy: str, window: str) -> None:
    """Unlike lengths of sound, lips and text; unlike scales and adapters; in one batch or one by one."""
    model, batch = tiny_model(strategy, compression, kind=kind, window=window), tiny_batch()
    together = _label_logits(model, batch, MIXED)
    for row, scale in enumerate(MIXED):
        alone = _label_logits(model, row_of(batch, row), [scale])
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-5)
    assert float(together[0].std()) > 0.5, "the logits are flat: nothing would be seen"


@pytest.mark.parametrize("window", ["real", "30s"])
def test_what_lies_beyond_a_row_has_no_effect(window: str) -> None:
    model, batch = tiny_model("mss", window=window), tiny_batch()
    clean, dirty = (_label_logits(model, one, MIXED) for one in (batch, with_garbage(batch)))
    for one, other in zip(clean, dirty, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("text", SCALES)
def test_every_modality_of_a_scale_counts_and_no_other(text: str) -> None:
    scale = Scale.parse(text)
    model, batch, other = tiny_model(), tiny_batch(seed=0), tiny_batch(seed=1)
    heard, seen = (
        Batch(**(vars(batch) | {name: getattr(other, name)})) for name in ("waveform_BN", "mouth_BTHW")
    )  # another sound, other lips
    base = _label_logits(model, batch, [scale] * 3)
    for changed, rate in ((heard, scale.audio), (seen, scale.video)):
        logits = _label_logits(model, changed, [scale] * 3)
        difference = max(float((one - two).abs().max()) for one, two in zip(base, logits, strict=True))
        assert (difference > 1e-3) == (rate is not None)


@torch.no_grad()
def test_labels_are_what_transformers_would_learn() -> None:
    """The loss of one row equals that of transformers for the same sequence, computed over all positions."""
    model, scale = tiny_model(adapted=False), Scale.parse("a4v2")
    batch = row_of(tiny_batch(), 0)
    encoded = model.encode(batch, [scale])
    prediction = model(encoded, [scale], batch.texts)
    own = functional.cross_entropy(prediction.logits_BLV[0], prediction.labels_BL[0])
    target = model.prompts.target(batch.texts[0])
    inputs = model.embed(encoded, [scale], [target])
    labels = torch.tensor([[IGNORED] * (inputs.mask_BS.shape[1] - len(target)) + target])
    reference = model.llm(inputs_embeds=inputs.embeds_BSE, labels=labels).loss
    torch.testing.assert_close(own, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_empty_text_has_its_end_as_label() -> None:
    model, scales = tiny_model(), [Scale.parse("a4")] * 3
    batch = tiny_batch(texts=("", "bin", ""))
    together = _label_logits(model, batch, scales)
    assert [len(logits) for logits in together] == [1, len(model.prompts.target("bin")), 1]
    alone = _label_logits(model, row_of(batch, 2), scales[:1])
    torch.testing.assert_close(together[2], alone[0], atol=1e-4, rtol=1e-5)


# Encoding once.


def test_only_what_the_scales_need_is_encoded() -> None:
    model, batch = tiny_model(), tiny_batch()
    for text, sound, lips in (("a4", True, False), ("v2", False, True), ("a4v2", True, True)):
        encoded = model.encode(batch, [Scale.parse(text)])
        assert (encoded.audio is not None, encoded.video is not None) == (sound, lips)
    with pytest.raises(ValueError, match="needs video, which was not encoded"):
        model.embed(model.encode(batch, [Scale.parse("a4")]), [Scale.parse("v2")] * 3, [[]] * 3)


def test_counts_of_tokens() -> None:
    model, batch = tiny_model(), tiny_batch()
    encoded = model.encode(batch, model.grid)
    for row, (audio, video) in enumerate([(65, 30), (36, 19), (100, 47)]):
        for scale in model.grid:
            num_tokens = encoded.num_tokens(row, scale)
            assert num_tokens == scale.num_tokens(num_audio_features=audio, num_video_features=video)
            prefix = model.prompts.prefix(*((None if r is None else 0) for r in (scale.audio, scale.video)))
            inputs = model.embed(encoded.rows([row]), [scale], [[]])
            assert inputs.embeds_BSE.shape[1] == num_tokens + len(prefix)


def test_rows_are_chosen_in_order() -> None:
    model, batch = tiny_model(), tiny_batch()
    scale = Scale.parse("a4v2")
    encoded = model.encode(batch, [scale])
    chosen = encoded.rows([2, 0])
    assert chosen.audio is not None
    assert chosen.audio.lengths_B.tolist() == [100, 65]
    assert encoded.rows([1]).num_tokens(0, scale) == encoded.num_tokens(1, scale)


def test_reach() -> None:
    model = tiny_model()
    batch = tiny_batch(durations_s=(1.0, 0.3, None), num_frames=(None, 4, 20))
    encoded = model.encode(batch, model.grid)
    reached = [[str(s) for s in model.grid if encoded.reaches(row, s)] for row in range(3)]
    assert reached == [["a4", "a16"], ["a4", "v2", "a4v2"], ["v2", "v5"]]
    assert not Encoded(None, None).reaches(0, Scale.parse("a4"))


def test_too_short_a_row_is_refused() -> None:
    model = tiny_model()
    batch = tiny_batch(durations_s=(1.0, 0.3, 1.0))
    scales = [Scale.parse(text) for text in ("a16", "a16", "a4")]
    with pytest.raises(ValueError, match="too short: 15 audio features give no token at rate 16"):
        model(model.encode(batch, scales), scales, batch.texts)


def test_untrained_scale_is_refused() -> None:
    model, batch = tiny_model(scales=("a4", "a4v2", "a16")), tiny_batch()
    wrong = [Scale.parse("a16v2")] * 3
    with pytest.raises(ValueError, match="a16v2 was not trained; this model has: a4 a16 a4v2"):
        model(model.encode(batch, model.grid), wrong, batch.texts)


@torch.no_grad()
def test_no_input_is_the_prompt_alone() -> None:
    model = tiny_model()
    for text in ("a4", "v2", "a4v2"):
        scale = Scale.parse(text)
        inputs = model.no_input(scale)
        whole = model.prompts.prefix(*(None if scale.rate(m) is None else 0 for m in "av"))
        ids = torch.tensor([[i for i in whole if i < model.prompts.vocabulary.size]])  # without the delimiters
        torch.testing.assert_close(inputs.embeds_BSE, model.llm.get_input_embeddings()(ids))
        assert bool(inputs.mask_BS.all())


# Training.


def test_encoders_stay_in_evaluation_mode() -> None:
    model = tiny_model().train()
    assert model.audio_encoder is not None
    assert model.video_encoder is not None
    for encoder in (model.audio_encoder, model.video_encoder):
        assert not any(module.training for module in encoder.modules())
    assert model.training
    assert all(layer.dropout.training for layer in model.adapters.layers.values())
    assert all(module.training for module in model.projectors.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = tiny_batch()
    first, second = (model.encode(batch, model.grid) for _ in range(2))
    for encoded in (first, second):
        assert encoded.audio is not None
        assert encoded.video is not None
    assert torch.equal(*(encoded.audio.values_BTD for encoded in (first, second) if encoded.audio))
    assert torch.equal(*(encoded.video.values_BTD for encoded in (first, second) if encoded.video))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("strategy", ["ms", "ss", "mss"])
def test_trained_parameters(strategy: str) -> None:
    """Exactly what requires a gradient: adapters, projectors, delimiters and our own lip encoder."""
    model = tiny_model(strategy)
    trained = model.trained_parameters()
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == set(trained)
    adapters = {name for name in trained if name.startswith("llm.")}
    assert len(adapters) == len(model.adapters.parameters()) == 8
    rooms = {name.partition(".")[0] for name in trained}
    assert rooms == {"llm", "projectors", "fusion", "video_encoder"}
    rates = {name.split(".")[1] + name.split(".")[3] for name in trained if name.startswith("projectors.")}
    assert rates == {"audio4", "audio16", "video2", "video5"}


def test_a_backward_reaches_what_the_scales_use() -> None:
    model, batch = tiny_model("ss"), tiny_batch()
    scales = [Scale.parse("a4v2"), Scale.parse("a4"), Scale.parse("a4")]
    prediction = model(model.encode(batch, scales), scales, batch.texts)
    loss = functional.cross_entropy(prediction.logits_BLV.flatten(0, 1), prediction.labels_BL.flatten())
    torch.autograd.backward(loss)
    reached = {n for n, w in model.trained_parameters().items() if w.grad is not None and bool(w.grad.any())}
    assert {n for n in reached if n.startswith("projectors.")} == {
        n
        for n in model.trained_parameters()
        if n.startswith(("projectors.audio.at_rate.4.", "projectors.video.at_rate.2."))
    }
    assert {n for n in model.trained_parameters() if n.startswith(("llm.", "fusion."))} <= reached
    assert all(w.grad is None for n, w in model.named_parameters() if n not in model.trained_parameters())


@pytest.mark.parametrize("texts", [("a4", "a16"), ("v2", "v5")])
def test_a_model_of_one_modality(texts: tuple[str, str]) -> None:
    model, batch = tiny_model(scales=texts), tiny_batch()
    scales = [Scale.parse(text) for text in (*texts, texts[0])]
    together = _label_logits(model, batch, scales)
    torch.testing.assert_close(
        together[1], _label_logits(model, row_of(batch, 1), scales[1:2])[0], atol=1e-4, rtol=1e-5
    )
    assert len(model.projectors) == 1


def test_an_encoder_that_the_grid_needs_must_be_given() -> None:
    config = tiny_model().config
    with pytest.raises(AssertionError, match="no video encoder was given"):
        AvsrModel(config, tiny_llm(), WhisperAudioEncoder(tiny_whisper(), "real"), None)
    with pytest.raises(AssertionError, match="no audio encoder was given"):
        AvsrModel(config, tiny_llm(), None, tiny_video_encoder())


# Precision.


def test_half_precision_predicts_the_same() -> None:
    exact = _label_logits(tiny_model("mss"), tiny_batch(), MIXED)
    rounded = _label_logits(tiny_model("mss").to(torch.bfloat16), tiny_batch(), MIXED)
    for own, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.bfloat16
        assert float(functional.cosine_similarity(own.flatten(), other.float().flatten(), dim=0)) > 0.98


@pytest.mark.parametrize("strategy", ["ms", "mss"])
def test_autocast_with_rows_that_lack_a_modality_stays_finite(strategy: str) -> None:
    """As in training: mixed precision, and a row without sound in a batch with sound."""
    model = tiny_model(strategy).train()
    batch = tiny_batch(texts=TEXTS[:3], durations_s=(1.31, None, 2.0), num_frames=(30, 19, None))
    scales = [Scale.parse(text) for text in ("a4v2", "v2", "a4")]
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(batch, scales)
        prediction = model(encoded, scales, batch.texts)
    loss = functional.cross_entropy(prediction.logits_BLV.flatten(0, 1).float(), prediction.labels_BL.flatten())
    torch.autograd.backward(loss)
    for part in (encoded.audio, encoded.video):
        assert part is not None
        assert bool(torch.isfinite(part.values_BTD).all())
    assert bool(torch.isfinite(loss))
    gradients = [weight.grad for weight in model.trained_parameters().values() if weight.grad is not None]
    assert len(gradients) > 20
    assert all(bool(torch.isfinite(grad).all()) for grad in gradients)
