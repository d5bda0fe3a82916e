"""Tags, trees, summaries, translations and transcripts against the examples that the packages document, and by hand."""

from __future__ import annotations

import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer

from adaptrain.errors import DataError
from adaptrain.evaluation.entities import entity_scores, tag_accuracy
from adaptrain.evaluation.metrics import compute, signatures
from adaptrain.evaluation.summaries import lines, rouge, sentences
from adaptrain.evaluation.transcripts import error_rate, plain
from adaptrain.evaluation.trees import attachment

# ---- tags


def words(*sentences: str) -> list[list[str]]:
    return [sentence.split() for sentence in sentences]


def test_entities_of_the_seqeval_readme() -> None:
    right = words("O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O")
    found = words("O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O")
    assert compute(("entity_f1", "tag_accuracy"), found, right) == {"entity_f1": 0.5, "tag_accuracy": 0.8}
    # what tells the two modes apart
    found, right = words("I-NP I-NP O"), words("B-NP I-NP O")
    assert entity_scores(found, right)["f1"] == 1 and entity_scores(found, right, "iob2")["f1"] == 0


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob1", "I-PER I-PER O I-LOC B-LOC I-ORG"),
        ("iob2", "B-PER I-PER O B-LOC B-LOC B-ORG"),
        ("bioes", "B-PER E-PER O S-LOC S-LOC S-ORG"),
    ],
)
def test_the_same_entities_in_every_scheme(scheme: str, tags: str) -> None:
    """PER is 1 to 2, LOC is 4, LOC is 5, ORG is 6. In the answer the first is cut short, and the third is missing."""
    answer = {
        "iob1": "I-PER O O I-LOC O I-ORG",
        "iob2": "B-PER O O B-LOC O B-ORG",
        "bioes": "S-PER O O S-LOC O S-ORG",
    }[scheme]
    for mode in (None, scheme):
        found = entity_scores(words(answer), words(tags), mode)
        assert found == {
            "precision": pytest.approx(2 / 3),
            "recall": pytest.approx(2 / 4),
            "f1": pytest.approx(2 * 2 / (3 + 4)),
        }
        assert entity_scores(words(tags), words(tags), mode)["f1"] == 1


def test_types_count_and_sentences_do_not_run_together() -> None:
    assert entity_scores(words("B-PER I-PER"), words("B-LOC I-LOC"))["f1"] == 0
    assert entity_scores(words("B-PER", "B-PER"), words("B-PER", "I-PER"))["f1"] == 1
    # a type that changes begins an entity, for the CoNLL script
    assert entity_scores(words("B-PER I-LOC"), words("B-PER B-LOC"))["f1"] == 1
    assert entity_scores(words("B-PER I-LOC"), words("B-PER B-LOC"), "iob2")["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("scheme", [None, "iob1", "iob2", "bioes"])
def test_no_entity_anywhere_is_zero_without_a_warning(scheme: str | None) -> None:
    nothing = words("O O", "O")
    assert entity_scores(nothing, nothing, scheme) == {"precision": 0, "recall": 0, "f1": 0}
    some = words("S-PER O", "O") if scheme == "bioes" else words("I-PER O", "O")
    assert entity_scores(some, nothing, scheme)["f1"] == entity_scores(nothing, some, scheme)["f1"] == 0


def test_tags_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="Row 2 has 1 words and 2 predicted tags"):
        entity_scores(words("O", "O O"), words("O", "O"))
    with pytest.raises(DataError, match="predicted tag 'NN' is no entity.*use tag_accuracy"):
        entity_scores(words("NN"), words("O"))
    with pytest.raises(DataError, match="The tag 'S-PER' is no entity in IOB2"):
        entity_scores(words("O"), words("S-PER"), "iob2")
    assert tag_accuracy(words("NN DT", ""), words("NN VB", "")) == 0.5
    with pytest.raises(DataError, match="no word to score"):
        tag_accuracy([[]], [[]])


# ---- trees


def tree(heads: list[int], relations: str) -> dict:
    return {"heads": heads, "relations": relations.split()}


def test_trees_by_hand() -> None:
    right = [tree([2, 0, 2, 2], "nsubj root acl:relcl punct"), tree([0, 1], "root obj")]
    found = [tree([2, 0, 2, 3], "obj root acl punct"), tree([0, 1], "root obj")]
    assert attachment(found, right) == {"uas": 5 / 6, "las": 4 / 6}
    assert attachment(found, right, punctuation=False) == {"uas": 5 / 5, "las": 4 / 5}
    assert attachment(found, right, subtypes=True)["las"] == 3 / 6
    names = ("uas", "las", "uas_without_punctuation", "las_without_punctuation", "las_subtypes")
    assert list(compute(names, found, right).values()) == [5 / 6, 4 / 6, 1, 4 / 5, 3 / 6]


