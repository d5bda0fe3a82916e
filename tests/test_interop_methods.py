"""AdapterHub folders of what the golden cases lack: bottlenecks, prefixes, prompts, ReFT and unions, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptrain.interop import adapterhub
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
    same,
)
from matrix import adapted, base, batch, gap, run

pytestmark = pytest.mark.usefixtures("float64")

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
    assert gap(out["one"], out["two"]) < 1e-10
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
    assert gap(run(model, inputs), expected) < 1e-10


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
    assert gap(run(model, inputs), run(plain, inputs)) < 1e-10


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
        assert gap(rows, layer.weight) < 1e-10
        assert gap(rows @ rows.T, torch.eye(3)) < 1e-10
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
