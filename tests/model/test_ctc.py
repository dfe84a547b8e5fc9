"""The character heads: the same alone and in any batch, apart from everything else, kept in a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtsk.checkpoints.store import load_model, read_record, save_model
from mtsk.config import CtcConfig, CtcStageConfig, ModelConfig, OptimConfig, TrainConfig, from_dict, set_values, to_dict
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.ctc import STEP_S, Alphabet, CtcHead, unpadded_log_probs
from mtsk.scale import Scale
from mtsk.types import Features
from tests.tiny import (
    row_of,
    save_tiny_bases,
    tiny_batch,
    tiny_config,
    tiny_llm,
    tiny_model,
    tiny_video_encoder,
    tiny_whisper,
)
from tests.training.prepared import tiny_train_config

HEADS = CtcConfig(alphabet=" 'abcdefghijklmnopqrstuvwxyz", hidden=16, num_layers=2, kernel=3)


def with_heads(model: AvsrModel) -> AvsrModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model.add_ctc(HEADS)
    return model.eval()


def test_alphabet() -> None:
    alphabet = Alphabet(" 'abcé")
    assert alphabet.num_classes == 7
    assert alphabet.classes("  Cab - c'à!  bñ ") == [5, 3, 4, 1, 5, 2, 3, 1, 4]
    assert alphabet.classes(" - ") == []
    assert alphabet.read([0, 1, 5, 5, 0, 5, 3, 0, 1, 1, 0, 1, 4, 0]) == "cca b"
    assert alphabet.read([]) == ""


@pytest.mark.parametrize(("feature_s", "steps"), [(STEP_S, 1), (2 * STEP_S, 2)])
@torch.inference_mode()
def test_a_row_is_read_as_alone(feature_s: float, steps: int) -> None:
    """Whatever the batch, and whatever lies beyond a row's length."""
    torch.manual_seed(0)
    head = CtcHead(12, feature_s, HEADS).eval()
    values_BTD, lengths_B = torch.randn(3, 9, 12), torch.tensor([9, 0, 4])
    together = unpadded_log_probs(head.logits(Features(values_BTD, lengths_B)))
    assert [tuple(row.shape) for row in together] == [(length * steps, 29) for length in (9, 0, 4)]
    for row, length in enumerate(lengths_B.tolist()):
        one = Features(values_BTD[row : row + 1, :length], lengths_B[row : row + 1])
        [alone] = unpadded_log_probs(head.logits(one))
        torch.testing.assert_close(together[row], alone)
        torch.testing.assert_close(alone.exp().sum(dim=-1), torch.ones(length * steps))


@torch.inference_mode()
def test_heads_change_nothing_else() -> None:
    batch, scales = tiny_batch(), [Scale.parse(text) for text in ("a4v2", "v2", "a4")]
    plain, model = tiny_model(), with_heads(tiny_model())
    encoded = model.encode(batch, scales)
    expected, found = plain(encoded, scales, batch.texts), model(encoded, scales, batch.texts)
    assert torch.equal(found.logits_BLV, expected.logits_BLV)
    ours = {name for name in model.trained_parameters() if name not in plain.trained_parameters()}
    assert ours
    assert all(name.startswith("ctc.") for name in ours)
    assert model.num_trained()["ctc"] == sum(
        p.numel() for head in model.ctc_heads().values() for p in head.parameters()
    )
    assert model.num_trained() == plain.num_trained() | {"ctc": model.num_trained()["ctc"]}


def test_fresh_weights_are_those_of_a_model_without() -> None:
    def build(config: ModelConfig) -> dict[str, torch.Tensor]:
        audio, llm, lips = WhisperAudioEncoder(tiny_whisper(), "real"), tiny_llm(), tiny_video_encoder()
        torch.manual_seed(3)
        model = AvsrModel(config, llm, audio, lips)
        return {name: p.clone() for name, p in model.trained_parameters().items()}

    plain, heads = build(tiny_config()), build(replace(tiny_config(), ctc=HEADS))
    assert all(torch.equal(value, heads[name]) for name, value in plain.items())
    assert len(heads) > len(plain)


def test_only_modalities_of_the_grid_have_heads() -> None:
    assert set(with_heads(tiny_model(scales=("v2", "v5"))).ctc_heads()) == {"video"}
    assert set(with_heads(tiny_model()).ctc_heads()) == {"audio", "video"}
    assert tiny_model().ctc_heads() == {}


@torch.inference_mode()
def test_round_trip(tmp_path: Path) -> None:
    sources = save_tiny_bases(tmp_path)
    model = with_heads(tiny_model(sources=sources))
    for parameter in model.ctc.parameters():
        parameter.copy_(parameter.half())
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config == read_record(tmp_path / "model").model
    assert loaded.config.ctc == HEADS
    encoded = model.encode(row_of(tiny_batch(), 0), model.grid)
    assert encoded.audio is not None
    expected, found = (each.ctc_heads()["audio"].logits(encoded.audio).values_BTD for each in (model, loaded))
    torch.testing.assert_close(found, expected)
    assert not loaded.ctc.training


# The configuration.


def test_a_configuration_without_heads_is_what_it_was() -> None:
    """Old records have no word of heads, and runs are told apart by what differs from the defaults."""
    for config in (tiny_config(), tiny_train_config()):
        values = to_dict(config)
        names = {"ctc", "onto"} & set(values)
        assert all(values.pop(name) is None for name in names)
        assert names
        assert from_dict(type(config), values) == config
        assert not {"ctc", "onto"} & set(set_values(config))


def test_heads_and_their_stage_belong_together() -> None:
    plain, stage = tiny_train_config(), CtcStageConfig(OptimConfig(2, 1e-3))
    whole = replace(plain, model=replace(plain.model, ctc=HEADS), ctc=stage, onto="grid-s1")
    assert from_dict(TrainConfig, to_dict(whole)) == whole
    with pytest.raises(ValueError, match=r"null without model\.ctc"):
        replace(plain, ctc=stage)
    with pytest.raises(ValueError, match="the stage that trains the heads"):
        replace(plain, model=replace(plain.model, ctc=HEADS))
    with pytest.raises(ValueError, match="onto is 'grid-s1'; allowed is null without ctc"):
        replace(plain, onto="grid-s1")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"alphabet": "abc"}, "a space"), ({"alphabet": "aa "}, "distinct"), ({"kernel": 4}, "odd"), ({"hidden": 0}, "1")],
)
def test_odd_heads_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CtcConfig(**values)  # type: ignore[arg-type]
