"""The whole model: encoders, compression, projectors, fusion and the adapted LLM. One batch, one scale per row.

Letters: B rows, L label columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from mtsk.config import CtcConfig, ModelConfig, Untrained
from mtsk.model.adapters import AdapterBank
from mtsk.model.audio_encoder import WhisperAudioEncoder
from mtsk.model.compress import COMPRESSORS, average_tokens
from mtsk.model.ctc import CtcHead
from mtsk.model.exactness import reads_exactly
from mtsk.model.flat import FAMILIES, FlatDecoder
from mtsk.model.fusion import Fusion, LlmInput, label_columns
from mtsk.model.int8 import Int8Projection, int8_is_fast
from mtsk.model.llm import Llm
from mtsk.model.projector import RateProjectors
from mtsk.model.rows_cache import RowsCache
from mtsk.model.video_encoder import VideoEncoder
from mtsk.scale import FEATURE_S, Scale, ScaleGrid
from mtsk.types import Batch, Features


@dataclass(frozen=True)
class Reading:
    """How a scale is read."""

    trained: Scale  # whose adapters are used
    projected: Scale  # the rates at which the projectors read; coarser tokens are averages of theirs


READINGS: dict[Untrained, Callable[[ScaleGrid, Scale], Reading]] = {
    "refuse": lambda grid, scale: Reading(grid.require(scale), scale),
    "pool": lambda grid, scale: Reading(grid.nearest_finer(scale), grid.nearest_finer(scale)),
    "between": lambda grid, scale: Reading(grid.nearest_finer(scale), scale),
}


@dataclass(frozen=True)
class Encoded:
    """The features of a batch, before compression; a modality is None where it was not encoded."""

    audio: Features | None
    video: Features | None
    in_context: bool = False
    """Whether they went through the layers that a projector may have before it, see `AvsrModel.in_context`."""

    def __len__(self) -> int:
        return max(0 if part is None else len(part) for part in (self.audio, self.video))

    def num_tokens(self, row: int, scale: Scale) -> int:
        """LLM tokens that the row's media become at a scale."""
        audio, video = (0 if part is None else int(part.lengths_B[row]) for part in (self.audio, self.video))
        return scale.num_tokens(num_audio_features=audio, num_video_features=video)

    def reaches(self, row: int, scale: Scale) -> bool:
        """Whether the row has at least one token of each modality of the scale."""
        return all(self.num_tokens(row, part) > 0 for part in scale.parts)

    def rows(self, rows: Sequence[int]) -> Encoded:
        """The chosen rows."""
        audio, video = (None if part is None else part.rows(rows) for part in (self.audio, self.video))
        return Encoded(audio, video, self.in_context)


@dataclass(frozen=True)
class Prediction:
    """Logits where the labels are."""

    logits_BLV: Tensor
    labels_BL: Tensor  # int64, -100 where nothing is to be learned


