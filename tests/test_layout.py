"""The layout of the tree: imports go one way, plain PyTorch stays plain, files stay short, decode actors do without torch."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PLATFORM = REPOSITORY / "platform"
LEVELS = (
    ("hashing", "errors", "secrets"),
    ("recipes",),
    ("models", "objectives", "data"),
    ("evaluation", "inference", "tracking", "runtime"),
    ("training", "jobs"),
    ("sweeps", "transfer"),
    ("commands", "experiments", "benchmarks"),
    ("cornerstone", "cli", "__main__", "import_hook"),  # `import cornerstone` and the command line
)
"""Packages from the lowest level to the highest. A package may import those of its own level and of lower ones."""
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
TOP = LEVEL["cornerstone"]
OUTSIDE = ("experiments", "benchmarks")
"""Packages at the root of the repository; nothing imports them."""
MOST_LINES, MEDIAN_LINES = 400, 140
DECODING = (
    "cornerstone.data.conversations.questions",
    "cornerstone.data.conversations.source",
    "cornerstone.data.documents.source",
    "cornerstone.data.execution",
    "cornerstone.data.pairs.labelled",
    "cornerstone.data.pairs.source",
    "cornerstone.data.stream",
)
"""Modules that decode actors import, with all that these import. Torch would cost each actor a second and 200 MB."""


def modules() -> list[Path]:
    folders = [PLATFORM / "cornerstone", *(REPOSITORY / name for name in OUTSIDE)]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def package_of(path: Path) -> str:
    """The package or top-level module that a file belongs to: `data`, `cli`; `cornerstone` for its `__init__`."""
    if not path.is_relative_to(PLATFORM):
        return path.relative_to(REPOSITORY).parts[0]
    first = path.relative_to(PLATFORM / "cornerstone").parts[0]
    return "cornerstone" if first == "__init__.py" else first.removesuffix(".py")


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full name of all that a file imports, in functions and under TYPE_CHECKING too."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_package(name: str) -> str | None:
    """The package of ours that an imported name belongs to; None for other distributions."""
    first, _, rest = name.partition(".")
    if first in OUTSIDE:
        return first
    if first != "cornerstone":
        return None
    package = rest.partition(".")[0]
    return package if package in LEVEL else "cornerstone"  # `cornerstone.load` is of the package's own `__init__`


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(REPOSITORY)}:{line}"


def edges() -> Iterator[tuple[str, str, str]]:
    """Importing package, imported package, and where."""
    for path in modules():
        for line, name in imports(path):
            if (imported := imported_package(name)) is not None and imported != package_of(path):
                yield package_of(path), imported, f"{place(path, line)}: imports {name}"


def test_every_package_has_a_level():
    unknown = {package_of(path) for path in modules()} - set(LEVEL)
    assert not unknown, f"DESIGN names no level for {', '.join(sorted(unknown))}"


def test_imports_go_one_way():
    wrong = [where for importer, imported, where in edges() if LEVEL.get(importer, TOP) < LEVEL[imported]]
    assert not wrong, "imports of a higher level:\n" + "\n".join(wrong)


def test_packages_import_each_other_in_no_circle():
    graph: dict[str, set[str]] = {}
    for importer, imported, _ in edges():
        graph.setdefault(importer, set()).add(imported)

    def reachable(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for package in graph.get(waiting.pop(), set()) - seen:
                seen.add(package)
                waiting.append(package)
        return seen

    circular = [package for package in sorted(graph) if package in reachable(package)]
    within = "\n".join(where for importer, imported, where in edges() if {importer, imported} <= set(circular))
    assert not circular, f"{', '.join(circular)} import each other in a circle:\n{within}"


@pytest.mark.parametrize(
    ("packages", "forbidden"),
    [
        (("data",), ("cornerstone.models", "cornerstone.objectives")),
        (("jobs",), ("cornerstone.training",)),
        (("models", "objectives"), ("ray", "mlflow", "deepspeed")),
        (("models", "objectives"), ("cornerstone.runtime", "cornerstone.tracking", "cornerstone.training")),
    ],
)
def test_packages_know_nothing_of_others(packages, forbidden):
    wrong = [
        f"{place(path, line)}: imports {name}"
        for path in modules()
        if package_of(path) in packages
        for line, name in imports(path)
        if any(f"{name}.".startswith(f"{other}.") for other in forbidden)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in sorted(PLATFORM.rglob("*.py"))}
    long = [f"{path.relative_to(REPOSITORY)}: {count}" for path, count in lines.items() if count > MOST_LINES]
    assert not long, f"above {MOST_LINES} lines: {', '.join(long)}"
    median = statistics.median(lines.values())
    assert median < MEDIAN_LINES, f"the median file has {median} lines: expected less than {MEDIAN_LINES}"


@pytest.mark.parametrize("module", DECODING)
def test_decoding_does_without_torch(module):
    code = f"import sys, {module}; print(*({{'torch', 'transformers'}} & set(sys.modules)))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not imported, f"importing {module} imports {' and '.join(imported)}"
