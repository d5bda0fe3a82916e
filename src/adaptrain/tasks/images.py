"""Images as a model takes them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import torch

from adaptrain.errors import DataError, ModelError
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Key
from adaptrain.tasks.media import Looked, Made, Media, Unreadable, digest
from adaptrain.tasks.reading import Reader

if TYPE_CHECKING:
    from PIL.Image import Image

    from adaptrain.tasks.rows import Rows

NUMBERS = "image of other numbers"

_GLANCE = (64, 64)
"""A JPEG is decoded no larger than needed for this to see that it opens; all of its bytes are read anyway."""


class Images(Media):
    """Images of a column, as Pillow's in RGB.

    A row has the bytes of an image file, the path of one, or its numbers, 0 to 255: (height, width), grey, or (height,
    width, 1 or 3). Grey images get three equal channels, transparency is dropped, 16 bits become 8, and an image that
    says which side is up is turned.
    """

    noun = "image"

    def made(self, value: pyarrow.Scalar) -> Image:
        from PIL import Image, ImageOps

        if _is_list(value):
            return Image.fromarray(_pixels(value)).convert("RGB")
        content, name = self.content(value)
        return self._opened(content, name, lambda image: _rgb(ImageOps.exif_transpose(image), name))

    def looked(self, value: pyarrow.Scalar) -> Looked:
        if _is_list(value):
            pixels = _pixels(value)
            return Looked(digest(str(pixels.shape).encode(), pixels.tobytes()), float(max(pixels.shape[:2])))
        content, name = self.content(value)

        def look(image: Any) -> float:
            side = max(image.size)
            _check_mode(image.mode, name)
            image.draft("RGB", _GLANCE)
            image.load()
            return float(side)

        return Looked(digest(content), self._opened(content, name, look))

    def _opened(self, content: bytes, name: str, use: Callable[[Any], Any]) -> Any:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content)) as image:
                    return use(image)
        except Unreadable:
            raise
        except Exception as error:  # each format has its own
            raise self.broken(name, str(error).split(" <_io.")[0] or type(error).__name__) from None


@dataclass(frozen=True)
class ImageReader(Reader):
    """Images with one label each, as the base model's own image processor makes them: resized, cut, normalised.

    Attributes:
        channels: of an image: 3, or 1 for a base model that takes grey images.
    """

    channels: int = 3

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: the processor makes images of different sizes.
        """
        features: dict[str, Feature] = {
            "pixel_values": Made(rows.columns["image"], processed(self.processor, self.channels))
        }
        if "label" in rows.columns:
            features["labels"] = np.asarray(rows.labels)
        return Encoded(features, [1] * len(rows))  # all take the same time, and none is cut


def image_reader(processor: Any, model: Any) -> ImageReader:
    """How images with one label each are read for a base model, in its own numbers: a convolution over patches takes
    no others.

    Raises:
        DataError: the image processor makes images of different sizes.
        ModelError: it makes images that the base model does not take.
    """
    dtype: Any = model.dtype
    keys = {"pixel_values": Key(None, dtype), "labels": Key(None, torch.long, of_text=False)}
    channels = getattr(getattr(model.config, "vision_config", model.config), "num_channels", 3)
    if channels not in (1, 3):
        raise ModelError(
            f"The base model takes images of {channels} channels, and rows have grey ones or colours: 1 or 3"
        )
    reader = ImageReader(grey(processor) if channels == 1 else processor, Collator(keys, masked=None), 1, channels)
    _try_out(reader, model)
    return reader


def grey(processor: Any) -> Any:
    """The same image processor for images of one channel.

    Raises:
        ModelError: it normalises three channels, each by other numbers.
    """
    found = copy.copy(processor)
    found.do_convert_rgb = False
    for name in ("image_mean", "image_std"):
        given = getattr(found, name, None)
        if isinstance(given, list | tuple) and len(given) > 1:
            if len(set(given)) > 1:
                raise ModelError(
                    f"The base model takes images of one channel, and {name} in its preprocessor_config.json has "
                    f"{len(given)} values, {list(given)}; write the one of its channel there"
                )
            setattr(found, name, list(given[:1]))
    return found


