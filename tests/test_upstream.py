"""Names of transformers: where a release has other ones, a seam finds the thing itself, or says what it misses."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptrain import attention, upstream
from adaptrain.auto import AutoAdapterModel
from adaptrain.errors import UnsupportedError
from adaptrain.model import init
from adaptrain.sites.words import Words
from matrix import ARCHITECTURES, METHODS, add, base, batch, cache_argument, gap, run

ROOT = Path(__file__).parents[1]
MISSING = r"adaptrain \S+ (needs|does not know) .*{}.* in transformers " + re.escape(hf.__version__)
AUTO = {"bart": hf.AutoModelForSeq2SeqLM}
POSITIONS = ["loreft", "prompt_tuning", "prompt-after-bos", "union"]
"""Methods that count positions while a model writes."""


class Box:
    """A cache that is not transformers' own, and says nothing of its length."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache


def renamed(arch: str, boxed: bool = False) -> Any:
    """A model that writes and is given its cache as `memory`."""
    model: Any = base(arch, auto=AUTO.get(arch, hf.AutoModelForCausalLM))
    (name,) = cache_argument(None)
    own, prepare = model.forward, model.prepare_inputs_for_generation

    def forward(memory: Any = None, **given: Any) -> Any:
        return own(**given, **{name: memory.cache if boxed and memory is not None else memory})

    @functools.wraps(prepare)
    def prepared(*args: Any, **given: Any) -> dict[str, Any]:
        inputs = prepare(*args, **given)
        memory = inputs.pop(name, None)
        return inputs | {"memory": Box(memory) if boxed and memory is not None else memory}

    first = inspect.Parameter("memory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    rest = [each for each in inspect.signature(own).parameters.values() if each.name != name]
    forward.__signature__ = inspect.Signature([*rest[:-1], first.replace(default=None), *rest[-1:]])  # type: ignore[attr-defined]
    vars(model).update(forward=forward, prepare_inputs_for_generation=prepared)
    return model


def active(model: Any, method: str) -> Any:
    """An adapted model with one active adapter."""
    adapted = init(model).eval()
    add(adapted, "a", METHODS[method])
    adapted.set_active_adapters("a")
    return adapted


def written(model: Any, arch: str, use_cache: bool = True) -> torch.Tensor:
    inputs = {key: batch(arch, (6, 3))[key] for key in ("input_ids", "attention_mask")}
    return model.generate(
        **inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=use_cache
    )


@pytest.mark.parametrize("arch", ["gpt2", "llama", "bart"])
@pytest.mark.parametrize("method", ["lora", *POSITIONS])
def test_a_cache_is_found_under_any_name(arch, method):
    model = active(renamed(arch), method)
    assert torch.equal(written(model, arch), written(model, arch, use_cache=False))


@pytest.mark.parametrize("arch", ["gpt2", "bart"])
def test_a_cache_that_cannot_be_seen_is_refused_where_positions_count(arch):
    model = active(renamed(arch, boxed=True), "lora")
    assert torch.equal(written(model, arch), written(model, arch, use_cache=False))
    for method in ["loreft", *(["prompt_tuning"] if arch == "gpt2" else [])]:  # the prompt is the encoder's in BART
        add(model, method, METHODS[method])
        model.set_active_adapters(method)
        with pytest.raises(UnsupportedError, match=MISSING.format("transformers.Cache")):
            written(model, arch)


@pytest.mark.parametrize("method", ["loreft", "prompt_tuning"])
def test_a_mask_of_more_than_the_text_betrays_a_cache_in_a_plain_forward(method):
    model = active(base("gpt2"), method)
    ids = batch("gpt2", (4, 4))["input_ids"]
    with pytest.raises(UnsupportedError, match=MISSING.format("transformers.Cache")):
        model(input_ids=ids[:, 3:], attention_mask=torch.ones_like(ids))


def rename_argument(kind: type, old: str, new: str, patch: Any) -> None:
    """A forward with an argument of another name."""
    own = kind.forward
    parameters = inspect.signature(own).parameters.values()

    def forward(self: Any, *args: Any, **given: Any) -> Any:
        return own(self, *args, **{old if key == new else key: value for key, value in given.items()})

    renamed = [each.replace(name=new) if each.name == old else each for each in parameters]
    forward.__signature__ = inspect.Signature(renamed)  # type: ignore[attr-defined]
    patch.setattr(kind, "forward", forward)


def rename_parameter(module: Any, old: str, new: str) -> None:
    module._parameters[new] = module._parameters.pop(old)


SEAMS: dict[str, tuple[str, str, Any]] = {
    "`position_bias": (
        "mpnet",
        "prefix_tuning",
        lambda model, patch: rename_argument(
            type(model.encoder.layer[0].attention.attn), "position_bias", "position_bias_of_pairs", patch
        ),
    ),
    "`attention_mask`": (
        "wav2vec2",
        "loreft",
        lambda model, patch: rename_argument(type(model.encoder), "attention_mask", "frames", patch),
    ),
    "the argument `attention_mask` of GPT2Model": (
        "gpt2",
        "seq_bn",
        lambda model, patch: rename_argument(type(model), "attention_mask", "mask", patch),
    ),
    "`position_ids`": (
        "llama",
        "prompt_tuning",
        lambda model, patch: rename_argument(type(model), "position_ids", "places", patch),
    ),
    "`bias_of_queries`": (
        "deberta",
        "prefix_tuning",
        lambda model, patch: [
            rename_parameter(layer.attention.self, "q_bias", "bias_of_queries") for layer in model.encoder.layer
        ],
    ),
    "`allow_is_causal_skip`": (
        "gpt2",
        "prefix_tuning",
        lambda model, patch: patch.setitem(attention.ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", lambda skip=True: None),
    ),
}


@pytest.mark.parametrize("name", SEAMS)
def test_a_name_that_a_seam_reads_and_a_model_lacks_is_refused_when_the_adapter_comes(name, monkeypatch):
    arch, method, change = SEAMS[name]
    bare: Any = base(arch)
    change(bare, monkeypatch)
    model = init(bare)
    with pytest.raises(UnsupportedError, match=MISSING.format(name)):
        add(model, "a", METHODS[method])
    assert model.sites.methods == {}


def test_a_prefix_whose_attention_never_comes_by_is_refused():
    model = active(base("gpt2"), "prefix_tuning")
    attention.mark(model.base_model.h[1].attn, None)  # as where a release hands another module to its registry
    with pytest.raises(UnsupportedError, match=MISSING.format(r"decoder\.1\.attention\.key_value")):
        run(model, batch("gpt2"))
    model.set_active_adapters(None)
    run(model, batch("gpt2"))


def test_an_error_inside_the_model_is_not_hidden_by_that_refusal():
    model = active(base("gpt2"), "prefix_tuning")
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[5, 1000]]))