def test_trees_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="Row 1: there are 1 right heads and 1 right relations, 2 predicted heads"):
        attachment([tree([0, 1], "root obj")], [tree([0], "root")])
    with pytest.raises(DataError, match="no word to score"):
        attachment([tree([0], "punct")], [tree([0], "punct")], punctuation=False)


# ---- summaries

FOX = ["The quick brown dog jumps on the log."], [["The quick brown fox jumps over the lazy dog"]]


def test_rouge_of_the_documented_examples() -> None:
    scores = compute(
        ("rouge1", "rouge2", "rougeL"), ["hello goodbye", "ankh morpork"], [["goodbye"], ["general kenobi"]]
    )
    assert scores == {"rouge1": pytest.approx(1 / 3), "rouge2": 0, "rougeL": pytest.approx(1 / 3)}
    # 6 of 8 and of 9 words; the quick brown, jumps, the
    scores = compute(("rouge1", "rougeL"), *FOX)
    assert scores == {"rouge1": pytest.approx(2 * 6 / 17), "rougeL": pytest.approx(2 * 5 / 17)}
    assert rouge(["testing one"], [["testing one two"]], "rouge2") == [pytest.approx(2 / 3)]


def test_rouge_takes_the_best_reference_of_each_metric() -> None:
    texts = ["text first"], [["first text", "first something"]]
    assert [rouge(*texts, kind)[0] for kind in ("rouge1", "rouge2", "rougeL")] == [1, 0, 0.5]


def test_stems() -> None:
    texts = ["dogs barking"], [["the dog barked"]]
    assert compute(("rouge1", "rouge1_stemmed"), *texts) == {"rouge1": 0, "rouge1_stemmed": pytest.approx(4 / 5)}


def test_sentences_one_by_one() -> None:
    right, found = "First sentence.\nSecond Sentence.", "Second sentence.\nFirst Sentence."
    for change in (str, lambda text: text.replace("\n", " ")):
        texts = [change(found)], [[change(right)]]
        assert compute(("rougeLsum", "rougeL"), *texts) == {"rougeLsum": 1, "rougeL": 0.5}


def test_lines_are_kept_where_there_are_some() -> None:
    """As the reference has it: a line is a sentence, whatever stands in it."""
    assert lines("One. Two.\nthree") == "One. Two.\nthree" and lines("One. Two.\n") == "One.\nTwo."
    right, found = "a b. C d\ne f", "C d\na b. E f"
    scorer = RougeScorer(["rougeLsum"])
    for texts in ((right, found), (found, right)):
        assert (
            compute(("rougeLsum",), [texts[1]], [[texts[0]]])["rougeLsum"] == scorer.score(*texts)["rougeLsum"].fmeasure
        )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One sentence", 1),
        ("Mr. Smith met J. R. Tolkien at 5 p.m. in Leeds. He left.", 2),
        ('"Stop!" He stopped. (He ran.) Why? 7 men came.', 5),
        ("One. Two\nlines.\n \nThree", 3),
        ("First\n\n\nsecond.\n", 2),
        ("It cost 3.5 dollars, e.g. in Rome. Élan won.", 2),
    ],
)
def test_where_sentences_end(text: str, count: int) -> None:
    found = sentences(text)
    assert len(found) == count and " ".join(found) == " ".join(text.split())


def test_nothing_is_downloaded_for_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk, "sent_tokenize", refuse)
    assert compute(("rougeLsum_stemmed",), ["A dog. A cat."], [["A cat. A dog."]])["rougeLsum_stemmed"] == 1


# ---- translations

DOG = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
MAN = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_the_examples_of_sacrebleu() -> None:
    assert compute(("bleu",), DOG, MAN)["bleu"] == pytest.approx(0.4853, abs=5e-5)
    fewer = [MAN[0][1:], *MAN[1:]]
    assert compute(("bleu",), DOG, fewer)["bleu"] == pytest.approx(0.2944, abs=5e-5)
    said = ["hello there general kenobi", "on our way to ankh morpork"]
    right = [["hello there general kenobi", "hello there !"], ["goodbye ankh morpork", "ankh morpork"]]
    assert compute(("bleu",), said, right)["bleu"] == pytest.approx(0.3976, abs=5e-5)
    friends = [
        "The relationship between cats and dogs is not exactly friendly.",
        "a good bookshop is just a genteel black hole that knows how to read.",
    ]
    right = [
        ["The relationship between dogs and cats is not exactly friendly."],
        ["A good bookshop is just a genteel Black Hole that knows how to read."],
    ]
    scores = compute(("chrf", "chrf++"), friends, right)
    assert scores == {"chrf": pytest.approx(0.8464214891738334), "chrf++": pytest.approx(0.8287263732906315)}


