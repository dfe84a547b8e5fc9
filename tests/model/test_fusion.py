"""Fusion against a golden written by hand, and its refusal of wrong counts."""

import pytest
import torch
from torch import Tensor

from mtsk.model.fusion import IGNORED, Fusion, label_columns
from mtsk.model.prompt import Vocabulary

# A vocabulary of 6: BOS 0, EOS 1, words 2 to 5. Embedding of token n: (n, n / 10).
VOCABULARY = Vocabulary(size=6, bos=0, eos=1)
TABLE = torch.tensor([[n, n / 10] for n in range(6)])
AUDIO_OPEN, AUDIO_CLOSE, VIDEO_OPEN, VIDEO_CLOSE = 6, 7, 8, 9
AUDIO, VIDEO = 10, 11
DELIMITERS = torch.tensor([[-1.0, -1.5], [-2.0, -2.5], [-3.0, -3.5], [-4.0, -4.5]])


def _fusion() -> Fusion:
    fusion = Fusion(VOCABULARY, 2, 0.02)
    with torch.no_grad():
        fusion.delimiters_4E.copy_(DELIMITERS)
    return fusion


def _tokens(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows).reshape(len(rows), 2)


def test_vocabulary_numbers() -> None:
    assert VOCABULARY.delimiters == (AUDIO_OPEN, AUDIO_CLOSE, VIDEO_OPEN, VIDEO_CLOSE)
    assert (VOCABULARY.audio_slot, VOCABULARY.video_slot) == (AUDIO, VIDEO)


def test_golden() -> None:
    """Three rows of unlike length and unlike modalities, column by column."""
    sequences = [
        [0, AUDIO_OPEN, AUDIO, AUDIO, AUDIO_CLOSE, VIDEO_OPEN, VIDEO, VIDEO_CLOSE, 3, 5],
        [0, VIDEO_OPEN, VIDEO, VIDEO, VIDEO_CLOSE, 4],
        [0, AUDIO_OPEN, AUDIO, AUDIO_CLOSE, 2, 3, 4],
    ]
    audio = [_tokens((0.1, 0.2), (0.3, 0.4)), _tokens(), _tokens((1.5, 1.6))]
    video = [_tokens((0.5, 0.6)), _tokens((1.1, 1.2), (1.3, 1.4)), _tokens()]
    inputs = _fusion()(sequences, audio, video, TABLE)
    pad, bos, word_2, word_3, word_4, word_5 = (0.0, 0.0), (0.0, 0.0), (2.0, 0.2), (3.0, 0.3), (4.0, 0.4), (5.0, 0.5)
    a_open, a_close, v_open, v_close = (tuple(row) for row in DELIMITERS.tolist())
    # fmt: off
    expected = [
        # 0   1       2           3           4        5           6           7           8        9
        [bos, a_open, (0.1, 0.2), (0.3, 0.4), a_close, v_open,     (0.5, 0.6), v_close,    word_3,  word_5],
        [pad, pad,    pad,        pad,        bos,     v_open,     (1.1, 1.2), (1.3, 1.4), v_close, word_4],
        [pad, pad,    pad,        bos,        a_open,  (1.5, 1.6), a_close,    word_2,     word_3,  word_4],
    ]
    mask = [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    ]
    positions = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        [0, 0, 0, 0, 1, 2, 3, 4, 5, 6],
    ]
    # fmt: on
    torch.testing.assert_close(inputs.embeds_BSE, torch.tensor(expected))
    assert inputs.mask_BS.tolist() == mask
    assert inputs.positions_BS.tolist() == positions


def test_padding_is_zero_even_where_bos_is_not() -> None:
    table = TABLE + 7.0
    inputs = _fusion()([[0, 2], [2]], [_tokens()] * 2, [_tokens()] * 2, table)
    assert inputs.embeds_BSE[1, 0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(inputs.embeds_BSE[0, 0], table[0])


@pytest.mark.parametrize(
    ("num_audio", "num_video", "name"),
    [((1, 1), (0, 1), "audio"), ((2, 0), (0, 1), "audio"), ((1, 0), (1, 0), "video")],
)
def test_wrong_counts_are_refused(num_audio: tuple[int, int], num_video: tuple[int, int], name: str) -> None:
    """Also where the total is right: the rows would get each other's tokens."""
    sequences = [[0, AUDIO_OPEN, AUDIO, AUDIO_CLOSE, 2], [0, VIDEO_OPEN, VIDEO, VIDEO_CLOSE, 2]]
    audio, video = ([torch.zeros(count, 2) for count in counts] for counts in (num_audio, num_video))
    with pytest.raises(ValueError, match=f"{name} tokens of the rows .* do not fill their slots"):
        _fusion()(sequences, audio, video, TABLE)


def test_gradient_reaches_tokens_and_delimiters() -> None:
    fusion = _fusion()
    audio = [torch.zeros(2, 2, requires_grad=True), torch.zeros(0, 2)]
    sequences = [[AUDIO_OPEN, AUDIO, AUDIO, AUDIO_CLOSE], [AUDIO_OPEN, AUDIO_CLOSE]]
    fusion(sequences, audio, [torch.zeros(0, 2)] * 2, TABLE).embeds_BSE.sum().backward()
    assert audio[0].grad is not None
    assert audio[0].grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert fusion.delimiters_4E.grad is not None
    assert fusion.delimiters_4E.grad.tolist() == [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


def test_labels_stand_in_the_last_columns() -> None:
    labels = label_columns([[3, 5, 1], [1], [4, 1]], "cpu")
    assert labels.tolist() == [[3, 5, 1], [IGNORED, IGNORED, 1], [IGNORED, 4, 1]]
    assert labels.dtype == torch.int64
