"""An adapted model in transformers' Trainer, and gradient checkpointing however it is switched on."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import adaptrain
from adaptrain.errors import UnsupportedError
from every_head import EVERY, headed
from matrix import METHODS, adapted, add, base, batch, gap, randomise, said

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.*deprecated:FutureWarning")

# ---- gradient checkpointing


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.train().zero_grad()
    torch.manual_seed(7)  # dropout is on
    said(model(**inputs)).pow(2).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}


def by_the_base(model: Any, **options: Any) -> None:
    """The base model's own method, past ours."""
    inner = model.base_model
    getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)(**options)


NEW = hasattr(hf.PreTrainedModel, "activation_checkpointing_enable")
REENTRANT = {"use_reentrant": True}
NEWER = ("half",)
"""What transformers can do since it has the new name."""
WAYS = {
    "ours": lambda model: model.gradient_checkpointing_enable(),
    "old-name": lambda model: model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=REENTRANT),
    "new-name": lambda model: model.activation_checkpointing_enable(REENTRANT),
    "base": by_the_base,
    "base-reentrant": lambda model: model.base_model.gradient_checkpointing_enable(REENTRANT),
    "base-stored": lambda model: model.base_model.gradient_checkpointing_enable({"use_reentrant": False}),
    "half": lambda model: model.activation_checkpointing_enable(every_n_layers=2),
}
"""How layers come to be recomputed."""
ways = pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=pytest.mark.skipif(name in NEWER and not NEW, reason="too old"))
        for name, way in WAYS.items()
    ],
)


@pytest.mark.parametrize(("arch", "method"), [("bert", "compacter"), ("gpt2", "lora"), ("bart", "prefix_tuning")])
@ways
def test_recomputed_layers_give_the_same_gradients_whoever_asks(arch, method, way):
    model, inputs = adapted(arch, METHODS[method]), batch(arch) | {"use_cache": False}
    model.train_adapter("a")
    stored = gradients(model, inputs)
    way(model)
    assert model.base_model.is_gradient_checkpointing
    recomputed = gradients(model, inputs)
    assert all(bool(grad.any()) for grad in recomputed.values())
    assert max(gap(recomputed[name], stored[name]) for name in stored) < 1e-6
    model.gradient_checkpointing_disable()
    assert not model.base_model.is_gradient_checkpointing


@pytest.mark.parametrize("options", [REENTRANT, None], ids=["reentrant", "default"])
def test_a_base_that_recomputes_before_it_gets_adapters(options):
    stored = None
    for asked in (False, True):
        plain = base("bert")
        if asked:
            plain.gradient_checkpointing_enable(options)
        model = adaptrain.init(plain)
        add(model, "a", METHODS["lora"])
        model.train_adapter("a")
        found = gradients(model, batch("bert"))
        stored = stored or found
    assert max(gap(found[name], stored[name]) for name in stored) < 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_a_checkpoint_around_a_layer_that_knows_no_forward_is_refused(method, reentrant, monkeypatch):
    model, inputs = adapted("bert", METHODS[method]), batch("bert")
    model.train_adapter("a")
    model.enable_input_require_grads()  # what reentrant checkpoints need in order to lose gradients without a word
    layer = model.base_model.encoder.layer[1]
    forward = layer.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=reentrant)

    monkeypatch.setattr(layer, "forward", recomputed)
    output = said(model(**inputs))
    with pytest.raises(UnsupportedError, match="run again in a backward pass.*gradient_checkpointing_enable"):
        output.pow(2).mean().backward()


def test_the_recompute_adds_nothing_to_what_was_told():
    model, inputs = adapted("bert", METHODS["lora-gated"]), batch("bert")
    model.train_adapter("a")
    model.gradient_checkpointing_enable()
    output = model(**inputs, output_adapter_gating_scores=True)
    shapes = {place: scores.shape for place, scores in output.adapter_gating_scores["a"][0].items()}
    said(output).pow(2).mean().backward()
    assert {place: scores.shape for place, scores in output.adapter_gating_scores["a"][0].items()} == shapes


def test_an_option_that_this_transformers_lacks_is_refused_by_name():
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(UnsupportedError, match="no option every_other_layer.*leave it out"):
        model.gradient_checkpointing_enable(every_other_layer=True)


# ---- the Trainer


def rows(kind: str, count: int = 4) -> list[dict[str, Tensor]]:
    """A data set with a column that no model reads."""
    line = EVERY[kind]
    inputs = {key: each.float() if each.is_floating_point() else each for key, each in batch(line.arch, (6, 6)).items()}
    inputs |= line.more(inputs)
    if kind == "choice":
        inputs = {key: value if key == "labels" else value.unflatten(0, (1, 2)) for key, value in inputs.items()}
    single = [{key: value[row] for key, value in inputs.items()} for row in range(len(next(iter(inputs.values()))))]
    return [single[number % len(single)] | {"other": torch.tensor(number)} for number in range(count)]


