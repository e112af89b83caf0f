"""The progress of trials in a terminal: one view, redrawn in place, never higher than the terminal.

ablate_loss 20260131-142501-3f9a                3 of 8 trials done, 1 failed, 12 min left
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
best so far: 2, long-human i→t R@1 23.44 % (mean of 2 seeds)
0, seed 0  done, long-human i→t R@1 21.88 %, 62 s
2, seed 1  step 40 of 220   0.21 s/step  loss 3.210  38 s left
4, seed 0  building the model
3 trials wait for room: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cornerstone.tracking.board import TRAINING, Board, Phase, Trial, duration

GAP = "  "
SHORTEST_NAME = 12
"""Columns that a name keeps: what else is said of a trial gives way first, pace and metric to the whole name."""
LONG = 10.0  # seconds in a state, from which the view says for how long
COLUMNS = LEFT, STEP, LOSS, PACE, MEASURED = range(5)
ORDER = (STEP, PACE, LOSS, LEFT, MEASURED)
"""Of a training trial, from left to right. Where there is no room, the last in the order of their numbers is left out first."""
STYLES = {Phase.DONE: "green", Phase.FAILED: "red", Phase.RUNS: "", Phase.WAITS: "dim"}


class _Row(NamedTuple):
    """A trial's line: its name, and columns if it trains, otherwise a text."""

    name: str
    style: str
    text: str = ""
    columns: tuple[str, ...] = ()
    """By their numbers, the most important first."""


class LiveView:
    """A board as something that rich draws, at the size that the terminal has at that moment."""

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The view's lines, each as wide as the terminal at most; one line of the terminal stays free for the cursor."""
        bar = "#-" if options.ascii_only else "━─"
        yield from rendered(
            self._board.snapshot(), self._clock(), options.max_width, max(console.size.height - 1, 1), bar
        )


def rendered(board: Board, now: float, width: int, height: int, bar: str = "━─") -> list[Text]:
    """The lines of a board's view, at most `height`, each of at most `width` columns.

    `bar` are the characters of a progress bar where it is full and where it is empty.
    """
    head = [_headline(board, now, width)]
    if height > 2:
        full = int(width * board.share)
        head.append(Text.assemble((bar[0] * full, "green"), (bar[1] * (width - full), "dim"), no_wrap=True))
    best = board.best()
    if best is not None and board.primary is not None and board.total > 1 and height > 4:
        mean = f" (mean of {best.seeds} seeds)" if best.seeds > 1 else ""
        head.append(_line(f"best so far: {best.row}, {board.primary.said(best.value)}{mean}", width, "bold"))
    foot = [_line(text, width, "dim") for text in _waiting(board)] if height > len(head) + 2 else []
    rows = _rows(board, now, max(height - len(head) - len(foot), 0))
    return [*head, *_drawn(rows, width), *foot][:height]


def _headline(board: Board, now: float, width: int) -> Text:
    """The sweep's name, and at the right how far it is, which stays if there is no room for both."""
    done, failed = len(board.of(Phase.DONE)), len(board.of(Phase.FAILED))
    left = board.seconds_left(now)
    parts = [f"{done} of {board.total} trials done"] if board.total > 1 else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{duration(left)} left"] if left else []
    right = ", ".join(parts)
    room = width - cell_len(right) - len(GAP)
    if room < SHORTEST_NAME:
        return _line(right or board.title, width, "bold")
    title = _line(board.title, room, "bold")
    return Text.assemble(title, " " * (width - title.cell_len - cell_len(right)), right, no_wrap=True)


def _waiting(board: Board) -> Iterator[str]:
    if board.doing:
        yield board.doing
    if (waits := len(board.of(Phase.WAITS))) and board.waits_for:
        yield board.waits_for
    elif waits:
        yield f"{waits} trial{'s' * (waits > 1)} not started yet"
    if board.later:
        yield f"{board.later} more start{'s' * (board.later == 1)} when others have ended"


