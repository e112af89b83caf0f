"""What the benchmarks share: Markdown tables, and measurements in a process of their own."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

console = Console(width=160)


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    console.print(f"\n### {title}\n\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def own_process(module: str, *arguments: str) -> str:
    """The last line that `python -m benchmarks.MODULE` prints: a measurement that no other one can disturb."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]
