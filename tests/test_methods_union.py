"""Unions: round trips, refusals, strings, and one adapter that is the sum of its members."""

from __future__ import annotations

import json

import pytest
import torch

import adaptrain
from adaptrain.errors import ConfigError
from adaptrain.methods import (
    BnConfig,
    ConfigUnion,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    UniPELTConfig,
    config_from_dict,
    config_from_string,
)
from matrix import ARCHITECTURES, adapted, bare, batch, gap, randomise, run

LORA, BN, PREFIX = LoRAConfig(r=2, alpha=5), SeqBnConfig(reduction_factor=4), PrefixTuningConfig(prefix_length=3)


@pytest.mark.parametrize(
    "union",
    [ConfigUnion(LORA, BN), MAMConfig(), UniPELTConfig(), ConfigUnion(PREFIX)],
    ids=["two", "mam", "unipelt", "one"],
)
def test_a_union_survives_json(union):
    values = json.loads(json.dumps(union.to_dict()))
    read = config_from_dict(values)
    assert isinstance(read, ConfigUnion)
    assert read.to_dict() == union.to_dict()
    assert read == union
    assert [type(member).method for member in read.configs] == [member.method for member in union.configs]


def test_unions_cannot_be_changed_but_compared_and_replaced():
    union = ConfigUnion(LORA, BN)
    with pytest.raises(AttributeError):
        union.configs = ()  # type: ignore[misc]
    assert union == ConfigUnion(LORA, BN) != ConfigUnion(BN, LORA)
    assert union.replace(configs=[PREFIX, BN]) == ConfigUnion(PREFIX, BN)
    assert union.replace() == ConfigUnion("lora[r=2,alpha=5]", BN) == union
    with pytest.raises(ConfigError, match=r"'config'.*did you mean 'configs'"):
        union.replace(config=[])


def test_the_published_unions_are_what_the_papers_and_the_reference_say():
    assert MAMConfig() == ConfigUnion(PrefixTuningConfig(bottleneck_size=800), ParBnConfig())
    prefix, parallel = MAMConfig().configs
    assert prefix == PrefixTuningConfig(bottleneck_size=800)
    assert parallel == ParBnConfig()
    prefix, adapter, lora = UniPELTConfig().configs
    assert prefix == PrefixTuningConfig(prefix_length=10, use_gating=True)
    assert adapter == SeqBnConfig(reduction_factor=16, use_gating=True)
    assert lora == LoRAConfig(r=8, alpha=2, use_gating=True)
    assert UniPELTConfig(lora=LoRAConfig(r=2, use_gating=True)).configs[2].r == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ConfigUnion, "configs is empty"),
        (lambda: ConfigUnion(ConfigUnion(LORA), BN), "configs holds a union"),
        (lambda: ConfigUnion(LORA, adaptrain.NoneConfig()), "configs holds 'none', which adds nothing"),
        (lambda: ConfigUnion(LORA, adaptrain.FullConfig()), "configs holds 'full'"),
        (lambda: ConfigUnion(LORA, IA3Config()), "configs holds lora and ia3; one of the LoRA family"),
        (lambda: ConfigUnion(DoRAConfig(), LORA, LORA), "configs holds dora and lora and lora"),
        (lambda: ConfigUnion({"method": "lora", "rank": 3}), "'rank'"),
        (lambda: config_from_dict({"method": "union"}), "needs 'configs', a list"),
        (lambda: config_from_dict({"method": "union", "configs": "lora"}), "needs 'configs', a list"),
        (lambda: config_from_dict({"method": "union", "configs": [], "name": 1}), "'name'"),
        (lambda: config_from_string("lora|lora"), "one of the LoRA family"),
        (lambda: config_from_string("lora|"), "'' is not a config string"),
        (lambda: config_from_string("mam|lora"), "configs holds a union"),
        (lambda: config_from_string("mam[r=3]"), "'mam' takes no options; write its members"),
        (lambda: config_from_string("unipelt[init_weights_seed=3]"), "'unipelt' takes no options"),
        (lambda: ConfigUnion("lora|seq_bn", "prefix_tuning"), "configs holds a union"),
        (lambda: ConfigUnion("loar"), "did you mean 'lora'"),
        (lambda: ConfigUnion({"architecture": "lora"}), "write `method:`"),
        (lambda: config_from_dict({"method": "union", "configs": ["lora", 3]}), "configs holds 3, which is no config"),
        (lambda: config_from_dict({"method": "union", "configs": [None]}), "configs holds None"),
        (lambda: ConfigUnion(LORA, init_weights_seed=3), "init_weights_seed is for the members"),
        (lambda: ConfigUnion(LORA).replace(init_weights_seed=3), "init_weights_seed is for the members"),
        (lambda: config_from_dict(ConfigUnion(LORA).to_dict() | {"init_weights_seed": 3}), "is for the members"),
    ],
)
def test_what_is_no_union_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_members_of_one_method_keep_to_places_of_their_own():
    model = adapted("bert")
    with pytest.raises(ConfigError, match=r"two configs of method bottleneck meet at encoder.0.mlp; keep them apart"):
        model.add_adapter("a", ConfigUnion(BN, ParBnConfig()))
    assert model.adapter_names() == []
    # the announcement of adapter-transformers v3: another factor beside the attention than beside the MLP
    model.add_adapter(
        "places",
        ConfigUnion(
            BnConfig(mh_adapter=True, output_adapter=False, reduction_factor=16, non_linearity="relu"),
            BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=2, non_linearity="relu"),
        ),
    )
    tensors = model.get_adapter("places").tensors()
    assert tensors["encoder.0.attention.bottleneck.down.weight"].shape == (2, 32)
    assert tensors["encoder.0.mlp.bottleneck.down.weight"].shape == (16, 32)
    model.add_adapter("layers", ConfigUnion(BN.replace(leave_out=[0]), ParBnConfig(leave_out=[1])))
    model.add_adapter("prefixes", ConfigUnion(PREFIX.replace(leave_out=[0]), PREFIX.replace(leave_out=[1], flat=True)))
    assert {key.split("prefix_tuning")[1][0] for key in model.get_adapter("prefixes").tensors()} == {".", "+"}


