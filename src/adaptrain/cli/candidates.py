"""What the word under the cursor can become. The completion scripts call it at every keystroke, so it is light."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from adaptrain.cli.ls import LISTS
from adaptrain.cli.verbs import VERBS
from adaptrain.config.library import GROUPS, library

_LITERALS = {
    "force": ("true", "false"),
    "trainer.schedule": ("linear", "cosine", "constant"),
    "trainer.keep": ("best", "last"),
    "trainer.precision": ("auto", "fp32", "bf16"),
    "trainer.device": ("auto", "cpu", "cuda", "mps"),
    "trainer.gradient_checkpointing": ("true", "false"),
    "trainer.group_by_length": ("true", "false"),
    "composition": ("stack(", "fuse(", "split(", "batchsplit(", "parallel(", "multitask(", "average("),
    "fusion": ("dynamic", "static"),
    "data.bad_rows": ("error", "skip"),
    "model.attention": ("auto", "sdpa", "eager"),
    "model.quantize": ("bnb_4bit", "bnb_8bit", "ao_int8"),
}

_ENTRY = re.compile(r"adapters\.([^.]+)\.(adapter|task|train)")
"""Keys of a member of a composition that have known values."""

_SHELL = re.compile(r"[\s$`;&|<>\\\"'*?!#]")
"""What a shell reads: a word with one of these, such as the name of a file in ./recipes, would be run as it is put
into the line."""

_STRATEGIES = ("linear", "lora_linear_only_negate_b", "lora_delta_w_svd", "ties", "dare")
"""Those of `adaptrain.mixture`, which is too heavy to ask; a test compares."""


def run(arguments: Sequence[str]) -> int:
    """Print candidates for the last word of a command line, one a line, each the whole word."""
    for candidate in candidates(arguments[0] if arguments else ""):
        if not _SHELL.search(candidate):
            print(candidate)
    return 0


def candidates(line: str) -> list[str]:
    """Candidates for the last word of a line that begins with `adaptrain`."""
    words = line.split(" ")
    word, before = words[-1], [other for other in words[1:-1] if other]
    if not before:
        return _starting(word, [*(verb.name for verb in VERBS.values() if not verb.hidden), "--help", "--version"])
    verb = before[0]
    if verb == "ls":
        return _starting(word, LISTS)
    if verb == "completion":
        return _starting(word, ("bash", "zsh", "fish"))
    if verb == "table":
        return _starting(word, ("md", "csv", "latex") if before[-1] == "--format" else ("--format",))
    if verb == "eject-prefix":
        from adaptrain.cli.eject import KEYS

        return _starting(word, [f"{key}=" for key in KEYS])
    if verb == "average":
        from adaptrain.cli.average import FLAGS, VALUED

        if before[-1] == "--strategy":
            return _starting(word, _STRATEGIES)
        return _starting(word, (*VALUED, *FLAGS)) if word.startswith("-") else []
    if verb == "predict":
        from adaptrain.cli.predict import FLAGS, KEYS, READ, REPEATED, VALUED

        if word.startswith("-"):
            return _starting(word, (*VALUED, *REPEATED, *FLAGS))
        roles = [f"task.columns.{role}=" for role in READ] if word.startswith("task.columns.") else ["task.columns."]
        return _keys_or_values(word, [*(f"{key}=" for key in KEYS), *roles], before)
    if verb == "eval":
        from adaptrain.cli.evaluate import KEYS

        keys = [f"{key}=" for key in KEYS if "NAME" not in key]
        return _keys_or_values(word, [*keys, "adapters."], before)
    if verb in ("train", "show", "data"):
        flags = ["-m"] if verb == "train" else []
        return _keys_or_values(word, [*flags, *(f"{group}=" for group in GROUPS)], before, dotted=True)
    return []


def _keys_or_values(word: str, keys: Sequence[str], before: Sequence[str], dotted: bool = False) -> list[str]:
    key, equals, value = word.partition("=")
    if equals:
        done, comma, last = value.rpartition(",")  # a sweep: recipe=lora_cola,pre…
        entry = _ENTRY.fullmatch(key) if dotted else None
        group = entry[2] if entry is not None else key
        chosen = dotted and group in GROUPS
        known = library().choices(group) if chosen else ("true", "false") if entry else _LITERALS.get(key, ())
        return [f"{key}={done}{comma}{name}" for name in _starting(last, known)]
    mark = "~" if word.startswith("~") else ""
    return [mark + name for name in _starting(word[len(mark) :], [*keys, *(_dotted(word, before) if dotted else ())])]


def _dotted(word: str, before: Sequence[str]) -> list[str]:
    """Keys with dots. Sections first, so that an empty word does not show all fifty."""
    from adaptrain.config.keys import legal_keys

    bare = word.lstrip("~")
    legal = [key for key in legal_keys() if key not in ("recipe", "adapter", "adapters")]
    if bare.startswith("adapters."):
        return _entry_keys(bare, before)
    if "." in bare:
        adapter_keys = _adapter_keys(before) if bare.startswith("adapter.") else []
        return [f"{key}=" for key in [*legal, *adapter_keys]]
    sections = dict.fromkeys(f"{key.partition('.')[0]}." for key in [*legal, "adapter.x", "adapters.x"] if "." in key)
    return [*sections, *(f"{key}=" for key in legal if "." not in key)]


def _entry_keys(bare: str, before: Sequence[str]) -> list[str]:
    """Members of the composition that the line has, then the keys of one."""
    from adaptrain.config.keys import legal_keys
    from adaptrain.config.schema import MemberConfig

    composition = re.split(r" \S+=", " ".join(before).partition("composition=")[2])[0]
    named = re.findall(r"[\w-]+(?=\s*[,)])", composition)
    name = bare.split(".")[1]
    if bare.count(".") < 2:
        return [f"adapters.{other}." for other in dict.fromkeys(named)]
    return [f"{key}=" for key in legal_keys(MemberConfig, f"adapters.{name}.")]


def _adapter_keys(before: Sequence[str]) -> list[str]:
    """Keys of the adapter that the line chooses, or of all."""
    books = library()
    chosen = [word.removeprefix("adapter=") for word in before if word.startswith("adapter=")]
    files = [file for name, file in books.choices("adapter").items() if not chosen or name in chosen]
    keys: dict[str, None] = {}
    for file in files:
        keys |= dict.fromkeys(re.findall(r"^([a-z_]+):", file.read_text(encoding="utf-8"), re.MULTILINE))
    return [f"adapter.{key}" for key in keys if key != "method"]


def _starting(word: str, known: Iterable[str]) -> list[str]:
    return [name for name in known if name.startswith(word)]
