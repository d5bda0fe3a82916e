"""The command line around the verbs: help, mistakes, exit codes, speed."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adaptrain.cli import verbs
from adaptrain.cli.main import main
from adaptrain.cli.verbs import VERBS
from adaptrain.errors import CheckpointError, ConfigError, DataError, OutOfMemoryError
from adaptrain.version import __version__

COMMAND = (sys.executable, "-m", "adaptrain")
SHOWN = [verb for verb in VERBS.values() if not verb.hidden]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTRAIN_DEBUG", raising=False)


@pytest.fixture
def verb_that(monkeypatch):
    """Makes `adaptrain ls` do something else."""

    def replace(act):
        monkeypatch.setattr(verbs.Verb, "load", lambda self: lambda arguments: act())

    return replace


def fail_with(error):
    def act():
        raise error

    return act


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for verb in SHOWN:
        assert verb.name in out
        assert verb.summary in out
    assert "_complete" not in out


@pytest.mark.parametrize("verb", SHOWN, ids=lambda verb: verb.name)
def test_help_of_a_verb(verb, capsys):
    assert main([verb.name, "--help"]) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"usage: adaptrain {verb.name} ")
    assert main(["help", verb.name]) == 0
    assert capsys.readouterr().out == first
    assert max(map(len, first.splitlines())) <= 120


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_every_verb_can_be_loaded(verb):
    assert callable(verb.load())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adaptrain {__version__}\n"


def test_as_a_module_and_what_help_and_ls_import():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"adaptrain {__version__}\n"
    heavy = "('torch', 'transformers', 'hydra', 'omegaconf', 'numpy', 'rich', 'datasets')"
    for arguments in (["--help"], ["ls"], ["ls", "adapters"], ["_complete", "adaptrain train recipe="]):
        code = f"import sys; from adaptrain.cli.main import main; main({arguments}); "
        code += f"print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", arguments


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "There is no verb 'trian', did you mean 'train'? The verbs are: train, eval, predict, table"),
        (["recipe=lora_cola"], "did you mean: adaptrain train recipe=lora_cola?"),
        (["train", "-q"], "There is no option '-q'. The options are: -m, --multirun, --help"),
        (["train", "--seed", "3"], "There is no option '--seed'; write seed=3"),
        (["train", "recipe=quickstart", "--epochs", "3"], "There is no option '--epochs'; write trainer.epochs=3"),
        (["train", "--learning-rate=1e-4"], "write trainer.learning_rate=1e-4"),
        (["train", "--trainer.epochs", "3"], "write trainer.epochs=3"),
        (["train", "--num_train_epochs", "3"], "write trainer.epochs=3"),
        (["train", "--rank", "8"], "write adapter.r=8"),
        (["train", "--use_dora", "true"], "write adapter.use_dora=true"),
        (["train", "--model", "minilm"], "write model=minilm"),
        (["show", "--lr", "--force"], "There is no option '--lr'; write trainer.learning_rate=…"),
        (["data", "x.csv", "--max-length", "64"], "write data.max_length=64"),
        (["train", "--dry-run"], "There is no option '--dry-run'; `adaptrain show` prints the config"),
        (["train", "--cfg", "job"], "There is no option '--cfg'; `adaptrain show` prints the config"),
        (["train", "-M"], "There is no option '-M'; write -m"),
        (["train", "--frobnicate", "3"], "There is no option '--frobnicate'. The options are: -m, --multirun, --help"),
        (["table", "--epochs", "3"], "There is no option '--epochs'. The options are: "),
        (["train", "--multirn"], "did you mean '--multirun'?"),
        (["eval"], "adaptrain eval needs a PATH"),
        (["eval", "a", "b"], "takes one PATH, not 2: a, b"),
        (["eval", "a", "adapter=b"], "The adapter is given twice"),
        (["eval", "a", "splitt=dev"], "did you mean 'split'? The keys of adaptrain eval are: adapter, composition,"),
        (["eval", "a", "trainer.precision=fp16"], "is 'fp16'; it must be one of auto, fp32, bf16"),
        (["eval", "a", "trainer.eval_batch_size=0"], "is '0'; it must be a whole number above 0"),
        (["table", "--format"], "--format needs a value"),
        (["table", "--format", "htm"], "There is no format 'htm'"),
        (["table", "seed=1"], "adaptrain table has no key 'seed'"),
        (["eject-prefix"], "adaptrain eject-prefix needs a PATH"),
        (["eject-prefix", "a", "ot=b"], "did you mean 'out'?"),
        (["ls", "adaptors"], "There is no list of 'adaptors', did you mean 'adapters'?"),
        (["ls", "seed=1"], "takes no overrides"),
        (["completion"], "needs a shell, one of: bash, zsh, fish"),
        (["completion", "bsh"], "did you mean 'bash'?"),
        (["train", "recipe=lora_colla"], "recipe=lora_colla (command line): there is no recipe 'lora_colla'"),
        (["show", "lora_cola"], "'lora_cola' (command line): is a recipe; write recipe=lora_cola"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(Path.cwd().iterdir()) == []


def test_each_mistake_has_its_line(capsys):
    assert main(["train", "seed=x", "trainer.epochs=y", "foo=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["one", "two"]), 2),
        (DataError("no\n  rows"), 3),
        (CheckpointError("damaged"), 3),
        (OutOfMemoryError("too small"), 4),
        (MemoryError(), 4),
        (KeyboardInterrupt(), 130),
        (ValueError("surprise"), 1),
    ],
)
def test_exit_codes(error, code, verb_that, capsys):
    verb_that(fail_with(error))
    assert main(["ls"]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == len(getattr(error, "problems", [1]))


def test_a_lack_of_memory_that_torch_reports(verb_that, capsys):
    torch = pytest.importorskip("torch")
    verb_that(fail_with(torch.OutOfMemoryError("CUDA out of memory")))
    assert main(["ls"]) == 4
    assert "trainer.micro_batch_size" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_in_a_file(verb_that, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verb_that(fail_with(ValueError("surprise")))
    assert main(["ls"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: this is a bug in adaptrain, please report it: ValueError: surprise (traceback in ")
    file = re.search(r"traceback in (.*)\)", said)
    assert file is not None
    assert "in act" in Path(file[1]).read_text()


def test_debugging_shows_the_traceback(verb_that, capsys, monkeypatch):
    monkeypatch.setenv("ADAPTRAIN_DEBUG", "1")
    verb_that(fail_with(DataError("no rows")))
    assert main(["ls"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m adaptrain ls | head -n 1; echo code=${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("code=141", "code=0")


def test_an_interrupt_is_told_in_one_line():
    code = """if True:
        import os, signal
        from adaptrain.cli import verbs
        from adaptrain.cli.main import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
        def act(arguments): os.kill(os.getpid(), signal.SIGINT)
        verbs.Verb.load = lambda self: act
        raise SystemExit(main(["ls"]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("stopped: interrupted")
    assert done.stderr.count("\n") == 1


def test_what_the_user_has_set_stays_set(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    main(["--version"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_the_tests_have_no_network():
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
    with socket.socket() as own, pytest.raises(RuntimeError, match="no network"):
        own.connect(("93.184.216.34", 80))


# ls and show


def test_ls_lists_everything(capsys):
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    for word in (
        "recipes ",
        "adapters ",
        "models ",
        "tasks ",
        "trainers ",
        "lora_cola",
        "seq_bn",
        "minilm",
        "stsb",
        "debug",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("recipes", r"lora_cola +roberta_base +lora +cola +Hu et al\. 2021"),
        ("recipe", r"quickstart +minilm +lora +verdict +LoRA on MiniLM"),
        ("adapters", r"prefix_tuning +prefix_tuning +Prefix tuning"),
        ("models", r"minilm +sentence-transformers/all-MiniLM-L6-v2 +MiniLM"),
        ("tasks", r"stsb +regression +pearson +STS-B"),
        ("trainers", r"debug +Ten steps"),
    ],
)
def test_ls_of_one_kind(kind, row, capsys):
    assert main(["ls", kind]) == 0
    assert re.search(row, capsys.readouterr().out)


def test_on_a_terminal_names_are_whole_and_lines_end_at_its_edge(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["ls", "models"]) == 0
    coloured = screen.getvalue()
    assert "\x1b[36mminilm" in coloured
    lines = re.sub(r"\x1b\[[\d;]*m", "", coloured).splitlines()[2:]
    assert max(map(len, lines)) == 80
    assert any(re.match(r"minilm +sentence-transformers/all-MiniLM-L6-v2 +MiniLM", line) for line in lines)
    monkeypatch.setenv("NO_COLOR", "1")
    screen.truncate(0)
    main(["ls", "models"])
    assert "\x1b" not in screen.getvalue()


def test_ls_shows_own_recipes_and_what_they_hide(capsys, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# adaptrain train recipe=mine\n# My own. Second sentence.\nseed: 1\n"
    )
    (tmp_path / "recipes" / "lora_cola.yaml").write_text("seed: 1\n")
    (tmp_path / "recipes" / "broken.yaml").write_text("seed: [\n")
    assert main(["ls", "recipes"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"mine +\[yours\] My own\. Second sentence\.", out)
    assert re.search(r"lora_cola +\[yours, hides the shipped one\]", out)
    assert re.search(r"broken +\[yours\] \(cannot be read", out)
    assert str(tmp_path / "recipes") in out


def test_show_names_the_origin_of_every_key(capsys):
    assert main(["show", "recipe=lora_cola", "seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("recipe: lora_cola  ")
    assert "adapter=lora" in lines[0]
    for line in lines[1:-1]:
        assert line.endswith(":") or "  # " in line, line
    assert any(re.match(r"seed: 7 +# command line$", line) for line in lines)
    assert any(re.match(r"  learning_rate: 0\.0004 +# recipes/lora_cola\.yaml:\d+$", line) for line in lines)
    assert any(re.match(r"  schedule: linear +# conf/trainer/default\.yaml:\d+$", line) for line in lines)
    assert any(re.match(r"  attention: auto +# default$", line) for line in lines)
    assert re.fullmatch(r"# train writes to outputs/lora_cola/[0-9a-f]{8}", lines[-1])


def test_ls_architectures_lists_every_model_type(capsys):
    from adaptrain.architectures import architectures

    assert main(["ls", "architectures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0].rstrip(",") for line in lines[2:]} == set(architectures())
    assert lines[0].startswith("architectures")
    assert main(["ls", "architecturs"]) == 2
    assert "did you mean 'architectures'?" in capsys.readouterr().err
