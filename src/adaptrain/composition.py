"""Compositions: a tree of blocks over adapter names.

    Stack(a, b)            the output of a feeds b
    Fuse(a, b)             AdapterFusion over the outputs of a and b
    Split(a, b, sizes=…)   the first positions through a, the next through b
    BatchSplit(a, b, …)    the first rows through a, the next through b
    Parallel(a, b)         the model's inputs are repeated, each copy goes through one child
    Average(a, b, …)       the weighted mean of the outputs of a and b
    MultiTask(a, b)        each row through the child that its `task_ids` names

Leaves are adapter names, blocks are frozen and hashable, and `str(block)` is the expression that `parse` reads. What a
composition does to a state is in `adaptrain.evaluator`.

Source: Poth et al. 2023, *Adapters*, section 3.3; Pfeiffer et al. 2021, *AdapterFusion*.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from keyword import iskeyword
from typing import Any, ClassVar, Union
from unicodedata import normalize

from adaptrain.errors import CompositionError, listed, nearest, unknown

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
                cure = "; write a list as a block, such as stack(a, b)" if isinstance(child, list) else ""
                raise CompositionError(
                    f"{type(self).__name__}({child!r}, …): children are adapter names or blocks{cure}"
                )
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
        name: of the fusion; the comma-joined last adapters of the children when None.
    """

    name: str | None

    def __init__(self, *children: Composition, name: str | None = None) -> None:
        super().__init__(*children)
        object.__setattr__(self, "name", name)

    @property
    def fusion(self) -> str:
        """The name of its fusion."""
        return self.name or ",".join(last(child) for child in self.children)


@dataclass(frozen=True, init=False)
class _Sized(Block):
    sizes: tuple[int | None, ...]

    def __init__(self, *children: Composition, sizes: Sequence[int | None]) -> None:
        super().__init__(*children)
        kind = type(self).__name__
        if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != len(self.children):
            raise CompositionError(
                f"{kind}: sizes is {sizes!r}; give one for each of the {len(self.children)} children"
            )
        if any(size is not None and (type(size) is not int or size < 0) for size in sizes):
            raise CompositionError(
                f"{kind}: sizes are whole numbers from 0 up, or None for the rest, not {list(sizes)}"
            )
        if sizes.count(None) > 1:
            raise CompositionError(f"{kind}: sizes is {list(sizes)}; only one of them can be the rest (None)")
        object.__setattr__(self, "sizes", tuple(sizes))

    def shares(self, whole: int, unit: str) -> list[int]:
        """How many of `whole` each child gets.

        Args:
            unit: what is shared, for the message.

        Raises:
            CompositionError: the sizes do not sum up to it.
        """
        given = sum(size for size in self.sizes if size is not None)
        if given > whole or (given < whole and None not in self.sizes):
            raise CompositionError(
                f"{self} divides {given} {unit}, and there are {whole}; correct sizes (None takes the rest)"
            )
        return [whole - given if size is None else size for size in self.sizes]


@dataclass(frozen=True, init=False)
class Split(_Sized):
    """Children on consecutive positions; `sizes` positions each, None for the rest."""

    def windows(self, before: int, positions: int) -> list[tuple[int, int]]:
        """For each child: how many of its positions came before these, and how many of these it gets."""
        found, start, stop = [], 0, before + positions
        for size in self.sizes:
            end = stop if size is None else min(start + size, stop)
            found.append((max(0, min(before, end) - start), max(0, end - max(start, before))))
            start = end
        return found


@dataclass(frozen=True, init=False)
class BatchSplit(_Sized):
    """Children on consecutive rows; `sizes` rows each, None for the rest."""


@dataclass(frozen=True, init=False)
class Parallel(Block):
    """Children on equal shares of the rows; the model's inputs are repeated once a child."""


@dataclass(frozen=True, init=False)
class Average(Block):
    """The mean of the children's outputs, weighted by `weights`: divided by their sum unless `normalize_weights` is
    false, equal ones when None."""

    weights: tuple[float, ...] | None
    normalize_weights: bool

    def __init__(
        self, *children: Composition, weights: Sequence[float] | None = None, normalize_weights: bool = True
    ) -> None:
        super().__init__(*children)
        if weights is not None and len(weights) != len(self.children):
            raise CompositionError(f"Average: {len(weights)} weights for {len(self.children)} children")
        if weights is not None and normalize_weights and sum(weights) == 0:
            raise CompositionError("Average: the weights sum to 0; give normalize_weights=False to keep them")
        object.__setattr__(self, "weights", None if weights is None else tuple(weights))
        object.__setattr__(self, "normalize_weights", normalize_weights)

    def shares(self) -> list[float]:
        """What each child's output is multiplied with."""
        if self.weights is None:
            return [1 / len(self.children)] * len(self.children)
        total = sum(self.weights) if self.normalize_weights else 1.0
        return [weight / total for weight in self.weights]

    def printed(self) -> dict[str, Any]:
        return {"weights": self.weights, **({} if self.normalize_weights else {"normalize_weights": False})}


