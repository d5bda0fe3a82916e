"""AdapterHub folders of what the golden cases lack: each method's options, other versions, hand-made tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptrain.interop import adapterhub
from adaptrain.methods import DoRAConfig, LoRAConfig
from foreign_folders import (
    BN,
    LORA,
    PLAIN_BN,
    REFT,
    bn_tensors,
    folder_of,
    loaded,
    lora_tensors,
    random_tensors,
    refused,
)
from matrix import adapted, base, batch, gap, run

IA3 = LORA | {
    "attn_matrices": ["k", "v"],
    "intermediate_lora": True,
    "r": 1,
    "alpha": 1,
    "composition_mode": "scale",
    "init_weights": "ia3",
}
QUERY = "encoder.layer.{}.attention.self.query"


def queries(plain: nn.Module) -> list[nn.Linear]:
    """The query projection of each layer of a BERT."""
    return [layer.attention.self.query for layer in plain.encoder.layer]  # type: ignore[union-attr]


def same(model: Any, plain: Any, arch: str = "bert") -> bool:
    return gap(run(model, batch(arch)), run(plain, batch(arch))) < 1e-5


# ---- IA³


def ia3_tensors(paths: dict[str, int]) -> dict[str, Tensor]:
    return random_tensors(
        {f"{path.format(i)}.loras.t.lora_B": (size, 1) for i in (0, 1) for path, size in paths.items()}
    )


@pytest.mark.parametrize(("version", "alpha"), [("adapters.1.3.0", 2), ("adapters.1.0.1", 1), ("3.2.1", 2)])
def test_ia3_scales_before_the_activation_as_the_library_does(tmp_path, version, alpha):
    """Its alpha is a factor; versions that ignored alpha had 1."""
    paths = {f"encoder.layer.{{}}.{place}": 32 for place in ("attention.self.key", "attention.self.value")}
    tensors = ia3_tensors(paths | {"encoder.layer.{}.intermediate.dense": 48})
    model = loaded(folder_of(tmp_path, IA3 | {"alpha": 2}, tensors, version=version))
    config = model.get_adapter("t").config
    assert (config.method, config.alpha, config.as_adapterhub) == ("ia3", alpha, True)
    plain = base("bert")
    for i, layer in enumerate(plain.encoder.layer):
        maps = {"attention.self.key": layer.attention.self.key, "attention.self.value": layer.attention.self.value}
        for place, module in (maps | {"intermediate.dense": layer.intermediate.dense}).items():
            scale = alpha * tensors[f"encoder.layer.{i}.{place}.loras.t.lora_B"]
            module.weight.data *= scale
            module.bias.data *= scale.flatten()
    assert same(model, plain)


def test_ia3_without_the_mlp_needs_nothing_of_the_library(tmp_path):
    tensors = ia3_tensors({"encoder.layer.{}.attention.self.key": 32})
    config = IA3 | {"attn_matrices": ["k"], "intermediate_lora": False, "init_weights": "lora"}
    assert not loaded(folder_of(tmp_path, config, tensors)).get_adapter("t").config.as_adapterhub


def test_ia3_of_a_fused_map(tmp_path):
    tensors = ia3_tensors({"transformer.h.{}.attn.c_attn": 64, "transformer.h.{}.mlp.c_fc": 48})
    model = loaded(folder_of(tmp_path, IA3, tensors, model_type="gpt2"), "gpt2")
    plain = base("gpt2")
    for i, block in enumerate(plain.h):
        attention = torch.cat([torch.ones(32), tensors[f"transformer.h.{i}.attn.c_attn.loras.t.lora_B"].flatten()])
        mlp = tensors[f"transformer.h.{i}.mlp.c_fc.loras.t.lora_B"].flatten()
        for module, scale in ((block.attn.c_attn, attention), (block.mlp.c_fc, mlp)):
            module.weight.data *= scale
            module.bias.data *= scale
    assert same(model, plain, "gpt2")


def test_an_alpha_that_the_library_multiplies_queries_with_is_refused(tmp_path):
    tensors = ia3_tensors({"transformer.h.{}.attn.c_attn": 64, "transformer.h.{}.mlp.c_fc": 48})
    folder = folder_of(tmp_path, IA3 | {"alpha": 2}, tensors, model_type="gpt2")
    refused(folder, "alpha is 2", "adapted or not", model=adapted("gpt2"))


def test_ia3_of_llama_is_where_the_library_had_it(tmp_path):
    """Its `intermediate` is the down-projection there, so it scales what the MLP says."""
    tensors = ia3_tensors({"model.layers.{}.mlp.down_proj": 32})
    config = IA3 | {"selfattn_lora": False}
    model = loaded(folder_of(tmp_path, config, tensors, model_type="llama"), "llama")
    config = model.get_adapter("t").config
    assert (config.intermediate_lora, config.output_lora, config.as_adapterhub) == (False, True, False)
    plain = base("llama")
    for i, layer in enumerate(plain.layers):
        scale = tensors[f"model.layers.{i}.mlp.down_proj.loras.t.lora_B"]
        layer.mlp.down_proj.weight.data *= scale
        layer.mlp.down_proj.bias.data *= scale.flatten()
    assert same(model, plain, "llama")


# ---- LoRA and its kin


@pytest.mark.parametrize("version", ["3.2.1", "2.3.0", "adapters.1.1.0", None])
def test_only_some_versions_ignored_alpha(tmp_path, version):
    assert loaded(folder_of(tmp_path, LORA, lora_tensors(), version=version)).get_adapter("t").config.alpha == 5


@pytest.mark.parametrize("matrices", ["q", "k", "v", "vq", "qk", "kv", "vkq"])
def test_any_part_of_a_fused_map(tmp_path, matrices):
    """The library's parts lie in the order q, k, v, whatever the config's order."""
    shapes = {"lora_A": (2 * len(matrices), 32), "lora_B": (32 * len(matrices), 2)}
    tensors = random_tensors(shapes, tuple(f"transformer.h.{i}.attn.c_attn.loras.t.{{}}" for i in (0, 1)))
    config = LORA | {"attn_matrices": list(matrices)}
    model, plain = loaded(folder_of(tmp_path, config, tensors, model_type="gpt2"), "gpt2"), base("gpt2")
    for i, block in enumerate(plain.h):
        a, b = (tensors[f"transformer.h.{i}.attn.c_attn.loras.t.lora_{letter}"] for letter in "AB")
        for part, matrix in enumerate(sorted(matrices, key="qkv".index)):
            columns = slice(32 * "qkv".index(matrix), 32 * "qkv".index(matrix) + 32)
            delta = 2.5 * b[32 * part : 32 * part + 32] @ a[2 * part : 2 * part + 2]
            block.attn.c_attn.weight.data[:, columns] += delta.T
    assert same(model, plain, "gpt2")


def test_gates_of_a_fused_map_and_their_scaling(tmp_path):
    """Each part has its gate: a mean over all positions, padding included, in the place of alpha / r."""
    shapes = {"lora_A": (4, 32), "lora_B": (64, 2), "gate.weight": (2, 32), "gate.bias": (2,)}
    tensors = random_tensors(shapes, tuple(f"transformer.h.{i}.attn.c_attn.loras.t.{{}}" for i in (0, 1)))
    config = LORA | {"attn_matrices": ["q", "v"], "use_gating": True}
    model = loaded(folder_of(tmp_path, config, tensors, model_type="gpt2"), "gpt2")
    own = model.get_adapter("t").tensors()
    for row, role in enumerate(("query", "value")):
        start = "transformer.h.1.attn.c_attn.loras.t.gate"
        assert torch.equal(own[f"decoder.1.attention.{role}.lora.gate.weight"][0], tensors[f"{start}.weight"][row])
        assert torch.equal(own[f"decoder.1.attention.{role}.lora.gate.bias"], tensors[f"{start}.bias"][row : row + 1])
    plain = base("gpt2")

    def add(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        index = next(i for i, block in enumerate(plain.h) if block.attn.c_attn is module)
        part = {key: tensors[f"transformer.h.{index}.attn.c_attn.loras.t.{key}"] for key in shapes}
        x, output = arguments[0], output.clone()
        gates = torch.sigmoid(x @ part["gate.weight"].T + part["gate.bias"]).mean(1)  # (rows, 2)
        for row, start in enumerate((0, 64)):
            delta = x @ part["lora_A"][2 * row : 2 * row + 2].T @ part["lora_B"][32 * row : 32 * row + 32].T
            output[..., start : start + 32] += gates[:, None, row : row + 1] * delta
        return output

    for block in plain.h:
        block.attn.c_attn.register_forward_hook(add)
    assert same(model, plain, "gpt2")


VERA = LORA | {"init_weights": "vera", "vera_d": 0.1, "vera_b": 0.0}


def vera_tensors(magnitudes: bool = False) -> dict[str, Tensor]:
    own = {"vera_D": (2, 2), "vera_B": (32, 32)} | ({"m.weight": (32, 1)} if magnitudes else {})
    tensors = random_tensors(own, tuple(f"bert.{QUERY.format(i)}.loras.t.{{}}" for i in (0, 1)))
    return tensors | random_tensors({"lora_A": (2, 32), "lora_B": (32, 2)}, ("bert.shared_parameters.t.{}",))


def vera_product(tensors: dict[str, Tensor], layer: int) -> Tensor:
    own = {name: tensors[f"bert.{QUERY.format(layer)}.loras.t.{name}"] for name in ("vera_D", "vera_B")}
    shared = {letter: tensors[f"bert.shared_parameters.t.lora_{letter}"] for letter in "AB"}
    return own["vera_B"] @ shared["B"] @ own["vera_D"] @ shared["A"]


def test_a_vera_with_whole_matrices_is_a_lora(tmp_path):
    tensors = vera_tensors()
    model, plain = loaded(folder_of(tmp_path, VERA, tensors)), base("bert")
    assert model.get_adapter("t").config == LoRAConfig(r=2, alpha=5, attn_matrices=("q",))
    for i, query in enumerate(queries(plain)):
        query.weight.data += 2.5 * vera_product(tensors, i)
    assert gap(run(model, batch("bert")), run(plain, batch("bert"))) < 1e-4  # the products are large


def test_a_dvora_is_a_dora(tmp_path):
    """Its norm leaves out alpha / r, and the bias is scaled."""
    tensors = vera_tensors(magnitudes=True)
    model, plain = loaded(folder_of(tmp_path, VERA | {"use_dora": True}, tensors)), base("bert")
    expected = DoRAConfig(r=2, alpha=5, attn_matrices=("q",), as_adapterhub=True)
    assert model.get_adapter("t").config == expected
    for i, query in enumerate(queries(plain)):
        product, w = vera_product(tensors, i), query.weight.data
        ratio = tensors[f"bert.{QUERY.format(i)}.loras.t.m.weight"] / (w + product).norm(dim=1, keepdim=True)
        query.weight.data = ratio * (w + 2.5 * product)
        query.bias.data *= ratio.flatten()
    assert gap(run(model, batch("bert")), run(plain, batch("bert"))) < 1e-4


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_half_of_what_a_veras_layers_share_is_not_enough(tmp_path, missing):
    tensors = vera_tensors()
    del tensors[f"bert.shared_parameters.t.{missing}"]
    refused(folder_of(tmp_path, VERA, tensors), "vera_", "no place here")


def test_shared_factors_of_no_vera_are_refused(tmp_path):
    tensors = lora_tensors() | {"shared_parameters.t.lora_A": torch.ones(2, 32)}
    refused(folder_of(tmp_path, LORA, tensors), "no place here: shared_parameters.t.lora_A")


MTL = LORA | {
    "architecture": "mtl_lora",
    "n_up_projection": 3,
    "task_specific_matrix_type": "singular_values",
    "weights_sharpness": 0.5,
}


def mtl_tensors() -> dict[str, Tensor]:
    shapes = {"lora_A": (2, 32), "lora_B": (3, 32, 2), "weights": (3,), "task_specific.values": (2,)}
    return random_tensors(shapes, tuple(f"{QUERY.format(i)}.loras.t.{{}}" for i in (0, 1)))


def test_an_mtl_lora_of_three_up_projections(tmp_path):
    tensors = mtl_tensors()
    model, plain = loaded(folder_of(tmp_path, MTL, tensors)), base("bert")
    for i, query in enumerate(queries(plain)):
        shapes = ("lora_A", "lora_B", "weights", "task_specific.values")
        a, bs, weights, values = (tensors[f"{QUERY.format(i)}.loras.t.{name}"] for name in shapes)
        b = sum(share * b for share, b in zip(torch.softmax(weights / 0.5, 0), bs, strict=True))
        query.weight.data += 2.5 * b @ torch.diag(values) @ a
    assert same(model, plain)


def test_an_mtl_lora_that_the_library_cannot_make_is_refused(tmp_path):
    refused(folder_of(tmp_path, MTL | {"task_specific_matrix_type": "linear"}, mtl_tensors()), "mtl_lora.values")


def test_layers_that_are_left_out(tmp_path):
    """They are counted over both stacks: here the decoder's first is."""
    paths = ["encoder.layers.{}.self_attn.q_proj", "decoder.layers.{}.self_attn.q_proj"]
    tensors = lora_tensors(paths[0]) | lora_tensors(paths[1]) | lora_tensors("decoder.layers.{}.encoder_attn.q_proj")
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("decoder.layers.0")}
    config = LORA | {"leave_out": [2]}
    model = loaded(folder_of(tmp_path / "x", config, tensors, model_type="bart"), "bart")
    assert {key.rsplit(".", 2)[0] for key in model.get_adapter("t").tensors()} == {
        "encoder.0.attention.query",
        "encoder.1.attention.query",
        "decoder.1.attention.query",
        "decoder.1.cross_attention.query",
    }
    refused(folder_of(tmp_path / "y", LORA, tensors, model_type="bart"), "is missing", model=adapted("bart"))


