"""AdapterHub folders of the LoRA family: IA³, fused maps, gates, VeRA, MTL-LoRA, other versions' alpha."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaptrain.methods import DoRAConfig, LoRAConfig
from foreign_folders import LORA, folder_of, loaded, lora_tensors, random_tensors, refused, same
from matrix import adapted, base, batch, gap, run

pytestmark = pytest.mark.usefixtures("float64")

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
    assert gap(run(model, batch("bert")), run(plain, batch("bert"))) < 1e-10  # the products are large


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
    assert gap(run(model, batch("bert")), run(plain, batch("bert"))) < 1e-10


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