def _rows(board: Board, now: float, height: int) -> list[_Row]:
    """The trials' lines, at most `height`: all in their order if there is room, otherwise those that matter most.

    Trials that run come first, then those that failed, then the latest that finished; what has no line is counted.
    """
    shown = board.of(Phase.RUNS, Phase.DONE, Phase.FAILED)
    if len(shown) <= height:
        return [_row(board, trial, now) for trial in shown]
    counted: list[_Row] = []
    chosen: list[Trial] = []
    room = height
    by_importance = (Phase.RUNS, Phase.FAILED, Phase.DONE)
    groups = [trials for phase in by_importance if (trials := board.of(phase))]
    for place, trials in enumerate(groups):
        others = len(groups) - place - 1  # lines that say how many there are of the others
        fitting = max(room - others, 0)
        if len(trials) > fitting:
            fitting = max(fitting - 1, 0)
            some = trials[-fitting:] if fitting else []
            some = trials[:fitting] if trials[0].phase is Phase.RUNS else some
            counted.append(_count(board, [trial for trial in trials if trial not in some], bool(some)))
            room -= 1
        else:
            some = trials
        room -= len(some)
        chosen += some
    ordered = [trial for trial in shown if any(trial is one for one in chosen)]
    return [*(_row(board, trial, now) for trial in ordered), *counted][:height]


def _count(board: Board, trials: Sequence[Trial], more: bool) -> _Row:
    """A line for trials that have none of their own."""
    phase, number = trials[0].phase, f"{len(trials)}{' more' * more}"
    if phase is Phase.RUNS:
        return _Row("", "", f"{number} run")
    if phase is Phase.FAILED:
        return _Row("", "red", f"{number} failed")
    text = f"{number} finished"
    values = [value for trial in trials if board.primary and (value := board.primary.of(trial.metrics)) == value]
    if values and board.primary:
        text += f", {board.primary.label} {min(values):.2f} to {max(values):.2f} {board.primary.unit}".rstrip()
    return _Row("", "green", text)


def _row(board: Board, trial: Trial, now: float) -> _Row:
    style = STYLES[trial.phase]
    again = f"restart {trial.restarts}: " if trial.restarts else ""
    if trial.phase is Phase.FAILED:
        return _Row(trial.name, style, f"failed: {trial.error.strip().partition(chr(10))[0]}")
    if trial.phase is Phase.DONE:
        took = f", {duration(trial.seconds)}" if trial.seconds else ""
        return _Row(trial.name, style, f"done{_metric(board, trial)}{took}")
    if trial.state != TRAINING or not trial.steps:
        value = _metric(board, trial) if trial.state.startswith("evaluated") else ""
        since = now - trial.since
        lasts = f", for {duration(since)} so far" if since >= LONG else ""
        return _Row(trial.name, style, f"{again}{trial.state}{value}{lasts}")
    left = trial.left(now)
    loss = "" if trial.loss is None else f"loss {trial.loss:.3f}"
    step = f"{again}step {trial.step:,} of {trial.steps:,}"
    measured = _metric(board, trial).removeprefix(", ")
    columns = ("" if left is None else f"{duration(left)} left", step, loss, _pace(trial), measured)
    return _Row(trial.name, style, columns=columns)


def _metric(board: Board, trial: Trial) -> str:
    if board.primary is None or board.primary.metric not in trial.metrics:
        return ""
    return f", {board.primary.said(board.primary.of(trial.metrics))}"


def _pace(trial: Trial) -> str:
    if not trial.pace:
        return ""
    return f"{trial.pace:.2f} s/step" if trial.pace >= 0.1 else f"{1 / trial.pace:.0f} steps/s"


def _drawn(rows: Sequence[_Row], width: int) -> Iterator[Text]:
    """The rows as lines, with equal columns one below the other."""
    widths = [max((cell_len(row.columns[c]) for row in rows if row.columns), default=0) for c in COLUMNS]
    longest = max((cell_len(row.name) for row in rows), default=0)
    kept = [column for column in COLUMNS if widths[column]]

    def taken() -> int:
        return sum(widths[column] + len(GAP) for column in kept)

    while len(kept) > 1 and width - taken() < (longest if kept[-1] >= PACE else min(longest, SHORTEST_NAME)):
        kept.pop()
    with_text = any(row.name and not row.columns for row in rows)
    room = width - taken() if kept else width
    name_width = min(longest, max(min(room, width // 2) if with_text else room, 1))
    for row in rows:
        if not row.name:
            yield _line(row.text, width, row.style)
            continue
        name = _line(row.name, name_width, row.style)
        name.pad_right(name_width - name.cell_len)
        if row.columns:
            cells = (row.columns[c].rjust(widths[c]) for c in ORDER if c in kept)
            rest = GAP.join(cells)
        else:
            rest = row.text
        yield _line(Text.assemble(name, GAP, (rest, row.style)), width)


def _line(text: str | Text, width: int, style: str = "") -> Text:
    """One line of at most `width` columns. Brackets in names are no markup."""
    line = Text(text.replace("\n", " "), style=style, no_wrap=True) if isinstance(text, str) else text
    line.no_wrap = True
    line.truncate(max(width, 1), overflow="ellipsis")
    return line
