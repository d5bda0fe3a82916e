"""Tables that a user writes, and models that no table was made for."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adaptrain
from adaptrain.architectures import architecture_of, read_architecture
from adaptrain.architectures.written import names_file
from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.sites.paths import fitting
from matrix import ARCHITECTURES, KINDS, METHODS, add, base, batch, cache_argument, gap, run
from novel_model import novel


class OwnConfig(hf.GPT2Config):
    model_type = "renamed"


class OwnAttention(nn.Module):
    is_causal = True

    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.config, self.size = config, config.n_embd // config.n_head
        self.fused, self.out = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in self.fused(x).chunk(3, -1))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        return self.out(attend(self, q, k, v, mask, scaling=self.size**-0.5, dropout=0.0)[0].flatten(2))


class OwnBlock(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.mixer = OwnAttention(config)
        self.wide, self.narrow = nn.Linear(config.n_embd, config.n_inner), nn.Linear(config.n_inner, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.mixer(self.before(x), mask)
        return x + self.narrow(F.gelu(self.wide(self.between(x)), approximate="tanh"))


class OwnModel(hf.PreTrainedModel):
    """Somebody's own decoder. It computes what GPT-2 does, so that GPT-2 can say whether its table is right."""

    config_class = OwnConfig
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words, self.places = (nn.Embedding(n, config.n_embd) for n in (config.vocab_size, config.n_positions))
        self.start = nn.Identity()
        self.blocks = nn.ModuleList(OwnBlock(config) for _ in range(config.n_layer))
        self.last = nn.LayerNorm(config.n_embd)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> BaseModelOutput:
        embeds = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            **cache_argument(None),
            position_ids=position_ids,
        )
        h = self.start(embeds + self.places(position_ids))
        for block in self.blocks:
            h = block(h, mask)
        return BaseModelOutput(last_hidden_state=self.last(h))


NAMES = {
    "wte": "words",
    "wpe": "places",
    "ln_f": "last",
    "h": "blocks",
    "ln_1": "before",
    "ln_2": "between",
    "attn.c_attn": "mixer.fused",
    "attn.c_proj": "mixer.out",
    "mlp.c_fc": "wide",
    "mlp.c_proj": "narrow",
}


def renamed() -> OwnModel:
    """A model with the weights of the matrix's GPT-2, under other names."""
    given = ARCHITECTURES["gpt2"].config().to_dict()
    model = OwnModel._from_config(OwnConfig(**{**given, "model_type": "renamed"}), attn_implementation="sdpa")
    tensors = {}
    for key, tensor in base("gpt2").state_dict().items():
        turned = tensor.T if any(part in key for part in ("c_attn.w", "c_proj.w", "c_fc.w")) else tensor
        for theirs, ours in NAMES.items():
            key = re.sub(rf"(^|\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", key)
        tensors[key] = turned
    model.load_state_dict(tensors)
    return model.double().eval()


WHOLE = """
name: renamed
pooling: last
stacks:
  decoder:
    layers: blocks
    projections:
      attention.query: {path: mixer.fused, part: 0, parts: 3}
      attention.key: {path: mixer.fused, part: 1, parts: 3}
      attention.value: {path: mixer.fused, part: 2, parts: 3}
      attention.output: mixer.out
      mlp.up: wide
      mlp.down: narrow
    sublayers:
      attention: {output: mixer, residual: before}
      mlp: {output: narrow, residual: between}
    attentions:
      attention: {path: mixer, head_size: size}
    embeddings: {words: words, output: start}
    prompt: {end: ""}
"""
LIKE = """
like: gpt2
stacks:
  decoder:
    layers: blocks
    projections:
      attention.query: {path: mixer.fused, part: 0, parts: 3}
      attention.key: {path: mixer.fused, part: 1, parts: 3}
      attention.value: {path: mixer.fused, part: 2, parts: 3}
      attention.output: mixer.out
      mlp.up: wide
      mlp.down: narrow
    sublayers:
      attention: {output: mixer, residual: before}
      mlp: {output: narrow, residual: between}
    attentions:
      attention: {path: mixer, head_size: size}
    embeddings: {words: words, output: start}
"""


