"""AdapterDrop in training: layers dropped at random, and what need not be computed below the lowest adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptrain.cli.main import main
from adaptrain.composition import Parallel
from adaptrain.config.schema import TrainerConfig
from adaptrain.errors import CompositionError, ConfigError, UnsupportedError
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.methods import LoRAConfig, MethodConfig
from adaptrain.sites.below import FAMILIES
from adaptrain.sites.hidden import LayerSite
from adaptrain.tasks.encoded import Collator, Encoded, text_keys
from adaptrain.training.batching import epoch_batches
from adaptrain.training.drop import check_drop, drawn_layers, dropping
from adaptrain.training.frozen import bytes_kept, from_the_words, keep, layers_below
from adaptrain.training.loop import Plan, fit, total_steps
from adaptrain.training.precision import find_hardware
from adaptrain.training.run import train
from adaptrain.training.state import TrainState, make_optimizer
from matrix import METHODS, adapted, add, batch, gap, randomise, run, said
from tiny_run import Recorder, run_config, save_base, save_data


def rows(count: int = 37) -> Encoded:
    chance = np.random.default_rng(0)
    features = [{"input_ids": chance.integers(5, 99, size=chance.integers(1, 12))} for _ in range(count)]
    return Encoded.of(features, [int(feature["input_ids"].sum() % 2) for feature in features])


COLLATE = Collator(text_keys({"input_ids": 0}, torch.long))


def trainable(arch: str, config: MethodConfig, composition: Any = "a") -> Any:
    """A model with an adapter and a head of trained-like weights, without dropout in the base, ready to train."""
    model = adapted(arch, config)
    for module in model.base_model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.add_classification_head("a", dropout=0.0)
    randomise(model.heads, 0.3, seed=4)
    model.train_adapter(composition)
    return model


def fitted(model: Any, config: TrainerConfig, evaluate: Callable[[], dict[str, float]] = dict, **more: Any) -> Any:
    """The state after a training, and what the display was told."""
    encoded, recorder = rows(), Recorder()
    state = TrainState(make_optimizer(model.trainable_parameters(), config))
    found: Callable[[], dict[str, float]] = lambda: {"accuracy": 0.0} | evaluate()  # noqa: E731
    plan = Plan(encoded, COLLATE, found, "accuracy", True, total_steps(len(encoded), config), 7, **more)
    fit(model, state, plan, config, find_hardware("cpu", "fp32", False), recorder)
    return state, recorder


# ---- random drops


def test_draws_are_uniform_and_a_function_of_seed_and_step() -> None:
    found = [drawn_layers(5, step, 11) for step in range(2400)]
    assert all(layers == tuple(range(len(layers))) for layers in found)
    counts = np.bincount([len(layers) for layers in found], minlength=12)
    assert len(counts) == 12 and ((counts - 200) ** 2 / 200).sum() < 31.3  # chi-square, 11 degrees, 0.1 %
    torch.manual_seed(1)
    assert found[:50] == [drawn_layers(5, step, 11) for step in range(50)]
    assert found[:50] != [drawn_layers(6, step, 11) for step in range(50)]
    assert {drawn_layers(5, step, 0) for step in range(9)} == {()}


def test_a_step_skips_what_is_drawn_and_adamw_leaves_it_alone() -> None:
    config = TrainerConfig(
        epochs=3, batch_size=8, micro_batch_size=3, learning_rate=0.01, weight_decay=0.1, adapter_drop=1
    )
    model = trainable("bert", METHODS["lora"])
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda *_: seen.append(model.skip_layers))
    low, high = (
        next(p for name, p in model.trainable_parameters() if f"encoder.{layer}" in name and p.ndim == 2)
        for layer in (0, 1)
    )

    def evaluate() -> dict[str, float]:
        assert model.skip_layers == ()
        return {}

    state, _ = fitted(model, config, evaluate)
    drawn = [drawn_layers(7, step, 1) for step in range(state.step)]
    assert {len(layers) for layers in drawn} == {0, 1}
    sizes = [len(each) for epoch in range(3) for each in epoch_batches(rows().lengths, 8, 7, epoch)]
    assert seen == [layers for layers, size in zip(drawn, sizes, strict=True) for _ in range(-(-size // 3))]
    assert state.optimizer.state[low]["step"].item() == sum(not layers for layers in drawn)
    assert state.optimizer.state[high]["step"].item() == len(drawn)


def test_training_with_drops_is_reproducible() -> None:
    config = TrainerConfig(epochs=2, batch_size=8, learning_rate=0.01, adapter_drop=1)
    ends = []
    for noise in (1, 2):
        model = trainable("bert", METHODS["lora"])
        torch.manual_seed(noise)
        fitted(model, config)
        ends.append(model.trainable_state())
    plain = trainable("bert", METHODS["lora"])
    fitted(plain, TrainerConfig(epochs=2, batch_size=8, learning_rate=0.01))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], tensor) for name, tensor in plain.trainable_state().items())


def test_an_error_in_a_step_ends_the_drop() -> None:
    model = adapted("bert", METHODS["lora"])
    with pytest.raises(ValueError, match="exactly one"), dropping(model, (0,)):
        model(words=1)
    assert model.skip_layers == ()


@pytest.mark.parametrize(
    ("method", "most", "message"),
    [
        ("lora", 2, r"adapter_drop is 2, and this model has 2 layers; at most 1"),
        ("prompt_tuning", 1, r"'a' has nothing in the layers 0 to 0"),
        ("direft", 1, r"'a' has nothing in the layers 0 to 0"),
        ("full", 1, r"'a' has nothing in the layers 0 to 0"),
    ],
)
def test_drops_that_mean_nothing_are_refused(method: str, most: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_drop(adapted("bert", METHODS[method]), most)


def test_a_run_with_drops_and_an_evaluation_with_skipped_layers(tmp_path: Path, capsys: Any) -> None:
    places = save_base(tmp_path / "base"), save_data(tmp_path / "data"), tmp_path / "out"
    folder = train(run_config(*places, epochs=2, adapter_drop=1), display=Recorder()).folder
    whole = evaluate_folder(folder)
    assert whole.reproduced and whole.notes == ()
    assert main(["eval", str(folder), "skip_layers=[0,1]"]) == 0
    shown = capsys.readouterr()
    assert "without the adapters of layers 0, 1, which is not what training reported" in shown.err
    bare = evaluate_folder(folder, skip_layers=[0, 1])
    assert f"{bare.score:.8f}" in shown.out and not np.allclose(bare.predictions.logits, whole.predictions.logits)
    with pytest.raises(CompositionError, match="skip_layers names 2; this model has layers 0 to 1"):
        evaluate_folder(folder, skip_layers=[2])
    assert main(["eval", str(folder), "skip_layers=[0,-1]"]) == 2
    assert "it must be a list of layers, counted from 0" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="at most 1 can be dropped"):
        train(run_config(*places, adapter_drop=3), display=Recorder())
    none = train(run_config(*places, adapter={"method": "none"}, max_steps=1), display=Recorder()).folder
    with pytest.raises(UnsupportedError, match="skip_layers: 'mood' has nothing in layers 0"):
        evaluate_folder(none, skip_layers=[0])


# ---- what lies below the lowest adapter


HIGH = LoRAConfig(r=3, alpha=5, intermediate_lora=True, leave_out=(0,))
"""Only in the upper one of two layers."""


@pytest.mark.parametrize("arch", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_below_the_lowest_adapter_is_part_of_the_backward_pass(arch: str, checkpointing: bool) -> None:
    model, inputs = adapted(arch, HIGH), batch(arch)
    model.train_adapter("a")
    if checkpointing:
        model.gradient_checkpointing_enable()
    seen: dict[str, bool] = {}
    for name, site in model.sites.by_name.items():
        if isinstance(site, LayerSite):
            site.layer.register_forward_hook(lambda _, args, output, name=name: seen.update({name: tracked(output)}))
    said(model(**inputs)).sum().backward()
    first = "decoder.0.hidden" if arch == "gpt2" else "encoder.0.hidden"
    second = first.replace("0", "1")
    assert seen[first] is False and seen[second] is True
    assert all(p.grad is None for p in model.base_model.parameters())
    assert all(p.grad is not None for name, p in model.trainable_parameters() if ".1." in name)


def tracked(output: Any) -> bool:
    return (output[0] if isinstance(output, tuple) else output).requires_grad


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_forward_can_begin_behind_the_layers_below(arch: str) -> None:
    encoded = rows(7)
    model = adapted(arch, HIGH).float()  # what is kept is float32
    inputs = COLLATE(encoded, range(7))
    del inputs["labels"]
    expected, mask = run(model, inputs), inputs["attention_mask"].bool()
    hardware = find_hardware("cpu", "fp32", False)
    model.train_adapter("a")
    model.eval()
    below = layers_below(model)
    assert below.count == 1
    kept = keep(model, below, encoded, COLLATE, 3, hardware)
    assert kept.states.shape == (sum(encoded.lengths), 32)
    assert bytes_kept(model, [encoded]) == kept.states.numel() * 4
    with kept.begin(range(7)):
        found = run(model, inputs)
        # nothing is left of the words: others give the same
        other = run(model, inputs | {"input_ids": inputs["input_ids"].flip(0)})
    assert gap(found[mask], expected[mask]) < 2e-5 and torch.equal(other, found)
    assert gap(run(model, inputs), expected) == 0
    model.set_active_adapters(None)
    last = layers_below(model)
    assert last.count == 2
    bare = run(model, inputs)
    with keep(model, last, encoded, COLLATE, 3, hardware).begin(range(7)):
        assert gap(run(model, inputs)[mask], bare[mask]) < 2e-5


def test_parallel_rows_begin_behind_the_layers_below() -> None:
    encoded, model = rows(5), adapted("bert", HIGH)
    add(model, "b", METHODS["double_seq_bn"].without([0]))
    model.train_adapter(Parallel("a", "b"))
    model.eval()
    inputs = COLLATE(encoded, range(5))
    del inputs["labels"]
    mask = inputs["attention_mask"].bool().repeat(2, 1)
    expected = run(model, inputs)
    kept = keep(model, layers_below(model), encoded, COLLATE, 2, find_hardware("cpu", "fp32", False))
    with kept.begin(range(5)):
        assert gap(run(model, inputs)[mask], expected[mask]) < 2e-5


@pytest.mark.parametrize(
    ("arch", "options"),
    [("bert", {}), ("mpnet", {"micro_batch_size": 3}), ("gpt2", {"gradient_checkpointing": True})],
    ids=["bert", "mpnet", "gpt2"],
)
def test_training_from_kept_states_is_training(arch: str, options: dict[str, Any]) -> None:
    """Without dropout in the base, and with dropout in the adapter: losses, and the weights they lead to."""
    config = TrainerConfig(epochs=3, batch_size=8, learning_rate=0.01, **options)
    ends, losses = [], []
    for kept in (False, True):
        model = trainable(arch, HIGH.replace(dropout=0.2))
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        below = layers_below(model)
        states = keep(model, below, rows(), COLLATE, 5, find_hardware("cpu", "fp32", False))
        calls: list[int] = []
        below._layers[0].register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        inside = next(module for name, module in below._layers[0].named_modules() if name)
        inside.register_forward_hook(lambda *_: calls.append(100))  # noqa: B023
        torch.manual_seed(3)
        _, recorder = fitted(model, config, begin=states.begin if kept else from_the_words)
        assert (max(calls) == 1) is kept
        ends.append(model.trainable_state())
        losses.append([progress.loss for progress in recorder.of("step")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert max(gap(ends[0][name], ends[1][name]) for name in ends[0]) < 1e-6


def test_an_error_in_a_forward_gives_the_layers_back() -> None:
    model = adapted("bert", HIGH)
    model.train_adapter("a")
    below, encoded = layers_below(model), rows(3)
    kept = keep(model, below, encoded, COLLATE, 3, find_hardware("cpu", "fp32", False))
    with pytest.raises(ValueError, match="exactly one"), kept.begin([0, 1]):
        model(words=1)
    assert all("forward" not in vars(module) for module in model.base_model.modules())
    before = run(model.eval(), batch("bert"))
    below._layers[0].forward = own = below._layers[0].forward  # as a library that offloads layers does
    with kept.begin([0, 1]):
        pass
    assert vars(below._layers[0])["forward"] is own and gap(run(model, batch("bert")), before) == 0


@pytest.mark.parametrize(
    ("arch", "config", "message"),
    [
        (
            "bert",
            METHODS["lora"],
            r"'a' acts at encoder\.0\.attention\.query, below which there is no layer; .*leave_out",
        ),
        (
            "bert",
            METHODS["seq_bn_inv"].replace(leave_out=(0,)),
            r"'a' acts at encoder\.embeddings\.output.*of layers alone",
        ),
        ("bert", METHODS["prompt_tuning"], r"'a' acts at encoder\.embeddings\.prompt"),
        ("bert", METHODS["full"], r"embeddings\.word_embeddings\.weight trains"),
        ("bert", METHODS["lora-gated"].replace(leave_out=(0,), as_adapterhub=True), r"the gates of 'a' read padding"),
        ("deberta", HIGH, r"A deberta cannot begin at a later layer; .*bert, distilbert"),
        ("bart", HIGH, r"A bart cannot begin"),
    ],
    ids=["lora", "invertible", "prompt", "full", "padding", "deberta", "bart"],
)
def test_what_cannot_be_kept_is_refused(arch: str, config: MethodConfig, message: str) -> None:
    model = adapted(arch, config)
    model.train_adapter("a")
    with pytest.raises(UnsupportedError, match=rf"trainer\.cache_frozen: {message}.*set it to false"):
        layers_below(model)


def test_a_run_with_kept_states_comes_out_again(tmp_path: Path) -> None:
    places = save_base(tmp_path / "base"), save_data(tmp_path / "data"), tmp_path / "out"
    lora, recorder = {"method": "lora", "leave_out": [0]}, Recorder()
    folder = train(run_config(*places, adapter=lora, epochs=2, cache_frozen=True), display=recorder).folder
    assert recorder.of("note") == ["the first 1 layers are computed once, without dropout; their states take 0 MB"]
    found = evaluate_folder(folder)
    assert found.reproduced and found.score > 0.2
    with pytest.raises(UnsupportedError, match=r"trainer\.cache_frozen: 'mood' acts at encoder\.0"):
        train(run_config(*places, cache_frozen=True), display=Recorder())