def test_the_precision_of_a_lora_comes_along(tmp_path):
    tensors = {key: tensor.bfloat16() for key, tensor in lora_tensors().items()}
    model = loaded(folder_of(tmp_path, LORA | {"dtype": "bfloat16"}, tensors))
    assert {tensor.dtype for tensor in model.get_adapter("t").tensors().values()} == {torch.bfloat16}


# ---- bottlenecks


def test_bottlenecks_of_cross_attention(tmp_path):
    places = tuple(f"decoder.layers.{i}.cross_attention_adapters.adapters.t.{{}}" for i in (0, 1))
    config = BN | {"output_adapter": False, "cross_adapter": True}
    folder = folder_of(tmp_path, config, random_tensors(PLAIN_BN, places), model_type="bart")
    own = loaded(folder, "bart").get_adapter("t").tensors()
    assert {key.rsplit(".", 2)[0] for key in own} == {f"decoder.{i}.cross_attention.bottleneck" for i in (0, 1)}


def test_a_bottleneck_that_replaces_the_models_norm(tmp_path):
    """AdapterPlus: LN(h + r) + s ⊙ f(LN(h + r)) is the result itself."""
    change = {"original_ln_after": False, "residual_before_ln": False, "scaling": "channel", "init_weights": "houlsby"}
    tensors = bn_tensors(PLAIN_BN | {"scaling": (32,)})
    model, plain = loaded(folder_of(tmp_path, BN | change, tensors)), base("bert")

    def add(layer: nn.Module, arguments: Any, h: Tensor) -> Tensor:
        index = next(i for i, each in enumerate(plain.encoder.layer) if each.output is layer)
        t = {key: tensors[f"encoder.layer.{index}.output.adapters.t.{key}"] for key in (*PLAIN_BN, "scaling")}
        z = torch.relu(h @ t["adapter_down.0.weight"].T + t["adapter_down.0.bias"])
        return h + t["scaling"] * (z @ t["adapter_up.weight"].T + t["adapter_up.bias"])

    for layer in plain.encoder.layer:
        layer.output.register_forward_hook(add)
    assert same(model, plain)


