"""Compositions: a tree of blocks over adapter names, and the one evaluator that runs it.

    Stack(a, b)            the output of a feeds b
    Fuse(a, b)             AdapterFusion over the outputs of a and b
    Split(a, b, sizes=…)   the first positions through a, the next through b
    BatchSplit(a, b, …)    the first rows through a, the next through b
    Parallel(a, b)         the model's inputs are repeated, each copy goes through one child
    Average(a, b, …)       the weighted mean of the outputs of a and b

A composition is parsed and checked once, when it is activated; evaluating it has nothing left to check. Leaves are
adapter names, blocks are frozen and hashable, and `str(block)` is the expression that `parse` reads.

Source: Poth et al. 2023, *Adapters*, section 3.3; Pfeiffer et al. 2021, *AdapterFusion*.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from keyword import iskeyword
from typing import Any, ClassVar, TypeVar, Union
from unicodedata import normalize

from adaptrain.errors import CompositionError, listed, unknown
from adaptrain.state import State

Composition = Union[str, "Block"]

BLOCKS: dict[str, type[Block]] = {}


@dataclass(frozen=True, init=False)
class Block:
    """An inner node. Subclasses say how the state is divided over the children and put together again.

    Args:
        children: at least one adapter name or block.

    Raises:
        CompositionError: no child, a child that is neither, or options that do not match the children.
    """

    children: tuple[Composition, ...]

    word: ClassVar[str] = ""
    """The block's name in expressions and YAML."""

    def __init_subclass__(cls) -> None:
        cls.word = cls.__name__.lower()
        BLOCKS[cls.word] = cls

    def __init__(self, *children: Composition) -> None:
        if not children:
            raise CompositionError(f"{type(self).__name__}() has no adapter; name at least one")
        for child in children:
            if not isinstance(child, str | Block):
                raise CompositionError(f"{type(self).__name__}({child!r}, …): children are adapter names or blocks")
        object.__setattr__(self, "children", tuple(children))

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters of the tree, left to right, each once."""
        return names(self)

    def options(self) -> dict[str, Any]:
        """What the block was made with beside its children."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "children"}

    def printed(self) -> dict[str, Any]:
        """The options as `parse` has to read them to make this block again."""
        return self.options()

    def __str__(self) -> str:
        given = [f"{key}={_plain(value)}" for key, value in self.printed().items() if value is not None]
        return f"{self.word}({', '.join([*map(_leaf, self.children), *given])})"


@dataclass(frozen=True, init=False)
class Stack(Block):
    """Children one after the other."""


@dataclass(frozen=True, init=False)
class Fuse(Block):
    """Children side by side on the same state, put together by AdapterFusion.

    Args:
        name: of the fusion layer; the comma-joined names of the children when None.
    """

    name: str | None

    def __init__(self, *children: Composition, name: str | None = None) -> None:
        super().__init__(*children)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, init=False)
class _Sized(Block):
    sizes: tuple[int, ...]

    def __init__(self, *children: Composition, sizes: Sequence[int]) -> None:
        super().__init__(*children)
        if len(sizes) != len(self.children):
            raise CompositionError(f"{type(self).__name__}: {len(sizes)} sizes for {len(self.children)} children")
        if any(not isinstance(size, int) or size < 0 for size in sizes):
            raise CompositionError(f"{type(self).__name__}: sizes are whole numbers from 0 up, not {list(sizes)}")
        object.__setattr__(self, "sizes", tuple(sizes))


@dataclass(frozen=True, init=False)
class Split(_Sized):
    """Children on consecutive positions; `sizes` positions each."""


@dataclass(frozen=True, init=False)
class BatchSplit(_Sized):
    """Children on consecutive rows; `sizes` rows each."""


@dataclass(frozen=True, init=False)
class Parallel(Block):
    """Children on equal shares of the rows; the model's inputs are repeated once a child."""