@pytest.mark.parametrize(
    ("text", "union"),
    [
        ("lora[r=2,alpha=5]|seq_bn[reduction_factor=4]", ConfigUnion(LORA, BN)),
        (' lora[attn_matrices=["q","k"]] | prefix_tuning[flat=True] ', None),
        ('prompt_tuning[prompt_init="from_string",prompt_init_text="a|b[c"]|lora', None),
    ],
)
def test_strings(text, union):
    found = config_from_string(text)
    assert isinstance(found, ConfigUnion)
    assert len(found.configs) == 2
    assert union is None or found == union
    if "a|b" in text:
        assert isinstance(found.configs[0], PromptTuningConfig)
        assert found.configs[0].prompt_init_text == "a|b[c"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_union_is_a_stack_of_its_members(arch):
    members = (LORA, BN, LoReftConfig(r=2), IA3Config(attn_matrices=["k"], intermediate_lora=True))[:3]
    union, inputs = adapted(arch, ConfigUnion(*members)), batch(arch)
    tensors = union.get_adapter("a").tensors()
    stack = adapted(arch)
    for index, member in enumerate(members):
        stack.add_adapter(f"m{index}", member)
        own = stack.get_adapter(f"m{index}").tensors()
        stack.get_adapter(f"m{index}").load_tensors({key: tensors[key] for key in own})
    assert sum(stack.parameter_count(f"m{i}") for i in range(3)) == union.parameter_count("a")
    stack.set_active_adapters("stack(m2, m0, m1)")  # whatever the order: points decide
    assert torch.equal(run(union, inputs), run(stack, inputs))
    assert gap(run(union, inputs), bare(arch, inputs)) > 0.05


def test_a_unions_prefix_can_be_ejected(tmp_path):
    model, inputs = adapted("bart", MAMConfig(PREFIX, ParBnConfig(reduction_factor=4))), batch("bart")
    expected, before = run(model, inputs), model.parameter_count("a")
    model.eject_prefix_tuning("a")
    assert gap(run(model, inputs), expected) < 1e-10
    assert model.parameter_count("a") < before
    model.save_adapter(tmp_path, "a")
    other = adapted("bart")
    other.load_adapter(tmp_path, set_active=True)
    assert gap(run(other, inputs), expected) < 1e-10
    config = other.get_adapter("a").config
    assert isinstance(config, ConfigUnion)
    assert config.configs[0] == PREFIX.replace(flat=True)


def test_members_have_their_own_rate_and_seed():
    union = ConfigUnion(LORA.replace(lora_plus_ratio=16.0), BN)
    assert union.rate("encoder.0.attention.query.lora.B") == 16.0
    assert union.rate("encoder.0.attention.query.lora.A") == union.rate("encoder.0.mlp.bottleneck.up.weight") == 1.0
    seeded = ConfigUnion(LORA, BN.replace(init_weights_seed=3))
    one, other = adapted("bert", seeded, trained=False), adapted("bert", seeded, trained=False)
    same = {
        key: torch.equal(value, other.get_adapter("a").tensors()[key])
        for key, value in one.get_adapter("a").tensors().items()
        if not key.endswith((".B", "bias"))
    }
    assert all(equal == ("bottleneck" in key) for key, equal in same.items())


def test_randomised_members_all_take_part():
    model, inputs = adapted("bert", ConfigUnion(LORA, BN, PREFIX)), batch("bert")
    whole = run(model, inputs)
    for method in ("lora", "bottleneck", "prefix_tuning"):
        other = adapted("bert", ConfigUnion(LORA, BN, PREFIX))
        for key, tensor in other.get_adapter("a").tensors().items():
            if f".{method}." in key:
                randomise(torch.nn.ParameterList([torch.nn.Parameter(tensor)]), 0.3, 9)
                tensor.add_(0.3)
        assert gap(run(other, inputs), whole) > 1e-3, method