def test_a_gate_that_counts_padding(tmp_path):
    tensors = bn_tensors(PLAIN_BN | {"gate.weight": (1, 32), "gate.bias": (1,)})
    model = loaded(folder_of(tmp_path, BN | {"use_gating": True}, tensors))
    inputs = batch("bert")
    alone = {key: value[1:, :4] for key, value in inputs.items()}
    assert model.get_adapter("t").config.as_adapterhub
    assert gap(run(model, inputs)[1:, :4], run(model, alone)) > 1e-3


N, D, B, K = 2, 32, 4, 3
PHM = BN | {"reduction_factor": 8, "phm_layer": True, "phm_dim": N, "phm_rank": K, "original_ln_before": True}


def compacter(options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a Compacter with these options, and of the plain bottleneck with its sums of Kronecker products."""
    config = PHM | options
    generator = torch.Generator().manual_seed(0)
    shared: dict[str, Tensor] = {}
    compact: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}

    def draw(tensors: dict[str, Tensor], key: str, *shape: int) -> Tensor:
        return tensors.setdefault(key, torch.randn(shape, generator=generator) * 0.5)

    for layer in (0, 1):
        place = f"h.{layer}.output_adapters.adapters.t"
        for name, sizes in {"adapter_down.0": (D, B), "adapter_up": (B, D)}.items():
            where, start = (shared, "") if config["shared_phm_rule"] else (compact, f"{place}.{name}.")
            if config["factorized_phm_rule"]:
                rule = draw(where, f"{start}phm_rule_left", N, N, 1) @ draw(where, f"{start}phm_rule_right", N, 1, N)
            else:
                rule = draw(where, f"{start}phm_rule", N, N, N)
            where, start = (compact, f"{place}.{name}.W")
            if config["shared_W_phm"]:
                where, start = shared, "W_down" if "down" in name else "W_up"
            rows, columns = sizes[0] // N, sizes[1] // N
            if config["factorized_phm_W"]:
                w = draw(where, f"{start}_left", N, rows, K) @ draw(where, f"{start}_right", N, K, columns)
            else:
                w = draw(where, start, N, rows, columns)
            plain[f"{place}.{name}.weight"] = sum(torch.kron(a, f) for a, f in zip(rule, w, strict=True)).T.contiguous()
            plain[f"{place}.{name}.bias"] = torch.zeros(sizes[1])
            if config["phm_bias"]:
                plain[f"{place}.{name}.bias"] = draw(compact, f"{place}.{name}.b", sizes[1])
    return compact | {f"shared_parameters.t.{key}": tensor for key, tensor in shared.items()}, plain


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factorized_phm_W": False},
        {"shared_phm_rule": False},
        {"factorized_phm_rule": True},
        {"shared_phm_rule": False, "factorized_phm_rule": True, "factorized_phm_W": False},
        {"shared_W_phm": True},
        {"shared_W_phm": True, "shared_phm_rule": False},
        {"phm_bias": False},
        {"learn_phm": False},
        {"learn_phm": False, "shared_phm_rule": False},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "usual",
)
def test_a_compacter_is_the_bottleneck_of_its_kronecker_products(tmp_path, options):
    compact, plain = compacter(options)
    one = loaded(folder_of(tmp_path / "x", PHM | options, compact, model_type="gpt2"), "gpt2")
    config = PHM | {"phm_layer": False}
    other = loaded(folder_of(tmp_path / "y", config, plain, model_type="gpt2"), "gpt2")
    assert same(one, other, "gpt2")
    assert not same(one, base("gpt2"), "gpt2")


def test_a_compacter_without_what_its_layers_share_is_refused(tmp_path):
    compact = {key: tensor for key, tensor in compacter({})[0].items() if "shared" not in key}
    folder = folder_of(tmp_path, PHM, compact, model_type="gpt2", model_class="GPT2Model")
    refused(folder, "'shared_parameters.t'", "GPT2Model", model=adapted("gpt2"))


def test_options_of_a_compacter_without_one_mean_nothing(tmp_path):
    config = loaded(folder_of(tmp_path, BN | {"phm_dim": 8, "learn_phm": False}, bn_tensors(PLAIN_BN)))
    assert config.get_adapter("t").config.phm_dim == 4


# ---- invertible adapters

INV = BN | {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2.0}
HALVES = {
    f"{half}.{index}.{name}": shape
    for half in "FG"
    for index, sizes in {0: (8, 16), 2: (16, 8)}.items()
    for name, shape in {"weight": sizes, "bias": sizes[:1]}.items()
}


@pytest.mark.parametrize(
    ("version", "model_class", "at_head"),
    [
        ("adapters.1.3.0", "BertForMaskedLM", False),
        ("adapters.0.2.0", "BertModel", False),
        ("adapters.1.3.0", "BertAdapterModel", True),
        ("3.2.1", "BertForMaskedLM", True),
        (None, "BertModelWithHeads", True),
    ],
)
def test_embeddings_are_changed_back_where_the_library_did(tmp_path, version, model_class, at_head):
    tensors = bn_tensors(PLAIN_BN) | random_tensors(HALVES, ("invertible_adapters.t.{}",))
    model = loaded(folder_of(tmp_path, INV, tensors, version=version, model_class=model_class))
    assert model.get_adapter("t").config.inv_adapter_at_head is at_head
    key = "encoder.embeddings.output.bottleneck.F.up.weight"
    assert torch.equal(model.get_adapter("t").tensors()[key], tensors["invertible_adapters.t.F.2.weight"])


# ---- prefixes and prompts


def test_separate_gates_for_keys_and_values(tmp_path):
    """Equal rows are the shared gate; others are not."""
    config = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 3, "use_gating": True}
    own = random_tensors({"prefix_tuning.prefix_tunings.t.self_prefix.control_trans": (3 * 2 * 2 * 32,)})
    places = tuple(f"encoder.layer.{i}.attention.self.prefix_tuning.prefix_gates.t.{{}}" for i in (0, 1))
    gates = random_tensors({"weight": (1, 32), "bias": (1,)}, places)
    twice = {key: tensor.repeat(2, *[1] * (tensor.dim() - 1)) for key, tensor in gates.items()}
    other = {
        key: tensor * torch.linspace(1, -2, 2).view(-1, *[1] * (tensor.dim() - 1)) for key, tensor in twice.items()
    }
    cases = {"one": (gates, True), "two": (twice, False), "apart": (other, False)}
    out = {}
    for name, (tensors, shared) in cases.items():
        folder = folder_of(tmp_path / name, config | {"shared_gating": shared}, own | tensors)
        model = loaded(folder)
        out[name] = run(model, batch("bert"))
    assert gap(out["one"], out["two"]) < 1e-6
    assert gap(out["one"], out["apart"]) > 1e-3
    key = "encoder.1.attention.key_value.prefix_tuning.gate.weight"
    assert torch.equal(
        model.get_adapter("t").tensors()[key],
        other["encoder.layer.1.attention.self.prefix_tuning.prefix_gates.t.weight"],
    )


def test_a_prefix_whose_copies_differ_is_refused(tmp_path):
    config = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 3}
    tensors = {"prefix_tuning.prefix_tunings.t.self_prefix.control_trans": torch.ones(384)}
    copy = "encoder.layer.1.attention.self.prefix_tuning.pool.prefix_tunings.t.self_prefix.control_trans"
    refused(folder_of(tmp_path, config, tensors | {copy: torch.zeros(384)}), copy, "twice with different values")


def test_a_prompt_after_the_first_word(tmp_path):
    config = {"architecture": "prompt_tuning", "prompt_length": 3, "combine": "prefix_after_bos"}
    config |= {"prompt_init": "from_string", "prompt_init_text": "some words", "init_weights_seed": None}
    tensors = random_tensors({"bert.prompt_tuning.prompt_tunings.t.prompt_embedding.weight": (3, 32)})
    model, plain = loaded(folder_of(tmp_path, config, tensors)), base("bert")
    inputs = batch("bert", (7, 7))
    prompt = tensors["bert.prompt_tuning.prompt_tunings.t.prompt_embedding.weight"].expand(2, -1, -1)

    def insert(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], prompt, output[:, 1:]], 1)

    plain.embeddings.register_forward_hook(insert)
    mask = torch.ones(2, 10, dtype=torch.long)
    with torch.no_grad():
        expected = plain.encoder(plain.embeddings(inputs["input_ids"]), attention_mask=None).last_hidden_state
    assert mask.shape == expected.shape[:2]
    assert gap(run(model, inputs), expected) < 1e-5


# ---- ReFT


def reft_tensors(units: int, layers: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
    shapes = {"learned_source.weight": (3, 32), "learned_source.bias": (3,), "projection.weight": (3, 32)}
    places = tuple(f"encoder.layer.{i}.reft_layer.refts.t.units.{u}.{{}}" for i in layers for u in range(units))
    return random_tensors(shapes, places)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_reft_at_both_ends(tmp_path, tied, subtract):
    """In the second layer only, at the first two and the last word; tied has one unit for both."""
    tensors = reft_tensors(1 if tied else 2, (1,))
    config = REFT | {"tied_weights": tied, "subtract_projection": subtract, "layers": [1], "non_linearity": "relu"}
    model, plain = loaded(folder_of(tmp_path, config, tensors)), base("bert")
    lengths = (7, 4)

    def change(layer: nn.Module, arguments: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        new = h.clone()
        for row, length in enumerate(lengths):
            for unit, position in ((0, 0), (0, 1), (0 if tied else 1, length - 1)):
                names = ("learned_source.weight", "learned_source.bias", "projection.weight")
                w, b, r = (tensors[f"encoder.layer.1.reft_layer.refts.t.units.{unit}.{name}"] for name in names)
                x = h[row, position]
                source = torch.relu(w @ x + b)
                new[row, position] = x + r.T @ (source - r @ x if subtract else source)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    plain.encoder.layer[1].register_forward_hook(change)
    inputs = batch("bert", lengths)
    assert gap(run(model, inputs), run(plain, inputs)) < 1e-4


def test_the_rows_of_a_loreft_are_what_torch_makes_of_them(tmp_path):
    """`original` and `base` of torch's parametrisation become R, whose rows are orthonormal."""
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(32, 3, bias=False)) for _ in range(2)]
    tensors = reft_tensors(1)
    for i, layer in enumerate(layers):
        original = layer.parametrizations.weight.original
        signs = original.detach().diagonal().clone()  # torch keeps them there, and reads them as whole numbers
        original.data.normal_().diagonal().copy_(signs)
        place = f"encoder.layer.{i}.reft_layer.refts.t.units.0.projection."
        del tensors[place + "weight"]
        tensors |= {place + key: tensor.clone() for key, tensor in layer.state_dict().items()}
    config = REFT | {"orthogonality": True, "tied_weights": True}
    model, before = adapted("bert"), torch.get_rng_state()
    from_file = adapterhub.read(folder_of(tmp_path, config, tensors), model.base_model).tensors
    assert torch.equal(torch.get_rng_state(), before)
    model.load_adapter(tmp_path)
    own = model.get_adapter("t").tensors()
    assert from_file.keys() == own.keys()
    for i, layer in enumerate(layers):
        rows = own[f"encoder.{i}.hidden.reft.prefix.projection"]
        assert gap(rows, layer.weight) < 1e-6
        assert gap(rows @ rows.T, torch.eye(3)) < 1e-5
    del tensors["encoder.layer.0.reft_layer.refts.t.units.0.projection.parametrizations.weight.0.base"]
    refused(folder_of(tmp_path, config, tensors), "no place here", "weight.original")


