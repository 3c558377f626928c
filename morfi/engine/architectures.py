"""vLLM's model classes that morfi knows from the inside, in one list."""

from __future__ import annotations

# Both is true of each, and tested. Its decoder layers return hidden states and residual, the residual stream
# being their sum: so it can be steered. Its load_weights does nothing but rename and hand each tensor to its
# module: so the tensors of one module can be given to it alone.
ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM"})
