"""The verbs: what each is called with, what it does, and where it lives."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        name: as typed.
        usage: what follows it.
        summary: one line, for the list of verbs.
        details: the rest of its help.
        module: of `adaptrain.cli`, with a function `run(arguments) -> exit code`; imported when the verb is used.
        flags: options that it takes; everything else is a path or an override.
        hidden: not for people.
    """

    name: str
    usage: str
    summary: str
    details: str
    module: str
    flags: tuple[str, ...] = ()
    hidden: bool = False

    def load(self) -> Callable[[Sequence[str]], int]:
        return importlib.import_module(f"adaptrain.cli.{self.module}").run


_OVERRIDES = """\
Overrides:
  recipe=NAME                   a recipe of recipes/ or of ./recipes, or the path of a .yaml file; the config.yaml of a
                                finished run is one
  model=NAME adapter=NAME       what to take instead (adaptrain ls shows the names); yours lie in ./conf/model and so on
  task=NAME trainer=NAME
  trainer.epochs=3              any key (adaptrain show recipe=NAME shows them all)
  '~adapter.r'                  drop what a recipe sets
The grammar is Hydra's: lists are [a,b], mappings {a: 1}; quote what the shell would read."""

_BASE = """\
  model.name=FOLDER             where the base model is now, if not where it was; the weights must be the same
  model.revision= model.package=
  model.allow_remote_code=NAME  run the Python code that comes with this base model; only the command line can say so"""

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "train",
            "recipe=NAME [-m] [key=value …]",
            "train an adapter, evaluate it, save it",
            f"""\
  adaptrain train recipe=quickstart
  adaptrain train recipe=lora_cola model=minilm data.mirror=./mirror trainer.epochs=10
  adaptrain train -m recipe=lora_cola,prefix_cola seed=1,2,3     one run for each combination

{_OVERRIDES}

A run goes to outputs/<recipe>/<hash of its config>. A finished one is not repeated unless force=true; where its rows,
base model or saved adapters have changed since, the command says so instead of showing the old result.
  -m, --multirun                several values a key, one run for each combination; hydra/launcher=joblib and other
                                plug-ins of Hydra run them elsewhere""",
            "train",
            ("-m", "--multirun"),
        ),
        Verb(
            "eval",
            "PATH [key=value …]",
            "evaluate a saved adapter",
            f"""\
  adaptrain eval outputs/lora_cola/1a2b3c4d        the folder says everything: model, task, metric, head

Overrides:
  split=NAME                    another split than training reported on
  data.mirror=FOLDER            take the rows from here
  task.path=PATH                where the rows are now, if not where they were
{_BASE}
  trainer.precision=fp32        auto, fp32 or bf16; that of training if not given
  trainer.eval_batch_size=N
  trainer.device=NAME
  skip_layers=[0,1,2]           without the adapters of these layers, counted over the whole model""",
            "evaluate",
        ),
        Verb(
            "predict",
            "PATH --input FILE [--output FILE] | --text TEXT … [key=value …]",
            "what a saved adapter says of new rows",
            f"""\
  adaptrain predict outputs/lora_cola/1a2b3c4d --input new.csv --output said.csv
  adaptrain predict outputs/lora_cola/1a2b3c4d --text "They fixed the car." --text "Fixed they."
  adaptrain predict outputs/lora_mrpc/1a2b3c4d --text "One text." --text-pair "The text it is read with."
  adaptrain predict outputs/lora_squad/1a2b3c4d question="Who came?" context="Nobody came."

One line for each row, in order. Labels are not needed, and not looked at. Without --output the rows are printed: as a
table on a terminal, else as JSON lines.
  --input FILE                  .csv, .tsv, .jsonl, .json, .parquet, .arrow, .txt, .conll,
                                .conllu, also compressed
  --output FILE                 .csv or .jsonl
  --keep COLUMN,COLUMN          columns of the input that stand in the output too; all for all of them
  --skip-bad                    a row that cannot be read gets an error instead of a prediction; else nothing is
                                predicted where there is one
  --force                       replace what --output names
  --text TEXT                   instead of --input, for tasks on texts; once for each row
  --text-pair TEXT              what it is read with, once for each --text

Overrides:
  ROLE="…"                      one row of a task that reads something else; choices="one|other"
  task.columns.ROLE=NAME        the column of the input that plays a role, where that cannot be found out
{_BASE}
  trainer.precision=fp32        auto, fp32 or bf16; that of training if not given
  trainer.eval_batch_size=N
  trainer.device=NAME""",
            "predict",
            ("--input", "--output", "--text", "--text-pair", "--keep", "--skip-bad", "--force"),
        ),
        Verb(
            "table",
            "[FOLDER] [--format md|csv|latex]",
            "method × task, from all runs in a folder",
            """\
  adaptrain table                       the runs in outputs/
  adaptrain table outputs/ --format md > table.md""",
            "table",
            ("--format",),
        ),
        Verb(
            "eject-prefix",
            "PATH [out=FOLDER] [key=value …]",
            "make a reparameterised prefix flat: same outputs, smaller file",
            f"""\
  adaptrain eject-prefix outputs/prefix_cola/1a2b3c4d            in place
  adaptrain eject-prefix outputs/prefix_cola/1a2b3c4d out=flat   into a new folder

Overrides:
{_BASE}""",
            "eject",
        ),
        Verb(
            "average",
            "PATH PATH … --out FOLDER [option …]",
            "one adapter of several saved ones: averages, task arithmetic, TIES, DARE",
            """\
  adaptrain average outputs/lora_cola/* --out mean                the mean of all, heads too
  adaptrain average A B C --weights 0.5,0.3,0.2 --out mean
  adaptrain average A B --weights 1,-1 --no-normalize --out diff   task arithmetic
  adaptrain average A B --strategy lora_delta_w_svd --svd-rank 8 --out both
  adaptrain average A B C --strategy ties --density 0.2 --out merged

The base model is not loaded. Runs of one task can be evaluated at once: adaptrain eval mean.
  --weights N,N,…               one a folder, in order; equal if not given
  --no-normalize                do not divide them by their sum
  --strategy NAME               linear, lora_linear_only_negate_b, lora_delta_w_svd, ties or dare; linear if not given
  --svd-rank N                  rank of the result: lora_delta_w_svd; ties and dare on LoRA's updates
  --density N                   what ties and dare keep of each adapter, 0.2 for a fifth
  --seed N                      of dare
  --name NAME                   of the result; the name that all bear if not given, or else the folder's
  --force                       replace what --out holds; an earlier average is replaced anyway""",
            "average",
            (
                "--weights",
                "--out",
                "--strategy",
                "--density",
                "--svd-rank",
                "--seed",
                "--name",
                "--no-normalize",
                "--force",
            ),
        ),
        Verb(
            "data",
            "PATH|task=NAME [key=value …]",
            "what is in data: columns, labels, lengths, bad rows, repetitions, leaks",
            """\
  adaptrain data reviews.csv                                  one file, or a folder of <split>.csv
  adaptrain data reviews.csv task.columns.text=body model=minilm
  adaptrain data task=cola data.mirror=./mirror model=minilm data.max_length=64
  adaptrain data task=cola task.splits.validation=held_out task.splits.test=validation \\
      'task.splits.carve={to: held_out, rows: 500}'

Overrides:
  model=NAME                    lengths in its tokens, and what data.max_length cuts
  data.bad_rows=skip            bad rows are no error; else the exit code is 3 where there are some
  task.columns.text=NAME        and any other key of task and data""",
            "data",
        ),
        Verb(
            "ls",
            "[recipes|adapters|models|tasks|trainers|architectures]",
            "what there is to choose from",
            """\
  adaptrain ls                          everything
  adaptrain ls recipes                  with those of ./recipes, as the others with those of ./conf
  adaptrain ls adapters model=minilm    and what each trains on that model
  adaptrain ls architectures            the model types that adapters can be put on""",
            "ls",
        ),
        Verb(
            "show",
            "recipe=NAME [key=value …]",
            "a run's config, and which file each key came from",
            f"""\
  adaptrain show recipe=lora_cola model=minilm

{_OVERRIDES}""",
            "show",
        ),
        Verb(
            "completion",
            "bash|zsh|fish",
            "a script that makes the shell complete verbs, names and keys",
            """\
  eval "$(adaptrain completion bash)"                    in ~/.bashrc
  eval "$(adaptrain completion zsh)"                     in ~/.zshrc, after compinit
  adaptrain completion fish | source                     in ~/.config/fish/config.fish""",
            "completion",
        ),
        Verb("_complete", "LINE", "", "", "candidates", hidden=True),
    )
}


def overview() -> str:
    """What `adaptrain --help` prints."""
    shown = [verb for verb in VERBS.values() if not verb.hidden]
    width = max(len(verb.name) for verb in shown)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in shown]
    return "\n".join(
        [
            "usage: adaptrain VERB [PATH] [key=value …]",
            "",
            "Adapters for transformers models, from YAML recipes.",
            "",
            *lines,
            "",
            "  adaptrain VERB --help    more on a verb",
            "  adaptrain --version",
            "",
            "Start with: adaptrain train recipe=quickstart",
        ]
    )


def help_of(verb: Verb) -> str:
    """What `adaptrain VERB --help` prints."""
    return (
        f"usage: adaptrain {verb.name} {verb.usage}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.\n\n{verb.details}"
    )