def test_a_family_without_its_function_that_attends_is_refused(monkeypatch):
    model = active(base("gpt2", "eager"), "prefix_tuning")
    monkeypatch.setattr(attention, "_OWN", "eager_attention_of_old")
    with pytest.raises(UnsupportedError, match=MISSING.format("`eager_attention_of_old`")):
        run(model, batch("gpt2"))


def test_a_gated_prefix_takes_no_part_of_the_computation_that_it_does_not_know(monkeypatch):
    model = active(base("gpt2", "eager"), "prefix-gated")
    run(model, batch("gpt2"))
    module: Any = inspect.getmodule(type(model.base_model))
    own = module.eager_attention_forward

    def hotter(module: Any, query: Any, key: Any, value: Any, mask: Any, temperature: float = 1.0, **rest: Any) -> Any:
        return own(module, query / temperature, key, value, mask, **rest)

    attend = ALL_ATTENTION_FUNCTIONS["adaptrain_eager"]
    passing = lambda *args, **given: attend(*args, **given, temperature=2.0)  # noqa: E731
    monkeypatch.setattr(module, "eager_attention_forward", hotter)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "adaptrain_eager", passing)
    with pytest.raises(UnsupportedError, match=MISSING.format("`temperature`")):
        run(model, batch("gpt2"))


def test_words_that_are_scaled_by_another_name_are_refused():
    model: Any = base("gemma3_text")
    assert float(upstream.lookup_scale(model.embed_tokens)) == pytest.approx(32**0.5)
    model.embed_tokens.scale = model.embed_tokens.embed_scale
    del model.embed_tokens.embed_scale
    model.embed_tokens.forward = lambda ids: torch.nn.functional.embedding(ids, model.embed_tokens.weight) * 5
    with pytest.raises(UnsupportedError, match=MISSING.format("`embed_scale`")):
        Words(model, ARCHITECTURES["gemma3_text"].table)


