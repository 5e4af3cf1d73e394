"""Small tokenizers in the styles of published models, built offline: special tokens, templates, end ids."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEMPLATES = Path(__file__).parent / "fixtures" / "templates"
_CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the answer to that question? The answer is 42.",
    "Please write three lines about the sea.\n\nThe sea is wide.\nThe sea is blue.\nThe sea is cold.\n",
    "user assistant system model think You are a helpful assistant. Today Date: 26 Jul 2024 Knowledge Cutting",
    "Hello there! How are you? I'm fine, thanks. L'été à Zürich: 10 °C, naïve café. 你好世界。",
]


def template(name: str) -> str:
    """A chat template of the fixtures."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def build(
    folder: Path, style: str, *, chat_template: str | None = None, end_ids: Any = "own", positions: int | None = 512
) -> Path:
    """A model folder without weights, in one of STYLES. `end_ids`: eos_token_id of generation_config; None: no file."""
    from transformers import PreTrainedTokenizerFast

    backend, special, ends, own_template = STYLES[style]()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **special)  # type: ignore[no-untyped-call]
    name = chat_template or own_template
    tokenizer.chat_template = None if name is None else template(name)
    tokenizer.save_pretrained(folder)
    if positions is not None:
        config = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": positions}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if end_ids == "own":
        found = [tokenizer.convert_tokens_to_ids(token) for token in ends]
        end_ids = found if len(found) > 1 else found[0]
    if end_ids is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_ids}), encoding="utf-8")
    return folder


Built = tuple[Tokenizer, dict[str, str], list[str], str | None]


def _llama3() -> Built:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = _byte_level(special)
    _add_bos(backend, "<|begin_of_text|>")
    return (
        backend,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|end_of_text|>", "<|eot_id|>"],
        "llama3",
    )


def _qwen(chat_template: str) -> Built:
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    words = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    backend.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return backend, special, ["<|im_end|>", "<|endoftext|>"], chat_template


def _gemma(chat_template: str) -> Built:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    lines, words = pre_tokenizers.Split(Regex(r"\n+"), "isolated"), pre_tokenizers.Split("▁", "merged_with_next")
    backend.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    _train(backend, special)
    _add_bos(backend, "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return backend, names, ["<eos>", "<end_of_turn>"], chat_template


def _mistral() -> Built:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    _train(backend, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    _add_bos(backend, "<s>")
    return backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, ["</s>"], "mistral"


def _r1() -> Built:
    backend = _byte_level(["<s>", "</s>", "<|User|>", "<|Assistant|>"])
    return backend, {"bos_token": "<s>", "eos_token": "</s>"}, ["</s>"], "r1"


def _plain() -> Built:
    """Byte-level, no template, and a tokenizer that adds both BOS and EOS around a text."""
    backend = _byte_level(["<s>", "</s>"])
    pieces = [("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=pieces)
    return backend, {"bos_token": "<s>", "eos_token": "</s>"}, ["</s>"], None


def _words() -> Built:
    """One token per word, for models trained on small worlds."""
    words = sorted({word for text in _CORPUS for word in text.split()} | {"\n"})
    special = ["<unk>", "<eos>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| "), "isolated")
    backend.add_special_tokens(special)
    return backend, {"eos_token": "<eos>", "unk_token": "<unk>"}, ["<eos>"], None


def _byte_level(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _train(backend, special, alphabet=pre_tokenizers.ByteLevel.alphabet())
    return backend


def _train(backend: Tokenizer, special: list[str], alphabet: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet or [], show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)


def _add_bos(backend: Tokenizer, bos: str) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )


STYLES: dict[str, Callable[[], Built]] = {
    "llama3": _llama3,
    "qwen25": partial(_qwen, "qwen25"),
    "qwen3": partial(_qwen, "qwen3"),
    "gemma2": partial(_gemma, "gemma2"),
    "gemma3": partial(_gemma, "gemma3"),
    "mistral": _mistral,
    "r1": _r1,
    "plain": _plain,
    "words": _words,
}
CHAT_STYLES = ("llama3", "qwen25", "qwen3", "gemma2", "gemma3", "mistral")
USABLE_STYLES = (*CHAT_STYLES, "plain", "words")  # r1 puts into its header what it leaves out of a conversation
