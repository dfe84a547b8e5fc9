"""Decoding under policies: a modality is encoded when it is first needed, and what is unsure is decoded again.

Letters: B rows of a batch, T features in time, D channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtsk.inference.beam import Beams
from mtsk.inference.characters import Readings
from mtsk.inference.encoded import EncodedExamples, only
from mtsk.inference.policy import Attempt, Choice, Known, Policy
from mtsk.inference.recording import Part, duration_s
from mtsk.inference.snr import estimate_snr_db
from mtsk.model.avsr import AvsrModel, Encoded
from mtsk.model.cost import Cost, CostModel
from mtsk.model.ctc import Alphabet
from mtsk.scale import Scale
from mtsk.types import SAMPLE_RATE_HZ, VIDEO_FPS, Decision, Example, Features, Segment

_MODALITIES = {"audio": "a", "video": "v"}


class Reader(Protocol):
    """What encodes and decodes: the engine."""

    model: AvsrModel

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """See `Engine.encode`."""
        ...

    def write(self, encoded: EncodedExamples, scales: Sequence[Scale], beams: Beams) -> list[Segment]:
        """One segment per row, each at its scale, its times from the row's start."""
        ...


@dataclass
class _Case:
    """A part on its way through the policy."""

    policy: Policy
    part: Part
    known: Known
    values: dict[str, Tensor] = field(default_factory=dict)  # modality -> features (T, D)
    read: dict[str, Tensor] = field(default_factory=dict)  # modality -> what its character head read
    attempts: list[Attempt] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    num_tokens: int = 0
    segment: Segment | None = None

    @property
    def num_features(self) -> dict[str, int]:
        """By letter of the modality; 0 of what was not encoded."""
        return {letter: len(self.values.get(name, ())) for name, letter in _MODALITIES.items()}


