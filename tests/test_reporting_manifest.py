from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from adaptrain.reporting.manifest import device_name, git_state, versions
from adaptrain.training.memory import memory_used, peak_memory, reset_peak


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(("git", *identity, *arguments), cwd=folder, check=True, capture_output=True)


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_state() is None
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    state = git_state()
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "file").write_text("b")
    assert git_state() == {"commit": state["commit"], "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_programs_that_a_repository_names_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config comes with it: a monitor of the file system, filters."""
    program, mark = tmp_path / "program", tmp_path / "mark"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\ncat\n")
    program.chmod(0o755)
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git(folder, "init")
    (folder / "file").write_text("a")
    git(folder, "add", "file")
    git(folder, "commit", "-m", "a")
    (folder / ".gitattributes").write_text("* filter=x=y\n")
    for key in ("core.fsmonitor", "filter.x=y.clean", "filter.x=y.smudge", "filter.x=y.process"):
        git(folder, "config", key, str(program))
    git(folder, "config", "filter.x=y.required", "true")
    (folder / "file").write_text("b")
    state = git_state()
    assert state is not None and state["dirty"] is True
    assert not mark.exists()
    subprocess.run(("git", "status"), check=False, capture_output=True)
    assert mark.exists(), "the repository of this test sets no trap"


def test_versions_and_device() -> None:
    found = versions()
    assert found["torch"] is not None and found["python"] is not None and found["adaptrain"] is not None
    assert device_name(torch.device("cpu"))


def test_the_peak_is_of_one_run() -> None:
    cpu = torch.device("cpu")
    reset_peak(cpu)
    before = peak_memory(cpu)
    held = torch.ones(2**25)  # 128 MB
    assert peak_memory(cpu) - before > 100 * 2**20
    del held
    assert memory_used(cpu) > 2**20
