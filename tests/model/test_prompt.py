"""The order of a request's tokens, and the tokens of texts."""

import pytest

from mtsk.model.llm import Llm
from tests.tiny import TEXTS, tiny_causal_lm, tiny_llm, tiny_tokenizer

SOUND, LIPS, BOTH = "Transcribe speech to text.", "Transcribe video to text.", "Transcribe speech and video to text."


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(("num_audio", "num_video", "prompt"), [(3, None, SOUND), (None, 2, LIPS), (3, 2, BOTH)])
def test_order(kind: str, num_audio: int | None, num_video: int | None, prompt: str) -> None:
    builder = tiny_llm(kind).prompts
    size = builder.vocabulary.size
    audio = [] if num_audio is None else [size, *[size + 4] * num_audio, size + 1]
    video = [] if num_video is None else [size + 2, *[size + 5] * num_video, size + 3]
    bos = [0] if kind == "llama" else []
    words = tiny_tokenizer(bos=kind == "llama").encode(prompt, add_special_tokens=False)
    assert builder.prefix(num_audio, num_video) == [*bos, *audio, *video, *words]


def test_special_numbers_lie_beyond_the_embedding_table() -> None:
    llm = tiny_llm()
    assert llm.prompts.vocabulary.size == llm.embedding_VE.shape[0] > len(tiny_tokenizer())


def test_target_is_the_words_one_by_one() -> None:
    """A word has the same tokens wherever it stands, and the end of sequence is learned."""
    builder = tiny_llm().prompts
    for text in TEXTS:
        words = [token for word in text.split() for token in builder.word_ids(word)]
        assert builder.target(text) == [*words, builder.vocabulary.eos]
        assert builder.target(f"  {text.replace(' ', '  ')} ") == builder.target(text)


def test_empty_text_is_the_end_alone() -> None:
    builder = tiny_llm().prompts
    assert builder.target("") == [builder.vocabulary.eos]
    assert builder.decode([]) == ""


@pytest.mark.parametrize("text", [*TEXTS, "zebra öl"])
def test_decode_is_the_inverse(text: str) -> None:
    builder = tiny_llm().prompts
    assert builder.decode(builder.target(text)) == text
    assert builder.decode([*builder.target(text), *builder.target("more")]) == text, "it ends at the end of sequence"
    assert builder.decode(builder.target(text)[:-1]) == text, "without an end, all of it"


def test_decode_leaves_special_tokens_out() -> None:
    builder = tiny_llm().prompts
    assert builder.decode([0, *builder.word_ids("bin"), 0]) == "bin"


def test_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer of llama has no end-of-sequence token"):
        Llm.build(tiny_causal_lm(), tokenizer)
