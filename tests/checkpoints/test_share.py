"""Sharing: what is saved opens with equal results, the card says what it must, and the hub gets that and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import errors
from safetensors.torch import load_file
from torch import Tensor

import mtsk
from mtsk.checkpoints import card, share
from mtsk.checkpoints.card import MARK, Card
from mtsk.checkpoints.sources import EMBEDDED
from mtsk.checkpoints.store import CONFIG_FILE, WEIGHTS_FILE, Record, load_model, read_record, save_model
from mtsk.config import AvHubertConfig
from mtsk.inference.engine import Engine
from mtsk.model.avsr import AvsrModel
from mtsk.scale import Scale
from tests.tiny import save_tiny_bases, tiny_batch, tiny_config, tiny_examples, tiny_model

SCALES = [Scale.parse(text) for text in ("a16v5", "v2", "a4")]
FILES = {CONFIG_FILE, WEIGHTS_FILE, "README.md"}
TRAINING = {
    "recipe": "/home/somebody/own.json",
    "seed": 7,
    "start_from": "/home/somebody/first",
    "lips_from": "/home/somebody/lips",
    "joint": {"optim": {"num_steps": 280, "lr": 0.002, "batch_s": 24.0}},
}
WER = [
    {"scale": "a4", "snr_db": None, "wer": 0.005, "low": 0.0, "high": 0.012, "words": 600, "utterances": 100},
    {"scale": "a4", "snr_db": 0.0, "wer": 0.37, "low": 0.328, "high": 0.412, "words": 600, "utterances": 100},
    {"scale": "v2", "snr_db": None, "wer": 0.05, "low": 0.035, "high": 0.065, "words": 600, "utterances": 100},
    {"scale": "no-input", "snr_db": None, "wer": 0.8, "low": 0.7, "high": 0.9, "words": 600, "utterances": 100},
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_tiny_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_model("mss", sources=sources), folder, training=TRAINING)
    return folder


@pytest.fixture
def names(sources: tuple[str, str]) -> dict[str, str]:
    """Hub ids for the tiny base weights."""
    return {sources[0]: "owner/tiny-llm", sources[1]: "owner/tiny-ear"}


@pytest.fixture
def wer(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "wer.json").write_text(json.dumps(WER), encoding="utf-8")
    return tmp_path / "results"


@torch.no_grad()
def _logits(model: AvsrModel) -> Tensor:
    batch = tiny_batch()
    logits: Tensor = model(model.encode(batch, SCALES), SCALES, batch.texts).logits_BLV
    return logits


def _read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata, and the text after it."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


# Folders.


@pytest.mark.parametrize("from_memory", [True, False])
def test_what_is_saved_opens_with_equal_results(checkpoint: Path, tmp_path: Path, from_memory: bool) -> None:
    engine = mtsk.load(checkpoint, device="cpu", dtype=torch.float32)
    mtsk.save_pretrained(engine if from_memory else checkpoint, tmp_path / "shared")
    again = mtsk.from_pretrained(tmp_path / "shared", device="cpu", dtype=torch.float32)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == FILES
    assert torch.equal(_logits(again.model), _logits(engine.model))
    examples = tiny_examples(("bin",), (0.735,), (19,))
    assert again.decode(again.encode(examples), SCALES[0]) == engine.decode(engine.encode(examples), SCALES[0])
    assert read_record(tmp_path / "shared").training["seed"] == 7  # also known of a model in memory


def test_a_model_in_half_precision_is_saved_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    engine = mtsk.load(checkpoint, device="cpu", dtype=torch.bfloat16)
    mtsk.save_pretrained(engine, tmp_path / "shared")
    again = mtsk.load(tmp_path / "shared", device="cpu", dtype=torch.bfloat16).model.trained_parameters()
    for name, weight in engine.model.trained_parameters().items():
        torch.testing.assert_close(again[name], weight, atol=2**-24, rtol=0)  # the smallest step of float16


def test_a_folder_is_copied_to_the_byte(checkpoint: Path, tmp_path: Path) -> None:
    mtsk.save_pretrained(checkpoint, tmp_path / "shared")
    assert (tmp_path / "shared" / WEIGHTS_FILE).read_bytes() == (checkpoint / WEIGHTS_FILE).read_bytes()
    assert read_record(tmp_path / "shared").model == read_record(checkpoint).model


def test_nothing_is_pickled(checkpoint: Path, tmp_path: Path) -> None:
    mtsk.save_pretrained(mtsk.load(checkpoint, device="cpu"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert not any(name.startswith("llm.") and "base" in name for name in load_file(tmp_path / WEIGHTS_FILE))
    assert json.loads((tmp_path / CONFIG_FILE).read_text(encoding="utf-8"))["format"] == 1


def test_the_own_folder_gets_a_card(checkpoint: Path, tmp_path: Path) -> None:
    mtsk.save_pretrained(checkpoint, tmp_path / "model")
    weights = (tmp_path / "model" / WEIGHTS_FILE).read_bytes()
    mtsk.save_pretrained(tmp_path / "model", tmp_path / "model", license="mit")  # and its own card is replaced
    assert (tmp_path / "model" / WEIGHTS_FILE).read_bytes() == weights
    assert _read_card(tmp_path / "model")[0]["license"] == "mit"


def test_a_card_of_somebody_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# By hand\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md is not a card written by mtsk"):
        mtsk.save_pretrained(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["[", "{}", "[]", '[{"scale": "a4"}]', "3"])
def test_another_wer_json_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "wer.json").write_text(text, encoding="utf-8")
    engine = Engine(tiny_model(), device="cpu")
    for model in (checkpoint, engine):
        with pytest.raises(ValueError, match=r"wer\.json (is no|has no error rates)"):
            mtsk.save_pretrained(model, tmp_path / "shared", wer=tmp_path / "wer.json")
    assert not (tmp_path / "shared").exists()


def test_local_paths_are_not_shared(checkpoint: Path, tmp_path: Path, names: dict[str, str]) -> None:
    mtsk.save_pretrained(checkpoint, tmp_path, base=names)
    written = (tmp_path / CONFIG_FILE).read_text(encoding="utf-8") + (tmp_path / "README.md").read_text(
        encoding="utf-8"
    )
    assert "/home/somebody" not in written
    assert not any(source in written for source in names)
    record = read_record(tmp_path)
    assert record.model.llm == "owner/tiny-llm"
    assert record.base == dict(zip(names.values(), read_record(checkpoint).base.values(), strict=True))
    assert (record.training["recipe"], record.training["lips_from"]) == ("own.json", "lips")


@pytest.mark.parametrize(
    ("base", "said"), [({"gpt": "a/b"}, "base names gpt; the base weights"), ({"": ""}, "base names ;")]
)
def test_unknown_base_weights_are_refused(checkpoint: Path, tmp_path: Path, base: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mtsk.save_pretrained(checkpoint, tmp_path / "shared", base=base)


@pytest.mark.parametrize("name", ["/abs/llm", "./llm", "~/llm", ""])
def test_names_that_others_do_not_have_are_refused(
    checkpoint: Path, tmp_path: Path, sources: tuple[str, str], name: str
) -> None:
    with pytest.raises(ValueError, match="allowed is a hub id owner/name, or a relative folder"):
        mtsk.save_pretrained(checkpoint, tmp_path / "shared", base={sources[0]: name})


# The card.


def test_card(checkpoint: Path, tmp_path: Path, names: dict[str, str], wer: Path) -> None:
    mtsk.save_pretrained(checkpoint, tmp_path / "elastic", license="cc-by-4.0", wer=wer, data="GRID s1", base=names)
    metadata, text = _read_card(tmp_path / "elastic")
    (index,) = metadata.pop("model-index")
    assert metadata == {
        "license": "cc-by-4.0",
        "library_name": "mtsk",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["mtsk", "audio-visual-speech-recognition", "lip-reading", "matryoshka"],
        "base_model": ["owner/tiny-llm", "owner/tiny-ear"],
    }
    (results,) = index["results"]
    assert results["dataset"] == {"name": "GRID s1", "type": "grid-s1"}
    assert [(each["name"], each["type"], each["value"]) for each in results["metrics"]] == [
        ("WER at a4, clean", "wer", 0.5),
        ("WER at a4, 0 dB", "wer", 37.0),
        ("WER at v2, clean", "wer", 5.0),
    ]
    for line in (
        'model = mtsk.load("elastic")  # or a folder with these files',
        'print(model.transcribe("clip.mp4", scale="a4v2").text)',
        "In %, with 95 % intervals, on GRID s1: 100 utterances, 600 words. Noise touches the sound alone.",
        "| scale | tokens/s | clean | 0 dB |",
        "| a4 | 12.5 | 0.5 (0.0-1.2) | 37.0 (32.8-41.2) |",
        "| v2 | 12.5 | 5.0 (3.5-6.5) |  |",
        "| no-input | - | 80.0 (70.0-90.0) |  |",
        "| adapters | MSS, rank 4, alpha 8, on q_proj, v_proj | as this model | yes |",
        "| lip encoder | compact, 32 wide | as this model | yes |",
        "Recipe: own.json. Seed: 7.",
        "- adapters, projectors, delimiters: 280 steps of 24 s of recordings, learning rate 0.002",
        "- the weights it started with: those of first",
        "- lip encoder: taken from lips",
    ):
        assert line in text.splitlines()
    assert "commercial" not in text


def test_card_says_no_more_than_is_known(checkpoint: Path, tmp_path: Path) -> None:
    mtsk.save_pretrained(Engine(tiny_model(sources=_bases_of(checkpoint)), device="cpu"), tmp_path)
    metadata, text = _read_card(tmp_path)
    assert not {"license", "model-index", "base_model"} & set(metadata)  # local base weights have no id
    assert "The author states no licence" in text
    assert "## Training\n\nNot recorded." in text
    assert "Word error rate" not in text
    assert "| language model | folder `tiny-llama`, hash " in text


def _bases_of(checkpoint: Path) -> tuple[str, str]:
    llm, audio = read_record(checkpoint).base
    return llm, audio


def test_card_of_avhubert_says_that_it_is_not_commercial() -> None:
    config = replace(tiny_config(), llm="meta-llama/Llama-3.2-1B", video=AvHubertConfig("avhubert-large"))
    record = Record(config, {config.llm: "1234", "avhubert-large": "5678"}, {})
    text = Card("me/model", license="cc-by-4.0").text(record)
    assert "**Not for commercial use:** the lips are read by AV-HuBERT" in text
    assert "| AV-HuBERT, folder `avhubert-large`, hash 5678 | AV-HuBERT licence of Meta, non-commercial | no |" in text
    assert "Llama 3.2 Community License | no |" in text
    deaf_to_lips = replace(record, model=replace(config, scales=(Scale.parse("a4"),)))
    assert "AV-HuBERT" not in Card("me/model").text(deaf_to_lips)


@pytest.mark.parametrize("source", EMBEDDED)
def test_our_own_base_weights_have_an_id_and_a_licence(source: str) -> None:
    hub_id = card.hub_id_of(source)
    assert hub_id is not None
    assert card.is_hub_id(hub_id)
    assert card.licence_of(source) in ("MIT", "Apache-2.0")


# The hub.


class _Hub:
    """Stands for the hub: remembers what was asked, and what lay in the folder that was sent."""

    def __init__(self, error: Exception | None = None) -> None:
        self.created: list[tuple[str, bool | None, bool]] = []
        self.sent: dict[str, bytes] = {}
        self._error = error

    def __call__(self) -> _Hub:
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        if self._error is not None:
            raise self._error
        self.created.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> str:
        assert set(allow_patterns) == FILES
        self.sent = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_push_and_load(
    checkpoint: Path,
    tmp_path: Path,
    names: dict[str, str],
    sources: tuple[str, str],
    wer: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = _Hub()
    monkeypatch.setattr(share, "HfApi", hub)
    address = mtsk.push_to_hub(checkpoint, "me/model", wer=wer, base=names, private=True)
    assert address == "https://huggingface.co/me/model/commit/1"
    assert hub.created == [("me/model", True, True)]
    assert set(hub.sent) == FILES
    assert MARK in hub.sent["README.md"].decode()
    assert 'mtsk.load("me/model")' in hub.sent["README.md"].decode()
    # Somebody downloads it, with the base weights under their names on the hub.
    asked = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options["revision"], set(options["allow_patterns"])))
        (tmp_path / "snapshot").mkdir()
        for name, data in hub.sent.items():
            (tmp_path / "snapshot" / name).write_bytes(data)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(share, "snapshot_download", download)
    of_name = {name: Path(source) for source, name in names.items()}
    monkeypatch.setattr("mtsk.checkpoints.sources._snapshot", lambda name: of_name[name])
    engine = mtsk.load("me/model", device="cpu", dtype=torch.float32, revision="v1")
    assert asked == [("me/model", "v1", FILES)]
    assert torch.equal(_logits(engine.model), _logits(load_model(checkpoint)))


def test_local_base_weights_are_not_pushed(
    checkpoint: Path, sources: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub()
    monkeypatch.setattr(share, "HfApi", hub)
    with pytest.raises(ValueError, match="tiny-whisper are a local folder, which others do not have; give `base`"):
        mtsk.push_to_hub(checkpoint, "me/model", base={sources[0]: "owner/tiny-llm"})
    assert not hub.created


@pytest.mark.parametrize(
    "error",
    [
        errors.HTTPError("no route\n\nmore"),  # type: ignore[attr-defined]
        errors.HFValidationError("no route"),
        errors.OfflineModeIsEnabled("no route"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    checkpoint: Path, names: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(share, "HfApi", _Hub(error))
    with pytest.raises(ValueError, match=r"^me/model could not be sent to the Hugging Face hub: no route$"):
        mtsk.push_to_hub(checkpoint, "me/model", base=names)


def test_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client, told that there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"^no model 'nobody/nothing': .*hub can't be reached.*$") as caught:
        mtsk.load("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "./a", "/a/b", "a/b/c", "a/", Path("a/b")])
def test_what_is_no_hub_id_is_not_asked_for(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=r"^no model .*; allowed is a checkpoint folder, a hub id owner/name"):
        mtsk.load(name)


def test_a_folder_comes_before_the_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(checkpoint.parent.parent)
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    assert mtsk.model_folder(name).resolve() == checkpoint
