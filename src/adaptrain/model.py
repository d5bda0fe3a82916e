"""A base model with adapters: add, activate, train, save, load, remove. The base model itself is never touched."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptrain import checkpoint
from adaptrain.adapter import Adapter, check_name, key_of
from adaptrain.architectures import Architecture
from adaptrain.averaging import WithAverages
from adaptrain.composition import Composition, names, parse, width
from adaptrain.context import Records, current_setup, current_tasks, generating, recording, routing
from adaptrain.embeddings import DEFAULT, WithEmbeddings
from adaptrain.errors import AdapterNameError, UnsupportedError, unknown
from adaptrain.fusions import WithFusions
from adaptrain.methods import MethodConfig, read_config
from adaptrain.programs import InPrograms
from adaptrain.quantised import keep_as_loaded, refuse_training, scheme_of
from adaptrain.saving import WithFiles
from adaptrain.sites import Sites, beginning, repeated, routed, table_for
from adaptrain.upstream import warn_if_untested
from adaptrain.weights import WithWeights


class AdaptedModel(InPrograms, WithFusions, WithAverages, WithWeights, WithEmbeddings, WithFiles):
    """Adapters around any transformers model whose architecture has a table.

    Calls go through to the base model; with an active head its prediction is returned. Attributes that this class does
    not have are the base model's. The name of an adapted model's class and the signature of its `forward` are those of
    the transformers class that does the same job (`adaptrain.face`).

    Args:
        base_model: a transformers model, with or without a head of its own. Its parameters keep their names, its
            modules their types.
        architecture: the table to use where the model type has none: another model type, a YAML file, its content, or
            an `Architecture`.

    Attributes:
        base_model: the untouched model.
        identity: where the base came from (`name`, `revision`, `fingerprint`), saved beside every adapter.

    Raises:
        UnsupportedError: no table for the model type, or it does not fit (names the tables that would, or every path
            that is wrong); a base that has adapters around it already, or a quantised one that has been repacked.
        ConfigError: the architecture that is given is none.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        architecture: str | Path | Mapping[str, Any] | Architecture | None = None,
    ) -> None:
        super().__init__()
        warn_if_untested()
        Sites.refuse_second(base_model)
        keep_as_loaded(base_model)
        self.base_model = base_model
        self.architecture = table_for(base_model, architecture)
        self.sites = Sites(base_model, self.architecture)
        self.adapters, self.vocabularies = nn.ModuleDict(), nn.ModuleDict()
        self._positional = tuple(inspect.signature(base_model.forward).parameters)
        self.set_base_identity(base_model.name_or_path or None, None, None)
        self._dress()

    # ---- running

    def forward(
        self,
        *args: Any,
        labels: Any = None,
        task_ids: Sequence[int | str] | Tensor | None = None,
        output_adapter_gating_scores: bool = False,
        output_adapter_fusion_attentions: bool = False,
        **inputs: Any,
    ) -> Any:
        """Run the base model under the active composition, and the active heads on what it returns.

        Args:
            labels: given to the heads; to the base model where no head is active. Of several heads also a sequence, or
                a mapping from their names, with the labels of each one's own rows.
            task_ids: for MultiTask: the number or the name of a child for each row.
            output_adapter_gating_scores: also return `adapter_gating_scores`: adapter → layer → place → array
                (rows, gates); -1 is the layer of what belongs to none.
            output_adapter_fusion_attentions: also return `adapter_fusion_attentions`: fusion → layer → place → array
                (rows, positions, adapters); empty where no fusion is active.

        Returns:
            what the base model or the head returns; a `MultiHeadOutput` where each branch has a head. In training its
            loss includes the fusions' regularisation.
        """
        if output_adapter_gating_scores or output_adapter_fusion_attentions:
            records = Records()
            with recording(records):
                outputs = self.forward(*args, labels=labels, task_ids=task_ids, **inputs)
            found = {"adapter_gating_scores": records.gates} if output_adapter_gating_scores else {}
            if output_adapter_fusion_attentions:
                found["adapter_fusion_attentions"] = records.fusions
            if isinstance(outputs, tuple):
                return (*outputs, *found.values())
            for key, value in found.items():
                setattr(outputs, key, value)
            return outputs
        with routing(current_tasks() if task_ids is None else _tasks(task_ids)):
            tree, heads = self.in_force()
            if heads is None:
                return self._regularised(tree, self._through_base(args, inputs, labels))
            inputs |= dict(zip(self._positional, args, strict=False)) | {"return_dict": True}
            if self.architecture.pooling == "last":
                inputs.setdefault("use_cache", False)  # decoders would fill a cache that nobody reads
            return self._regularised(tree, self._predict(tree, heads, inputs, labels))

    def generate(
        self, inputs: Tensor | None = None, task_ids: Sequence[int | str] | Tensor | None = None, **options: Any
    ) -> Any:
        """`generate` of the base model, or of the one that writes with the active head, under the active composition,
        with the active embeddings' own padding and end.

        Args:
            task_ids: for MultiTask: the number or the name of a child for each row.

        Raises:
            UnsupportedError: a static cache with prompt tuning, whose prompt it has no room for; or nothing writes.
            CompositionError: the composition cannot divide the rows, or has no place for the positions that are
                generated.
        """
        model = self.writer()
        if options.get("generation_config") is None:
            options = self.generation_options() | options
        setup = current_setup()
        tree = self.sites.active if setup is None else setup.composition
        if options.get("cache_implementation") == "static" and self.sites.has_prompt(tree):
            raise UnsupportedError("A static cache has no room for a prompt; leave cache_implementation out")
        options = repeated(options | {"inputs": inputs}, width(tree))
        prompt, rows, seen = beginning(options, self.architecture.encoder_decoder)
        inputs = options.pop("inputs")
        tasks = routing(current_tasks() if task_ids is None else _tasks(task_ids))
        with tasks, generating(prompt, rows, seen):
            routed(tree, rows)  # what cannot be divided is refused before anything runs
            return model.generate(*([] if inputs is None else [inputs]), **options)

    # ---- adapters

    def add_adapter(
        self,
        name: str,
        config: MethodConfig | str | Mapping[str, Any] | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add a freshly initialised adapter; nothing changes until it is active.

        Args:
            config: a config, a config string (`lora[r=16]`), or a mapping with `method`; `seq_bn` when None.

        Raises:
            AdapterNameError: the name is taken (and not `overwrite_ok`) or cannot be one.
            ConfigError: the config is wrong.
            UnsupportedError: the method does not fit this model.
        """
        check_name(name)
        if key_of(name) in self.adapters and not overwrite_ok:
            raise AdapterNameError(f"There is an adapter '{name}' already; give overwrite_ok=True to replace it")
        self._put(Adapter(name, read_config(config), self.sites))
        if set_active:
            self.set_active_adapters(name)

    def _put(self, adapter: Adapter) -> None:
        self._not_merged(adapter.name)
        if adapter.config.trains_base and (found := scheme_of(self.base_model)) is not None:
            raise UnsupportedError(
                f"The adapter '{adapter.name}' ({adapter.config.method}) would train the base model's weights, which "
                f"are quantised ({found}); load the base in float for it"
            )
        if key_of(adapter.name) in self.adapters:
            self.sites.remove(adapter.name)
        adapter.to(self.base_model.device)
        adapter.train(self.training)
        self.sites.add(adapter.name, adapter.config.method, adapter.units, tuple(adapter.shared.values()))
        self.adapters[key_of(adapter.name)] = adapter

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; a head of its name stays (`delete_head`). The base model is what it was before.

        Raises:
            AdapterNameError: no such adapter, or it is part of the active composition, or merged.
        """
        self.get_adapter(name)
        self._not_merged(name)
        if name in names(self.sites.active):
            if self.sites.active != name:
                raise AdapterNameError(f"'{name}' is part of the active {self.sites.active}; activate another first")
            self.sites.active = None
        self.sites.remove(name)
        del self.adapters[key_of(name)]

    def _not_merged(self, name: str) -> None:
        if self.merged_adapter == name:
            raise AdapterNameError(f"'{name}' is merged into the base model; call reset_adapter() first")

    def get_adapter(self, name: str) -> Adapter:
        """An adapter by its name.

        Raises:
            AdapterNameError: no such adapter.
        """
        if key_of(name) not in self.adapters:
            known = self.adapter_names()
            raise AdapterNameError(unknown("adapter", name, known, "The model has"))
        adapter = self.adapters[key_of(name)]
        assert isinstance(adapter, Adapter)
        return adapter

    def adapter_names(self) -> list[str]:
        """The names of all adapters."""
        return [str(adapter.name) for adapter in self.adapters.values()]

    @property
    def active_adapters(self) -> Composition | None:
        """The composition that the next forward runs, where no `AdapterSetup` overrides it."""
        return self.sites.active

    @active_adapters.setter
    def active_adapters(self, composition: Any) -> None:
        self.set_active_adapters(composition)

    @property
    def skip_layers(self) -> tuple[int, ...]:
        """Layers whose adapters do nothing, where no `AdapterSetup` says otherwise; `set_active_adapters` sets them."""
        return tuple(sorted(self.sites.skipped))

    @skip_layers.setter
    def skip_layers(self, layers: Iterable[int]) -> None:
        if self.merged_adapter is not None:
            raise UnsupportedError(f"'{self.merged_adapter}' is merged into the base model; call reset_adapter() first")
        self.sites.skipped = self.sites.layers(layers)

    def set_active_adapters(self, composition: Any, skip_layers: Iterable[int] = ()) -> None:
        """Activate a composition: a name, a block, an expression, a mapping, or None for the base model.

        A merged adapter is taken out of the base weights first. Heads that bear the names of what the composition ends
        in become active too: one, or one for each branch of Parallel, BatchSplit and MultiTask.

        Args:
            skip_layers: layers, counted over the whole model as in `leave_out`, whose adapters do nothing (Rücklé et
                al. 2021, *AdapterDrop*). What belongs to no layer (a prompt, an invertible part) acts all the same.
                `merge_adapter` leaves them out too.

        Raises:
            CompositionError: it cannot be read, or names an adapter, a fusion or a layer that the model does not have.
            UnsupportedError: a block that has no meaning for its adapters.
        """
        tree, skipped = parse(composition), self.sites.layers(skip_layers)
        self.sites.accept(tree)
        self.sites.unmerge()
        self.sites.activate(tree, skipped)
        self._active_head = self._heads_for(tree)

    def train_adapter(self, composition: Any, train_embeddings: bool = False) -> None:
        """Freeze everything but the adapters of a composition and its heads, and activate it.

        Heads train that bear the names of what the composition ends in; where it ends in no adapter and no head has its
        name, the active one; and a head of the base model itself, unless it is the output embedding. A fusion stays as
        it is; `train_adapter_fusion` trains it.

        Args:
            train_embeddings: train the active embeddings too, which `add_embeddings` has added.

        Raises:
            UnsupportedError: a quantised base that no gradient comes through, or whose own head is quantised; or the
                embeddings that would train are the base model's own.
        """
        if train_embeddings and self.active_embeddings == DEFAULT:
            raise UnsupportedError(
                "train_embeddings would change the base model's own embeddings; add a copy of them first: "
                "add_embeddings(name, tokenizer, reference_embedding='default', reference_tokenizer=tokenizer)"
            )
        own = checkpoint.own_head(self.base_model).values()
        self.set_active_adapters(composition)
        chosen = [self.get_adapter(name) for name in names(self.sites.active)]
        if any(adapter.config.has_units for adapter in chosen):
            refuse_training(self.base_model)
        self.requires_grad_(False)
        for adapter in chosen:
            adapter.requires_grad_(True)
            if adapter.config.trains_base:
                self.base_model.requires_grad_(True)
        for head in self._own_heads(self.sites.active):
            head.requires_grad_(True)
        for parameter in own:
            parameter.requires_grad_(True)
        if train_embeddings:
            self.vocabularies[key_of(self.active_embeddings)].requires_grad_(True)
        self.train()

    # ---- parameters

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name → parameter, of all that trains."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def rate(self, parameter: str) -> float:
        """What a parameter's learning rate is multiplied with, by its name in `trainable_parameters` (LoRA+)."""
        for key, adapter in self.adapters.items():
            if parameter.startswith(f"adapters.{key}.tree."):
                assert isinstance(adapter, Adapter)
                return adapter.config.rate(parameter.removeprefix(f"adapters.{key}.tree."))
        return 1.0

    def trainable_state(self) -> dict[str, Tensor]:
        """CPU copies of all that training changes: what a best checkpoint keeps."""
        changed = dict(self.trainable_parameters()) | dict(self.fusions.named_buffers("fusions"))
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in changed.items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` returned."""
        current = dict(self.trainable_parameters()) | dict(self.fusions.named_buffers("fusions"))
        with torch.no_grad():
            for name, tensor in state.items():
                current[name].copy_(tensor)

    def parameter_count(self, name: str) -> int:
        """Numbers that an adapter trains (all of the base model's for full fine-tuning), without its head."""
        adapter = self.get_adapter(name)
        return self.base_model.num_parameters() if adapter.config.trains_base else adapter.parameter_count()

    def adapter_summary(self) -> list[dict[str, Any]]:
        """A row an adapter: name, method, parameters, percent of the base, active, trainable; then the base model."""
        total = self.base_model.num_parameters()
        rows = []
        for name in self.adapter_names():
            count = self.parameter_count(name)
            parameters = self.get_adapter(name).parameters()
            rows.append(
                {
                    "name": name,
                    "method": self.get_adapter(name).config.method,
                    "parameters": count,
                    "percent": 100 * count / total,
                    "active": name in names(self.active_adapters),
                    "trainable": any(parameter.requires_grad for parameter in parameters),
                }
            )
        trains = any(parameter.requires_grad for parameter in self.base_model.parameters())
        base = {"name": "base model", "method": "", "parameters": total, "percent": 100.0}
        return [*rows, base | {"active": self.active_adapters is None, "trainable": trains}]


def _tasks(task_ids: Sequence[int | str] | Tensor) -> Sequence[int | str]:
    return task_ids.tolist() if isinstance(task_ids, Tensor) else task_ids


def init(
    model: PreTrainedModel, architecture: str | Path | Mapping[str, Any] | Architecture | None = None
) -> AdaptedModel:
    """An adapted model around a transformers model; see `AdaptedModel` for the arguments and errors.

    >>> model = adaptrain.init(AutoModelForCausalLM.from_pretrained("gpt2"))   # doctest: +SKIP
    """
    return AdaptedModel(model, architecture)
