"""Small random models of several families, made in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

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
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**_GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=6),
    "neox": lambda: GPTNeoXConfig(**_DECODER),
    "gpt2": lambda: GPT2Config(**_COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS),
}
FAMILIES = list(CONFIGS)


def tiny_model(family: str = "llama", seed: int = 0) -> Any:
    """A random causal model in eval mode, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]())
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