@pytest.mark.parametrize("text", [WHOLE, LIKE], ids=["whole", "like"])
@pytest.mark.parametrize("method", KINDS)
def test_a_file_serves_a_model_that_has_no_table(text, method, tmp_path: Path):
    file = tmp_path / "renamed.yaml"
    file.write_text(text)
    inputs = batch("gpt2")
    known = adaptrain.init(base("gpt2")).eval()
    add(known, "a", METHODS[method])
    known.set_active_adapters("a")
    with pytest.raises(UnsupportedError, match=r"no architecture for 'renamed'.*architecture=\./renamed\.yaml"):
        adaptrain.init(renamed())
    for given in (file, str(file), yaml.safe_load(text)):
        model = adaptrain.init(renamed(), architecture=given).eval()
        assert model.architecture.pooling == "last"
        add(model, "a", METHODS[method])
        model.set_active_adapters("a")
        assert gap(run(model, inputs), run(known, inputs)) < 1e-10


def test_a_line_can_be_taken_away():
    table = read_architecture(
        {"like": "llama", "stacks": {"decoder": {"projections": {"mlp.gate": None}, "prompt": None}}}
    )
    config = ARCHITECTURES["llama"].config()
    made, known = table(config).stacks[0], architecture_of(config).stacks[0]
    assert set(known.projections) - set(made.projections) == {"mlp.gate"}
    assert made.prompt is None and known.prompt is not None
    assert made.sublayers == known.sublayers and made.causal


def test_a_model_type_or_an_architecture_can_be_given():
    inputs = batch("llama")
    known = adaptrain.init(base("llama")).eval()
    add(known, "a", METHODS["bn-norms"])
    known.set_active_adapters("a")
    for given in ("llama", "qwen3", architecture_of(ARCHITECTURES["llama"].config())):
        model = adaptrain.init(novel(), architecture=given).eval()
        add(model, "a", METHODS["bn-norms"])
        model.set_active_adapters("a")
        assert gap(run(model, inputs), run(known, inputs)) < 1e-10


def test_an_unknown_type_whose_modules_match_is_offered_its_family():
    with pytest.raises(UnsupportedError) as caught:
        adaptrain.init(novel())
    message = str(caught.value)
    assert "no architecture for 'novel', but its modules are named as in llama." in message
    assert "architecture=llama on the command line, adaptrain.init(model, architecture='llama')" in message


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_model_is_recognised_by_its_modules(arch):
    model = base(arch)
    found = fitting(model)
    own = architecture_of(model.config).name
    names = [architecture_of(ARCHITECTURES[each].config()).name for each in ARCHITECTURES]
    assert own in names
    same = {"clip": ["clip", "siglip"], "siglip": ["clip", "siglip"], "bart": ["bart", "marian", "mbart"]}
    first = architecture_of_type(found[0], model)
    assert first in same.get(own, [own]) or (arch, first) in {
        ("bert-generation", "bert"),
        ("mbart", "bart"),  # the same modules; where the norms stand cannot be seen
        ("xmod", "bert"),
        ("beit", "vit"),
        ("gemma3_text", "gemma2"),
    }
    assert own in {architecture_of_type(each, model) for each in found}


def architecture_of_type(model_type: str, model: hf.PreTrainedModel) -> str:
    return read_architecture(model_type)(model.config).name


