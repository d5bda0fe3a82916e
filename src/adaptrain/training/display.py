"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere, and a log for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from adaptrain.evaluation.metrics import Metric
from adaptrain.training.state import Evaluation


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step, steps: done, and in all.
        loss: mean since the last report.
        learning_rate: of the last step.
        tokens_per_second: trained on, without padding.
        memory: bytes in use.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    memory: int


class Display(Protocol):
    """Told of everything that happens in a run, in this order: notes, start, steps and evaluations, what was chosen
    after them (notes), stop."""

    def note(self, text: str) -> None:
        """Something worth knowing, a sentence."""

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        """Training begins; without a metric, of several branches that have one each."""

    def step(self, progress: Progress, branch: str = "") -> None:
        """Some steps were done: by all, or by one branch."""

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        """The model, or one branch, was evaluated; `better` says whether it is the best so far."""

    def stop(self) -> None:
        """Training is over, or failed. May be called twice."""


def make_display(stream: IO[str] | None = None) -> Display:
    """A live display where the stream (stdout) is a terminal, plain lines elsewhere."""
    target: IO[str] = sys.stdout if stream is None else stream
    return LiveDisplay(Console(file=target)) if target.isatty() else PlainDisplay(target)


class LiveDisplay:
    """One line that is drawn anew: loss, score, tokens a second, memory, time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Bar | None = None
        self.metric: Metric | None = None

    def note(self, text: str) -> None:
        self.console.print(f"[yellow]note[/] {text}", highlight=False)

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        self.metric = metric
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            *([] if metric is None else [TextColumn(f"{metric.name} [green]{{task.fields[score]}}")]),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[memory]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task(title, total=steps, loss="–", score="–", speed="– tok/s", memory="–")
        self.bar.start()

    def step(self, progress: Progress, branch: str = "") -> None:
        if self.bar is not None and not branch:
            speed, memory = f"{progress.tokens_per_second:,.0f} tok/s", gigabytes(progress.memory)
            loss = f"{progress.loss:.4f}"
            self.bar.update(self.task, completed=progress.step, loss=loss, speed=speed, memory=memory)

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        metric = metric or self.metric
        if self.bar is not None and metric is not None:
            score = metric.shown(evaluation.score)
            if better and not branch:
                self.bar.update(self.task, score=score)
            line = f"epoch {evaluation.epoch:g}  {metric.name} {score}{'  best' if better else ''}"
            self.bar.console.print(f"{_named(branch)}{line}", highlight=False)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class PlainDisplay:
    """A line for each tenth of the steps and each evaluation: for files, pipes and CI."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.metric: Metric | None = None
        self.tenth = 0
        self.begun = time.perf_counter()

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        self.metric, self.tenth, self.begun = metric, 0, time.perf_counter()
        self._line(f"{title}: {steps} steps")

    def step(self, progress: Progress, branch: str = "") -> None:
        tenth = 10 * progress.step // progress.steps
        if branch or tenth == self.tenth:
            return
        self.tenth = tenth
        spent = time.perf_counter() - self.begun
        left = spent / progress.step * (progress.steps - progress.step)
        self._line(
            f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  lr {progress.learning_rate:.2e}  "
            f"{progress.tokens_per_second:,.0f} tok/s  {gigabytes(progress.memory)}  {spent:.0f} s, {left:.0f} s left"
        )

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        metric = metric or self.metric
        assert metric is not None
        line = f"epoch {evaluation.epoch:g}  step {evaluation.step}  {metric.name} {metric.shown(evaluation.score)}"
        self._line(f"{_named(branch)}{line}{'  best' if better else ''}")

    def stop(self) -> None:
        self.stream.flush()

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class JsonLog:
    """The same events as JSON lines in a file."""

    def __init__(self, file: Path) -> None:
        self.stream: IO[str] | None = file.open("w", encoding="utf-8")
        self.begun = time.perf_counter()

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        self._write("start", title=title, steps=steps, metric=None if metric is None else metric.name)

    def step(self, progress: Progress, branch: str = "") -> None:
        self._write("step", **_of(branch), **asdict(progress))

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        self._write("evaluation", **_of(branch), **asdict(evaluation), better=better)

    def stop(self) -> None:
        if self.stream is not None:
            self._write("stop")
            self.stream.close()
            self.stream = None

    def _write(self, event: str, **values: Any) -> None:
        if self.stream is not None:
            line = {"event": event, "seconds": round(time.perf_counter() - self.begun, 3), **values}
            self.stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.stream.flush()


class Displays:
    """Several displays as one."""

    def __init__(self, displays: Sequence[Display]) -> None:
        self.displays = displays

    def note(self, text: str) -> None:
        for display in self.displays:
            display.note(text)

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        for display in self.displays:
            display.start(title, steps, metric)

    def step(self, progress: Progress, branch: str = "") -> None:
        for display in self.displays:
            display.step(progress, branch)

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        for display in self.displays:
            display.evaluated(evaluation, better, branch, metric)

    def stop(self) -> None:
        for display in self.displays:
            display.stop()


class BranchDisplay:
    """What one branch of a run is told of, handed on under its name."""

    def __init__(self, display: Display, name: str, metric: Metric) -> None:
        self.display, self.name, self.metric = display, name, metric

    def note(self, text: str) -> None:
        self.display.note(f"{self.name}: {text}")

    def start(self, title: str, steps: int, metric: Metric | None) -> None:
        """The run has been started for all branches."""

    def step(self, progress: Progress, branch: str = "") -> None:
        self.display.step(progress, self.name)

    def evaluated(self, evaluation: Evaluation, better: bool, branch: str = "", metric: Metric | None = None) -> None:
        self.display.evaluated(evaluation, better, self.name, self.metric)

    def stop(self) -> None:
        """The run is stopped for all branches."""


def _named(branch: str) -> str:
    return f"{branch}  " if branch else ""


def _of(branch: str) -> dict[str, str]:
    return {"branch": branch} if branch else {}


def gigabytes(memory: int) -> str:
    """Bytes as people read them."""
    return f"{memory / 2**30:.1f} GB" if memory >= 2**30 else f"{memory / 2**20:.0f} MB"
