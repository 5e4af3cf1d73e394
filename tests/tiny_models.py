"""Small random models of several families, made in milliseconds, and random requests for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from prefdata.engines import Request

VOCABULARY = 40
POSITIONS = 64

_COMMON = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    # large enough that attention and position matter, so that a mistake in either shows
    "initializer_range": 0.3,
}
_DECODER = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}

CONFIGS = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "phi3": lambda: Phi3Config(**_GROUPED),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=6),
    # eager, as load_model has it: SDPA leaves the soft-cap out
    "gemma2": lambda: Gemma2Config(
        **_GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, attn_implementation="eager"
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "neox": lambda: GPTNeoXConfig(**_DECODER),
    "gpt2": lambda: GPT2Config(**_COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS),
    "bloom": lambda: BloomConfig(**_COMMON, hidden_size=32, n_layer=2, n_head=4),
}
FAMILIES = list(CONFIGS)


def tiny_model(family: str = "llama", seed: int = 0, config: Any = None) -> Any:
    """A random causal model in eval mode, the same for the same seed. `config` stands in for the family's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or CONFIGS[family]())
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name:  # ones and zeros hide mistakes
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    return model.eval()


def save_tiny_model(folder: Path, family: str = "llama", seed: int = 0, **generation: Any) -> Path:
    """A model folder, with `generation` in its generation_config.json."""
    model = tiny_model(family, seed)
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    return folder


def save_llama(
    folder: Path, *, vocabulary: int, positions: int, head_size: int = 16, seed: int = 0, **generation: Any
) -> Path:
    """A random Llama that begins at 1 and ends at 2, flat enough that many tokens occur."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=2 * head_size,
        intermediate_size=3 * head_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    if generation:
        model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    return folder


def random_requests(count: int = 12, seed: int = 0, vocabulary: int = VOCABULARY, longest: int = 20) -> list[Request]:
    """Prompts and limits of up to `longest` tokens, each with a seed of its own."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            key=f"r{i}",
            prompt_ids=tuple(int(t) for t in rng.integers(vocabulary, size=rng.integers(1, longest))),
            max_new_tokens=int(rng.integers(1, longest)),
            seed=int(rng.integers(2**62)),
        )
        for i in range(count)
    ]
