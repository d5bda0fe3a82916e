"""What a forward is given, against what its composition needs: asked once, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptrain.architectures import Architecture, Stack
from adaptrain.branches import expanded
from adaptrain.composition import BatchSplit, Composition, MultiTask, Parallel, Split, blocks, names, width
from adaptrain.context import Forward, current_rows, current_seen, current_tasks
from adaptrain.errors import CompositionError, UnsupportedError
from adaptrain.sites.base import Site
from adaptrain.sites.blocks import check_rows, resolve, spread
from adaptrain.sites.embedding import EmbeddingSite, PromptSite
from adaptrain.sites.hidden import LayerSite
from adaptrain.sites.rows import rows_of


def routed(tree: Composition | None, rows: int) -> tuple[Composition | None, tuple[int, ...] | None]:
    """The composition over so many rows, and the task of each of them.

    `generate` repeats each row for its beams and for what it returns of it, the copies one behind the other: sizes of
    rows and tasks are those of the rows that it was given.

    Raises:
        CompositionError: the composition cannot divide them; or a generation goes on with some of its rows alone.
    """
    given, tasks = current_rows(), resolve(tree, current_tasks())
    if given is not None and any(isinstance(block, Parallel | BatchSplit | MultiTask) for block in blocks(tree)):
        if rows % given or not rows:
            raise CompositionError(
                f"{tree} divides the {given} rows that generate() was given, and it goes on with {rows} of them "
                "(as Whisper does where some rows are longer than others, or are written again); generate with each "
                "adapter alone"
            )
        tree = expanded(tree, rows // given)
    tasks = spread(tasks, rows, width(tree), given is not None)
    check_rows(tree, rows, tasks)
    return tree, tasks


def beginning(options: Mapping[str, Any], encoder_decoder: bool) -> tuple[int, int, Tensor | None]:
    """How many positions and rows `generate` is given, and which of the positions are tokens (None: not known).

    Args:
        options: what it is given, repeated for Parallel; its first argument is `inputs`.
        encoder_decoder: whether the inputs are an encoder's, and the decoder begins with its start token.
    """
    keys = ("decoder_input_ids",) if encoder_decoder else ("inputs", "input_ids", "inputs_embeds")
    text = next((each for key in keys if (each := options.get(key)) is not None), None)
    seen = options.get("decoder_attention_mask" if encoder_decoder else "attention_mask")
    known = isinstance(seen, Tensor) and seen.dim() == 2
    # where transformers is given no rows, it begins one
    return 1 if text is None else text.shape[1], rows_of(options) or 1, seen if known else None


def embeds_keys(architecture: Architecture, decoder_alone: bool) -> dict[str, str]:
    """Stack → the argument that brings its looked-up words in the place of their ids.

    Args:
        decoder_alone: whether the decoder of an encoder-decoder is called without the model around it.
    """
    if not architecture.encoder_decoder:
        return {stack.name: "inputs_embeds" for stack in architecture.stacks}
    if decoder_alone:
        return {"decoder": "inputs_embeds"}
    return {"encoder": "inputs_embeds", "decoder": "decoder_inputs_embeds"}


def embedded(forward: Forward, keys: Mapping[str, str], named: dict[str, Any]) -> dict[str, Any]:
    """What the model is given, with embeddings changed that come in the place of words, past the lookup."""
    for site in forward.plan:
        key = keys.get(site.point.stack, "") if isinstance(site, EmbeddingSite) and site.words else ""
        if named.get(key) is not None:
            named = named | {key: site.embedded(named[key])}
    return named


def check_given(
    plan: Mapping[Site, Composition], keys: Mapping[str, str], named: Mapping[str, Any], config: Any
) -> None:
    """Refuse inputs from which an adapter cannot tell where it acts.

    Raises:
        UnsupportedError: embeddings whose words are not known, or several texts in one row.
    """
    _check_words(plan, keys, named)
    _check_packed(plan, named, config)


def _check_words(plan: Mapping[Site, Composition], keys: Mapping[str, str], named: Mapping[str, Any]) -> None:
    """Refuse embeddings in the place of words whose lookup is adapted: which words they are is not known.

    Raises:
        UnsupportedError: names the adapter, the point and the cure.
    """
    for site in plan:
        key = keys.get(site.point.stack, "")
        if site.point.role == "words" and named.get(key) is not None:
            ids = "input_ids" if key == "inputs_embeds" else "decoder_input_ids"
            raise UnsupportedError(
                f"'{names(plan[site])[0]}' adapts the lookup of words ({site.point.name}), and {key} does not say "
                f"which words it stands for; give {ids}, or activate adapters that leave the words as they are "
                "(embeddings_lora: false)"
            )


def _check_packed(plan: Mapping[Site, Composition], named: Mapping[str, Any], config: Any) -> None:
    """Refuse several texts in one row, where an adapter acts at a text's first tokens: it would do so at the row's.

    A decoder that is given neither a mask nor a cache tells texts apart by positions that begin anew; the check is the
    model's own, which leaves it out too where it is traced.

    Raises:
        UnsupportedError: names the adapter, the argument and the cure.
    """
    positions, cached = named.get("position_ids"), named.get("use_cache")
    cached = getattr(config, "use_cache", False) if cached is None else cached
    others = ("attention_mask", "past_key_values", "cache")  # the last as newer releases call it
    if positions is None or cached or any(named.get(key) is not None for key in others):
        return
    here = next((site for site in plan if isinstance(site, LayerSite | PromptSite) and site.point.causal), None)
    if here is not None and not torch.compiler.is_compiling() and bool((positions.diff(dim=-1) != 1).any()):
        raise UnsupportedError(
            f"position_ids begin anew within a row, so that it holds several texts, and '{names(plan[here])[0]}' acts "
            f"at the first tokens of a row ({here.point.name}); give one text a row, and attention_mask for its padding"
        )


def positions_before(
    tree: Composition | None, forward: Forward, last: Stack, named: Mapping[str, Any]
) -> dict[str, int]:
    """The last stack → how many positions its cache holds, for a Split where the sequence goes on; empty where none
    does.

    Raises:
        CompositionError: a Split has no place for what comes next.
        UnsupportedError: what is divided is undone at other positions than those that the forward reads.
    """
    splits = [block for block in blocks(tree) if isinstance(block, Split)]
    if not splits:
        return {}
    before = int(forward.tokens[last.name].past)
    growing = last.causal and (current_rows() is not None or before > 0)
    kept = named.get("logits_to_keep")
    fewer = kept is not None and not (isinstance(kept, int) and kept == 0)
    if (growing or fewer) and any(isinstance(site, EmbeddingSite) for site in forward.plan):
        raise UnsupportedError(
            f"{splits[0]} over invertible adapters is undone at every position of a text, and generate(), a cache and "
            "logits_to_keep show the output embedding some of them; generate with each adapter alone"
        )
    if not growing:
        return {}
    if stuck := next((block for block in splits if block.sizes[-1] is not None), None):
        raise CompositionError(
            f"{stuck} has no place for the positions that are generated; the last of its sizes must be None, which "
            "takes the rest"
        )
    return {last.name: before}


def decoded_positions(mask: Any, rows: int) -> Tensor | None:
    """`visible_positions` of a stack that decodes. `generate` hands a static cache masks of queries and keys, which may
    be those of a window; what it was given says more."""
    seen = current_seen()
    if seen is None or mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return visible_positions(mask)
    return (seen != 0).repeat_interleave(rows // seen.shape[0], 0)


def visible_positions(mask: Any) -> Tensor | None:
    """Which positions are tokens, from an attention mask; (rows, cache and positions) of booleans.

    A mask (rows, heads, queries, keys), or one a kind of layer: tokens are what some query sees. Of a whole text that
    is another position's query, as many masks let padding see itself; the last position of a text that is read from
    left to right has its own alone.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask != 0
    see = mask if mask.dtype == torch.bool else mask >= 0
    see = see.flatten(1, -3).any(1) if mask.dim() > 3 else see  # (rows, queries, keys)
    queries, keys = see.shape[1:]
    if queries != keys or queries == 1:
        return see.any(1)
    here = torch.arange(keys, device=see.device)
    own = here == here[:, None]
    by_others, itself = (see & ~own).any(1), (see & own).any(1)
    both_ways = (see & (here > here[:, None])).flatten(1).any(1)
    alone = (here == keys - 1) & ~both_ways[:, None] | ~by_others.any(1, keepdim=True)  # (rows, keys)
    return by_others | itself & alone