@pytest.mark.parametrize("shape", [(3,), (3, 32, 1), (32, 3), (0, 32), ()])
def test_rows_of_another_shape_are_refused(tmp_path, shape):
    place = "encoder.layer.0.reft_layer.refts.t.units.0.projection."
    tensors = {key: tensor for key, tensor in reft_tensors(1).items() if key != place + "weight"}
    tensors[place + "parametrizations.weight.original"] = torch.ones(shape)
    tensors[place + "parametrizations.weight.0.base"] = torch.ones(32, 32)
    refused(folder_of(tmp_path, REFT | {"orthogonality": True, "tied_weights": True}, tensors))


# ---- unions


def test_a_union_with_a_bottleneck_at_each_place(tmp_path):
    """Two configs of one method: one with a norm of its own, so that its keys are others."""
    first = BN | {"ln_before": True, "mh_adapter": True, "output_adapter": False}
    normed = {"adapter_down.0.weight": (32,), "adapter_down.0.bias": (32,)}
    normed |= {key.replace("down.0", "down.1"): shape for key, shape in PLAIN_BN.items()}
    places = tuple(f"encoder.layer.{i}.attention.output.adapters.t.{{}}" for i in (0, 1))
    tensors = bn_tensors(PLAIN_BN) | random_tensors(normed, places)
    config = {"architecture": "union", "configs": [first, BN | {"non_linearity": "tanh"}]}
    own = loaded(folder_of(tmp_path, config, tensors)).get_adapter("t").tensors()
    for ours, theirs in {
        "attention.bottleneck.norm_before.weight": "attention.output.adapters.t.adapter_down.0.weight",
        "attention.bottleneck.down.weight": "attention.output.adapters.t.adapter_down.1.weight",
        "mlp.bottleneck.down.weight": "output.adapters.t.adapter_down.0.weight",
    }.items():
        assert torch.equal(own[f"encoder.1.{ours}"], tensors[f"encoder.layer.1.{theirs}"])
    assert len(own) == 2 * (6 + 4)


