"""Post-norm encoders with output modules: BERT, RoBERTa, XLM-R, ELECTRA; and MPNet, which differs in its attention."""

from adaptrain.architectures.base import (
    Architecture,
    Attention,
    Embeddings,
    Projection,
    Stack,
    Sublayer,
    register_architecture,
)

_EMBEDDINGS = Embeddings("embeddings.word_embeddings", output="embeddings", prompt="behind", end="encoder")

BERT = register_architecture(
    Architecture(
        name="bert",
        model_types=("bert", "roberta", "xlm-roberta", "electra"),
        stacks=(
            Stack(
                name="encoder",
                layers="encoder.layer",
                projections={
                    "attention.query": Projection("attention.self.query"),
                    "attention.key": Projection("attention.self.key"),
                    "attention.value": Projection("attention.self.value"),
                    "attention.output": Projection("attention.output.dense"),
                    "mlp.up": Projection("intermediate.dense"),
                    "mlp.down": Projection("output.dense"),
                },
                sublayers={
                    "attention": Sublayer(
                        output="attention.output.dropout",
                        residual="attention.output",
                        argument=1,
                        norm="attention.output.LayerNorm",
                    ),
                    "mlp": Sublayer(output="output.dropout", residual="output", argument=1, norm="output.LayerNorm"),
                },
                attentions={"attention": Attention("attention.self", head_size="attention_head_size")},
                embeddings=_EMBEDDINGS,
            ),
        ),
    )
)

MPNET = register_architecture(
    Architecture(
        name="mpnet",
        model_types=("mpnet",),
        stacks=(
            Stack(
                name="encoder",
                layers="encoder.layer",
                projections={
                    "attention.query": Projection("attention.attn.q"),
                    "attention.key": Projection("attention.attn.k"),
                    "attention.value": Projection("attention.attn.v"),
                    "attention.output": Projection("attention.attn.o"),
                    "mlp.up": Projection("intermediate.dense"),
                    "mlp.down": Projection("output.dense"),
                },
                sublayers={
                    "attention": Sublayer("attention.dropout", residual="attention", norm="attention.LayerNorm"),
                    "mlp": Sublayer(output="output.dropout", residual="output", argument=1, norm="output.LayerNorm"),
                },
                # MPNet computes attention inside its own forward, with a relative position bias.
                attentions={
                    "attention": Attention("attention.attn", head_size="attention_head_size", output="attention.attn.o")
                },
                embeddings=_EMBEDDINGS,
            ),
        ),
    )
)
