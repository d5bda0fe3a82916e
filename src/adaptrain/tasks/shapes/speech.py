"""What somebody says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import UnsupportedError
from adaptrain.evaluation import trivial
from adaptrain.tasks.bad_rows import Column
from adaptrain.tasks.media import need
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Trivial, only_layers, register_shape
from adaptrain.tasks.shapes.writing import Written
from adaptrain.tasks.sound import Sounds, SpeechReader, speech_reader
from adaptrain.tasks.writing import write
from adaptrain.training.base_model import quiet

if TYPE_CHECKING:
    from adaptrain.auto import OwnHead
    from adaptrain.tasks.rows import Split


@register_shape
class SpeechRecognition(Written):
    """The transcript of a recording, which Whisper writes (Radford et al. 2022)."""

    type = "speech_recognition"
    reads = "sound"

    def examine(self, split: Split) -> dict[str, Column]:
        need("soundfile", "speech", "task.type=speech_recognition")
        return {"audio": Sounds(split, "audio").checked(), "target": split.texts("target")}

    def own_head(self, config: Any) -> OwnHead | None:
        """
        Raises:
            UnsupportedError: the base model is no Whisper.
        """
        kind = config.model_type
        if kind != "whisper":
            ctc = ": it spells with a CTC head, which is not supported" if kind in ("wav2vec2", "hubert") else ""
            raise UnsupportedError(
                f"task.type=speech_recognition: a {kind} writes no transcripts{ctc}. Whisper does: "
                "model=whisper_tiny_en, or model.name=openai/whisper-small"
            )
        return "seq2seq_lm"

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        kind = type(model.base_model).__name__
        if model.base_model.base_model is not model.base_model:
            only_layers(head, f"this checkpoint has a head of its own that writes ({kind})")
            return f"what writes is the checkpoint's own ({kind})"
        model.add_seq2seq_lm_head(task.name, layers=head.layers or 1)
        return "the checkpoint has no head that writes; a new one is trained, over the model's own words"

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return speech_reader(processor, model, data, task.generation)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Sequence[np.ndarray]:
        """The tokens that are written for each recording."""
        assert isinstance(reader, SpeechReader)
        asked = {"input_features": batch["input_features"]}
        with quiet():  # Whisper's `generate` warns of settings that it has made itself
            return write(model, asked, reader.generation, reader.tokenizer, **reader.options)

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        return Trivial("silence", "", trivial.silence(len(scored.rows)))
