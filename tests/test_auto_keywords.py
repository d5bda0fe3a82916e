"""`from_pretrained` with the keywords of transformers' own: taken, or refused by name with what to do instead."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from adaptrain import AutoAdapterModel
from adaptrain.errors import AdaptrainError, ConfigError, ModelError, UnsupportedError
from matrix import base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    base("bert").float().save_pretrained(place)
    base("bert").float().save_pretrained(place / "inner")
    return place


TAKEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
    ({"torch_dtype": torch.float16}, {"dtype": torch.float16}),
    ({"torch_dtype": torch.float16, "dtype": torch.float16}, {"dtype": torch.float16}),
    ({"dtype": "auto"}, {"dtype": torch.float32}),
    ({"device_map": "cpu"}, {"device": torch.device("cpu")}),
    ({"device_map": "auto", "max_memory": {"cpu": "1GB"}}, {"device": torch.device("cpu")}),
    ({"attn_implementation": "eager"}, {"config._attn_implementation": "eager"}),
    ({"quantization_config": None}, {}),
    ({"revision": "main", "code_revision": "main"}, {}),
    ({"cache_dir": "somewhere", "force_download": True, "local_files_only": True, "proxies": None}, {}),
    ({"token": "hf_x"}, {}),
    ({"token": False}, {}),
    ({"trust_remote_code": None}, {}),
    ({"subfolder": "inner"}, {}),
    ({"variant": None}, {}),
    ({"use_safetensors": True, "low_cpu_mem_usage": True, "weights_only": True}, {}),
    ({"ignore_mismatched_sizes": False, "output_loading_info": False}, {}),
    ({"hidden_dropout_prob": 0.4}, {"config.hidden_dropout_prob": 0.4}),
    ({"output_hidden_states": True}, {"config.output_hidden_states": True}),
]


@pytest.mark.parametrize(("options", "seen"), TAKEN, ids=str)
def test_the_usual_keywords_are_taken(folder, options, seen):
    model = AutoAdapterModel.from_pretrained(folder, **options)
    for path, value in seen.items():
        found = model
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value


def test_a_config_is_taken_as_it_is_given(folder):
    """An object, which stays as it was; or where one lies. Other keys can be changed beside it."""
    config = hf.AutoConfig.from_pretrained(folder, hidden_dropout_prob=0.4)
    options = {"attn_implementation": "eager", "layer_norm_eps": 1e-3}
    model = AutoAdapterModel.from_pretrained(folder, config=config, **options)
    assert model.config.hidden_dropout_prob == 0.4 and model.config.layer_norm_eps == 1e-3
    assert config.layer_norm_eps != 1e-3 and config._attn_implementation != "eager"
    config.save_pretrained(folder / "config")
    assert AutoAdapterModel.from_pretrained(folder, config=folder / "config").config.hidden_dropout_prob == 0.4
    named = AutoAdapterModel.from_pretrained(pretrained_model_name_or_path=folder)
    assert named.config.hidden_dropout_prob != 0.4


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"torch_dtype": "float16", "dtype": "float32"}, ConfigError, "torch_dtype.*give one"),
        ({"num_labels": 3}, UnsupportedError, "num_labels.*add_classification_head"),
        ({"id2label": {0: "x"}}, UnsupportedError, "id2label.*add_classification_head"),
        ({"use_safetensors": False}, UnsupportedError, "use_safetensors.*convert"),
        ({"weights_only": False}, UnsupportedError, "weights_only.*leave it out"),
        ({"low_cpu_mem_usage": False}, UnsupportedError, "low_cpu_mem_usage.*leave it out"),
        ({"ignore_mismatched_sizes": True}, UnsupportedError, "ignore_mismatched_sizes.*random"),
        ({"output_loading_info": True}, UnsupportedError, "output_loading_info.*leave it out"),
        ({"load_in_8bit": True}, UnsupportedError, "load_in_8bit.*quantization_config="),
        ({"state_dict": {}}, UnsupportedError, "state_dict.*adaptrain.init"),
        ({"tp_plan": "auto"}, UnsupportedError, "tp_plan.*accelerate"),
        ({"adapter_kwargs": {}}, UnsupportedError, "adapter_kwargs.*load_adapter"),
        ({"chache_dir": "x"}, ConfigError, "'chache_dir', did you mean 'cache_dir'"),
        ({"hiden_size": 8}, ConfigError, "'hiden_size', did you mean 'hidden_size'"),
        ({"to_dict": 8}, ConfigError, "no keyword 'to_dict'"),
        ({"hidden_size": "wide"}, ModelError, "hidden_size"),
        ({"num_hidden_layers": 5}, ModelError, "lacks weights.*layer.2"),
        ({"own_head": "causallm"}, ModelError, "causal_lm"),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [False, True], ids=["own-config", "given-config"])
def test_others_are_refused_by_name(folder, options, kind, message, given):
    more = {"config": hf.AutoConfig.from_pretrained(folder)} if given else {}
    with pytest.raises(kind, match=message) as caught:
        AutoAdapterModel.from_pretrained(folder, **options, **more)
    assert isinstance(caught.value, AdaptrainError)


def test_no_name_at_all():
    with pytest.raises(ConfigError, match="no base model is named"):
        AutoAdapterModel.from_pretrained(dtype="auto")


def test_every_keyword_that_transformers_names_has_an_answer(folder):
    """A type error is none. What a new version adds is seen here."""
    named = inspect.signature(hf.PreTrainedModel.from_pretrained).parameters
    for key, parameter in named.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY and key not in ("config", "cache_dir"):
            continue
        AutoAdapterModel.from_pretrained(folder, **{key: parameter.default})


def test_a_base_from_a_config_takes_the_same_words():
    config = base("bert").config
    options: dict[str, Any] = {"torch_dtype": torch.bfloat16, "attn_implementation": "eager", "architecture": "bert"}
    model = AutoAdapterModel.from_config(config, **options, trust_remote_code=False)
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="did you mean 'attn_implementation'"):
        AutoAdapterModel.from_config(config, attn_implementatoin="eager")
