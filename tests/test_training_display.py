from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from adaptrain.evaluation.metrics import get_metric
from adaptrain.training.display import Display, Displays, JsonLog, LiveDisplay, PlainDisplay, Progress, make_display
from adaptrain.training.state import Evaluation

MCC = get_metric("mcc")


def play(display: Display) -> None:
    display.note("split 'train': 3 of 9 rows were cut to 128 tokens")
    display.start("lora on mood", 200, MCC)
    for step in range(10, 201, 10):
        display.step(Progress(step, 200, 0.5, 1e-4, 1234.0, 3 * 2**30))
        if step == 100:
            display.evaluated(Evaluation(1, 100, 0.5831, {"mcc": 0.5831}), True)
    display.evaluated(Evaluation(2, 200, 0.4, {"mcc": 0.4}), False)
    display.stop()
    display.stop()


def test_plain_lines_a_tenth_of_the_steps_each() -> None:
    stream = io.StringIO()
    play(PlainDisplay(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("note: split 'train'") and lines[1] == "lora on mood: 200 steps"
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        f"{step}/200" for step in range(20, 201, 20)
    ]
    assert "loss 0.5000" in lines[2] and "1,234 tok/s" in lines[2] and "3.0 GB" in lines[2] and "s left" in lines[2]
    assert "epoch 1  step 100  mcc 58.3  best" in lines and lines[-1] == "epoch 2  step 200  mcc 40.0"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_has_one_live_line() -> None:
    stream = io.StringIO()
    play(LiveDisplay(Console(file=stream, force_terminal=True, width=140)))
    shown = stream.getvalue()
    for part in ("lora on mood", "200/200", "loss 0.5000", "58.3", "1,234 tok/s", "3.0 GB", "left", "epoch 2"):
        assert part in shown


def test_the_stream_decides() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(make_display(io.StringIO()), PlainDisplay)
    assert isinstance(make_display(Terminal()), LiveDisplay)


def test_the_log_is_for_machines(tmp_path: Path) -> None:
    play(Displays([JsonLog(tmp_path / "log.jsonl")]))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][:3] == ["note", "start", "step"]
    assert events[-1]["event"] == "stop"
    evaluation = next(event for event in events if event["event"] == "evaluation")
    assert evaluation["metrics"] == {"mcc": 0.5831} and evaluation["better"] is True
    assert all(event["seconds"] >= 0 for event in events)
