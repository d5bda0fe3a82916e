"""Smaller encoders: ALBERT, whose layers are one; DistilBERT; ModernBERT, pre-norm and fused."""

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Prompt,
    Stack,
    Sublayer,
    register_architecture,
)

_QKV = ("query", "key", "value")
_EMBEDDINGS = Embeddings("embeddings.word_embeddings", output="embeddings")

# One layer here is one module. ALBERT runs it several times, and what an adapter has there acts each time.
register_architecture(
    ("albert",),
    Architecture(
        "albert",
        (
            Stack(
                name="encoder",
                layers="encoder.albert_layer_groups.*.albert_layers",
                projections={
                    **{f"attention.{role}": Projection(f"attention.{role}") for role in _QKV},
                    "attention.output": Projection("attention.dense"),
                    "mlp.up": Projection("ffn"),
                    "mlp.down": Projection("ffn_output"),
                },
                sublayers={
                    "attention": Sublayer("attention.output_dropout", "attention", norm="attention.LayerNorm"),
                    "mlp": Sublayer("ffn_output", "ffn", norm="full_layer_layer_norm"),
                },
                attentions={"attention": Attention("attention", head_size="attention_head_size")},
                embeddings=_EMBEDDINGS,
                prompt=Prompt(behind="embeddings", end="encoder"),
            ),
        ),
    ),
)

register_architecture(
    ("distilbert",),
    Architecture(
        "distilbert",
        (
            Stack(
                name="encoder",
                layers="transformer.layer",
                projections={
                    **{f"attention.{role}": Projection(f"attention.{role[0]}_lin") for role in _QKV},
                    "attention.output": Projection("attention.out_lin"),
                    "mlp.up": Projection("ffn.lin1"),
                    "mlp.down": Projection("ffn.lin2"),
                },
                sublayers={
                    "attention": Sublayer("attention", "attention", norm="sa_layer_norm"),
                    "mlp": Sublayer("ffn", "ffn", norm="output_layer_norm"),
                },
                attentions={"attention": Attention("attention", head_size="attention_head_size")},
                embeddings=_EMBEDDINGS,
                prompt=Prompt(behind="embeddings", end="transformer"),
            ),
        ),
    ),
)

register_architecture(
    ("modernbert",),
    Architecture(
        "modernbert",
        (
            Stack(
                name="encoder",
                layers="layers",
                projections={
                    **{f"attention.{role}": Projection("attn.Wqkv", part, 3) for part, role in enumerate(_QKV)},
                    "attention.output": Projection("attn.Wo"),
                    "mlp.gate": Projection("mlp.Wi", 0, 2),  # the half that goes through the activation
                    "mlp.up": Projection("mlp.Wi", 1, 2),
                    "mlp.down": Projection("mlp.Wo"),
                },
                sublayers={
                    "attention": Sublayer("attn", "attn_norm"),
                    "mlp": Sublayer("mlp", "mlp_norm"),
                },
                attentions={"attention": Attention("attn")},
                embeddings=Embeddings("embeddings.tok_embeddings", output="embeddings"),
                # positions are counted before the embeddings: behind them a prompt would have none to turn by
                prompt=Prompt(end=""),
            ),
        ),
    ),
)
