"""AV-HuBERT: equal to the original code and to a naive oracle, each row as if alone, frozen but for its adapters."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtsk.checkpoints.avhubert import weights_from_fairseq
from mtsk.model import avhubert
from mtsk.model.avhubert import AvHubertEncoder, AvHubertShape
from mtsk.types import Features
from tests.goldens import golden_video, load_golden
from tests.tiny import row_of, tiny_batch, with_garbage
from tests.tiny_avhubert import POST_NORM, TINY, published

GOLDEN_SHAPE = AvHubertShape(num_layers=3, width=96, ffn_width=192, num_heads=4)


def _encoder(shape: AvHubertShape, state: dict[str, Tensor]) -> AvHubertEncoder:
    with torch.device("meta"):
        encoder = AvHubertEncoder(shape)
    encoder.load_state_dict(weights_from_fairseq(state), assign=True)
    return encoder


@functools.cache
def _tiny(shape: AvHubertShape = TINY) -> AvHubertEncoder:
    return _encoder(shape, published(shape))


@torch.no_grad()
def _run(encoder: AvHubertEncoder, mouth_BTHW: Tensor, num_frames_B: Tensor) -> Features:
    features: Features = encoder(mouth_BTHW, num_frames_B)
    return features


# Against the original code.

LENGTHS = {"nomask": [20, 20], "mask": [20, 13]}


@pytest.fixture(scope="module")
def golden() -> tuple[Any, ...]:
    return load_golden("avhubert_small_prenorm.npz")


@pytest.fixture(scope="module")
def original(golden: Any) -> AvHubertEncoder:
    """Ours, with the weights of the original."""
    return _encoder(GOLDEN_SHAPE, golden[2])


@pytest.mark.parametrize(
    ("name", "mask", "zero_pad"),
    [
        ("out_nomask", "nomask", False),
        ("out_mask", "mask", False),
        ("out_mask_zeropad", "mask", True),
        ("out_nomask_zeropad", "nomask", True),
    ],
)
def test_equals_the_original(golden: Any, original: AvHubertEncoder, name: str, mask: str, zero_pad: bool) -> None:
    """At padded steps too, whose values are what the original makes of them."""
    pixels_BTHW = golden_video(20)
    if zero_pad:
        pixels_BTHW[1, 13:] = 0
    out_BTD = original.encode(pixels_BTHW, torch.tensor(LENGTHS[mask]))
    torch.testing.assert_close(out_BTD, torch.from_numpy(golden[1][name]), atol=1e-5, rtol=0)


def test_equals_the_original_alone(golden: Any, original: AvHubertEncoder) -> None:
    out_BTD = original.encode(golden_video(20)[1:, :13], torch.tensor([13]))
    torch.testing.assert_close(out_BTD, torch.from_numpy(golden[1]["out_item1_alone13"]), atol=1e-5, rtol=0)


def test_equals_the_original_where_positions_are_large(golden: Any) -> None:
    """Tells which GELU it is."""
    _, arrays, state = golden
    ones = torch.ones_like(state["encoder.pos_conv.0.weight_g"])
    encoder = _encoder(GOLDEN_SHAPE, {**state, "encoder.pos_conv.0.weight_g": ones})
    out_BTD = encoder.encode(golden_video(20), torch.tensor([20, 20]))
    torch.testing.assert_close(out_BTD, torch.from_numpy(arrays["out_nomask_g1"]), atol=1e-5, rtol=0)


def test_frames_equal_the_original(golden: Any, original: AvHubertEncoder) -> None:
    frames_BTD = original._frames(golden_video(20), torch.tensor([20, 20]))
    expected_BTD = torch.from_numpy(golden[1]["frontend"]).transpose(1, 2)
    torch.testing.assert_close(frames_BTD, expected_BTD, atol=1e-5 * float(expected_BTD.abs().max()), rtol=0)


def test_adapters_equal_the_original() -> None:
    """The original masks nothing, so both rows are as long as the batch."""
    _, arrays, state = load_golden("omni_task_lora.npz")
    prefix, names = "video_encoder.", {}
    for key in state:
        name = key.removeprefix(prefix)
        for old, new in (("Q", "q"), ("V", "v")):
            name = name.replace(f"lora_down_{old}.weight", f"{new}_lora.down_RD")
            name = name.replace(f"lora_up_{old}.weight", f"{new}_lora.up_DR")
        if key.startswith(prefix):
            names[name] = state[key]
    encoder = AvHubertEncoder(GOLDEN_SHAPE)
    encoder.add_adapters(rank=6, alpha=12)
    encoder.load_state_dict(weights_from_fairseq(names))
    pixels_BTHW = golden_video(27)
    pixels_BTHW[1, 20:] = 0
    out_BTD = encoder.encode(pixels_BTHW, torch.tensor([27, 27])).detach()
    torch.testing.assert_close(out_BTD, torch.from_numpy(arrays["video_enc_lora"]), atol=1e-5, rtol=0)


# Against a naive oracle: one row, no padding, loops and plain sums, in float64, from the published names.


def _oracle(state: dict[str, Tensor], pixels_THW: Tensor, shape: AvHubertShape) -> Tensor:
    weights = {name: value.double() for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def attend(x: Tensor, name: str) -> Tensor:
        size = shape.width // shape.num_heads
        query, key, value = (linear(x, f"{name}.{part}_proj") for part in "qkv")
        heads = []
        for start in range(0, shape.width, size):
            one = slice(start, start + size)
            scores = (query[:, one] * size**-0.5) @ key[:, one].T
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append(shares @ value[:, one])
        return linear(torch.cat(heads, 1), f"{name}.out_proj")

    def feed_forward(x: Tensor, name: str) -> Tensor:
        hidden = linear(x, f"{name}.fc1")
        return linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"{name}.fc2")

    frames = linear(_oracle_frames(weights, pixels_THW.double()), "feature_extractor_video.proj")
    x = linear(norm(torch.cat((torch.zeros_like(frames), frames), 1), "layer_norm"), "post_extract_proj")
    x = x + _oracle_positions(weights, x, shape)
    x = x if shape.norm_first else norm(x, "encoder.layer_norm")
    for i in range(shape.num_layers):
        layer = f"encoder.layers.{i}"
        first, second = f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"
        if shape.norm_first:
            x = x + attend(norm(x, first), f"{layer}.self_attn")
            x = x + feed_forward(norm(x, second), layer)
        else:
            x = norm(x + attend(x, f"{layer}.self_attn"), first)
            x = norm(x + feed_forward(x, layer), second)
    return norm(x, "encoder.layer_norm") if shape.norm_first else x


def _oracle_positions(weights: dict[str, Tensor], x: Tensor, shape: AvHubertShape) -> Tensor:
    """Sums over taps; with an even kernel, one tap more looks back than ahead."""
    direction, size = weights["encoder.pos_conv.0.weight_v"], weights["encoder.pos_conv.0.weight_g"]
    before = shape.position_kernel // 2
    out = weights["encoder.pos_conv.0.bias"].expand(len(x), -1).clone()
    groups = shape.position_groups
    for tap in range(shape.position_kernel):
        kernel = size[0, 0, tap] * direction[..., tap] / direction[..., tap].square().sum().sqrt()
        for time in range(len(x)):
            source = time + tap - before
            if 0 <= source < len(x):
                mixed = kernel.reshape(groups, -1, kernel.shape[1]) @ x[source].reshape(groups, -1, 1)
                out[time] += mixed.flatten()
    return out * 0.5 * (1 + torch.erf(out / 2**0.5))


def _oracle_frames(weights: dict[str, Tensor], pixels_THW: Tensor) -> Tensor:
    """The ResNet as published, with its 3-D convolution over the whole recording."""
    root = "feature_extractor_video.resnet"

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{part}"].reshape(-1, *[1] * (x.ndim - 2))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * weights[f"{name}.weight"].reshape(-1, *[1] * (x.ndim - 2)))

    conv = functional.conv3d(
        pixels_THW[None, None], weights[f"{root}.frontend3D.0.weight"], stride=(1, 2, 2), padding=(2, 3, 3)
    )
    hidden = prelu(batch_norm(conv, f"{root}.frontend3D.1"), f"{root}.frontend3D.2")
    x = functional.max_pool3d(hidden, (1, 3, 3), (1, 2, 2), (0, 1, 1))[0].transpose(0, 1)
    for i in range(1, 5):
        for j in range(2):
            block = f"{root}.trunk.layer{i}.{j}"
            stride = 2 if i > 1 and j == 0 else 1
            hidden = functional.conv2d(x, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
            hidden = prelu(batch_norm(hidden, f"{block}.bn1"), f"{block}.relu1")
            hidden = batch_norm(functional.conv2d(hidden, weights[f"{block}.conv2.weight"], padding=1), f"{block}.bn2")
            if stride == 2:
                x = functional.conv2d(x, weights[f"{block}.downsample.0.weight"], stride=2)
                x = batch_norm(x, f"{block}.downsample.1")
            x = prelu(hidden + x, f"{block}.relu2")
    return x.mean((2, 3))


@pytest.mark.parametrize("shape", [TINY, POST_NORM], ids=["pre-norm", "post-norm"])
def test_equals_the_oracle(shape: AvHubertShape) -> None:
    state, lengths = published(shape), [11, 6, 1]
    pixels_BTHW = torch.randn(3, 11, 32, 32, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        pixels_BTHW[row, length:] = 0
    together_BTD = _encoder(shape, state).encode(pixels_BTHW, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected_TD = _oracle(state, pixels_BTHW[row, :length], shape).float()
        torch.testing.assert_close(together_BTD[row, :length], expected_TD, atol=1e-5, rtol=1e-5)


def test_the_oracle_equals_the_original(golden: Any) -> None:
    """So it may be trusted where there is no original output to compare with."""
    _, arrays, state = golden
    out_TD = _oracle(state, golden_video(20)[1, :13], GOLDEN_SHAPE).float()
    torch.testing.assert_close(out_TD, torch.from_numpy(arrays["out_item1_alone13"])[0], atol=1e-5, rtol=0)


# As every lip encoder.


@pytest.mark.parametrize("shape", [TINY, POST_NORM], ids=["pre-norm", "post-norm"])
def test_a_row_is_as_if_alone(shape: AvHubertShape) -> None:
    batch, encoder = tiny_batch(), _tiny(shape)
    together = _run(encoder, batch.mouth_BTHW, batch.num_frames_B)
    assert together.lengths_B.tolist() == [30, 19, 47]
    assert together.values_BTD.shape == (3, 47, encoder.dim)
    for row, length in enumerate(together.lengths_B.tolist()):
        one = row_of(batch, row)
        alone = _run(encoder, one.mouth_BTHW, one.num_frames_B)
        torch.testing.assert_close(together.values_BTD[row, :length], alone.values_BTD[0], atol=1e-5, rtol=1e-5)
        assert not together.values_BTD[row, length:].any()


def test_what_lies_beyond_a_row_is_not_seen() -> None:
    batch, encoder = tiny_batch(), _tiny()
    noisy = with_garbage(batch)
    clean, dirty = (_run(encoder, one.mouth_BTHW, one.num_frames_B) for one in (batch, noisy))
    torch.testing.assert_close(clean.values_BTD, dirty.values_BTD, atol=1e-6, rtol=0)


def test_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, encoder = tiny_batch(), _tiny()
    whole = _run(encoder, batch.mouth_BTHW, batch.num_frames_B).values_BTD
    monkeypatch.setattr(avhubert, "_CHUNK", 7)
    torch.testing.assert_close(
        _run(encoder, batch.mouth_BTHW, batch.num_frames_B).values_BTD, whole, atol=1e-5, rtol=1e-5
    )


def test_rows_without_lips() -> None:
    encoder = _tiny()
    mixed = tiny_batch(num_frames=(5, None, 1))
    features = _run(encoder, mixed.mouth_BTHW, mixed.num_frames_B)
    assert features.lengths_B.tolist() == [5, 0, 1]
    assert bool(torch.isfinite(features.values_BTD).all())
    nothing = tiny_batch(num_frames=(None, None, None))
    assert _run(encoder, nothing.mouth_BTHW, nothing.num_frames_B).values_BTD.shape == (3, 0, encoder.dim)


def test_the_middle_is_seen_normalised() -> None:
    one, encoder = row_of(tiny_batch(num_frames=(3, 5, 4)), 1), _encoder(replace(TINY, crop_px=88), published(TINY))
    expected = encoder.encode((one.mouth_BTHW[..., 4:92, 4:92] / 255 - 0.421) / 0.165, one.num_frames_B)
    torch.testing.assert_close(_run(encoder, one.mouth_BTHW, one.num_frames_B).values_BTD, expected)


def test_half_precision_sees_the_same() -> None:
    batch, encoder = tiny_batch(), copy.deepcopy(_tiny())
    exact = _run(encoder, batch.mouth_BTHW, batch.num_frames_B).values_BTD
    rounded = _run(encoder.to(torch.bfloat16), batch.mouth_BTHW, batch.num_frames_B).values_BTD
    assert rounded.dtype == torch.bfloat16
    assert float(functional.cosine_similarity(exact.flatten(), rounded.float().flatten(), dim=0)) > 0.995


# Frozen, and its adapters.


def test_stays_frozen() -> None:
    encoder = _tiny().train()
    assert not any(module.training for module in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    before = copy.deepcopy(encoder.state_dict())
    one = row_of(tiny_batch(), 1)
    encoder(one.mouth_BTHW, one.num_frames_B)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_adapters_are_what_is_trained() -> None:
    one, encoder = row_of(tiny_batch(), 1), copy.deepcopy(_tiny())
    plain = _run(encoder, one.mouth_BTHW, one.num_frames_B).values_BTD
    encoder.add_adapters(rank=3, alpha=6)
    encoder.train()
    assert torch.equal(_run(encoder, one.mouth_BTHW, one.num_frames_B).values_BTD, plain), "fresh, and not zero"
    adapters = encoder.trained_parameters()
    assert len(adapters) == TINY.num_layers * 2 * 2
    assert {name for name, weight in encoder.named_parameters() if weight.requires_grad} == set(adapters)
    for name, weight in adapters.items():
        if name.endswith("up_DR"):
            nn.init.normal_(weight, std=0.1)
    encoder(one.mouth_BTHW, one.num_frames_B).values_BTD.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in adapters.values())
    assert not torch.allclose(_run(encoder, one.mouth_BTHW, one.num_frames_B).values_BTD, plain, atol=1e-3)


def test_large_has_the_published_size() -> None:
    """Counted by hand from the shapes of Large, without the branch for sound and what only pre-training needs."""
    with torch.device("meta"):
        encoder = AvHubertEncoder(AvHubertShape())
    frontend = 64 * 5 * 7 * 7 + 2 * 64 + 64
    trunk = 0
    for before, channels in ((64, 64), (64, 128), (128, 256), (256, 512)):
        convolutions = (before + 3 * channels) * channels * 9
        shortcut = 0 if before == channels else before * channels + 2 * channels
        trunk += convolutions + shortcut + 4 * 2 * channels + 4 * channels  # batch norms, PReLUs
    projection = 512 * 1024 + 1024
    join = 2 * 2048 + 2048 * 1024 + 1024
    positions = 1024 * 64 * 128 + 1024
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2 * 1024
    expected = frontend + trunk + projection + join + positions + 24 * layer + 2 * 1024
    assert sum(weight.numel() for weight in encoder.parameters()) == expected == 324_515_328
    encoder.add_adapters(rank=64, alpha=128)
    assert sum(weight.numel() for weight in encoder.trained_parameters().values()) == 6_291_456


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_heads": 5}, "num_heads is 5; allowed are divisors of the width 1024"),
        ({"num_layers": 0}, "num_layers is 0; allowed is 1 or more"),
        ({"crop_px": 97}, "crop_px is 97; mouth crops have 96"),
        ({"pixel_std": 0.0}, "pixel_std is 0.0; allowed is above 0"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AvHubertShape(**wrong)
