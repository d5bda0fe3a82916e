"""Named prediction heads on a bare base model, and which of them is in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adaptrain.adapter import check_name, key_of
from adaptrain.architectures import Architecture
from adaptrain.context import current_setup
from adaptrain.errors import AdapterNameError, UnsupportedError, unknown
from adaptrain.heads import ClassificationHead, Head, MaskedLMHead
from adaptrain.sites import Sites


class WithHeads(nn.Module):
    """The part of an adapted model that keeps its heads."""

    base_model: PreTrainedModel
    architecture: Architecture
    sites: Sites

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        self._active_head: str | None = None

    def add_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str = "tanh",
        dropout: float | None = None,
        id2label: Mapping[int, str] | None = None,
        overwrite_ok: bool = False,
    ) -> None:
        """Add a head for sequence classification, or regression with one label; see `heads.ClassificationHead`.

        Args:
            dropout: the base model's own when None.

        Raises:
            AdapterNameError: the name is taken and not `overwrite_ok`.
            UnsupportedError: the base model has a head of its own.
        """
        config: Any = self.base_model.config
        if dropout is None:
            given = (getattr(config, key, None) for key in ("classifier_dropout", "hidden_dropout_prob", "resid_pdrop"))
            dropout = float(next((value for value in given if value is not None), 0.0))
        head = ClassificationHead(
            config.hidden_size,
            num_labels,
            layers,
            activation_function,
            dropout,
            self.architecture.pooling,
            id2label,
        )
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
        """Add a head for masked words over the embeddings in force; see `heads.MaskedLMHead`.

        Raises:
            AdapterNameError: the name is taken and not `overwrite_ok`.
            ConfigError: an option is wrong.
            UnsupportedError: the base model has a head of its own, does not see both sides of a masked word, or looks
                up no words.
        """
        config: Any = self.base_model.config
        if self.architecture.encoder_decoder or any(stack.causal for stack in self.architecture.stacks):
            raise UnsupportedError(
                f"A {config.model_type} does not see what follows a masked word; a masked_lm head is for encoders"
            )
        words, size = self.sites.word_table(), int(config.hidden_size)
        eps = float(getattr(config, "layer_norm_eps", 1e-12))
        head = MaskedLMHead(
            size, words.shape[1], len(words), layers, activation_function, layer_norm, eps, bias, sparse_prediction
        )
        self.add_head(head_name, head, overwrite_ok)

    def _live_sites(self) -> Sites:
        return self.sites

    def add_head(self, name: str, head: Head, overwrite_ok: bool = False) -> None:
        """Add a head under a name and make it the active one."""
        check_name(name)
        if self.base_model.base_model is not self.base_model:
            raise UnsupportedError(
                f"{type(self.base_model).__name__} has a prediction head of its own; load the base with "
                "AutoAdapterModel.from_pretrained to put named heads on it"
            )
        if key_of(name) in self.heads and not overwrite_ok:
            raise AdapterNameError(f"There is a head '{name}' already; give overwrite_ok=True to replace it")
        head.name = name
        head.bind(self._live_sites)
        self.heads[key_of(name)] = head.to(self.base_model.device).train(self.training)
        self._active_head = name

    def _head_names(self) -> list[str]:
        return [str(head.name) for head in self.heads.values()]

    @property
    def active_head(self) -> str | None:
        """The head whose prediction the next forward returns; None returns the base model's outputs."""
        return self._active_head

    @active_head.setter
    def active_head(self, name: str | None) -> None:
        if name is not None:
            self._known(name)
        self._active_head = name

    def delete_head(self, name: str) -> None:
        """Remove a head.

        Raises:
            AdapterNameError: no such head.
        """
        self._known(name)
        del self.heads[key_of(name)]
        if self._active_head == name:
            self._active_head = None

    def head_in_force(self) -> nn.Module | None:
        """The head that the next forward runs: the one of an `AdapterSetup`, or the active one."""
        setup = current_setup()
        name = self._active_head if setup is None or setup.head is None else setup.head
        return None if name is None else self._known(name)

    def _known(self, name: str) -> nn.Module:
        if key_of(name) not in self.heads:
            raise AdapterNameError(unknown("head", name, self._head_names(), "The model has"))
        return self.heads[key_of(name)]