def problems(values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_architecture(copy.deepcopy(values))(ARCHITECTURES["gpt2"].config())
    return caught.value.problems


BLOCK = yaml.safe_load(WHOLE)["stacks"]["decoder"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"stack": {}, "like": "gpt2"}, ["There is no key 'stack', did you mean 'stacks'?"]),
        ({"like": "gtp2"}, ["There is no model type 'gtp2', did you mean 'gpt2'?"]),
        ({"like": "gpt2", "pooling": "mean"}, ["pooling is 'mean'; it must be first or last"]),
        ({"name": "x"}, ["stacks is missing"]),
        ({"stacks": {"decodr": BLOCK}}, ["stacks: There is no key 'decodr', did you mean 'decoder'?"]),
        ({"stacks": {"decoder": 3}}, ["stacks.decoder is 3; it must be a mapping"]),
        ({"stacks": {"decoder": {**BLOCK, "layer": "h"}}}, ["stacks.decoder: There is no key 'layer', did you mean"]),
        ({"stacks": {"decoder": {**BLOCK, "causal": 1}}}, ["stacks.decoder.causal is 1, which is not true or false"]),
        (
            {"stacks": {"decoder": {**BLOCK, "projections": 1}}},
            ["stacks.decoder.projections is 1; it must be"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "projections": {**BLOCK["projections"], "attention.quer": "a"}}}},
            ["stacks.decoder.projections: There is no projection 'attention.quer', did you mean 'attention.query'?"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "sublayers": {"mlp": {"output": "mlp"}}}}},
            ["stacks.decoder.sublayers.mlp needs 'residual'"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "sublayers": {"ffn": {"output": "mlp", "residual": "x"}}}}},
            ["stacks.decoder.sublayers: There is no place 'ffn'"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "attentions": {"attention": {"path": "a", "head": "b"}}}}},
            ["stacks.decoder.attentions.attention: There is no key 'head', did you mean 'head_size'?"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "projections": {"attention.output": {"path": "a", "layout": "odd"}}}}},
            ["layout is 'odd', which is not one of equal, grouped, interleaved"],
        ),
        (
            {"stacks": {"decoder": {**BLOCK, "projections": {"attention.output": "attn.c_proj"}}}},
            ["needs the projection 'attention.query'", "'attention.key'", "'attention.value'"],
        ),
        ({"stacks": {"decoder": {"projections": BLOCK["projections"]}}}, ["needs 'layers'"]),
        (
            {"stack": 1, "like": "gtp2", "stacks": {"decoder": {**BLOCK, "causal": 1, "embeddings": {"word": "wte"}}}},
            ["'stack'", "'gtp2'", "causal is 1", "no key 'word', did you mean 'words'?"],
        ),
    ],
)
def test_mistakes_in_a_table_are_told_with_their_place(values, expected):
    found = problems(values)
    assert len(found) == len(expected), found
    for each in expected:
        assert any(each in problem for problem in found), (each, found)
    assert all(problem.startswith("architecture: ") for problem in found)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert names_file("./a.yaml") and names_file("b.yml") and names_file("c/d") and not names_file("llama")
    with pytest.raises(ConfigError, match=r"architecture .*nowhere\.yaml cannot be read: No such file"):
        read_architecture(tmp_path / "nowhere.yaml")
    (tmp_path / "odd.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"odd\.yaml is not YAML: .*line"):
        read_architecture(tmp_path / "odd.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.yaml holds no keys; it needs 'stacks'"):
        read_architecture(tmp_path / "empty.yaml")
    (tmp_path / "wrong.yaml").write_text("stak: 1")
    with pytest.raises(ConfigError, match=r"wrong\.yaml: There is no key 'stak'"):
        read_architecture(tmp_path / "wrong.yaml")
    with pytest.raises(ConfigError, match="no architecture 'lama', did you mean 'llama'"):
        read_architecture("lama")


def test_a_table_that_is_made_from_other_configs_says_so():
    with pytest.raises(ConfigError, match="this gpt2 is not like t5: .*is_gated_act"):
        read_architecture({"like": "t5"})(ARCHITECTURES["gpt2"].config())


def test_paths_of_a_file_are_checked_on_the_model(tmp_path):
    file = tmp_path / "renamed.yaml"
    file.write_text(LIKE.replace("mixer.fused", "mixer.fusd"))
    with pytest.raises(UnsupportedError) as caught:
        adaptrain.init(renamed(), architecture=file)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The architecture 'gpt2' does not fit this OwnModel:"
    assert len(lines) == 4
    assert all("no module 'mixer.fusd', did you mean 'mixer.fused'? in every layer" in line for line in lines[1:])


def test_an_attention_that_cannot_be_reached_is_refused(monkeypatch):
    """Otherwise a prefix would be trained that nobody sees."""
    monkeypatch.setattr(OwnModel, "_can_set_attn_implementation_cached_value", False, raising=False)
    model, inputs = adaptrain.init(renamed(), architecture=yaml.safe_load(LIKE)).eval(), batch("gpt2")
    expected = run(model, inputs)
    with pytest.raises(
        UnsupportedError, match=r"cannot reach the attention of OwnModel: .*attentions\.attention\.method"
    ):
        model.add_adapter("a", METHODS["prefix_tuning"])
    assert model.adapter_names() == []
    assert model.config._attn_implementation == "sdpa"
    assert gap(run(model, inputs), expected) == 0