@dataclass(frozen=True, init=False)
class MultiTask(Block):
    """Children on the rows that the forward's `task_ids` name: whole numbers that count the children, or their names
    (of a block: its last adapter's)."""


del BLOCKS["_sized"]


def with_children(tree: Block, children: Sequence[Composition]) -> Block:
    """The same block over other children."""
    copy = object.__new__(type(tree))
    for key, value in (tree.options() | {"children": tuple(children)}).items():
        object.__setattr__(copy, key, value)
    return copy


def names(tree: Composition | None) -> tuple[str, ...]:
    """The adapters of a composition, left to right, each once."""
    return tuple(dict.fromkeys(_leaves(tree)))


def last(tree: Composition) -> str:
    """The adapter that acts last; of several side by side, the last one."""
    return tree if isinstance(tree, str) else last(tree.children[-1])


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


def check_adapters(tree: Composition | None, known: Sequence[str]) -> None:
    """Refuse adapters that are not among `known`.

    Raises:
        CompositionError: names the first unknown one, the composition, and the nearest known name.
    """
    for name in names(tree):
        if name not in known:
            place = f"{tree}: " if isinstance(tree, Block) else ""
            raise CompositionError(place + unknown("adapter", name, known, "The model has"))


def check_fusions(tree: Composition | None, known: Sequence[str]) -> None:
    """Refuse fusions that are not among `known`.

    Raises:
        CompositionError: names the first unknown one, the composition, and how to make it.
    """
    for block in blocks(tree):
        if isinstance(block, Fuse) and block.fusion not in known:
            near = unknown("fusion", block.fusion, known, "The model has")
            raise CompositionError(f"{tree}: {near}. add_adapter_fusion({str(block)!r}) makes one")


def parse(expression: str | Composition | Mapping[str, Any] | Sequence[Any] | None) -> Composition | None:
    """Read a composition from its expression, `stack(lang, parallel(sst2, mrpc))`, or its YAML form.

    YAML: `{stack: [lang, {parallel: [sst2, mrpc]}]}`; options go beside the children,
    `{split: [a, b], sizes: [8, 8]}`. A block of one child is that child. A list is a stack, and a list in it a fusion,
    as in the reference library.

    Raises:
        CompositionError: says what was expected and where.
    """
    if expression is None:
        return None
    if isinstance(expression, Block):
        return _simplify(expression)
    if isinstance(expression, Mapping):
        return _simplify(_from_mapping(expression))
    if isinstance(expression, list | tuple):
        return _simplify(_from_list(expression, Stack))
    if not isinstance(expression, str):
        raise CompositionError(
            f"A composition is an expression, a block, a mapping or a list of adapter names, not {expression!r}"
        )
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


def _from_list(children: Sequence[Any], kind: type[Block]) -> Block:
    if not children:
        raise CompositionError("The list of adapters is empty; name one, or give None for the base model")
    read: list[Composition] = []
    for child in children:
        if isinstance(child, list | tuple):
            if kind is Fuse:
                raise CompositionError(
                    f"{child!r} is a list in a list in a list; say it with blocks: stack(a, fuse(b, c))"
                )
            read.append(_from_list(child, Fuse))
        elif isinstance(child, str) and "(" not in child:
            read.append(child)
        else:
            tree = parse(child)
            read += [] if tree is None else [tree]
    return kind(*read)


def _from_node(node: ast.expr, text: str) -> Composition:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str(name)):
            return name
        case ast.Call(func=ast.Name(id=word), args=children, keywords=options):
            try:
                given = {option.arg or "**": _value(option.value) for option in options}
            except ValueError:
                raise CompositionError(f"Options in {text!r} must be plain numbers, lists or words") from None
            return _make(word, [_from_node(child, text) for child in children], given)
        case _:
            part = ast.get_source_segment(text, node) or text
            raise CompositionError(f"{part!r} in {text!r} is neither an adapter name nor a block")


def _value(node: ast.expr) -> Any:
    """A number, a word, None (YAML's null), or a list of such.

    Raises:
        ValueError: anything else.
    """
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    return None if isinstance(node, ast.Name) and node.id == "null" else ast.literal_eval(node)


def _from_mapping(mapping: Mapping[str, Any]) -> Composition:
    words = [key for key in mapping if str(key).lower() in BLOCKS]
    if len(words) != 1:
        near = next((near for key in mapping if (near := nearest(str(key), BLOCKS))), "")
        raise CompositionError(f"A block is one of {listed(BLOCKS)} with its children, not {dict(mapping)!r}{near}")
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
        near = next((near for key in options if key not in legal and (near := nearest(key, legal))), "")
        said = f"{word}() takes the options {listed(legal)}, and is given {listed(options)}{near}"
        raise CompositionError(said) from None


def _simplify(tree: Composition) -> Composition:
    if isinstance(tree, str):
        return tree
    children = [_simplify(child) for child in tree.children]
    weighted = isinstance(tree, Average) and tree.shares() != [1.0]
    if len(children) == 1 and not isinstance(tree, Fuse) and not weighted:
        return children[0]
    return with_children(tree, children)


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
