"""Prompt tuning's config and unit; prompts over whole models are in test_prompts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from adaptrain.errors import ConfigError
from adaptrain.methods import PromptTuningConfig, config_from_string
from adaptrain.methods.prompt import Prompt
from adaptrain.state import PromptState
from matrix import adapted

WORDS = torch.arange(12.0).view(3, 4)


def point(stack: str = "encoder", both: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        kind="prompt",
        name=f"{stack}.embeddings.prompt",
        stack=stack,
        layer=-1,
        out_features=4,
        encoder_decoder=both,
        embed=lambda text: WORDS,
    )


def unit_of(config: PromptTuningConfig) -> Prompt:
    build = config.build([point()])
    config.start(build, [point()])
    (unit,) = build.units.values()
    assert isinstance(unit, Prompt)
    return unit


def test_two_prompts_stand_one_before_the_other():
    empty = torch.zeros(3, 0, 4)
    state = PromptState(empty, empty)
    first, second = unit_of(PromptTuningConfig(prompt_length=2)), unit_of(PromptTuningConfig(prompt_length=3))
    found = second(first(state))
    assert found.after.shape == (3, 0, 4)
    assert torch.equal(found.before, torch.cat([second.prompt, first.prompt]).expand(3, -1, -1))
    behind = unit_of(PromptTuningConfig(prompt_length=2, combine="prefix_after_bos"))
    found = behind(found)
    assert torch.equal(found.after, behind.prompt.expand(3, -1, -1))
    assert found.before.shape == (3, 5, 4)


def test_the_uniform_start():
    torch.manual_seed(0)
    values = unit_of(PromptTuningConfig(prompt_length=2000, random_uniform_scale=0.25)).prompt
    assert values.abs().max() <= 0.25
    assert values.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("length", "rows"), [(2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_the_start_from_a_text_is_repeated_or_cut(length, rows):
    config = PromptTuningConfig(prompt_length=length, prompt_init="from_string", prompt_init_text="three small words")
    assert torch.equal(unit_of(config).prompt, WORDS[rows])


def test_an_encoder_decoder_has_one_in_its_encoder():
    config = PromptTuningConfig()
    assert config.covers(point("encoder", both=True))
    assert not config.covers(point("decoder", both=True))
    assert config.covers(point("decoder"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"random_uniform_scale": 0.0}, "random_uniform_scale is 0"),
        ({"prompt_init": "from_string"}, "prompt_init_text is missing; prompt_init 'from_string' needs it"),
        ({"prompt_init": "from_string", "prompt_init_text": " "}, "prompt_init_text is missing"),
        ({"prompt_init_text": "a"}, "prompt_init_text is for prompt_init 'from_string'"),
        ({"combine": "suffix"}, "combine is 'suffix'"),
    ],
)
def test_impossible_values_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        PromptTuningConfig(**options)


def test_the_references_outputs_are_for_encoders():
    with pytest.raises(ConfigError, match="as_adapterhub is for encoders"):
        adapted("gpt2").add_adapter("a", PromptTuningConfig(as_adapterhub=True))
    assert config_from_string('prompt_tuning[combine="prefix_after_bos"]').to_dict()["combine"] == "prefix_after_bos"
