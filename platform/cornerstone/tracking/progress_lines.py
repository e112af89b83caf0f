"""The progress of trials where there is no terminal: a line for each event, in a job's output or a log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from cornerstone.tracking.board import BUILDING, TRAINING, WORKERS, Board, Phase, Trial, duration

LINE_EVERY = 30.0  # seconds, at least, between lines about the same trial's steps
HEARTBEAT = 600.0  # seconds after which a line comes before the next tenth of the steps is done
WAIT_EVERY = 60.0  # seconds, at least, between lines about what trials wait for
WAIT_SHARE = 0.05  # share of the time that steps wait for data, from which a line mentions it


@dataclass
class _Printed:
    """What the lines have said of a trial."""

    text: str = ""
    at: float = -math.inf
    tenth: int = 0
    first_block: bool = False
    restarts: int = 0
    notices: set[str] = field(default_factory=set)


class ProgressLines:
    """What is new on a board, as lines of text."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._printed: dict[str, _Printed] = {}
        self._waits, self._waits_at = "", -math.inf

    def new(self, now: float) -> Iterator[str]:
        """The lines since the last call: each change of state, and at most every tenth of a trial's steps."""
        yield from self._of_earlier_starts()
        for run, name, trial in self._named():
            printed = self._printed.setdefault(run, _Printed())
            text = self._text(trial, printed, now)
            if text and text != printed.text:
                printed.text, printed.at = text, now
                yield f"{name}: {text}"
        waits = self._board.waits_for
        if waits and waits != self._waits and now - self._waits_at >= WAIT_EVERY:
            self._waits, self._waits_at = waits, now
            yield waits

    def notices(self) -> Iterator[str]:
        """The notices of trials that were not given before."""
        for run, name, trial in self._named():
            seen = self._printed.setdefault(run, _Printed()).notices
            for notice in trial.notices:
                if notice not in seen:
                    seen.add(notice)
                    yield f"{name}: {notice}"

    def failures(self) -> Iterator[str]:
        """Of the new lines only those of trials that have failed, in full: a live view has room for one line of each."""
        for run, name, trial in self._named():
            printed = self._printed.setdefault(run, _Printed())
            if trial.phase is Phase.FAILED and printed.text != (text := f"FAILED: {trial.error}"):
                printed.text = text
                yield f"{name}: {text}"

    def _named(self) -> Iterator[tuple[str, str, Trial]]:
        for place, (run, trial) in enumerate(list(self._board.trials.items())):
            yield run, f"[{place + 1}/{self._board.total}] {trial.name}", trial

    def _of_earlier_starts(self) -> Iterator[str]:
        ended = [
            (trial, printed)
            for run, _, trial in self._named()
            if trial.earlier and not (printed := self._printed.setdefault(run, _Printed())).text
        ]
        for trial, printed in ended:
            printed.text = self._done(trial)
        if ended:
            yield f"{len(ended)} of {self._board.total} trials had finished before this start"

    def _text(self, trial: Trial, printed: _Printed, now: float) -> str:
        """What there is to say of a trial now; "" if that is nothing."""
        if trial.phase is Phase.WAITS:
            return ""
        if trial.phase is Phase.DONE:
            return self._done(trial)
        if trial.phase is Phase.FAILED:
            return f"FAILED: {trial.error}"
        if trial.restarts > printed.restarts:
            printed.restarts, printed.tenth = trial.restarts, 0
            return f"its workers started again (restart {trial.restarts})"
        if trial.state in (WORKERS, BUILDING):
            return ""
        if trial.state != TRAINING:
            return self._evaluated(trial)
        return self._training(trial, printed, now)

    def _training(self, trial: Trial, printed: _Printed, now: float) -> str:
        since, tenth = now - printed.at, int(10 * trial.share)
        is_first = not printed.first_block
        if not is_first and since < HEARTBEAT and (since < LINE_EVERY or tenth <= printed.tenth):
            return ""
        printed.tenth, printed.first_block = tenth, True
        text = f"step {trial.step:,} of {trial.steps:,}"
        text += f", loss {trial.loss:.3f}" if trial.loss is not None else ""
        text += f", {trial.waits:.0%} waiting for data" if trial.waits >= WAIT_SHARE else ""
        text += f", {duration(left)} left" if (left := trial.left(now)) else ""
        if is_first and trial.first_block is not None:
            text += f" (first block after {trial.first_block:.1f} s)"
        return text

    def _evaluated(self, trial: Trial) -> str:
        return f"{trial.state}{self._primary(trial)}" if trial.state.startswith("evaluated") else trial.state

    def _done(self, trial: Trial) -> str:
        took = f" in {trial.seconds:.0f} s" if trial.seconds is not None else ""
        return f"done{took}{self._primary(trial)}"

    def _primary(self, trial: Trial) -> str:
        """`, dci i→t R@1 21.88 %`; "" if it was not measured."""
        primary = self._board.primary
        if primary is None or primary.metric not in trial.metrics:
            return ""
        return f", {primary.said(primary.of(trial.metrics))}"
