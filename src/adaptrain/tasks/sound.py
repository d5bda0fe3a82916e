"""Recordings as a model takes them, and what was said in them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow

from adaptrain.config.schema import DataConfig, GenerationConfig
from adaptrain.errors import ConfigError, DataError, ModelError, nearest
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Key, Ragged
from adaptrain.tasks.masking import UNMASKED
from adaptrain.tasks.media import Looked, Made, Media, Unreadable, digest
from adaptrain.tasks.writing import WritingReader, check_room

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows

LONGEST = 30.0
"""Seconds that Whisper hears (Radford et al. 2022, section 2.2)."""

LONG, NO_SOUND = f"sound longer than {LONGEST:.0f} s", "empty sound"

_ENGLISH = ("en", "english")


@dataclass(frozen=True)
class Sound:
    """A recording.

    Attributes:
        samples: (time), float32, mostly within ±1; the mean of several channels.
        rate: samples a second.
    """

    samples: np.ndarray
    rate: int

    def at(self, rate: int) -> np.ndarray:
        """The samples at another rate, through a polyphase filter that removes what the lower rate cannot have."""
        if rate == self.rate:
            return self.samples
        from scipy.signal import resample_poly

        common = math.gcd(rate, self.rate)
        return np.asarray(resample_poly(self.samples, rate // common, self.rate // common), dtype=np.float32)


class Sounds(Media):
    """The recordings of a column, as `Sound`.

    A row has the bytes of a sound file (wav, flac, ogg, mp3: what libsndfile reads), the path of one, or a mapping of
    `array` and `sampling_rate`.
    """

    noun = "sound"

    def made(self, value: pyarrow.Scalar) -> Sound:
        if _has_samples(value):
            return _of_numbers(value)
        import soundfile

        content, name = self.content(value)
        try:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            raise self.broken(name, _reason(error)) from None
        return Sound(samples.mean(1), int(rate))

    def looked(self, value: pyarrow.Scalar) -> Looked:
        """The head of a file and its last sample are read, not what is between them."""
        if _has_samples(value):
            sound = _of_numbers(value)
            mark, count, rate = (
                digest(str(sound.rate).encode(), sound.samples.tobytes()),
                len(sound.samples),
                sound.rate,
            )
            name = "numbers"
        else:
            import soundfile

            content, name = self.content(value)
            mark = digest(content)
            try:
                with soundfile.SoundFile(io.BytesIO(content)) as file:
                    count, rate = file.frames, int(file.samplerate)
                    if count > 0:
                        file.seek(count - 1)
                        if len(file.read(1, dtype="float32", always_2d=True)) != 1:
                            raise self.broken(name, "it ends before its head says")
            except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
                raise self.broken(name, _reason(error)) from None
        if count < 1:
            raise Unreadable(NO_SOUND, f"{name}, which has no sample")
        seconds = count / rate
        if seconds > LONGEST:
            raise Unreadable(LONG, f"{name}, {seconds:.1f} s long; a model hears {LONGEST:.0f} s: cut it into pieces")
        return Looked(mark, seconds)


def _has_samples(value: pyarrow.Scalar) -> bool:
    kind: Any = value.type
    return value.is_valid and pyarrow.types.is_struct(kind) and kind.get_field_index("array") >= 0


def _of_numbers(value: Any) -> Sound:
    given = value.as_py()
    array, rate = given.get("array"), given.get("sampling_rate")
    if not array:
        raise Unreadable(NO_SOUND, "missing: its array has no number")
    if not isinstance(rate, int | float) or rate < 1:
        raise Unreadable("sound of another type", f"an array with the sampling_rate {rate!r}; samples a second are due")
    samples = np.asarray(array, dtype=np.float32)
    samples = samples.mean(int(samples.shape[0] > samples.shape[1])) if samples.ndim == 2 else samples
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise Unreadable("sound of another type", "an array that is no sound: finite numbers over time are due")
    return Sound(samples, int(rate))


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).split("BytesIO")[0].strip(" <_io.:") or type(error).__name__


@dataclass(frozen=True)
class SpeechReader(WritingReader):
    """Recordings with what was said in them, for Whisper. With the prefix p (start, language, task, no timestamps) and
    the transcript's tokens t, which end in `<|endoftext|>`,

        decoder_input_ids = p, t without the last          labels = −100 for all but the last of p, t

    so that the loss is of t alone. Transcripts begin with a blank, as Whisper writes them; of one with more than
    `max_length` tokens the first are kept, without an end, which they do not have there.

    Attributes:
        prefix: p.
        options: what else than `generation` Whisper's `generate` is told, so that it begins with p.
    """

    decoded: ClassVar[tuple[str, ...]] = ("decoder_input_ids", "labels")

    prefix: tuple[int, ...]
    options: Mapping[str, str]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: a recording is longer than the model's own processor keeps.
        """
        sounds, extractor = rows.columns["audio"], self.processor.feature_extractor
        longest = extractor.n_samples / extractor.sampling_rate
        long = [seconds for seconds in rows.sizes.get("audio", ()) if seconds > longest]
        if long:
            raise DataError(
                f"{rows.place}, split '{rows.split}': {len(long)} of {len(rows)} recordings are longer than the "
                f"{longest:g} s that this base model hears, the longest has {max(long):.1f} s; cut them into pieces"
            )
        features: dict[str, Feature] = {"input_features": Made(sounds, heard(extractor))}
        if "target" not in rows.columns:
            return Encoded(features, [len(self.prefix)] * len(rows))
        tokenizer = self.tokenizer
        texts = [" " + text.strip() for text in rows.columns["target"]]
        whole = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        kept = [tokens[: self.max_length] for tokens in whole]
        silent = [UNMASKED] * (len(self.prefix) - 1)
        features["decoder_input_ids"] = Ragged.of([*self.prefix, *tokens[:-1]] for tokens in kept)
        features["labels"] = Ragged.of([*silent, *tokens] for tokens in kept)
        lengths = [len(self.prefix) + len(tokens) - 1 for tokens in kept]
        truncated = sum(len(tokens) > self.max_length for tokens in whole)
        return Encoded(features, lengths, truncated, weights=[len(tokens) for tokens in kept])