class Decider:
    """Takes batches of parts through their policies. Notes the seconds that each stage took.

    Args:
        reader: encodes and decodes.
        costs: of the reader's model.
        beams: of each pass.
    """

    def __init__(self, reader: Reader, costs: CostModel, beams: Beams) -> None:
        self._reader, self._costs, self._beams = reader, costs, beams
        self.seconds = {"media": 0.0, "encode": 0.0, "decode": 0.0}

    @torch.inference_mode()
    def decide(
        self, parts: Sequence[Part], policies: Sequence[Policy], look: Callable[[Part], Part] | None = None
    ) -> tuple[list[Part], list[Segment | None]]:
        """Decodes parts until their policies keep what they have. Parts at unlike scales are decoded together.

        Args:
            policies: one for each part.
            look: adds the lips of a part, or why there are none; None: nothing is to be seen that is not there yet.

        Returns:
            The parts, with the lips that were looked for, and the segment of each; None where the policy has no scale.
        """
        cases = [
            _Case(policy, part, _known(part, may_look=look is not None))
            for part, policy in zip(parts, policies, strict=True)
        ]
        unseen = self._passes([(case, case.policy.first(case.known)) for case in cases])
        if unseen:
            assert look is not None, "the policy asked for lips where there are none"
            order = {id(case): i for i, case in enumerate(cases)}
            # A file is looked at in the order of time.
            unseen.sort(key=lambda each: order[id(each[0])])
            unseen = self._passes([(case, self._seen(case, choice, look)) for case, choice in unseen])
        assert not unseen
        return [case.part for case in cases], [_segment(case) for case in cases]

    def _passes(self, chosen: Sequence[tuple[_Case, Choice | None]]) -> list[tuple[_Case, Choice]]:
        """Decodes until the policy keeps what it has; returns the choices that wait for lips to be looked for."""
        waiting: list[tuple[_Case, Choice]] = []
        while wanted := [(case, choice) for case, choice in chosen if choice is not None]:
            waiting += [each for each in wanted if _is_unseen(*each)]
            wanted = [each for each in wanted if not _is_unseen(*each)]
            if wanted:
                self._encode(wanted)
                self._decode(wanted)
            chosen = [(case, case.policy.next(case.known, case.attempts)) for case, _ in wanted]
        return waiting

    def _seen(self, case: _Case, choice: Choice, look: Callable[[Part], Part]) -> Choice | None:
        """Looks for the lips of a part. If they are not there, or too few, the policy is asked anew."""
        started_s = time.perf_counter()
        case.part = look(case.part)
        self.seconds["media"] += time.perf_counter() - started_s
        case.known = replace(_known(case.part, may_look=False), snr_db=case.known.snr_db)
        if case.known.allows(choice.scale):
            return choice
        return case.policy.next(case.known, case.attempts) if case.attempts else case.policy.first(case.known)

    def _encode(self, wanted: Sequence[tuple[_Case, Choice]]) -> None:
        """Encodes what the choices need and is not encoded yet."""
        started_s = time.perf_counter()
        for name, letter in _MODALITIES.items():
            cases = [case for case, choice in wanted if letter in choice.scale.task and name not in case.values]
            if not cases:
                continue
            encoded = self._reader.encode([_only(case.part.example, name) for case in cases])
            features = encoded.features.audio if name == "audio" else encoded.features.video
            assert features is not None, name
            for row, case in enumerate(cases):
                case.values[name] = features.values_BTD[row, : int(features.lengths_B[row])]
                if name in encoded.readings.by_modality:
                    case.read[name] = encoded.readings.by_modality[name][row]
        self.seconds["encode"] += time.perf_counter() - started_s

    def _decode(self, wanted: Sequence[tuple[_Case, Choice]]) -> None:
        started_s = time.perf_counter()
        model, scales = self._reader.model, [choice.scale for _, choice in wanted]
        encoded = self._joined(wanted)
        segments = self._reader.write(encoded, scales, self._beams)
        for (case, choice), segment in zip(wanted, segments, strict=True):
            num_written = len(model.prompts.target(segment.text)) - 1  # without the end
            projected = model.reading(choice.scale).projected
            case.costs.append(self._costs.cost_of(choice.scale, case.num_features, num_written, projected=projected))
            case.attempts.append(Attempt(choice.scale, segment.text, segment.sureness))
            case.whys.append(f"{choice.why}: {choice.scale}")
            case.num_tokens += segment.num_tokens
            case.segment = segment
        self.seconds["decode"] += time.perf_counter() - started_s

    def _joined(self, wanted: Sequence[tuple[_Case, Choice]]) -> EncodedExamples:
        """All that was encoded of some parts, as one batch, each as long as what its scale uses."""
        cases = [case for case, _ in wanted]
        read = {
            name: [case.read.get(name, torch.zeros(0, 1)) for case in cases]
            for name in _MODALITIES
            if any(name in case.read for case in cases)
        }
        config = self._reader.model.config.ctc
        return EncodedExamples(
            Encoded(
                _padded([case.values.get("audio") for case in cases]),
                _padded([case.values.get("video") for case in cases]),
                in_context=True,
            ),
            Readings(Alphabet(config.alphabet if config else ""), read),
            tuple(duration_s(only(case.part.example, choice.scale)) for case, choice in wanted),
        )


def _known(part: Part, *, may_look: bool) -> Known:
    """What is known of a part before it is encoded.

    Args:
        may_look: whether lips may be there, unless the part says why they can't.
    """
    waveform, mouth = part.example.waveform, part.example.mouth
    sound_s = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE_HZ
    lips_s = 0.0 if mouth is None else len(mouth) / VIDEO_FPS
    if mouth is None and may_look and "video" not in part.missing:
        lips_s = part.end_s - part.start_s
    return Known(sound_s, lips_s, estimate_snr_db(waveform) if waveform is not None and sound_s else None)


def _is_unseen(case: _Case, choice: Choice) -> bool:
    """Whether a choice needs lips that nobody has looked for."""
    return choice.scale.video is not None and case.part.example.mouth is None


def _only(example: Example, name: str) -> Example:
    return replace(example, mouth=None) if name == "audio" else replace(example, waveform=None)


def _padded(values: Sequence[Tensor | None]) -> Features | None:
    """Features of several rows; None if no row has any."""
    present = [each for each in values if each is not None]
    if not present:
        return None
    rows = [present[0][:0] if each is None else each for each in values]
    lengths_B = torch.tensor([len(each) for each in rows], device=present[0].device)
    return Features(pad_sequence(rows, batch_first=True), lengths_B)


def _segment(case: _Case) -> Segment | None:
    """What was kept, with all that it took, at its place in the recording."""
    if case.segment is None:
        return None
    tried = tuple(attempt.scale for attempt in case.attempts)
    decision = Decision(tried, Cost.of_passes(case.costs).total_flops, "; ".join(case.whys))
    return case.part.place(replace(case.segment, num_tokens=case.num_tokens, decision=decision))
