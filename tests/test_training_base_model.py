from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptrain.config.schema import ModelConfig
from adaptrain.errors import ModelError
from adaptrain.training.base_model import find_base, load_model, load_tokenizer
from hub_server import COMMIT, serve
from tiny_run import save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


def copied(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_a_folder(base: Path) -> None:
    found = find_base(ModelConfig(name=str(base)))
    assert found.location == str(base) and found.revision is None
    assert found.fingerprint == hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    tokenizer = load_tokenizer(found)
    assert tokenizer.is_fast and tokenizer.backend_tokenizer.padding is None
    model, known = load_model(found, torch.bfloat16)
    assert known == found and next(model.base_model.parameters()).dtype == torch.bfloat16
    assert model.identity == {"name": str(base), "revision": None, "fingerprint": found.fingerprint}


def test_attention_can_be_chosen(base: Path) -> None:
    found = find_base(ModelConfig(name=str(base), attention="eager"))
    model, _ = load_model(found, torch.float32)
    assert "eager" in model.base_model.config._attn_implementation


def test_a_package_comes_before_the_hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(base, tmp_path / "carrier/model")
    (tmp_path / "carrier/__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = ModelConfig(name="somebody/model", package="carrier:model")
    found = find_base(config)
    assert found.location == str(tmp_path / "carrier/model") and found.identity["name"] == "somebody/model"
    assert find_base(dataclasses.replace(config, sha256=found.fingerprint)) is not None
    with pytest.raises(ModelError, match=f"sha256 {found.fingerprint}, not 00ff"):
        find_base(dataclasses.replace(config, sha256="00ff"))


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(ModelError, match=r"package 'nowhere' \(pip install 'adaptrain\[quickstart\]'"):
        find_base(ModelConfig(name="somebody/model", package="nowhere:model"))


def test_without_a_hub_a_hub_id_names_the_cure() -> None:
    with pytest.raises(
        ModelError, match=r"Model 'somebody/model' cannot be had from the hub.*model.name=FOLDER"
    ) as caught:
        find_base(ModelConfig(name="somebody/model"))
    assert "pip install" not in str(caught.value) and "\n" not in str(caught.value)


SCRIPT = """
import sys
import torch
from adaptrain.config.schema import ModelConfig
from adaptrain.errors import ModelError
from adaptrain.training.base_model import find_base, load_model, load_tokenizer

for revision in sys.argv[1:]:
    base = find_base(ModelConfig(name="org/tiny", revision=revision or None))
    words = len(load_tokenizer(base))
    model, base = load_model(base, torch.float32)
    print(words, base.revision, base.fingerprint, model.identity["fingerprint"] == base.fingerprint)
try:
    find_base(ModelConfig(name="org/absent"))
except ModelError as error:
    print(error)
"""


@pytest.mark.long  # `test_hub` asks one too
def test_the_hub_gives_the_commit_and_the_same_fingerprint(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "org/tiny")
    common = os.environ | {"HF_HOME": str(tmp_path / "home")}

    def ask(*arguments: str, **environment: str) -> list[str]:
        command = [sys.executable, "-W", "error", "-c", SCRIPT, *arguments]
        ran = subprocess.run(command, env=common | environment, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()

    with serve(tmp_path) as endpoint:
        found, absent = ask("", HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert found.split() == ["35", COMMIT, find_base(ModelConfig(name=str(base))).fingerprint, "True"]
    assert "it has no such model, or a private one" in absent
    # once it is in the cache no hub is needed, whether the commit is named or not
    *again, absent = ask("", COMMIT, HF_HUB_OFFLINE="1")
    assert again == [found, found]
    assert "it cannot be reached, and the local cache has no copy" in absent
    assert "model=minilm" in absent


def test_weights_in_several_files_have_one_fingerprint(base: Path, tmp_path: Path) -> None:
    folder = copied(base, tmp_path)
    from transformers import BertModel

    BertModel.from_pretrained(base).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    found = find_base(ModelConfig(name=str(folder)))
    assert len(found.fingerprint) == 64
    assert load_model(found, torch.float32)[0].base_model.config.hidden_size == 32
    part = next(folder.glob("model-*-of-*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"\x00")
    assert find_base(ModelConfig(name=str(folder))).fingerprint != found.fingerprint


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


def incomplete(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for key in [key for key in tensors if ".layer.1." in key][:4]:
        del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "berd"}))


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "there is no config.json. It holds: .*model.safetensors"),
        (remove("model.safetensors"), "has no weights that can be read"),
        (pickled, "pickled weights are not loaded. It holds: .*pytorch_model.bin"),
        (cut_off, "cannot be loaded|Cannot load"),
        (incomplete, r"lacks weights, which would be random: .*layer\.1\..* and 1 more"),
        (unknown_type, "berd"),
        (no_tokenizer, "tokenizer"),
    ],
)
def test_damaged_folders(damage: Any, message: str, base: Path, tmp_path: Path) -> None:
    folder = copied(base, tmp_path)
    damage(folder)

    def load() -> None:
        found = find_base(ModelConfig(name=str(folder)))
        load_tokenizer(found)
        load_model(found, torch.float32)

    with pytest.raises(ModelError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_missing_folders() -> None:
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere"):
        with pytest.raises(ModelError, match="there is no such folder"):
            find_base(ModelConfig(name=name))


def test_remote_code_runs_only_where_it_is_named(base: Path) -> None:
    assert not find_base(ModelConfig(name=str(base))).remote_code
    assert find_base(ModelConfig(name=str(base), allow_remote_code=str(base))).remote_code
