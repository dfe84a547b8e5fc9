"""What the heads read becomes drafts: by the modalities of a row's scale, by the surer head of two."""

import pytest
import torch
from torch import Tensor

from mtsk.inference.characters import Readings, draft_texts, sureness
from mtsk.inference.decoding import greedy
from mtsk.model.ctc import Alphabet
from mtsk.scale import Scale
from tests.model.test_ctc import HEADS, with_heads
from tests.tiny import TEXTS, tiny_batch, tiny_model

ALPHABET = Alphabet(HEADS.alphabet)


def _reading(text: str, logit: float) -> Tensor:
    """Two steps for each character, a blank after it; the higher the logit, the surer."""
    logits = torch.zeros(3 * len(text), ALPHABET.num_classes)
    for i, number in enumerate(ALPHABET.classes(text)):
        logits[3 * i : 3 * i + 2, number] = logit
        logits[3 * i + 2, 0] = logit
    return logits.log_softmax(dim=-1)


def test_a_scale_uses_what_it_has() -> None:
    nothing = torch.zeros(0, ALPHABET.num_classes)
    sound = [_reading("bin", 9.0), _reading("lay", 5.0), nothing]
    lips = [_reading("pin", 5.0), _reading("say", 9.0), _reading("place", 1.0)]
    assert 0 < sureness(lips[2]) < sureness(lips[0]) < sureness(lips[1]) < 1
    readings = Readings(ALPHABET, {"audio": sound, "video": lips})
    expected: dict[str, list[str | None]] = {
        "a4": ["bin", "lay", None],
        "v2": ["pin", "say", "place"],
        "a4v2": ["bin", "say", "place"],
    }
    for name, texts in expected.items():
        for row, text in enumerate(texts):
            log_probs = readings.at(row, Scale.parse(name))
            assert (None if log_probs is None else ALPHABET.read(log_probs.argmax(dim=-1).tolist())) == text
    assert Readings(ALPHABET, {}).at(0, Scale.parse("a4v2")) is None


def test_drafts_are_the_tokens_of_the_text() -> None:
    model, scales = tiny_model(), [Scale.parse("a4")] * 3
    sound = [_reading(TEXTS[1], 9.0), torch.zeros(0, ALPHABET.num_classes), _reading(TEXTS[1], 3.0)]
    assert sureness(sound[2]) < 0.7
    expected = [model.prompts.target(TEXTS[1]), [], []]  # the last is read, but not surely
    assert draft_texts(model, Readings(ALPHABET, {"audio": sound}), scales) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@torch.inference_mode()
def test_heads_of_a_model_change_no_text(kind: str) -> None:
    """Untrained ones, whose drafts are of no use; a model without heads drafts nothing."""
    model, scales = with_heads(tiny_model(kind=kind)), [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
    encoded = model.encode(tiny_batch(), scales)
    readings = Readings.of(model, encoded)
    assert [len(rows) for rows in readings.by_modality.values()] == [3, 3]
    drafts = draft_texts(model, readings, scales, least_sureness=0.0)
    assert any(len(draft) > 1 for draft in drafts)
    inputs = model.embed(encoded, scales, [[]] * 3)
    plain, drafted = (greedy(model, inputs, scales, [9, 14, 5], its) for its in (None, drafts))
    assert drafted.tokens == plain.tokens
    bare = tiny_model(kind=kind)
    assert draft_texts(bare, Readings.of(bare, encoded), scales) == [[], [], []]