def test_edits_with_shifts_by_hand() -> None:
    # one block is moved: one edit of six words; case does not count
    assert compute(("ter",), ["b c a d e f"], [["A b c d e f"]])["ter"] == pytest.approx(1 / 6)
    assert compute(("ter",), ["x y z"], [["a"]])["ter"] == 3


def test_signatures_say_what_was_computed() -> None:
    import sacrebleu

    version = f"version:{sacrebleu.__version__}"
    found = signatures(("bleu", "accuracy", "chrf", "bleu_zh"), MAN)
    assert found == {
        "bleu": f"nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|{version}",
        "chrf": f"nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}",
        "bleu_zh": f"nrefs:2|case:mixed|eff:no|tok:zh|smooth:exp|{version}",
    }
    tool = sacrebleu.BLEU()
    tool.corpus_score(DOG, [list(texts) for texts in zip(*MAN, strict=True)])
    assert found["bleu"] == str(tool.get_signature())
    assert signatures(("bleu",), [MAN[0][1:], *MAN[1:]])["bleu"].startswith("nrefs:var|")
    assert signatures(("rougeL_stemmed",), MAN)["rougeL_stemmed"].startswith("F1|mean|stemmer:yes|rouge-score:")
    assert signatures(("entity_f1_iob2",), [["O"]])["entity_f1_iob2"].startswith(
        "average:micro|mode:strict|scheme:iob2|"
    )
    assert "no punctuation" in signatures(("wer_normalised",), MAN)["wer_normalised"]


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge1", "rougeLsum_stemmed"])
def test_an_empty_text_scores_zero(name: str) -> None:
    assert compute((name,), ["", ""], [["a dog"], ["a cat"]])[name] == 0
    assert compute((name,), ["a dog"], [[""]])[name] == 0
    with pytest.raises(DataError, match="Row 2 has no reference"):
        compute((name,), ["", ""], [["a dog"], []])


# ---- transcripts


def test_error_rates_of_the_documented_examples() -> None:
    said, right = (
        ["this is the prediction", "there is an other sample"],
        [["this is the reference"], ["there is another one"]],
    )
    assert compute(("wer", "cer"), said, right) == {"wer": 0.5, "cer": pytest.approx(0.34146341463414637)}
    assert compute(("wer",), ["hello duck"], [["hello world"]])["wer"] == 0.5


def test_text_is_compared_as_it_is_or_normalised() -> None:
    said, right = ["Well, it’s 5 o'clock!"], [["WELL IT'S 5 O'CLOCK"]]
    assert compute(("wer", "wer_normalised", "cer_normalised"), said, right) == {
        "wer": 3 / 4,  # 5 is 5
        "wer_normalised": 0,
        "cer_normalised": 0,
    }
    assert plain("'Tis the “best” ﬁsh — 50% off; e-mail") == "tis the best fish 50 off e mail"


def test_error_rates_at_the_edges() -> None:
    assert error_rate([""], [["a b c"]]) == 1  # every word is deleted
    assert error_rate(["a x y z"], [["a"]]) == 3
    # over all words together, not the mean over rows
    assert error_rate(["a", "x"], [["a b c"], ["y"]]) == pytest.approx(3 / 4)
    with pytest.raises(DataError, match="Row 2: the reference ' ' has no word, so its error rate is not defined"):
        compute(("wer",), ["a", "b"], [["a"], [" "]])
    with pytest.raises(DataError, match=r"Row 1: the reference '\.\.\.' has no word once normalised"):
        compute(("cer_normalised",), ["a"], [["..."]])
    with pytest.raises(DataError, match="Row 1 has 2 references"):
        compute(("wer",), ["a"], [["a", "b"]])


def test_names_of_metrics_cost_no_package() -> None:
    import subprocess

    heavy = "{'evaluate', 'sklearn', 'scipy', 'nltk', 'rouge_score', 'sacrebleu', 'seqeval', 'jiwer'}"
    code = f"import sys, adaptrain.evaluation.metrics; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
