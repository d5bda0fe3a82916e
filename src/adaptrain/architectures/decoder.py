"""LLaMA-like pre-norm decoders: rotary positions, grouped-query attention, gated MLP."""

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Stack,
    Sublayer,
    register_architecture,
)

LLAMA = register_architecture(
    Architecture(
        name="llama",
        model_types=("llama", "mistral", "qwen2"),
        pooling="last",
        stacks=(
            Stack(
                name="decoder",
                layers="layers",
                projections={
                    "attention.query": Projection("self_attn.q_proj"),
                    "attention.key": Projection("self_attn.k_proj"),
                    "attention.value": Projection("self_attn.v_proj"),
                    "attention.output": Projection("self_attn.o_proj"),
                    "mlp.gate": Projection("mlp.gate_proj"),
                    "mlp.up": Projection("mlp.up_proj"),
                    "mlp.down": Projection("mlp.down_proj"),
                },
                sublayers={
                    "attention": Sublayer(output="self_attn", residual="input_layernorm"),
                    "mlp": Sublayer(output="mlp", residual="post_attention_layernorm"),
                },
                attentions={"attention": Attention("self_attn")},
                embeddings=Embeddings("embed_tokens", output="embed_tokens", prompt="words", end=""),
            ),
        ),
    )
)