class AvsrModel(nn.Module):
    """Elastic audio-visual recogniser.

    Args:
        config: decides scales, compression, projectors and adapters.
        llm: the frozen language model; adapters are attached to it in place.
        audio_encoder: present if any scale has sound.
        video_encoder: present if any scale has lips.

    Attributes:
        is_exact: whether logits are the same to the bit in any batch and beside any draft, as measured (`flatten`).
    """

    def __init__(
        self,
        config: ModelConfig,
        llm: Llm,
        audio_encoder: WhisperAudioEncoder | None = None,
        video_encoder: VideoEncoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.untrained: Untrained = "refuse"
        self.is_exact = False
        self._flat: FlatDecoder | None = None
        self._llm = llm
        self.llm = llm.model
        self.prompts = llm.prompts.writing(leading_space=config.leading_space)
        if config.embedding_scale != 1:
            with torch.no_grad():
                llm.embedding_VE.mul_(config.embedding_scale)
        self.audio_encoder = audio_encoder
        self.video_encoder = video_encoder
        embedding_dim = llm.embedding_VE.shape[1]
        embedding = embedding_dim, llm.embedding_std
        compressor = COMPRESSORS[config.compression]
        self.projectors = nn.ModuleDict()
        for name, encoder, rates in self._modalities():
            assert encoder is not None, f"the grid has {name} rates, but no {name} encoder was given"
            rates = config.projector.rates.get(name, rates)
            projector = replace(config.projector, output_norm=config.projector.has_output_norm(name))
            context = config.projector.audio_context if name == "audio" else None
            self.projectors[name] = RateProjectors(rates, encoder.dim, compressor, embedding, projector, context)
        self.fusion = Fusion(llm.prompts.vocabulary, *embedding)
        self.adapters = AdapterBank(self._llm.decoder, config.lora, self.grid)
        self.ctc = nn.ModuleDict()  # last, so that the draws of fresh weights before it are the same without
        if config.ctc is not None:
            self.add_ctc(config.ctc)
        self.eval()

    def add_ctc(self, config: CtcConfig) -> None:
        """Gives the model fresh character heads, one per modality, in place of those that it may have."""
        self.config = replace(self.config, ctc=config)
        self.ctc = nn.ModuleDict(
            {
                name: CtcHead(encoder.dim, FEATURE_S[name], config)
                for name, encoder, _ in self._modalities()
                if encoder is not None
            }
        ).to(self.device)

    def _modalities(self) -> Iterable[tuple[str, WhisperAudioEncoder | VideoEncoder | None, tuple[int, ...]]]:
        both = (
            ("audio", self.audio_encoder, self.grid.audio_rates),
            ("video", self.video_encoder, self.grid.video_rates),
        )
        return [modality for modality in both if modality[2]]

    def train(self, mode: bool = True) -> AvsrModel:
        """Adapters and projectors change mode; the encoders are frozen and stay in evaluation mode."""
        super().train(mode)
        for encoder in (self.audio_encoder, self.video_encoder):
            if encoder is not None:
                encoder.eval()
        return self

    def cast(self, device: torch.device | str, dtype: torch.dtype) -> AvsrModel:
        """As `to`, but for the frequencies of the language model's rotary positions, which stay as exact as they are:
        rounded to bfloat16 they turn a column that is 200 away by a quarter of a radian too much."""
        exact = {name: buffer for name, buffer in self.llm.named_buffers() if name.endswith("inv_freq")}
        self.to(device, dtype)
        for name, buffer in exact.items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.llm.get_submodule(owner), attribute, buffer.to(device))
        return self

    def ctc_heads(self) -> dict[str, CtcHead]:
        """The character head of each modality; empty if the model has none."""
        return {name: head for name, head in self.ctc.items() if isinstance(head, CtcHead)}

    def rate_projectors(self) -> dict[str, RateProjectors]:
        """The projectors of each modality."""
        return {name: at for name, at in self.projectors.items() if isinstance(at, RateProjectors)}

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self._llm.embedding_VE.device

    @property
    def embedding_VE(self) -> Tensor:
        """The LLM's frozen input embeddings."""
        return self._llm.embedding_VE

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that a checkpoint of ours must carry, except buffers: adapters, projectors, delimiters, lips."""
        frozen = ("llm.", "audio_encoder.", "video_encoder.")
        lips = {} if self.video_encoder is None else self.video_encoder.trained_parameters()
        ours = {id(weight) for weight in (*self.adapters.parameters(), *lips.values())}
        return {n: p for n, p in self.named_parameters() if id(p) in ours or not n.startswith(frozen)}

    def num_trained(self) -> dict[str, int]:
        """Numbers that training changes, by part: `adapters`, `projectors`, `delimiters`, `video_encoder`."""
        adapters = {id(weight) for weight in self.adapters.parameters()}
        places = {"fusion": "delimiters"}
        counts: dict[str, int] = {}
        for name, parameter in self.trained_parameters().items():
            top = name.partition(".")[0]
            part = "adapters" if id(parameter) in adapters else places.get(top, top)
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts

    def encode(self, batch: Batch, scales: Iterable[Scale]) -> Encoded:
        """Runs the encoders once, only those that the scales need. No gradients flow through them, except through the
        lip encoder if it has adapters.

        Args:
            batch: on the model's device.
            scales: what the features will be used for.
        """
        scales = tuple(scales)
        audio = video = None
        if self.audio_encoder is not None and any(scale.audio is not None for scale in scales):
            audio = self.audio_encoder(batch.waveform_BN, batch.num_samples_B)
        if self.video_encoder is not None and any(scale.video is not None for scale in scales):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trains_lips):
                video = self.video_encoder(batch.mouth_BTHW, batch.num_frames_B)
        return Encoded(audio, video)

    def forward(self, encoded: Encoded, scales: Sequence[Scale], texts: Sequence[str]) -> Prediction:
        """Teacher-forced logits of the transcriptions, at label positions only.

        Args:
            encoded: features of B rows.
            scales: one per row; rows may differ.
            texts: one per row.

        Raises:
            ValueError: if a scale was not trained, or a row is too short for one token of a modality.
        """
        return self.predict(*self._projected(encoded, scales), scales, texts)

    def predict(
        self, audio: Sequence[Tensor], video: Sequence[Tensor], scales: Sequence[Scale], texts: Sequence[str]
    ) -> Prediction:
        """As `forward`, from the LLM's audio and video tokens (K, E) of each row; K = 0 where its scale has none."""
        targets = [self.prompts.target(text) for text in texts]
        labels_BL = label_columns(targets, self.device)
        inputs = self._input(audio, video, scales, [target[:-1] for target in targets])
        with self.select(scales):
            hidden_BSE = self._llm.decoder(
                inputs_embeds=inputs.embeds_BSE, attention_mask=inputs.mask_BS, position_ids=inputs.positions_BS
            ).last_hidden_state
            # The last column predicts the end of sequence, which is not part of the input.
            logits_BLV = self._llm.logits(hidden_BSE[:, -labels_BL.shape[1] :])
        return Prediction(logits_BLV, labels_BL)

    def in_context(self, encoded: Encoded) -> Encoded:
        """Features as the projectors and character heads read them, once for all scales."""
        if encoded.in_context:
            return encoded
        features = {"audio": encoded.audio, "video": encoded.video}
        for name, projectors in self.rate_projectors().items():
            its = features[name]
            features[name] = None if its is None else projectors.in_context(its)
        return Encoded(**features, in_context=True)

    def characters(self, encoded: Encoded) -> dict[str, Features]:
        """Logits of the character heads, by modality, as far as there are features and heads."""
        encoded = self.in_context(encoded)
        features = {"audio": encoded.audio, "video": encoded.video}
        heads = self.ctc_heads().items()
        return {name: head.logits(its) for name, head in heads if (its := features[name]) is not None}

    def reading(self, scale: Scale) -> Reading:
        """How a scale is read.

        Raises:
            ValueError: naming the trained scales, if it was not trained and nothing may stand in for it.
        """
        return READINGS[self.untrained](self.grid, scale)

    @contextmanager
    def select(self, scales: Sequence[Scale]) -> Iterator[None]:
        """Within, row i of the LLM's input is adapted for `scales[i]`. See `AdapterBank.select`."""
        with self.adapters.select([self.reading(scale).trained for scale in scales], self.device):
            yield

    def new_cache(self, most_columns: int) -> RowsCache | DynamicCache:
        """For rows of unlike length, of up to so many columns, side by side; or, where the LLM has a state that sums up
        the past or a window of it, for one row: nothing of it can be taken back, so drafts are of no use."""
        if self._flat is not None:
            return RowsCache()
        plain = DynamicCache(config=self.llm.config)
        windows = [getattr(layer, "sliding_window", None) for layer in plain.layers]
        windows += [getattr(self.llm.config, "window_size", None)]  # of GPT-Neo, whose cache does not tell
        fits = not any(plain.is_linear) and all(window is None or window > most_columns for window in windows)
        return RowsCache() if fits and self._llm.reads_rows else plain

    def next_logits(self, inputs: LlmInput, cache: Cache) -> Tensor:
        """(B, V) logits of the token after the input's last column. Call it within a selection of adapters.

        Args:
            inputs: the columns that the cache has not seen.
            cache: what was read before; is extended.
        """
        return self.last_logits(inputs, cache, 1)[:, -1]

    def last_logits(self, inputs: LlmInput, cache: Cache, num_columns: int) -> Tensor:
        """(B, K, V) logits of the tokens after each of the input's last K columns, zero after padding. See
        `next_logits`."""
        hidden_BKE = self.read(inputs, cache)[:, -num_columns:]
        is_real_BK = inputs.mask_BS[:, -num_columns:].bool()
        logits_NV = self._llm.logits(hidden_BKE[is_real_BK], self._flat.read_head if self._flat is not None else None)
        if len(logits_NV) == is_real_BK.numel():
            return logits_NV.view(*is_real_BK.shape, -1)
        return logits_NV.new_zeros(*is_real_BK.shape, logits_NV.shape[-1]).index_put_((is_real_BK,), logits_NV)

    def read(self, inputs: LlmInput, cache: Cache) -> Tensor:
        """(B, S, E) last hidden states; those of padding mean nothing. See `next_logits`."""
        if self._flat is not None and isinstance(cache, RowsCache):
            return self._flat(inputs, cache)
        return self._llm.read(inputs, cache)

    def flatten(self) -> None:
        """From now on `next_logits` and `last_logits` read with the weights as they are now, in fewer calls; if the
        LLM is of a family that this is known of, else nothing changes."""
        if FlatDecoder.fits(self.llm):
            self._flat = FlatDecoder(self.llm, self.adapters)
            self.is_exact = reads_exactly(self)

    def quantize(self) -> None:
        """The same with 8-bit weights. After that the model can only be read by `next_logits` and `last_logits`.

        Raises:
            ValueError: if the LLM is of another family, or not on a processor that is made for such arithmetic.
        """
        if not FlatDecoder.fits(self.llm):
            name = type(self.llm).__name__
            raise ValueError(f"int8 is for language models of the families {' and '.join(FAMILIES)}, not for {name}")
        if self.device.type != "cpu" or not int8_is_fast():
            raise ValueError(f"int8 is for processors with VNNI, not for this {self.device.type}; try bfloat16")
        self._flat = FlatDecoder(self.llm, self.adapters, Int8Projection, torch.float32)
        self.is_exact = reads_exactly(self)

    def embed(self, encoded: Encoded, scales: Sequence[Scale], texts: Sequence[Sequence[int]]) -> LlmInput:
        """The LLM's input: each row's media at its scale, the prompt, then the given text tokens.

        Raises:
            ValueError: if a row is too short for one token of a modality that its scale has.
        """
        return self._input(*self._projected(encoded, scales), scales, texts)

    def _projected(self, encoded: Encoded, scales: Sequence[Scale]) -> tuple[list[Tensor], list[Tensor]]:
        """Audio and video tokens (K, E) of each row at its scale."""
        encoded = self.in_context(encoded)
        projected = [self.reading(scale).projected for scale in scales]
        rates_a, rates_v = ([(p.rate(m), s.rate(m)) for p, s in zip(projected, scales, strict=True)] for m in "av")
        return self._tokens("audio", encoded.audio, rates_a), self._tokens("video", encoded.video, rates_v)

    def _input(
        self,
        audio: Sequence[Tensor],
        video: Sequence[Tensor],
        scales: Sequence[Scale],
        texts: Sequence[Sequence[int]],
    ) -> LlmInput:
        sequences = []
        for scale, audio_KE, video_KE, text in zip(scales, audio, video, texts, strict=True):
            num_audio = None if scale.audio is None else len(audio_KE)
            num_video = None if scale.video is None else len(video_KE)
            sequences.append([*self.prompts.prefix(num_audio, num_video), *text])
        inputs: LlmInput = self.fusion(sequences, audio, video, self.embedding_VE)
        return inputs

    def _tokens(
        self, name: str, features: Features | None, rates: Sequence[tuple[int | None, int | None]]
    ) -> list[Tensor]:
        """For each row its tokens (K, E), projected at one rate and averaged to another; K = 0 where those are None."""
        tokens = [self.embedding_VE[:0]] * len(rates)
        if all(rate is None for _, rate in rates):
            return tokens
        if features is None:
            raise ValueError(f"the scale needs {name}, which was not encoded")
        projectors = self.rate_projectors()[name]
        for projected_rate, rate in set(rates):
            if projected_rate is None or rate is None:
                continue
            rows = [row for row, its_rates in enumerate(rates) if its_rates == (projected_rate, rate)]
            of_rows = features.rows(rows)
            projected = projectors.read(of_rows, projected_rate)
            if projected_rate != rate:
                projected = average_tokens(projected, projected_rate, rate, of_rows.lengths_B // rate)
            for i, row in enumerate(rows):
                length = int(projected.lengths_B[i])
                if length == 0:
                    num_features = int(features.lengths_B[row])
                    raise ValueError(f"too short: {num_features} {name} features give no token at rate {rate}")
                tokens[row] = projected.values_BTD[i, :length]
        return tokens

    def no_input(self, scale: Scale) -> LlmInput:
        """One row: the prompt of a scale without its media, for the baseline that hears and sees nothing."""
        nothing = [self.embedding_VE[:0]]
        prompt = self.prompts.prompt(audio=scale.audio is not None, video=scale.video is not None)
        inputs: LlmInput = self.fusion([[*self.prompts.begin, *prompt]], nothing, nothing, self.embedding_VE)
        return inputs
