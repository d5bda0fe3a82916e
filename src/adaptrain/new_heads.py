"""Fresh prediction heads of every type, made to fit the base model; refused where they have no meaning."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain.architectures import Architecture
from adaptrain.errors import ConfigError, UnsupportedError, unknown
from adaptrain.heads import (
    CausalLMHead,
    ClassificationHead,
    DependencyParsingHead,
    Head,
    ImageClassificationHead,
    MaskedLMHead,
    MultiLabelClassificationHead,
    MultipleChoiceHead,
    Pooling,
    QuestionAnsweringHead,
    Seq2SeqLMHead,
    TaggingHead,
    model_dropout,
)
from adaptrain.sites import Sites

Labels = Mapping[int, str] | None


class AddsHeads(nn.Module):
    """The part of an adapted model that makes heads.

    Each `add_…_head` makes its head the active one, and raises AdapterNameError where the name is taken and not
    `overwrite_ok`, ConfigError where an option is wrong, and UnsupportedError where the base model has a head of its
    own or the head has no meaning for it. `dropout` is the base model's own when None.
    """

    base_model: PreTrainedModel
    architecture: Architecture
    sites: Sites

    def __init__(self) -> None:
        super().__init__()
        self._makers: dict[str, Callable[..., Head]] = {}

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        """Add a head under a name and make it the active one."""
        raise NotImplementedError

    def add_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str = "tanh",
        dropout: float | None = None,
        id2label: Labels = None,
        overwrite_ok: bool = False,
        multilabel: bool = False,
        use_pooler: bool = False,
    ) -> None:
        """A head for texts or sound; regression with one label. See `heads.ClassificationHead`.

        Args:
            multilabel: classes that do not exclude each other; see `heads.MultiLabelClassificationHead`.
            use_pooler: read what the base model's own pooler returns.
        """
        self._need("classification", "texts", "sound")
        made = MultiLabelClassificationHead if multilabel else ClassificationHead
        pooling, size = self._pooling(use_pooler), self._size()
        head = made(size, num_labels, layers, activation_function, self._dropout(dropout), pooling, id2label)
        self.add_head(head_name, head, overwrite_ok)

    def add_image_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str = "tanh",
        overwrite_ok: bool = False,
        multilabel: bool = False,
        id2label: Labels = None,
        use_pooler: bool = False,
        dropout: float | None = None,
    ) -> None:
        """A head for images; see `heads.ImageClassificationHead`. Arguments as in `add_classification_head`."""
        self._need("image_classification", "images")
        options = layers, activation_function, self._dropout(dropout), self._pooling(use_pooler), id2label, True
        head = ImageClassificationHead(self._size(), num_labels, *options, multilabel)
        self.add_head(head_name, head, overwrite_ok)

    def add_multiple_choice_head(
        self,
        head_name: str,
        num_choices: int = 2,
        layers: int = 2,
        activation_function: str = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        use_pooler: bool = False,
        dropout: float | None = None,
    ) -> None:
        """A head that chooses among texts; see `heads.MultipleChoiceHead`."""
        self._need("multiple_choice", "texts", pair=False)
        options = activation_function, self._dropout(dropout), self._pooling(use_pooler), id2label
        self.add_head(head_name, MultipleChoiceHead(self._size(), num_choices, layers, *options), overwrite_ok)

    def add_tagging_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        dropout: float | None = None,
    ) -> None:
        """A head for the class of every token; see `heads.TaggingHead`."""
        self._need("tagging", "texts", pair=False)
        options = activation_function, self._dropout(dropout), id2label
        self.add_head(head_name, TaggingHead(self._size(), num_labels, layers, *options), overwrite_ok)

    def add_qa_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        dropout: float | None = None,
    ) -> None:
        """A head for the answer in a text; see `heads.QuestionAnsweringHead`."""
        self._need("question_answering", "texts")
        options = activation_function, self._dropout(dropout), id2label
        self.add_head(head_name, QuestionAnsweringHead(self._size(), num_labels, layers, *options), overwrite_ok)

    def add_dependency_parsing_head(
        self,
        head_name: str,
        num_labels: int = 2,
        overwrite_ok: bool = False,
        id2label: Labels = None,
        dropout: float | None = None,
    ) -> None:
        """A head for the tree of a sentence; see `heads.DependencyParsingHead`."""
        self._need("dependency_parsing", "texts", pair=False)
        head = DependencyParsingHead(self._size(), num_labels, self._dropout(dropout), id2label)
        self.add_head(head_name, head, overwrite_ok)

    def add_masked_lm_head(
        self,
        head_name: str,
        layers: int = 2,
        activation_function: str = "gelu",
        layer_norm: bool = True,
        bias: bool = True,
        sparse_prediction: bool = False,
        overwrite_ok: bool = False,
    ) -> None:
        """A head for masked words over the embeddings in force; see `heads.MaskedLMHead`."""
        if self.architecture.encoder_decoder or any(stack.causal for stack in self.architecture.stacks):
            kind = self.base_model.config.model_type
            raise UnsupportedError(
                f"A {kind} does not see what follows a masked word; a masked_lm head is for encoders"
            )
        options = activation_function, layer_norm, self._eps(), bias, sparse_prediction
        self.add_head(head_name, MaskedLMHead(*self._word_sizes(), layers, *options), overwrite_ok)

    def add_causal_lm_head(
        self,
        head_name: str,
        layers: int = 1,
        activation_function: str = "gelu",
        layer_norm: bool = True,
        bias: bool = False,
        shift_labels: bool = True,
        overwrite_ok: bool = False,
    ) -> None:
        """A head for the next word over the embeddings in force; see `heads.CausalLMHead`.

        Args:
            layers: 1 is the output embedding with which a model that ties it was pre-trained; each more is a fresh map
                with activation and norm before it, as in the reference, where 2 is the default.
        """
        self._need("causal_lm", "texts", pair=False)
        if not self.architecture.stacks[-1].causal:
            kind = self.base_model.config.model_type
            raise UnsupportedError(f"A {kind} sees the next word already; add a masked_lm head")
        cap = getattr(self.base_model.config, "final_logit_softcapping", None)
        options = activation_function, layer_norm, self._eps(), bias, shift_labels, True, 1.0, cap
        self.add_head(head_name, CausalLMHead(*self._word_sizes(), layers, *options), overwrite_ok)

    def add_seq2seq_lm_head(
        self,
        head_name: str,
        layers: int = 1,
        activation_function: str = "gelu",
        layer_norm: bool = False,
        bias: bool = False,
        overwrite_ok: bool = False,
    ) -> None:
        """A head for the words that the decoder writes, over the embeddings in force; see `heads.Seq2SeqLMHead`."""
        if not self.architecture.encoder_decoder:
            kind = self.base_model.config.model_type
            raise UnsupportedError(f"A {kind} has no encoder and decoder, which a seq2seq_lm head needs")
        options = activation_function, layer_norm, self._eps(), bias, True, words_scale(self.base_model)
        self.add_head(head_name, Seq2SeqLMHead(*self._word_sizes(), layers, *options), overwrite_ok)

    def register_custom_head(self, identifier: str, head: Callable[..., Head]) -> None:
        """Make a type of head known to `add_custom_head`.

        Args:
            head: a function of (model, head_name, **options) that returns a `Head`; or a subclass of `Head`, which is
                made with the options and, where it takes one, the model's `hidden_size`. A head is saved and loaded as
                its `to_dict` says, by its `kind`.

        Raises:
            ConfigError: neither of both; or a class without a `kind`, which could not be loaded.
        """
        if not callable(head) or (isinstance(head, type) and not issubclass(head, Head)):
            raise ConfigError([f"The custom head '{identifier}' is neither a subclass of Head nor a function"])
        if isinstance(head, type) and not head.kind:
            raise ConfigError([f"The custom head {head.__name__} has no kind, so that it could not be loaded again"])
        self._makers[identifier] = head

    def add_custom_head(self, head_type: str, head_name: str, overwrite_ok: bool = False, **options: Any) -> None:
        """Add a head of a type that `register_custom_head` has made known.

        Raises:
            ConfigError: no such type; or what it makes is no `Head`.
        """
        if head_type not in self._makers:
            raise ConfigError([unknown("custom head", head_type, self._makers, "Registered are")])
        make = self._makers[head_type]
        if isinstance(make, type):
            if "hidden_size" in inspect.signature(make).parameters:
                options.setdefault("hidden_size", self._size())
            made = make(**options)
        else:
            made = make(self, head_name, **options)
        if not isinstance(made, Head):
            raise ConfigError([f"The custom head '{head_type}' makes a {type(made).__name__}, which is no Head"])
        self.add_head(head_name, made, overwrite_ok)

    # ---- what fits the base model

    def _need(self, head: str, *kinds: str, pair: bool = True) -> None:
        """Refuse a head that has no meaning for what the model reads, or for a decoder that writes something else."""
        reads, kind = reads_of(self.base_model, self.architecture), self.base_model.config.model_type
        if reads not in kinds:
            meant = {"images": "; add an image_classification head"} if head == "classification" else {}
            raise UnsupportedError(
                f"A {kind} reads {reads}, and a {head} head is for {' or '.join(kinds)}{meant.get(reads, '')}"
            )
        if self.architecture.encoder_decoder and (not pair or reads == "sound"):
            raise UnsupportedError(
                f"A {kind} is an encoder-decoder, whose outputs are those of the decoder; a {head} head is for models "
                "of one stack"
            )

    def _pooling(self, use_pooler: bool) -> Pooling:
        """Which vector of a sequence is read."""
        if use_pooler:
            if getattr(self.base_model, "pooler", None) is None:
                raise UnsupportedError(f"This {type(self.base_model).__name__} has no pooler; leave use_pooler out")
            return "pooler"
        return pooling_of(self.base_model, self.architecture)

    def _bare(self) -> None:
        """Refuse a base model that has a head of its own."""
        base = self.base_model
        if self._headed():
            raise UnsupportedError(
                f"{type(base).__name__} has a prediction head of its own; load the base with "
                "AutoAdapterModel.from_pretrained to put named heads on it"
            )

    def _headed(self) -> bool:
        """Whether the base model has a head of its own; a T5 that writes is its own base model."""
        base = self.base_model
        return base.base_model is not base or base.get_output_embeddings() is not None

    def _size(self) -> int:
        self._bare()
        return int(self.base_model.config.hidden_size)  # type: ignore[attr-defined]

    def _dropout(self, dropout: float | None) -> float:
        return model_dropout(self.base_model.config) if dropout is None else dropout

    def _eps(self) -> float:
        return float(getattr(self.base_model.config, "layer_norm_eps", 1e-12))

    def _word_sizes(self) -> tuple[int, int, int]:
        """Of hidden states, of words, and how many words there are."""
        words = self.sites.word_table()
        return self._size(), words.shape[1], len(words)


def reads_of(model: PreTrainedModel, architecture: Architecture) -> str:
    """What a model reads: texts, images, sound, or texts and images."""
    if {"text", "vision"} <= {stack.name for stack in architecture.stacks}:
        return "texts and images"
    return {"pixel_values": "images", "input_values": "sound", "input_features": "sound"}.get(
        model.main_input_name, "texts"
    )


def pooling_of(model: PreTrainedModel, architecture: Architecture) -> Pooling:
    """Which vector a sequence classifier reads of a model: the last `<eos>` of an encoder-decoder, the mean over sound,
    else what its table says."""
    if reads_of(model, architecture) == "sound":
        return "mean"
    return "eos" if architecture.encoder_decoder else architecture.pooling


def words_scale(model: PreTrainedModel) -> float:
    """With what an encoder-decoder multiplies its hidden states before its words: T5, where it ties them."""
    config: Any = model.config
    return float(config.d_model) ** -0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0


def shifted(model: PreTrainedModel, ids: Tensor, special: Mapping[str, Any]) -> Tensor:
    """What the decoder reads in order to write `ids`: each one position later, as its own family begins.

    Args:
        special: the active words' own `pad_token_id` and `decoder_start_token_id`, where they are not the model's.
    """
    config: Any = model.config
    pad = special.get("pad_token_id", config.pad_token_id)
    start = special.get("decoder_start_token_id", getattr(config, "decoder_start_token_id", None))
    given = vars(sys.modules[type(model).__module__]).get("shift_tokens_right")
    if given is None:  # T5
        moved = ids.new_full(ids.shape, start)
        moved[:, 1:] = ids[:, :-1]
        return moved.masked_fill(moved == -100, pad)
    wanted = {"pad_token_id": pad, "decoder_start_token_id": start}  # mBART begins with what ends the text
    taken = {key: value for key, value in wanted.items() if key in inspect.signature(given).parameters}
    return given(ids, **taken)
