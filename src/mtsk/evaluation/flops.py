"""Operations of what was recognised, ours and Whisper's: closed forms, see `mtsk.model.cost`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mtsk.model.audio_encoder import FFT_SIZE, SAMPLES_PER_FEATURE
from mtsk.model.avsr import AvsrModel
from mtsk.model.cost import CostModel
from mtsk.scale import Scale
from mtsk.types import Example


class RequestFlops:
    """Operations of requests to a model: all that `mtsk info` counts, and the character heads, at the lengths of the
    example itself. Tokens that a draft proposed in vain are not counted.

    Args:
        model: which reads and writes, in any precision.
        cost: of it.
    """

    def __init__(self, model: AvsrModel, cost: CostModel) -> None:
        self._model, self._cost = model, cost
        self._head_weights = {name[0]: _num_kernel_weights(head) for name, head in model.ctc_heads().items()}

    def __call__(self, example: Example, scale: Scale, text: str) -> int:
        """Of the request alone, without the padding of a batch.

        Raises:
            ValueError: if the example is longer than an encoder takes.
        """
        num_features = {
            "a": 0 if example.waveform is None else len(example.waveform) // SAMPLES_PER_FEATURE,
            "v": 0 if example.mouth is None else len(example.mouth),
        }
        num_text_tokens = len(self._model.prompts.target(text)) - 1
        projected = self._model.reading(scale).projected
        flops = self._cost.cost_of(scale, num_features, num_text_tokens, projected=projected).total_flops
        read = (letter for letter in self._head_weights if scale.rate(letter) is not None)
        return flops + sum(2 * self._head_weights[letter] * num_features[letter] for letter in read)


@dataclass(frozen=True)
class WhisperShape:
    """What the cost of Whisper with its own decoder depends on."""

    width: int
    num_bands: int
    vocabulary: int
    num_positions: int  # of its window, always encoded as a whole
    encoder_layers: int
    encoder_hidden: int
    decoder_layers: int
    decoder_hidden: int

    @classmethod
    def of(cls, config: Any) -> WhisperShape:
        """Of a `transformers.WhisperConfig`."""
        return cls(
            width=config.d_model,
            num_bands=config.num_mel_bins,
            vocabulary=config.vocab_size,
            num_positions=config.max_source_positions,
            encoder_layers=config.encoder_layers,
            encoder_hidden=config.encoder_ffn_dim,
            decoder_layers=config.decoder_layers,
            decoder_hidden=config.decoder_ffn_dim,
        )

    @property
    def encoder_flops(self) -> int:
        """Of one window, mel filters included."""
        num, width = self.num_positions, self.width
        # Two mel frames to a position: the second convolution, like the first three wide, halves their rate.
        stem = 2 * self.num_bands * (1 + FFT_SIZE // 2 + 3 * width) + 3 * width * width
        layer = 4 * width * width + 2 * width * self.encoder_hidden
        return 2 * num * (stem + self.encoder_layers * layer) + self.encoder_layers * 4 * num * num * width

    def decoder_flops(self, num_prompt_tokens: int, num_tokens: int, num_beams: int = 1) -> int:
        """Of one window, with a cache of keys and values.

        Args:
            num_prompt_tokens: read at once, by one beam.
            num_tokens: that are written, the end aside: the pass over the last of them finds it.
            num_beams: texts that are followed; the window's keys and values are computed once for all.
        """
        width = self.width
        window = 2 * self.num_positions * 2 * width * width  # keys and values
        weights = 6 * width * width + 2 * width * self.decoder_hidden
        pass_flops = self.decoder_layers * (2 * weights + 4 * self.num_positions * width) + 2 * self.vocabulary * width
        num_positions = num_prompt_tokens + num_beams * num_tokens
        # Each prompt token looks at all of the prompt, masked or not, each other one at what was before it.
        num_written_pairs = num_tokens * num_prompt_tokens + num_tokens * (num_tokens + 1) // 2
        num_pairs = num_prompt_tokens**2 + num_beams * num_written_pairs
        return num_positions * pass_flops + self.decoder_layers * (window + 4 * num_pairs * width)


def _num_kernel_weights(module: nn.Module) -> int:
    """Of layers that are used once for every feature."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv1d))
    return sum(layer.weight.numel() for layer in layers)
