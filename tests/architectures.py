"""A tiny configuration of each architecture that is looked at: what transformers makes a random model of.

Two layers, so that a stream is handed on, and a vocabulary of single bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 259  # the bytes and three special tokens; not what vLLM pads to
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**COMMON, "intermediate_size": 96, "num_key_value_heads": 1}
LLAMA_LIKE = {**GROUPED, "head_dim": 32}
GEMMA = {**LLAMA_LIKE, "query_pre_attn_scalar": 32, "sliding_window": 16}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ALTERNATING = ["sliding_attention", "full_attention"]
SCALED = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}

# The class in transformers: its model type, and in what it is not the default of that.
REQUIRED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("llama", {**LLAMA_LIKE, "attention_bias": True, "mlp_bias": True}),
    "MistralForCausalLM": ("mistral", {**LLAMA_LIKE, "sliding_window": None}),
    # vLLM's attention on CPUs approximates the soft cap's tanh, which changes residuals by some 1e-3.
    "Gemma2ForCausalLM": ("gemma2", {**GEMMA, "attn_logit_softcapping": None}),
    "Gemma3ForCausalLM": ("gemma3_text", {**GEMMA, "layer_types": ALTERNATING}),
    "Qwen2ForCausalLM": ("qwen2", GROUPED),
    "Qwen3ForCausalLM": ("qwen3", LLAMA_LIKE),
    "Qwen3MoeForCausalLM": (
        "qwen3_moe",
        {**LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "MixtralForCausalLM": ("mixtral", {**LLAMA_LIKE, "num_local_experts": 4}),
    "Phi3ForCausalLM": ("phi3", {**GROUPED, "sliding_window": None}),
    "Olmo2ForCausalLM": ("olmo2", GROUPED),
    "GPTNeoXForCausalLM": ("gpt_neox", {**COMMON, "intermediate_size": 96}),
    "GPT2LMHeadModel": ("gpt2", {**GPT2, **ENDS}),
    "Starcoder2ForCausalLM": ("starcoder2", {**GROUPED, "sliding_window": None}),
    "GraniteForCausalLM": ("granite", {**GROUPED, **SCALED}),
    "SmolLM3ForCausalLM": ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
}
OTHERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "GemmaForCausalLM": ("gemma", LLAMA_LIKE),
    "Gemma4ForCausalLM": ("gemma4_text", {**LLAMA_LIKE, "layer_types": ALTERNATING}),
    "CohereForCausalLM": ("cohere", GROUPED),
    # vLLM's window is one longer than transformers': long enough here for neither to end.
    "Cohere2ForCausalLM": ("cohere2", {**GROUPED, "layer_types": ALTERNATING}),
    "StableLmForCausalLM": ("stablelm", GROUPED),
    "OPTForCausalLM": ("opt", {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "FalconForCausalLM": ("falcon", {**COMMON, "new_decoder_architecture": False, "multi_query": True}),
    "GPTJForCausalLM": ("gptj", {**GPT2, "rotary_dim": 16, **ENDS}),
    "PhiForCausalLM": ("phi", {**COMMON, "intermediate_size": 96}),
    "NemotronForCausalLM": ("nemotron", {**GROUPED, "head_dim": 32}),
    "OlmoForCausalLM": ("olmo", GROUPED),
    "Olmo3ForCausalLM": ("olmo3", {**GROUPED, "layer_types": ALTERNATING, "sliding_window": 16}),
    "OlmoeForCausalLM": ("olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "GlmForCausalLM": ("glm", LLAMA_LIKE),
    "Glm4ForCausalLM": ("glm4", LLAMA_LIKE),
    "ArceeForCausalLM": ("arcee", LLAMA_LIKE),
    "Exaone4ForCausalLM": ("exaone4", {**GROUPED, "layer_types": ALTERNATING, "sliding_window": 16}),
    "Ernie4_5ForCausalLM": ("ernie4_5", LLAMA_LIKE),
    "GraniteMoeForCausalLM": (
        "granitemoe",
        {**GROUPED, **SCALED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "Qwen2MoeForCausalLM": (
        "qwen2_moe",
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "HeliumForCausalLM": ("helium", LLAMA_LIKE),
    "SeedOssForCausalLM": ("seed_oss", LLAMA_LIKE),
    "GptOssForCausalLM": (
        "gpt_oss",
        {
            **LLAMA_LIKE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ALTERNATING,
            "sliding_window": 16,
        },
    ),
}
ARCHITECTURES = {**REQUIRED, **OTHERS}