def _try_out(reader: ImageReader, model: Any) -> None:
    """Show a base model an image as its processor makes it: families differ in which sizes they take.

    Raises:
        DataError: images of different shapes become images of different sizes.
        ModelError: the base model does not take the image.
    """
    from PIL import Image

    make = processed(reader.processor, reader.channels)
    try:
        *_, image = (make(Image.new("RGB", size)) for size in ((64, 48), (48, 64)))
    except DataError:
        raise
    except Exception as error:  # each processor has its own
        raise ModelError(f"The base model's image processor makes nothing of an image: {error!s:.160}") from error
    training = model.training
    model.eval()  # no dropout, which would draw numbers
    try:
        with torch.no_grad():
            model(pixel_values=torch.from_numpy(image)[None].to(model.device, model.dtype))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        config = getattr(model.config, "vision_config", model.config)
        takes = f"{reader.channels} channels" + (f" of {config.image_size}" if hasattr(config, "image_size") else "")
        shape, reason = " × ".join(map(str, image.shape)), str(error).strip().splitlines()[0]
        raise ModelError(
            f"The image processor makes images of {shape} (channels, height, width), and the base model "
            f"({type(model).__name__}) takes {takes}: {reason:.120}. Correct size and crop_size in its "
            "preprocessor_config.json, or take the processor that was saved with the base model"
        ) from error
    finally:
        model.train(training)


def processed(processor: Any, channels: int = 3) -> Callable[[Any], np.ndarray]:
    """Image → (channels, height, width), float32, of one size."""
    first: list[tuple[int, ...]] = []

    def make(image: Any) -> np.ndarray:
        image = image.convert("L") if channels == 1 else image
        made = np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], dtype=np.float32)
        first[:] = first or [made.shape]
        if made.shape != first[0]:
            raise DataError(
                f"{type(processor).__name__} makes images of different sizes, {_size(first[0])} and "
                f"{_size(made.shape)}, which are no batch: set do_center_crop, or a size of both height and width, in "
                "the model's preprocessor_config.json"
            )
        return made

    return make


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape[1:]))


def _is_list(value: pyarrow.Scalar) -> bool:
    return value.is_valid and isinstance(value, pyarrow.ListScalar | pyarrow.FixedSizeListScalar)


def _pixels(value: Any) -> np.ndarray:
    """(height, width) or (height, width, 3) of a list of lists.

    Raises:
        Unreadable: no image's numbers.
    """
    array, shape = value.values, [len(value.values)]
    while pyarrow.types.is_nested(array.type):
        lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
        if array.null_count or len(lengths) != 1:
            raise Unreadable(NUMBERS, "no image: its rows of numbers have different lengths")
        shape.append(int(lengths[0]))
        array = array.flatten()
    found = array.to_numpy(zero_copy_only=False) if not array.null_count else np.empty(0, object)
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    if found.dtype.kind not in "iu" or not fits or 0 in shape:
        kind = f"{' × '.join(map(str, shape))} numbers of type {array.type}"
        raise Unreadable(NUMBERS, f"no image: {kind}; whole numbers are due, (height, width), or with 1 or 3 channels")
    if found.min() < 0 or found.max() > 255:
        raise Unreadable(NUMBERS, f"no image: its numbers go from {found.min()} to {found.max()}, not from 0 to 255")
    pixels = found.astype(np.uint8).reshape(shape)
    return pixels[:, :, 0] if len(shape) == 3 and shape[2] == 1 else pixels


def _check_mode(mode: str, name: str) -> None:
    if mode in ("I", "F"):
        raise Unreadable(NUMBERS, f"{name}, whose pixels are 32-bit numbers (mode {mode}); save it with 8 or 16 bits")


def _rgb(image: Image, name: str) -> Image:
    from PIL import Image as Pillow

    _check_mode(image.mode, name)
    if image.mode.startswith("I;16"):
        image = Pillow.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")
