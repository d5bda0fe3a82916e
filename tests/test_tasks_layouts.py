"""Files as the tasks publish them: SQuAD, wrapped JSON, CoNLL, CoNLL-U, quoted tsv; and what is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pytest

from adaptrain.errors import DataError
from adaptrain.tasks import formats
from adaptrain.tasks.formats import read_file
from adaptrain.tasks.layouts.tables import is_quoted

# ---- JSON: rows inside one object

ROWS = [{"text": "a day", "label": 1}, {"text": "cold soup", "label": 0}]
FRAME = pandas.DataFrame(ROWS)

SOUP = {"text": "soup", "answer_start": 4}
ASKED = [
    {"id": "a", "question": "What was cold?", "answers": [SOUP, SOUP], "is_impossible": False},
    {"id": "b", "question": "Who ate?", "answers": [], "plausible_answers": [SOUP], "is_impossible": True},
]
ARTICLES = [
    {"title": "Soup", "paragraphs": [{"context": "The soup was cold.", "qas": ASKED}]},
    {"title": "None", "paragraphs": []},
    {"title": "Tea", "paragraphs": [{"context": "Tea.", "qas": [{"id": "c", "question": "What?", "answers": []}]}]},
]
FLAT = [
    {
        "id": "a",
        "title": "Soup",
        "context": "The soup was cold.",
        "question": "What was cold?",
        "answers": {"text": ["soup", "soup"], "answer_start": [4, 4]},
        "is_impossible": False,
    },
    {
        "id": "b",
        "title": "Soup",
        "context": "The soup was cold.",
        "question": "Who ate?",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": True,
    },
    {
        "id": "c",
        "title": "Tea",
        "context": "Tea.",
        "question": "What?",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": False,
    },
]


def read(tmp_path: Path, name: str, content: str | bytes) -> list[dict[str, Any]]:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_file(file).to_list()


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "many"])
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"version": "v2.0", "data": ARTICLES}, FLAT),
        (ARTICLES, FLAT),
        ({"data": ROWS}, ROWS),
        ({"version": "1", "license": {"name": "x"}, "data": ROWS}, ROWS),
        ({"examples": ROWS}, ROWS),
        ({"text": ["a day", "cold soup"], "label": [1, 0]}, ROWS),
        (FRAME.to_dict("list"), ROWS),
        *((json.loads(str(FRAME.to_json(orient=orient))), ROWS) for orient in ("columns", "index", "split", "table")),
        ({"text": "a day", "label": 1}, ROWS[:1]),
    ],
)
def test_rows_inside_one_object(indent: int | None, form: Any, expected: list[Any], tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(form, indent=indent).replace("\n", "\r\n") + "\n\n"
    found = read(tmp_path, "train.json", text)
    assert [{key: value for key, value in row.items() if key != "index"} for row in found] == expected


def test_squad_of_version_1_has_no_column_of_impossible_questions(tmp_path: Path) -> None:
    article = {"title": "T", "paragraphs": [{"context": "soup", "qas": [{"id": "a", "question": "?", "answers": []}]}]}
    (row,) = read(tmp_path, "dev-v1.1.json", json.dumps({"version": "1.1", "data": [article]}))
    assert list(row) == ["id", "title", "context", "question", "answers"]


def test_a_line_of_jsonl_is_a_row_unless_it_has_data(tmp_path: Path) -> None:
    row = {"tokens": ["a", "day"], "tags": ["O", "O"], "notes": [{"by": "x"}]}
    assert read(tmp_path, "train.jsonl", json.dumps(row)) == [row]
    assert read(tmp_path, "train.jsonl", json.dumps({"version": "v2.0", "data": ARTICLES})) == FLAT
    assert len(read(tmp_path, "train.jsonl", f"{json.dumps({'data': ROWS})}\n" * 2)) == 2


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"data": [ROWS[0], 3]}, ["train.json, data, item 2", "not 3"]),
        ({"text": ["a", "b"], "label": [1]}, ["text has 2", "label has 1"]),
        ({"train": ROWS, "dev": ROWS}, ["train, dev", "a file of its own"]),
        ({"v": 1, "questions": ROWS}, ["v, questions", "under 'data'"]),
        ({"columns": ["text", "label"], "data": [["a"]]}, ["data, item 1", "2 columns (text, label)"]),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, ["data, article 1, paragraph 1", "'qas'", "context"]),
        ({"data": [{"paragraphs": [{"qas": ["x"]}]}]}, ["article 1, paragraph 1, question 1", "'x'"]),
        ({"data": [{"paragraphs": [{"qas": [{"answers": "x"}]}]}]}, ["question 1", "answers", "'x'"]),
        ({"data": [*ARTICLES, {"title": "x"}]}, ["article 4", "'paragraphs'"]),
        ('{"a": 1,\n "b": 2\n}\n{"a": 2,\n "b": 3\n}', ["train.json:4", "one line", "one list"]),
        ('{"data": [\n{"a": 1},\n{"a" 2}]}', ["train.json:3", "broken JSON"]),
        ('{"data": []}', ["has no rows"]),
        ('{"a": ' + "[" * 100_000, ["train.json", "deep"]),
    ],
)
def test_objects_that_hold_no_rows(content: Any, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "train.json", content if isinstance(content, str) else json.dumps(content))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_rows_kept_by_an_older_version_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(formats, "LARGE", 1)
    for version in (0, 1, 1):
        monkeypatch.setattr(formats, "_READS", version)
        assert read(tmp_path, "train.json", json.dumps({"data": ROWS})) == ROWS
    assert len(list((tmp_path / "cache/adaptrain").iterdir())) == 2


# ---- CoNLL columns


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nsays VBZ B-VP O\n\n-DOCSTART- -X- O O\n\nYes UH B-INTJ O\n",
            {
                "tokens": [["EU", "says"], ["Yes"]],
                "pos_tags": [["NNP", "VBZ"], ["UH"]],
                "chunk_tags": [["B-NP", "B-VP"], ["B-INTJ"]],
                "ner_tags": [["B-ORG", "O"], ["O"]],
            },
        ),
        (
            "\ufeffa\tO\r\nb\tB-X\r\n\r\n \t \r\nc d\tO\t\r\n\r\n\r\n",  # a mark, CRLF, empty lines, a blank in a token
            {"tokens": [["a", "b"], ["c d"]], "tags": [["O", "B-X"], ["O"]]},
        ),
        ("a  NN O\n b NN O", {"tokens": [["a", "b"]], "pos_tags": [["NN", "NN"]], "tags": [["O", "O"]]}),
        ("\u00a0 O\n\u2028 O\n", {"tokens": [["\u00a0", "\u2028"]], "tags": [["O", "O"]]}),
        ("a _ _ _ O\n", {"tokens": [["a"]], **{f"column{n}": [["_"]] for n in (2, 3, 4)}, "tags": [["O"]]}),
        ("# id 1 domain=en\na _ _ O\n# _ _ O\n", {"tokens": [["a", "#"]], "ner_tags": [["O", "O"]]}),
        ("# text = a b\na O\n\n# O\n#id O\n\n#tag O\n", {"tokens": [["a"], ["#", "#id"], ["#tag"]]}),
        ("# O\nb O\n", {"tokens": [["#", "b"]], "tags": [["O", "O"]]}),
        ("a\n\nb\n", {"tokens": [["a"], ["b"]]}),  # to predict
    ],
)
def test_conll_columns(content: str, expected: dict[str, Any], tmp_path: Path) -> None:
    rows = read(tmp_path, "train.conll", content)
    assert {name: [row[name] for row in rows] for name in expected} == expected
    if len(expected) > 1 and "_" not in content:
        assert list(rows[0]) == list(expected) or "#" in content


def test_conll_in_a_txt_is_told_by_where_a_document_begins(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n"
    assert read(tmp_path, "train.txt", content)[0]["ner_tags"] == ["B-ORG"]
    assert read(tmp_path, "dev.txt", content.split("\n\n")[1]) == [{"text": "EU NNP B-NP B-ORG"}]


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("a O\nb\n", ["train.conll:2", "1 columns", "line 1 has 2"]),
        ("\n\n# x\na\tO\nb O\n", ["train.conll:5", "line 4 has 2"]),
        ("-DOCSTART- O\n\n\n", ["has no rows"]),
        (b"caf\xe9 O\n", ["train.conll", "UTF-8 (byte 3)"]),
    ],
)
def test_broken_conll(content: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "train.conll", content)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


# ---- CoNLL-U

TREES = (
    "# newdoc\n# sent_id = s-1\n# text = It's cold\n"
    "1-2\tIt's\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tIt\tit\tPRON\tPRP\tCase=Nom\t3\tnsubj\t_\t_\n"
    "2\t's\tbe\tAUX\tVBZ\t_\t3\tcop\t_\t_\n"
    "2.1\tvery\tvery\tADV\tRB\t_\t_\t_\t3:advmod\t_\n"
    "3\tcold\tcold\tADJ\tJJ\t_\t0\troot\t_\t_\n"
    "\n"
    "1\t_\t_\tSYM\tNFP\t_\t_\t_\t_\t_\n"
)


@pytest.mark.parametrize("name", ["train.conllu", "train.conll", "train.CONLLU"])
def test_conllu_has_the_words_with_heads(name: str, tmp_path: Path) -> None:
    first, second = read(tmp_path, name, "\ufeff" + TREES.replace("\n", "\r\n") + "\r\n\r\n")
    assert first == {
        "idx": "s-1",
        "text": "It's cold",
        "tokens": ["It", "'s", "cold"],
        "lemmas": ["it", "be", "cold"],
        "upos": ["PRON", "AUX", "ADJ"],
        "xpos": ["PRP", "VBZ", "JJ"],
        "feats": ["Case=Nom", "_", "_"],
        "head": [3, 3, 0],
        "deprel": ["nsubj", "cop", "root"],
    }
    assert (second["idx"], second["text"], second["tokens"], second["head"]) == (None, None, ["_"], [None])


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (TREES.replace("2\t's", "3\t's"), ["train.conllu:6", '"\'s"', "2 follows"]),
        (TREES.replace("\t_\t_\n\n1", "\t_\n\n1"), ["train.conllu:8", "9 columns"]),
        (TREES.replace("\t0\troot", "\tx\troot"), ["train.conllu:8", "'x'"]),
        (TREES.replace("\t", " "), ["train.conllu:4", "tabs"]),
        ("# text = none\n\n", ["has no rows"]),
        ("1-2\tab\t_\t_\t_\t_\t_\t_\t_\t_\n", ["has no rows"]),
        (TREES.replace("It's", "caf\xe9").encode("latin-1"), ["UTF-8"]),
    ],
)
def test_broken_conllu(content: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, "train.conllu", content)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


# ---- tsv with quotes and without


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a\tb\nx\t1\n", False),
        ('a\tb\n"x ""y"" z"\t1\n', True),
        ('a\tb\r\n"x\ty"\t1\r\n', True),
        ('a\tb\n"x\ny"\t1', True),
        ('"a"\t"b"\n"x."\t1\n', True),  # every name is quoted
        ('a\tb\n"x."\t1\n', False),  # a text in quotation marks
        ('a\tb\nsaid "no", twice\t1\n', False),
        ('a\tb\n"No," he said.\t1\n"x ""y"" z"\t1\n', False),  # one stray quote decides
        ('a\tb\n"x ""y"" z"\t1\n"No.\t0\n', False),
        ('a\tb\n"x ""y"" z"\t1\n"No."\t0\n', False),
    ],
)
def test_quotes_of_a_tsv(text: str, quoted: bool, tmp_path: Path) -> None:
    assert is_quoted(text) is quoted
    first = read(tmp_path, "train.tsv", text)[0]
    assert set(first) == {"a", "b"} and (not quoted or not first["a"].startswith('"'))


def test_a_tsv_that_a_writer_made_is_read_as_it_was(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ['said "no"', "a\tb", "two\nlines", ' "', "NA"], "label": [1, 0, 1, 0, 1]})
    for quoting in (0, 1, 2):  # QUOTE_MINIMAL, QUOTE_ALL, QUOTE_NONNUMERIC
        frame.to_csv(tmp_path / "train.tsv", sep="\t", index=False, quoting=quoting)
        assert read_file(tmp_path / "train.tsv").to_list() == frame.to_dict("records")


@pytest.mark.parametrize(("between", "fragment"), [(";", "semicolons"), ("\t", ".tsv")])
def test_a_csv_without_commas_is_refused(between: str, fragment: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"train\.csv.*{fragment}"):
        read(tmp_path, "train.csv", f"text{between}label\na day{between}1\n")
    assert read(tmp_path, "train.csv", "text\na; b\n") == [{"text": "a; b"}]


# ---- what is not read


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("train.xlsx", b"PK\x03\x04", ["Excel", ".csv"]),
        ("train.XLS", b"\xd0\xcf\x11\xe0", ["Excel", ".csv"]),
        ("train.ods", b"PK\x03\x04", ["OpenDocument", ".csv"]),
        ("train.pkl", pickle.dumps(ROWS), ["pickle", ".jsonl"]),
        ("train.pt", b"PK\x03\x04", ["torch.save", ".parquet"]),
        ("train.tar.gz", b"\x1f\x8b", ["archive", "unpack"]),
        ("train.ndjson", b"{}", ["rename it to .jsonl"]),
        ("train.bio", b"a O", ["rename it to .conll"]),
        ("eng.testa", b"-DOCSTART- -X- O O\n", [".testa", "CoNLL", "rename it to .conll"]),
        ("train.squad", b'\xef\xbb\xbf {"data": 1}', ["JSON", "rename it to .json"]),
        ("train", b"some words", ["without an ending", "text file"]),
        ("train.dat", b"a\0b", [".dat", "binary"]),
    ],
)
def test_unread_endings(name: str, content: bytes, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    missing = [each for each in (*fragments, name, ".jsonl", ".conllu", ".zst") if each not in str(caught.value)]
    assert missing == []


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.txt", "train.jsonl", "train.conll"])
def test_a_file_of_another_format_under_a_wrong_ending(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sheet", "w") as archive:
        archive.writestr("a", bytes(range(256)))
    with pytest.raises(DataError, match=rf"{name}.*XLSX"):
        read(tmp_path, name, (tmp_path / "sheet").read_bytes())


@pytest.mark.parametrize("name", ["train.arrow", "train.parquet"])
def test_a_binary_file_that_is_not_what_its_ending_says(name: str, tmp_path: Path) -> None:
    for content in (b"no table", b"ARROW1\0\0no table", b"\xff\xff\xff\xff\x10\0\0\0", pickle.dumps(ROWS)):
        with pytest.raises(DataError, match=rf"{name} cannot be read as {name.split('.')[1]}"):
            read(tmp_path, name, content)
