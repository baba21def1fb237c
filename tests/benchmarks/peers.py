"""The same network in transformers: ArceeForCausalLM with the weights of ours, for benchmarks that set it beside."""

from typing import Any

import torch

from ncvc.model.transformer import Transformer


def arcee_twin(source: Transformer, **settings: Any) -> torch.nn.Module:
    """Configuration of ``source`` and what ``settings`` add or replace; weights in the type of ``source``."""
    from transformers import ArceeConfig, ArceeForCausalLM

    config = source.config
    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    model = ArceeForCausalLM(ArceeConfig(**{**shape, **settings})).to(source.head.weight.dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(source.embedding.weight * config.embedding_multiplier)
        model.lm_head.weight.copy_(source.head.weight)
        for target, layer in zip(model.model.layers, source.layers, strict=True):
            query, key, value = layer.attention.qkv.row_blocks()
            target.self_attn.q_proj.weight.copy_(query)
            target.self_attn.k_proj.weight.copy_(key)
            target.self_attn.v_proj.weight.copy_(value)
            target.self_attn.o_proj.weight.copy_(layer.attention.output.weight)
            target.mlp.up_proj.weight.copy_(layer.mlp.up.weight)
            target.mlp.down_proj.weight.copy_(layer.mlp.down.weight)
    return model