def heard(extractor: Any) -> Any:
    """Sound → its spectrogram, (mel bins, frames), float32, at the extractor's own rate, filled up with silence."""

    def make(sound: Sound) -> np.ndarray:
        samples, rate = sound.at(extractor.sampling_rate), int(extractor.sampling_rate)
        if len(samples) > extractor.n_samples:
            raise DataError(
                f"A recording is {len(samples) / rate:.1f} s long, and this model hears {extractor.n_samples / rate:g} "
                "s; cut it into pieces"
            )
        made = extractor(samples, sampling_rate=rate, return_tensors="np")
        return np.asarray(made["input_features"][0], dtype=np.float32)

    return make


def speech_reader(processor: Any, model: Any, data: DataConfig, generation: GenerationConfig) -> SpeechReader:
    """How recordings are read for a Whisper, in its own numbers: its first convolution takes no others.

    Raises:
        ConfigError: no language where several are possible, or one that it does not write; no room for a transcript.
        ModelError: its feature extractor makes spectrograms of another size than it takes.
    """
    config: Any = model.config
    prefix, options = _prefix(processor.tokenizer, model, generation.language)
    _check_spectrogram(processor.feature_extractor, config)
    positions, pad, dtype = int(config.max_target_positions), int(processor.tokenizer.pad_token_id), model.dtype
    check_room(positions, len(prefix), generation)
    keys = {"input_features": Key(None, dtype), "decoder_input_ids": Key(pad), "labels": Key(UNMASKED)}
    longest = min(data.max_target_length, positions - len(prefix))
    return SpeechReader(processor, Collator(keys, masked=None), longest, generation, prefix, options)


def _check_spectrogram(extractor: Any, config: Any) -> None:
    """Refuse a feature extractor of another model: Whisper takes spectrograms of one size alone, two frames for each of
    its positions.

    Raises:
        ModelError: the sizes differ.
    """
    given = extractor.feature_size, extractor.n_samples // extractor.hop_length
    wanted = config.num_mel_bins, 2 * config.max_source_positions
    if given != wanted:
        raise ModelError(
            f"The feature extractor makes spectrograms of {given[0]} mel bins and {given[1]} frames, and this base "
            f"model takes {wanted[0]} and {wanted[1]}; put the preprocessor_config.json that belongs to the model "
            "beside it"
        )


def _prefix(tokenizer: Any, model: Any, language: str | None) -> tuple[tuple[int, ...], dict[str, str]]:
    """What the decoder begins with, and what `generate` is told to begin so."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    several = getattr(getattr(model, "generation_config", None), "is_multilingual", None)
    if several is None:  # OpenAI's own rule
        several = int(model.config.vocab_size) >= 51865
    if not several:
        if language is not None and language.lower() not in _ENGLISH:
            raise ConfigError(
                f"task.generation.language={language}: this Whisper writes English alone; choose another base model"
            )
        return _ids(tokenizer, "startoftranscript", "notimestamps"), {}
    if language is None:
        raise ConfigError(
            "This Whisper writes several languages, and guesses which; say the one of the transcripts: "
            "task.generation.language=en"
        )
    code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if code not in TO_LANGUAGE_CODE.values() or f"<|{code}|>" not in tokenizer.get_vocab():
        near = nearest(language, sorted({*TO_LANGUAGE_CODE, *TO_LANGUAGE_CODE.values()}))
        raise ConfigError(f"task.generation.language={language}: this Whisper does not write it{near}")
    prefix = _ids(tokenizer, "startoftranscript", code, "transcribe", "notimestamps")
    return prefix, {"language": code, "task": "transcribe"}


def _ids(tokenizer: Any, *names: str) -> tuple[int, ...]:
    return tuple(int(each) for each in tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names]))