@dataclass(frozen=True, init=False)
class Average(Block):
    """The mean of the children's outputs, weighted by `weights` (they sum to one), equal weights when None."""

    weights: tuple[float, ...] | None

    def __init__(
        self, *children: Composition, weights: Sequence[float] | None = None, normalize_weights: bool = True
    ) -> None:
        super().__init__(*children)
        if weights is not None:
            if len(weights) != len(self.children):
                raise CompositionError(f"Average: {len(weights)} weights for {len(self.children)} children")
            total = sum(weights) if normalize_weights else 1.0
            if total == 0:
                raise CompositionError("Average: the weights sum to 0; give normalize_weights=False to keep them")
            weights = tuple(weight / total for weight in weights)
        object.__setattr__(self, "weights", weights)

    def printed(self) -> dict[str, Any]:
        # normalising what has been normalised moves the last digit
        return self.options() | ({} if self.weights is None else {"normalize_weights": False})


del BLOCKS["_sized"]

S = TypeVar("S", bound=State)


def evaluate(tree: Composition, state: S, apply: Callable[[str, S], S], fuse: Callable[[Fuse, S, list[S]], S]) -> S:
    """Run a composition over a state: the only interpreter of compositions in the program.

    Args:
        tree: the composition, pruned to the adapters that have a unit here.
        state: what flows at this point; divided and joined along rows and positions.
        apply: one adapter on one state.
        fuse: AdapterFusion of the children's outputs; methods that have none raise at activation, not here.
    """
    if isinstance(tree, str):
        return apply(tree, state)
    run = [lambda piece, child=child: evaluate(child, piece, apply, fuse) for child in tree.children]
    match tree:
        case Stack():
            for child in run:
                state = child(state)
            return state
        case Parallel():
            pieces = state.split_rows([state.rows // len(run)] * len(run))
            return state.join_rows([child(piece) for child, piece in zip(run, pieces, strict=True)])
        case BatchSplit():
            pieces = state.split_rows(tree.sizes)
            return state.join_rows([child(piece) for child, piece in zip(run, pieces, strict=True)])
        case Split():
            if sum(tree.sizes) != state.positions:
                raise CompositionError(
                    f"{tree} divides {sum(tree.sizes)} positions, and there are {state.positions}; correct sizes, or "
                    "pad the batch to their sum"
                )
            pieces = state.split_positions(tree.sizes)
            return state.join_positions([child(piece) for child, piece in zip(run, pieces, strict=True)])
        case Average():
            return state.weigh([child(state) for child in run], tree.weights or [1 / len(run)] * len(run))
        case Fuse():
            return fuse(tree, state, [child(state) for child in run])
        case _:
            raise CompositionError(f"{type(tree).__name__} is not a block that can be evaluated")


def prune(tree: Composition, present: Callable[[str], bool]) -> Composition | None:
    """The composition without the adapters that have no unit at a point; None where nothing is left to do.

    Blocks that give each child a share of the state keep their place for a missing child as an empty stack, so that
    the shares stay where they are.
    """
    if isinstance(tree, str):
        return tree if present(tree) else None
    children = [prune(child, present) for child in tree.children]
    if all(child is None for child in children):
        return None
    if isinstance(tree, Stack):
        kept = [child for child in children if child is not None]
        return kept[0] if len(kept) == 1 else Stack(*kept)
    return _with_children(tree, [PASS if child is None else child for child in children])


def mirror(tree: Composition) -> Composition:
    """The composition that undoes what this one does: stacks in reverse order."""
    if isinstance(tree, str):
        return tree
    children = [mirror(child) for child in tree.children]
    return _with_children(tree, children[::-1] if isinstance(tree, Stack) else children)


def _with_children(tree: Block, children: Sequence[Composition]) -> Block:
    copy = object.__new__(type(tree))
    for key, value in (tree.options() | {"children": tuple(children)}).items():
        object.__setattr__(copy, key, value)
    return copy


PASS: Stack = object.__new__(Stack)
"""The identity: a stack of nothing. Users cannot make it; pruning does."""
object.__setattr__(PASS, "children", ())


def names(tree: Composition | None) -> tuple[str, ...]:
    """The adapters of a composition, left to right, each once."""
    return tuple(dict.fromkeys(_leaves(tree)))


def blocks(tree: Composition | None) -> Iterator[Block]:
    """All blocks of a composition, outermost first."""
    if isinstance(tree, Block):
        yield tree
        for child in tree.children:
            yield from blocks(child)


def width(tree: Composition | None) -> int:
    """How many times Parallel repeats the model's inputs (1 without it)."""
    if tree is None or isinstance(tree, str):
        return 1
    inner = max(width(child) for child in tree.children)
    return len(tree.children) * inner if isinstance(tree, Parallel) else inner


def check(tree: Composition | None, known: Sequence[str]) -> None:
    """Refuse names that are not among `known`.

    Raises:
        CompositionError: names the first unknown adapter, the composition, and the nearest known name.
    """
    for name in names(tree):
        if name not in known:
            place = f"{tree}: " if isinstance(tree, Block) else ""
            raise CompositionError(place + unknown("adapter", name, known, "The model has"))


def parse(expression: str | Composition | Mapping[str, Any] | Sequence[Any] | None) -> Composition | None:
    """Read a composition from its expression, `stack(lang, parallel(sst2, mrpc))`, or its YAML form.

    YAML: `{stack: [lang, {parallel: [sst2, mrpc]}]}`; options go beside the children,
    `{split: [a, b], sizes: [8, 8]}`. A block of one child is that child.

    Raises:
        CompositionError: says what was expected and where.
    """
    if expression is None:
        return None
    if isinstance(expression, Block):
        return _simplify(expression)
    if isinstance(expression, Mapping):
        return _simplify(_from_mapping(expression))
    if not isinstance(expression, str):
        raise CompositionError(f"A composition is an expression or a mapping, not {expression!r}")
    text = expression.strip()
    if not text:
        raise CompositionError("The composition is empty; name an adapter, or give null for none")
    if "(" not in text:
        return text.strip("'\"")
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise CompositionError(
            f"Cannot read the composition {text!r} at column {error.offset}: {error.msg}; "
            "names that are not plain words need quotes"
        ) from None
    return _simplify(_from_node(node, text))


def _from_node(node: ast.expr, text: str) -> Composition:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str(name)):
            return name
        case ast.Call(func=ast.Name(id=word), args=children, keywords=options):
            try:
                given = {option.arg or "**": ast.literal_eval(option.value) for option in options}
            except ValueError:
                raise CompositionError(f"Options in {text!r} must be plain numbers, lists or words") from None
            return _make(word, [_from_node(child, text) for child in children], given)
        case _:
            part = ast.get_source_segment(text, node) or text
            raise CompositionError(f"{part!r} in {text!r} is neither an adapter name nor a block")


def _from_mapping(mapping: Mapping[str, Any]) -> Composition:
    words = [key for key in mapping if str(key).lower() in BLOCKS]
    if len(words) != 1:
        raise CompositionError(f"A block is one of {listed(BLOCKS)} with its children, not {dict(mapping)!r}")
    children = mapping[words[0]]
    if isinstance(children, str) or not isinstance(children, Sequence):
        raise CompositionError(f"{words[0]}: needs a list of children, not {children!r}")
    read = [_from_mapping(child) if isinstance(child, Mapping) else child for child in children]
    return _make(words[0], read, {key: value for key, value in mapping.items() if key != words[0]})


def _make(word: str, children: Sequence[Any], options: Mapping[str, Any]) -> Block:
    block = BLOCKS.get(word.lower())
    if block is None:
        raise CompositionError(unknown("block", word, BLOCKS, "The blocks are"))
    try:
        return block(*children, **options)
    except TypeError:
        legal = [f.name for f in fields(block) if f.name != "children"]
        raise CompositionError(f"{word}() takes the options {listed(legal)}, not {listed(options)}") from None


def _simplify(tree: Composition) -> Composition:
    if isinstance(tree, str):
        return tree
    children = [_simplify(child) for child in tree.children]
    weighted = isinstance(tree, Average) and tree.weights not in (None, (1.0,))
    if len(children) == 1 and not isinstance(tree, Fuse) and not weighted:
        return children[0]
    return _with_children(tree, children)


def _leaves(tree: Composition | None) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif tree is not None:
        for child in tree.children:
            yield from _leaves(child)


def _leaf(child: Composition) -> str:
    if isinstance(child, Block):
        return str(child)
    # Python folds identifiers to NFKC, so a name in another form is not one that can be read back
    plain = child.isidentifier() and not iskeyword(child) and normalize("NFKC", child) == child
    return child if plain else repr(child)


def _plain(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