def model_of(kind: str) -> Any:
    """A model with a named head; `own`: with the head of its own class."""
    return adapted("gpt2", METHODS["lora"], auto=hf.AutoModelForCausalLM) if kind == "own" else headed(kind)[0]


def arguments(folder, **options: Any) -> hf.TrainingArguments:
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2} | options
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    return hf.TrainingArguments(str(folder), **quiet | {"max_grad_norm": 0.0} | options)


def trained(kind: str, folder, **options: Any) -> tuple[Any, Any]:
    model, _ = headed(kind)
    model.train_adapter("a")
    trainer = hf.Trainer(model, arguments(folder, **options), train_dataset=rows(kind), eval_dataset=rows(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return model, trainer


@pytest.mark.parametrize("kind", EVERY)
def test_the_trainer_trains_every_head_as_it_comes(kind, tmp_path):
    before = {name: value.clone() for name, value in headed(kind)[0].state_dict().items()}
    model, trainer = trained(kind, tmp_path)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and changed <= {name for name, _ in model.trainable_parameters()}
    if kind not in ("choice", "tree"):  # of words and choices there are others than rows
        assert trainer.evaluate()["eval_loss"] > 0  # labels are found by the class's name


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
@pytest.mark.parametrize("kind", ["classification", "next", "writing"])
def test_the_trainers_checkpointing_changes_nothing(kind, options, tmp_path):
    torch.manual_seed(0)
    stored = trained(kind, tmp_path)[0].trainable_state()
    torch.manual_seed(0)
    more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}
    recomputed = trained(kind, tmp_path, **more)[0]
    assert recomputed.base_model.is_gradient_checkpointing
    assert max(gap(value, stored[name]) for name, value in recomputed.trainable_state().items()) < 1e-5


@pytest.mark.parametrize("kind", ["classification", "next", "own"])
def test_accumulated_gradients_are_those_of_one_batch(kind, tmp_path):
    """Named heads give means of their batch: the Trainer must not take them for shares of a sum."""
    found = []
    for size, steps in ((4, 1), (1, 4)):
        model, data = model_of(kind), rows("next" if kind == "own" else kind)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if hasattr(model.heads, "<a>"):
            model.heads["<a>"].dropout = 0.0
        model.train_adapter("a")
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        sgd = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
        hf.Trainer(model, arguments(tmp_path, **options, **sgd), train_dataset=data).train()
        found.append(model.trainable_state())
    assert max(gap(found[0][name], found[1][name]) for name in found[0]) < 1e-4


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_several_heads_at_once(precision, tmp_path):
    model, _ = headed("classification")
    add(model, "b", METHODS["ia3"])
    model.add_classification_head("b", num_labels=3)
    randomise(model.heads, 0.3, seed=1)
    model.train_adapter("parallel(a, b)")
    before = model.trainable_state()
    data = rows("classification")
    trainer = hf.Trainer(model, arguments(tmp_path, **precision), train_dataset=data, eval_dataset=data)
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in model.trainable_state().items())
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("kind", ["classification", "next", "writing", "own"])
def test_what_the_trainer_saves_it_reads_again(kind, tmp_path):
    """Also where the output embedding is tied to the words."""

    def fresh() -> Any:
        model = model_of(kind)
        model.train_adapter("a")
        return model

    data, options = rows("next" if kind == "own" else kind), {"save_strategy": "steps", "save_steps": 1}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    model = fresh()
    trainer = hf.Trainer(model, arguments(tmp_path, **options), train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    other = fresh()
    more = arguments(tmp_path, **options | {"max_steps": 3, "load_best_model_at_end": False})
    again = hf.Trainer(other, more, train_dataset=data, eval_dataset=data)
    again._load_from_checkpoint(str(tmp_path / "last"))
    assert max(gap(value, model.state_dict()[name]) for name, value in other.state_dict().items()) == 0
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3


@pytest.mark.parametrize("kind", ["next", "own"])
def test_smoothed_labels_of_the_next_word_are_shifted(kind, tmp_path):
    """The Trainer takes the labels away and asks the class's name whether they are of the next word."""
    model = model_of(kind)
    trainer = hf.Trainer(model, arguments(tmp_path, label_smoothing_factor=1e-6), train_dataset=rows("next"))
    inputs = {key: value for key, value in batch("gpt2", (6, 6)).items() if key != "position_ids"}
    labels = inputs["input_ids"]
    model.eval()
    with torch.no_grad():
        smoothed = trainer.compute_loss(model, inputs | {"labels": labels})
        assert smoothed.item() == pytest.approx(model(**inputs, labels=labels).loss.item(), rel=1e-3)


def test_a_collator_finds_what_the_decoder_of_a_bare_base_reads():
    model, inputs = headed("writing")
    labels = inputs["labels"]
    plain = base("t5", auto=hf.AutoModelForSeq2SeqLM)
    wanted = plain.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), wanted)
    assert not hasattr(adapted("bert"), "prepare_decoder_input_ids_from_labels")
