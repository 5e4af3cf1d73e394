"""Random models of known proportions. What a step or a forward takes does not depend on what a model has learnt."""

from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

# 35 million parameters: as Llama has it, the head shares nothing with the embeddings, and each of them has 12 million
TOY = LlamaConfig(
    vocab_size=32_000,
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    max_position_embeddings=4096,
)
# Qwen 2.5 of 0.5 and of 1.5 billion parameters
HALF_B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
ONE_AND_A_HALF_B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
# layers as wide as those of 0.5 billion, an eighth of them before an eighth of the vocabulary
HALF_B_LIKE = Qwen2Config(**{**HALF_B.to_dict(), "num_hidden_layers": 3, "layer_types": None, "vocab_size": 18_992})


def resized(config: Any, **changes: Any) -> Any:
    """A configuration with some numbers changed."""
    return type(config)(**{**config.to_dict(), "layer_types": None, **changes})


def build(config: Any, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A random model, the same for the same seed, without special tokens."""
    config = resized(config, bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
