"""A union in YAML: a list of sections, each checked as the adapter section itself is."""

from __future__ import annotations

import pytest

from adaptrain.config.compose import compose
from adaptrain.config.render import annotated_yaml
from adaptrain.errors import ConfigError
from adaptrain.methods import ConfigUnion, config_from_dict

UNION = """\
# a union of my own
method: union
configs:
  - method: lora
    r: 4
  - method: bottleneck
    mh_adapter: false
    output_adapter: true
    reduction_factor: 8
    non_linearity: relu
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str = UNION) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return "adapter=./mine.yaml"

    return write


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=quickstart", *overrides])
    return caught.value.problems


def test_members_are_completed_and_know_their_lines(file):
    run = compose(["recipe=quickstart", file()])
    config = config_from_dict(run.config.adapter)
    assert isinstance(config, ConfigUnion)
    assert run.config.adapter["configs"][0]["r"] == 4
    assert run.config.adapter["configs"][0]["alpha"] == 8.0  # the method's default, filled in
    assert str(run.origin("adapter.configs.0.r")) == "mine.yaml:5"
    assert str(run.origin("adapter.configs.1.reduction_factor")) == "mine.yaml:9"
    text = annotated_yaml(run)
    assert "    - method: lora" in text
    assert any(line.split("#")[0].rstrip() == "      r: 4" and "mine.yaml:5" in line for line in text.splitlines())
    import yaml

    assert yaml.safe_load(text)["adapter"] == run.config.adapter


def test_the_command_line_sets_a_member(file):
    run = compose(["recipe=quickstart", file(), "adapter.configs.0.r=16", "adapter.configs.1.ln_before=true"])
    assert run.config.adapter["configs"][0]["r"] == 16
    assert run.config.adapter["configs"][1]["ln_before"] is True
    assert str(run.origin("adapter.configs.0.r")) == "command line"
    whole = compose(["recipe=quickstart", file(), "adapter.configs=[{method: ia3}]"])
    assert [member["method"] for member in whole.config.adapter["configs"]] == ["ia3"]


def test_all_mistakes_come_at_once_with_their_lines(file):
    text = UNION.replace("r: 4", "rr: 4").replace("reduction_factor: 8", "reduction_factor: wide")
    found = problems(file(text), "trainer.epochs=many")
    assert len(found) == 3
    assert any(
        p.startswith("adapter.configs.0.rr (mine.yaml:5): method lora has no key 'rr'") and "'r'" in p for p in found
    )
    assert any(p.startswith("adapter.configs.1.reduction_factor (mine.yaml:9): is 'wide'") for p in found)
    assert any("trainer.epochs (command line)" in p for p in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("- method: lora", "- method: lara"),
            "adapter.configs.0.method (mine.yaml:4): is 'lara', did you mean 'lora'",
        ),
        (("  - method: lora\n    r: 4", "  - r: 4"), "adapter.configs.0.method (mine.yaml:4): is missing"),
        (("    r: 4", "    r: 0"), "adapter.configs.0.r (mine.yaml:5): is 0; a rank is at least 1"),
        (("    reduction_factor: 8\n", ""), "adapter.configs.1.reduction_factor (mine.yaml:6): is missing"),
        (("  - method: bottleneck", "  - method: none"), "adapter.configs.1"),
    ],
)
def test_a_mistake_in_a_member_names_it(file, change, said):
    assert any(problem.startswith(said) for problem in problems(file(UNION.replace(*change))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# x\nmethod: union\n", "adapter.configs"),
        ("# x\nmethod: union\nconfigs: lora\n", "adapter.configs (x.yaml:3): is not a list of mappings"),
        ("# x\nmethod: union\nconfigs: [lora, seq_bn]\n", "adapter.configs (x.yaml:3): is not a list of mappings"),
        (
            "# x\nmethod: union\nconfigs:\n  - method: lora\n  - method: ia3\n",
            "adapter.configs (x.yaml:4): holds lora and ia3",
        ),
    ],
)
def test_what_is_no_union_is_refused_once(file, text, said):
    found = problems(file(text))
    assert len(found) == 1
    assert found[0].startswith(said.replace("x.yaml", "mine.yaml")), found
