"""What adaptrain reads of transformers by name, and the releases of transformers that it is tested with.

A keyword, an output field or a private name of somebody else's code can be another one in the next release: 5.24 calls
`cache` what 5.23 called `past_key_values`. Code that needs such a name looks for the thing itself where it can, and
reads the name through this file where it cannot. A name that is missing is an error that says so, never a default.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adaptrain.errors import UnsupportedError
from adaptrain.version import __version__

TESTED = ("5.20.0", "5.23.0", "5.24.0")
"""Releases of transformers that the tests run with: the lowest supported one (`constraints-lowest.txt`), the one that
`make` installs (`constraints.txt`), and the newest one (`constraints-newest.txt`)."""


def missing(what: str, where: str) -> UnsupportedError:
    """The error for a name that adaptrain reads and this release of transformers does not have.

    Args:
        what: the name, with its kind: "the argument `cache`".
        where: whose it is.
    """
    here = transformers.__version__
    return UnsupportedError(
        f"adaptrain {__version__} needs {what} of {where}, which is missing in transformers {here}. {_cure()}"
    )


def strange(what: str, where: str) -> UnsupportedError:
    """The error for a name that this release of transformers has where adaptrain computes something in its place.

    Args:
        what, where: as in `missing`.
    """
    here = transformers.__version__
    return UnsupportedError(
        f"adaptrain {__version__} does not know {what} of {where} in transformers {here}, and would compute something "
        f"else. {_cure()}"
    )


def _cure() -> str:
    return (
        f"adaptrain is tested with transformers {TESTED[0]} to {TESTED[-1]}; install one of these "
        f"(pip install 'transformers>={TESTED[0]},<={TESTED[-1]}'), or a newer adaptrain"
    )


@cache  # once a process
def warn_if_untested() -> None:
    """Log one line where transformers has a newer minor version than the newest tested one."""
    if _minor(transformers.__version__) > _minor(TESTED[-1]):
        logging.getLogger("adaptrain").warning(
            "adaptrain %s is tested with transformers %s to %s, and this is %s: a name that adaptrain reads may have "
            "changed. Install a tested release, or a newer adaptrain, if something fails",
            __version__,
            TESTED[0],
            TESTED[-1],
            transformers.__version__,
        )


def _minor(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: (5, 24) of 5.24.0 and of 5.24.0.dev0."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def attribute(owner: Any, name: str) -> Any:
    """An attribute of an object of transformers.

    Raises:
        UnsupportedError: there is none of this name.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        raise missing(f"the attribute `{name}`", getattr(owner, "__name__", type(owner).__name__)) from None


class Arguments:
    """The arguments of a module's forward, or of a function, by the names in its signature.

    Attributes:
        names: in their order; empty where the signature is open (`*args`).
        owner: the forward or the function, for a message.
    """

    def __init__(self, called: nn.Module | Callable[..., Any]) -> None:
        function = called.forward if isinstance(called, nn.Module) else called
        self.owner = f"{type(called).__name__}.forward" if isinstance(called, nn.Module) else called.__name__
        parameters = inspect.signature(function).parameters.values()
        positional = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
        self.names = () if positional else tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)

    def require(self, *names: str) -> None:
        """Refuse a signature that lacks one of these arguments.

        Raises:
            UnsupportedError: names it.
        """
        for name in names:
            if self.names and name not in self.names:
                raise missing(f"the argument `{name}`", self.owner)

    def allow(self, *names: str) -> None:
        """Refuse a signature with another argument: it may change what is computed.

        Raises:
            UnsupportedError: names it.
        """
        for name in self.names:
            if name not in names:
                raise strange(f"the argument `{name}`", self.owner)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by their names."""
        return dict(zip(self.names, args, strict=False)) | dict(kwargs)

    def at(self, position: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The argument at a position, which may be given by its name.

        Raises:
            UnsupportedError: the call does not have it.
        """
        if len(args) > position:
            return args[position]
        for name in (*self.names[position : position + 1], "hidden_states"):
            if name in kwargs:
                return kwargs[name]
        raise missing("the argument `hidden_states`", f"a call of {self.owner}")


def lookup_scale(lookup: Any) -> Any:
    """What a lookup of words multiplies its rows with (Gemma 3, BART with `scale_embedding`), a number or a tensor.

    Raises:
        UnsupportedError: it does something else to them.
    """
    scale, weight = getattr(lookup, "embed_scale", 1.0), lookup.weight
    if type(lookup) is nn.Embedding or weight.dim() != 2 or weight.is_meta or not weight.is_floating_point():
        return scale
    with torch.no_grad():
        row = weight.abs().sum(1).argmax()
        own, plain = lookup.forward(row[None])[0].float(), weight[row].float() * scale
        if not torch.allclose(own, plain, rtol=0.02, atol=0.02 * float(plain.abs().max())):
            raise missing("the attribute `embed_scale`, or rows of the table as they lie,", type(lookup).__name__)
    return scale


def cache_among(values: Iterable[Any]) -> Any:
    """The cache of keys and values among arguments or outputs, whatever its name is; None where there is none."""
    kind = transformers.Cache
    return next((each for each in values if isinstance(each, kind) or hasattr(each, "get_seq_length")), None)


def positions_cached(
    named: Mapping[str, Any], text: Any, mask: Any, generating: bool
) -> int | Tensor | UnsupportedError:
    """How many positions the cache in a forward's arguments holds.

    Args:
        named: the arguments.
        text: what the decoder reads, (rows, positions, …), or None.
        mask: the attention mask of cache and positions, or None.
        generating: whether the forward is one of `generate`, which makes the cache before its first step.

    Returns:
        the number, a tensor where a static cache counts in one; an error where there must be a cache that is not seen.
    """
    holder = cache_among(named.values())
    past = 0 if holder is None else attribute(holder, "get_seq_length")()
    if isinstance(past, Tensor):
        return past.clone()  # a static cache counts on in the same tensor
    if holder is None and generating and named.get("use_cache"):
        return _unseen()
    if torch.compiler.is_compiling() or not (isinstance(text, Tensor) and isinstance(mask, Tensor)):
        return past  # a comparison of lengths would bind a compiled graph to one length
    if mask.dim() > 2 and holder is not None:
        return past  # the mask is as long as the room in the cache
    return _unseen() if mask.shape[-1] > past + text.shape[1] else past


def _unseen() -> UnsupportedError:
    return missing("a cache (`transformers.Cache`)", "the arguments of a decoding step")
