"""An adapter: a named, trained bundle of units, stored under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from adaptrain.errors import AdapterNameError, CheckpointError, UnsupportedError, nearest
from adaptrain.methods import Build, MethodConfig, Shared, Unit
from adaptrain.sites import Sites

M = TypeVar("M", bound=nn.Module)


class Branch(nn.Module):
    """An inner node of the tree of canonical names; it only holds children."""


class Adapter(nn.Module):
    """One adapter of one model.

    Its state dict is its checkpoint: keys are canonical site names, then the method, then the unit's own parameter
    (`encoder.3.attention.query.lora.A`). A rename inside transformers does not reach them.

    Args:
        name: of the adapter.
        config: its method and hyperparameters.
        sites: of the model that it is made for.
        fresh: whether its initial weights are wanted; not where others are about to be loaded.

    Attributes:
        units: site → the units there, in order.
        shared: path in the tree → module that several units use.
        parts: what each config of a union has made, the only one's else.

    Raises:
        AdapterNameError: it cannot be a name.
        UnsupportedError: the model has no place for something that the config asks for.
        ConfigError: a hyperparameter does not fit the model.
    """

    def __init__(self, name: str, config: MethodConfig, sites: Sites, fresh: bool = True) -> None:
        super().__init__()
        check_name(name)
        self.name = name
        self.config = config
        config.choose(sites.points)
        if missing := list(config.missing(sites.points)):
            model_type = sites.model.config.model_type
            raise UnsupportedError(f"The adapter '{name}' ({config.method}) does not fit a {model_type}: {missing[0]}")
        self.units: dict[str, tuple[Unit, ...]] = {}
        self.shared: dict[str, Shared] = {}
        self.parts: list[Build] = []
        self.tree = Branch()
        for member in config.members():
            self._build(member, sites, fresh)

    def _build(self, config: MethodConfig, sites: Sites, fresh: bool) -> None:
        points = config.choose(sites.points)
        with torch.random.fork_rng(devices=[], enabled=config.init_weights_seed is not None):
            if config.init_weights_seed is not None:
                torch.manual_seed(config.init_weights_seed)
            build = config.build(points)
            for module in (*build.units.values(), *build.shared.values()):
                as_precise(module, sites.model.dtype)
            if fresh:
                config.start(build, points)
        self.parts.append(build)
        for place, unit in build.units.items():
            self.units[place] = (*self.units.get(place, ()), unit)
            _hang(self.tree, f"{place}.{config.method}", unit)
        for place, module in build.shared.items():
            path = f"{place}.{config.method}"
            while path in self.shared:  # a union's members of one method, apart by their layers
                path += "+"
            self.shared[path] = module
            _hang(self.tree, path, module)

    def parameter_count(self) -> int:
        """Numbers that the adapter stores."""
        return sum(parameter.numel() for parameter in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Canonical name → tensor: what a checkpoint holds."""
        return self.tree.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape; nothing has been changed then.
        """
        own = self.tensors()
        problems = [f"'{key}' is missing" for key in own if key not in tensors]
        problems += [f"'{key}' has no place{nearest(key, own)}" for key in tensors if key not in own]
        problems += [
            f"'{key}' is {tuple(tensors[key].shape)}, this model needs {tuple(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(f"The tensors of the adapter '{self.name}' do not fit this model: {shown}")
        self.tree.load_state_dict({key: tensors[key] for key in own})

    def take(self, whole: Adapter) -> None:
        """Take what an adapter has that differs only in having more layers.

        Raises:
            UnsupportedError: something drawn from a seed depends on the layers that are left out.
        """
        for part, larger in zip(self.parts, whole.parts, strict=True):
            for place, module in part.shared.items():
                module.take(larger.shared[place])
            for place, unit in part.units.items():
                unit.take(larger.units[place])


def _hang(tree: nn.Module, path: str, module: nn.Module) -> None:
    *branches, leaf = path.split(".")
    for step in branches:
        if step not in tree._modules:
            tree.add_module(step, Branch())
        tree = tree._modules[step]  # type: ignore[assignment]
    tree.add_module(leaf, module)


def key_of(name: str) -> str:
    """The name as a key of a module dict, which may hold no dot and no attribute's name (`train`)."""
    return f"<{name.replace('%', '%25').replace('.', '%2E')}>"


def as_precise(module: M, dtype: torch.dtype) -> M:
    """The module with float64 in place of float32 where the base model is float64, whose results would lose digits."""
    if dtype != torch.float64:
        return module
    return module._apply(lambda tensor: tensor.double() if tensor.dtype == torch.float32 else tensor)


def check_name(name: str) -> None:
    """Refuse names that cannot be told apart from nothing, printed on a line, or written in a composition.

    Raises:
        AdapterNameError: empty, padded with blanks, or with control characters, parentheses or quotes.
    """
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise AdapterNameError(f"{name!r} cannot name an adapter or head: names are printable, without blanks around")
    if set(name) & set("()'\""):
        raise AdapterNameError(f"{name!r} cannot name an adapter or head: compositions use parentheses and quotes")
