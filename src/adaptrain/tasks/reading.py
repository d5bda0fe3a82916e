"""How a task is read for a base model, whatever its shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adaptrain.tasks.encoded import Collator, Encoded

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows


@dataclass(frozen=True)
class Reader(ABC):
    """Rows to what a model takes.

    Attributes:
        processor: of the base model: its tokenizer, or what reads its images or sound.
        collate: makes batches.
        max_length: tokens that a row may have.
        cached: whether what `encode` makes is kept on disk for other runs (`tasks.cache`): it must be a function of the
            rows and of the reader's fields. Rows that are computed when asked for are not kept.
        decoded: names in a batch of the tokens that the decoder of an encoder-decoder reads or writes; where there are
            none, it reads what the encoder reads.
    """

    cached: ClassVar[bool] = True
    decoded: ClassVar[tuple[str, ...]] = ()

    processor: Any
    collate: Collator
    max_length: int

    @property
    def limit(self) -> str:
        """To what a row is cut, in words."""
        return f"{self.max_length} tokens"

    @abstractmethod
    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """The rows as numbers. What is made of labels is left out where the rows have none.

        Args:
            training: whether they are to be trained on; a task may be read otherwise to be asked about.

        Raises:
            DataError: a row that cannot be one.
        """


@dataclass(frozen=True)
class Read:
    """A split: its rows, and the same as numbers."""

    rows: Rows
    encoded: Encoded
