"""Three rows as a file of any format, and the texts of a source."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow

from adaptrain.tasks.sources import Source
from tiny_run import write_jsonl

ROWS = [{"sentence": "a day", "label": 1}, {"sentence": "NA", "label": 0}, {"sentence": 'said "no", twice', "label": 1}]
EXPECTED = [str(row["sentence"]) for row in ROWS]


def texts(source: Source, split: str = "train") -> list[str]:
    """What a source has in the column of `ROWS` that is text; of all rows these are `EXPECTED`."""
    return list(source.read(split)["sentence"])


def write_arrow(file: Path, stream: bool = True) -> None:
    """In one of Arrow's two layouts, a stream or a file."""
    table = datasets.Dataset.from_list(ROWS).data.table
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(str(file), table.schema) as out:
        out.write_table(table)


def write(folder: Path, suffix: str, name: str = "train") -> Path:
    """`ROWS` as a file of the format that a suffix means."""
    file = folder / f"{name}.{suffix}"
    if suffix == "jsonl":
        write_jsonl(file, ROWS)
    elif suffix == "json":
        file.write_text(json.dumps(ROWS, indent=1))
    elif suffix == "csv":
        file.write_text('sentence,label\na day,1\nNA,0\n"said ""no"", twice",1\n')
    elif suffix == "tsv":
        file.write_text('sentence\tlabel\na day\t1\nNA\t0\nsaid "no", twice\t1\n')
    elif suffix == "arrow":
        write_arrow(file)
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(file)
    return file
