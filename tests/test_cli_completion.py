"""What the shell offers for a word that is not finished."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import pytest

from adaptrain.cli.candidates import candidates
from adaptrain.cli.completion import SCRIPTS
from adaptrain.cli.main import main
from adaptrain.cli.verbs import VERBS
from adaptrain.config.schema import TrainerConfig


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAINER = [field.name for field in dataclasses.fields(TrainerConfig)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("adaptrain tr", ["train"]),
        ("adaptrain e", ["eval", "eject-prefix"]),
        ("adaptrain --v", ["--version"]),
        ("adaptrain train rec", ["recipe="]),
        ("adaptrain train recipe=lora_col", ["recipe=lora_cola"]),
        ("adaptrain train -m recipe=lora_cola,full_m", ["recipe=lora_cola,full_mrpc"]),
        ("adaptrain train adapter=par", ["adapter=par_bn"]),
        ("adaptrain train model=mi", ["model=minilm"]),
        ("adaptrain show task=st", ["task=stsb"]),
        ("adaptrain train trainer.learn", ["trainer.learning_rate="]),
        ("adaptrain train trainer.schedule=c", ["trainer.schedule=cosine", "trainer.schedule=constant"]),
        ("adaptrain train ~trainer.pat", ["~trainer.patience="]),
        ("adaptrain train tra", ["trainer=", "trainer."]),
        ("adaptrain train adapter=lora adapter.al", ["adapter.alpha="]),
        ("adaptrain train adapter=lora adapter.pre", []),
        ("adaptrain train adapter.pre", ["adapter.prefix_positions=", "adapter.prefix_length="]),
        ("adaptrain train task.columns.te", ["task.columns.text=", "task.columns.text_pair="]),
        ("adaptrain train see", ["seed="]),
        ("adaptrain train composition=sp", ["composition=split("]),
        ("adaptrain train 'composition=stack(lang, cola)' seed=1 adapters.", ["adapters.lang.", "adapters.cola."]),
        ("adaptrain train adapters.b.a", ["adapters.b.adapter="]),
        ("adaptrain train adapters.b.trainer.learn", ["adapters.b.trainer.learning_rate="]),
        ("adaptrain train adapters.b.adapter=par", ["adapters.b.adapter=par_bn"]),
        ("adaptrain train adapters.b.tr", ["adapters.b.train=", *(f"adapters.b.trainer.{key}=" for key in TRAINER)]),
        ("adaptrain eval outputs/x trainer.p", ["trainer.precision="]),
        ("adaptrain eval outputs/x trainer.precision=b", ["trainer.precision=bf16"]),
        ("adaptrain eval out", []),  # a path: the shell's own completion
        ("adaptrain p", ["predict"]),
        ("adaptrain predict outputs/x --t", ["--text", "--text-pair"]),
        ("adaptrain predict outputs/x --s", ["--skip-bad"]),
        ("adaptrain predict outputs/x trainer.d", ["trainer.device="]),
        ("adaptrain predict outputs/x task", ["task.columns."]),
        ("adaptrain predict outputs/x task.columns.te", ["task.columns.text=", "task.columns.text_pair="]),
        ("adaptrain predict outputs/x task.columns.la", []),  # a label is not read
        ("adaptrain predict outputs/x trainer.precision=b", ["trainer.precision=bf16"]),
        ("adaptrain predict out", []),
        ("adaptrain ls ta", ["tasks"]),
        ("adaptrain table --f", ["--format"]),
        ("adaptrain table --format l", ["latex"]),
        ("adaptrain eject-prefix x o", ["out="]),
        ("adaptrain eject-prefix x model.n", ["model.name="]),
        ("adaptrain eval x task", ["task.path="]),
        ("adaptrain average a b --n", ["--name", "--no-normalize"]),
        ("adaptrain average a b --strategy lora_d", ["lora_delta_w_svd"]),
        ("adaptrain average out", []),
        ("adaptrain completion z", ["zsh"]),
        ("adaptrain nonsense x", []),
        ("", [*(verb.name for verb in VERBS.values() if not verb.hidden), "--help", "--version"]),
    ],
)
def test_candidates(line, expected):
    assert candidates(line) == expected


def test_own_recipes_are_offered(elsewhere):
    (elsewhere / "recipes").mkdir()
    (elsewhere / "recipes" / "mine.yaml").write_text("seed: 1\n")
    assert candidates("adaptrain train recipe=mi") == ["recipe=mine"]


def test_what_a_shell_would_run_is_not_offered(elsewhere, capsys):
    (elsewhere / "recipes").mkdir()
    for name in ("mine", "mine$(touch mark)", "mine`touch mark`", "mine;touch mark", "mine|sh"):
        (elsewhere / "recipes" / f"{name}.yaml").write_text("seed: 1\n")
    assert main(["_complete", "adaptrain train recipe=mi"]) == 0
    assert capsys.readouterr().out == "recipe=mine\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed_and_are_the_shells_language(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "adaptrain _complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on this machine")
    subprocess.run([shell, "-n", "/dev/stdin"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("adaptrain tra", "train"),
        ("adaptrain train recipe=lora_col", "lora_cola"),  # bash splits words at =
        ("adaptrain train recipe", "recipe="),
        ("adaptrain train -m recipe=lora_cola,lora_mr", "lora_cola,lora_mrpc"),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash on this machine")
def test_bash_replaces_only_what_follows_the_equals_sign(line, expected, elsewhere):
    (elsewhere / "adaptrain").write_text(f'#!/bin/sh\nexec {sys.executable} -m adaptrain "$@"\n')
    (elsewhere / "adaptrain").chmod(0o755)
    # compopt may be called while bash completes only; here it is called by hand
    script = f"""
        PATH="{elsewhere}:$PATH"; compopt() {{ :; }}
        eval "$(adaptrain completion bash)"
        COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
        _adaptrain; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [expected]
    assert done.stderr == ""
