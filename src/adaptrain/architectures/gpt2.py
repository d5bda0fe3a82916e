"""GPT-2: pre-norm decoder, query, key and value in one Conv1D."""

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Stack,
    Sublayer,
    register_architecture,
)

GPT2 = register_architecture(
    Architecture(
        name="gpt2",
        model_types=("gpt2",),
        pooling="last",
        stacks=(
            Stack(
                name="decoder",
                layers="h",
                projections={
                    "attention.query": Projection("attn.c_attn", part=0, parts=3),
                    "attention.key": Projection("attn.c_attn", part=1, parts=3),
                    "attention.value": Projection("attn.c_attn", part=2, parts=3),
                    "attention.output": Projection("attn.c_proj"),
                    "mlp.up": Projection("mlp.c_fc"),
                    "mlp.down": Projection("mlp.c_proj"),
                },
                sublayers={
                    "attention": Sublayer(output="attn", residual="ln_1"),
                    "mlp": Sublayer(output="mlp", residual="ln_2"),
                },
                attentions={"attention": Attention("attn")},
                embeddings=Embeddings("wte", output="drop", prompt="words", end=""),
            ),
        ),
    )
)