def test_a_private_name_that_is_gone_is_named(monkeypatch):
    for owner in hf.AutoModelForCausalLM.__mro__:
        if "_model_mapping" in vars(owner):
            monkeypatch.delattr(owner, "_model_mapping")
    model = AutoAdapterModel.from_config(ARCHITECTURES["gpt2"].config())
    model.add_causal_lm_head("a")
    with pytest.raises(UnsupportedError, match=MISSING.format("`_model_mapping`")):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=1)


def test_positions_over_the_active_words_go_on_behind_a_cache():
    """RoBERTa counts positions in its embeddings, by an argument that has another name in each release."""
    config: Any = ARCHITECTURES["roberta"].config()
    config.is_decoder, config.use_cache = True, True
    torch.manual_seed(0)
    model = init(hf.RobertaModel(config).eval())
    model.add_embeddings("new", hf.PreTrainedTokenizerFast(tokenizer_object=_words(), pad_token="w7"))
    ids = torch.tensor([[20, 21, 22, 23, 24], [30, 31, 32, 33, 34]])
    whole = run(model, {"input_ids": ids})
    with torch.no_grad():
        first = model(input_ids=ids[:, :3], use_cache=True)
        second = model(input_ids=ids[:, 3:], **cache_argument(first), use_cache=True)
    assert gap(torch.cat([first.last_hidden_state, second.last_hidden_state], 1), whole) < 1e-5


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({f"w{index}": index for index in range(60)}, unk_token="w0"))


@pytest.mark.parametrize(
    ("version", "lines"), [("99.0.0", 1), ("5.999.0.dev0", 1), (upstream.TESTED[-1], 0), (upstream.TESTED[0], 0)]
)
def test_a_release_newer_than_the_newest_tested_one_is_told_once_in_a_line(version, lines, monkeypatch, caplog):
    monkeypatch.setattr(upstream.transformers, "__version__", version)
    upstream.warn_if_untested.cache_clear()
    with caplog.at_level(logging.WARNING, logger="adaptrain"):
        init(base("bert"))
        init(base("bert"))
    upstream.warn_if_untested.cache_clear()
    said = [record.getMessage() for record in caplog.records if record.name == "adaptrain"]
    assert len(said) == lines
    assert all(version in line and upstream.TESTED[-1] in line and "\n" not in line for line in said)


def test_a_patch_of_the_newest_tested_release_is_no_news(monkeypatch, caplog):
    monkeypatch.setattr(upstream.transformers, "__version__", f"{upstream.TESTED[-1].rpartition('.')[0]}.99")
    upstream.warn_if_untested.cache_clear()
    init(base("bert"))
    upstream.warn_if_untested.cache_clear()
    assert not caplog.records


def pinned(file: str) -> str:
    """The transformers that a file of constraints pins for the newest Python."""
    return re.findall(r"^transformers==(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)[-1]


def test_the_tested_releases_are_the_pinned_ones_the_lowest_allowed_one_and_the_documented_ones():
    assert (
        tuple(map(pinned, ("constraints-lowest.txt", "constraints.txt", "constraints-newest.txt"))) == upstream.TESTED
    )
    minor = [release.rpartition(".")[0] for release in upstream.TESTED]
    assert f'"transformers>={minor[0]},<6"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for page in ("README.md", "docs/versions.md"):
        assert f"transformers {minor[0]} to {minor[-1]}" in (ROOT / page).read_text(encoding="utf-8"), page
    table = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert all(release in table for release in upstream.TESTED)


def test_the_lowest_tested_versions_are_the_lower_bounds():
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split(" ")[0].split("==") for line in reversed(lines) if "==" in line and line[0] != "#")
    section = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ndependencies = [")[2].partition("\n]")[0]
    )
    for name, bound in re.findall(r'^    "([\w-]+)>=([\d.]+)', section, re.MULTILINE):
        if name != "torch":  # docs/versions.md says why
            assert tested[name.replace("_", "-")].startswith(bound), name