def test_llamas_two_names_are_exchanged_in_a_union_too(tmp_path):
    config = {"architecture": "union", "configs": [LORA | {"selfattn_lora": False, "output_lora": True}, BN]}
    tensors = lora_tensors("model.layers.{}.mlp.up_proj", sizes=(32, 48))
    tensors |= random_tensors(PLAIN_BN, tuple(f"model.layers.{i}.output_adapters.adapters.t.{{}}" for i in (0, 1)))
    own = loaded(folder_of(tmp_path, config, tensors, model_type="llama"), "llama").get_adapter("t").tensors()
    assert {key.split(".lora")[0] for key in own if ".lora." in key} == {"decoder.0.mlp.up", "decoder.1.mlp.up"}


# ---- adapter-transformers 1 and 2

V1 = {
    "LN_after": False,
    "LN_before": False,
    "MH_Adapter": False,
    "Output_Adapter": True,
    "adapter_residual_before_ln": False,
    "attention_type": "sent-lvl-dynamic",
    "invertible_adapter": {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2},
    "new_attention_norm": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "reduction_factor": 16,
    "residual_before_ln": True,
}


def old_names(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    names = {".output.adapters.": f".output.layer_text_{kind}_adapters.", "invertible_ad": "invertible_lang_ad"}
    for new, old in names.items():
        tensors = {key.replace(new, old): tensor for key, tensor in tensors.items()}
    return {f"bert.{key}": tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("config", [V1, "pfeiffer"], ids=["keys", "word"])
@pytest.mark.parametrize("kind", ["task", "lang"])
def test_folders_of_the_first_version(tmp_path, config, kind):
    """A task's adapter had no inverse, though its config says so; a language's had."""
    tensors = bn_tensors(PLAIN_BN)
    if kind == "lang":
        tensors |= random_tensors(HALVES, ("invertible_adapters.t.{}",))
    now = folder_of(tmp_path / "now", INV if kind == "lang" else BN, tensors)
    options = {"version": None, "model_class": None, "type": f"text_{kind}"}
    old = loaded(folder_of(tmp_path / "old", config, old_names(tensors, kind), **options))
    new = loaded(now)
    assert old.get_adapter("t").config.inv_adapter == ("nice" if kind == "lang" else None)
    assert torch.equal(run(old, batch("bert")), run(new, batch("bert")))
    assert not same(old, base("bert"))


def test_bottlenecks_after_attention_of_the_first_version(tmp_path):
    tensors = bn_tensors(PLAIN_BN)
    attention = {
        key.replace(".output.adapters.", ".attention.output.attention_text_task_adapters."): tensor
        for key, tensor in tensors.items()
    }
    config = V1 | {"MH_Adapter": True, "non_linearity": "swish", "original_ln_before": False}
    options = {"version": None, "type": "text_task"}
    model = loaded(folder_of(tmp_path, config, old_names(tensors, "task") | attention, **options))
    assert len(model.get_adapter("t").tensors()) == 16
    assert model.get_adapter("t").config.non_linearity == "swish"


@pytest.mark.parametrize(
    ("version", "name", "ours"),
    [(None, "gelu", "gelu_new"), (None, "gelu_orig", "gelu"), ("2.0.0", "gelu", "gelu"), (None, "relu", "relu")],
)
def test_what_gelu_meant_before_files_had_a_version(tmp_path, version, name, ours):
    model = loaded(folder_of(tmp_path, BN | {"non_linearity": name}, bn_tensors(PLAIN_BN), version=version))
    assert model.get_adapter("t").config.non_linearity == ours


def test_an_inverse_with_an_activation_of_its_own_is_refused(tmp_path):
    tensors = bn_tensors(PLAIN_BN) | random_tensors(HALVES, ("invertible_adapters.t.{}",))
    folder = folder_of(tmp_path, V1 | {"non_linearity": "swish"}, tensors, version=None, type="text_lang")
    refused(folder, "'relu' and the bottleneck 'swish'")


def test_tensors_of_a_fusion_are_refused(tmp_path):
    key = "encoder.layer.0.output.adapter_fusion_layer.a,b.query.weight"
    refused(folder_of(tmp_path, BN, bn_tensors(PLAIN_BN) | {key: torch.ones(32, 32)}), "no place here", key)
