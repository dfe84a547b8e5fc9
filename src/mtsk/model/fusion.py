"""Token sequences and projected features -> the LLM's input embeddings, with attention mask, positions and labels.

Rows are padded on the left, so that the text ends at the right edge in every row: labels are the last columns, and so
is what the LLM has to go on from. Letters: B rows, S sequence, L label columns, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtsk.model.prompt import NUM_DELIMITERS, Vocabulary

IGNORED = -100  # label of a position that is not learned


@dataclass(frozen=True)
class LlmInput:
    """What the LLM reads."""

    embeds_BSE: Tensor  # float, zero at padding
    mask_BS: Tensor  # int64, 1 at real positions
    positions_BS: Tensor  # int64, 0 at a row's first real position; where the LLM reads on, that of its next column


class Fusion(nn.Module):
    """Puts features in their slots. Holds the trained embeddings of the four delimiters.

    Args:
        vocabulary: numbers of the slots.
        embedding_dim: width of the LLM's embeddings.
        embedding_std: standard deviation of the LLM's embeddings, at which the delimiters start.
    """

    def __init__(self, vocabulary: Vocabulary, embedding_dim: int, embedding_std: float) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.delimiters_4E = nn.Parameter(torch.randn(NUM_DELIMITERS, embedding_dim) * embedding_std)

    def forward(
        self, sequences: Sequence[Sequence[int]], audio: Sequence[Tensor], video: Sequence[Tensor], table_VE: Tensor
    ) -> LlmInput:
        """Builds the input.

        Args:
            sequences: token numbers of each row, slots included.
            audio: for each row its audio tokens (K, E), K = 0 without sound.
            video: for each row its video tokens (K, E), K = 0 without lips.
            table_VE: the LLM's input embeddings.

        Raises:
            ValueError: if a row has not as many slots as tokens: scattering anyway would shift every later row.
        """
        device, size = table_VE.device, self.vocabulary.size
        width = max(map(len, sequences))
        padded = [[-1] * (width - len(row)) + list(row) for row in sequences]
        ids_BS = torch.tensor(padded, device=device)
        mask_BS = (ids_BS >= 0).long()
        delimiters_4E = self.delimiters_4E.to(table_VE.dtype)
        plain_BSE = nn.functional.embedding(ids_BS.clamp(0, size - 1), table_VE)
        special_BS = (ids_BS >= size) & (ids_BS < size + NUM_DELIMITERS)
        embeds_BSE = plain_BSE * mask_BS[..., None].to(plain_BSE.dtype)
        embeds_BSE[special_BS] = delimiters_4E[ids_BS[special_BS] - size]
        slots = ((audio, self.vocabulary.audio_slot, "audio"), (video, self.vocabulary.video_slot, "video"))
        for tokens, slot, name in slots:
            slot_BS = ids_BS == slot
            counts, wanted = [len(row) for row in tokens], slot_BS.sum(dim=1).tolist()
            if counts != wanted:
                raise ValueError(f"{name} tokens of the rows {counts} do not fill their slots {wanted}")
            if any(counts):
                embeds_BSE[slot_BS] = torch.cat(list(tokens)).to(embeds_BSE.dtype)
        return LlmInput(embeds_BSE, mask_BS, (mask_BS.cumsum(dim=1) - 1).clamp(min=0))


def label_columns(targets: Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """(B, L) labels of the last L columns; a shorter row's front is `IGNORED`."""
    width = max(map(len, targets))
    return torch.tensor([[IGNORED] * (width - len(row)) + list(row) for row in targets], device=device)
