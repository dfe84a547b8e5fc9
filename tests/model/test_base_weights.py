"""The default base models: what holds for tiny random ones holds for the real ones."""

from typing import Any

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperModel

from mtsk.checkpoints.sources import is_cached, resolve
from mtsk.config import AudioEncoderConfig
from mtsk.inference.decoding import greedy
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.avsr import AvsrModel
from mtsk.model.fusion import Fusion
from mtsk.model.llm import Llm
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ
from tests.tiny import row_of, tiny_batch, tiny_config, tiny_video_encoder

pytestmark = pytest.mark.weights


def _folder(source: str) -> Any:
    if not is_cached(source):
        pytest.skip(f"needs {source} in the cache (`make weights` fetches it)")
    return resolve(source)


@torch.no_grad()
def test_sound_is_encoded_as_by_transformers() -> None:
    folder = _folder("whisper-base")
    encoder = WhisperAudioEncoder.load(AudioEncoderConfig(window="30s"), folder)
    batch = tiny_batch(durations_s=(1.31, 0.735, 2.0))
    features = encoder(batch.waveform_BN, batch.num_samples_B)
    extractor_class: Any = WhisperFeatureExtractor  # has no annotations
    extractor = extractor_class.from_pretrained(folder)
    row, num_samples, length = 1, int(batch.num_samples_B[1]), int(features.lengths_B[1])
    sound = batch.waveform_BN[row, :num_samples].numpy()
    mel = extractor(sound, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
    reference = WhisperModel.from_pretrained(folder, dtype=torch.float32).get_encoder()(mel).last_hidden_state
    torch.testing.assert_close(features.values_BTD[row, :length], reference[0, :length], atol=1e-3, rtol=1e-3)

    encoder.window = "real"
    together = encoder(batch.waveform_BN, batch.num_samples_B)
    for row in range(3):
        one = row_of(batch, row)
        alone = encoder(one.waveform_BN, one.num_samples_B).values_BTD[0]
        torch.testing.assert_close(together.values_BTD[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_text_is_written_as_by_transformers() -> None:
    """Prompts of unlike length in one batch; fresh adapters change nothing, so `generate` must write the same."""
    llm = Llm.load(_folder("smollm2-135m-instruct"))
    scales = [Scale.parse(text) for text in ("v2", "v5")]
    model = AvsrModel(tiny_config("mss", scales=scales), llm, None, tiny_video_encoder())
    prompts = ("Everybody knows that the capital of France is the city of", "One, two, three, four,")
    sequences = [llm.prompts.word_ids(prompt) for prompt in prompts]
    assert len({len(sequence) for sequence in sequences}) == 2
    nothing = [llm.embedding_VE.new_zeros(0, llm.embedding_VE.shape[1])] * 2
    fusion: Fusion = model.fusion
    written = greedy(model, fusion(sequences, nothing, nothing, llm.embedding_VE), scales, [8, 8]).tokens
    for sequence, own in zip(sequences, written, strict=True):
        reference = llm.model.generate(torch.tensor([sequence]), max_new_tokens=8, do_sample=False)
        assert own == reference[0, len(sequence) :].tolist()
    assert "Paris" in llm.prompts.decode(written[0])
    assert "five, six" in llm.prompts.decode(written[1])
