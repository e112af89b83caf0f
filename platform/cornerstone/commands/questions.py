"""`cornerstone data questions`: a released benchmark of visual dialogue as an evaluation set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.commands.terminal import say


@dataclass(frozen=True)
class QuestionsCommand:
    """Write the questions and images of a benchmark as shards, for `--dialogue.eval` of experiments/transfer.py."""

    benchmark: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BENCHMARK")]
    """vqav2, gqa, vizwiz, scienceqa, pope, mme, mmbench, seed."""
    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE ..")]
    """Its released file of questions, and of vqav2 the file of annotations too; a folder for pope and mme."""
    out: str
    """A new folder or URI."""
    images: str = ""
    """The folder of its images; mmbench has them in its file, mme in its folder."""

    def run(self) -> None:
        """Read and write."""
        from cornerstone.data.storage import Location
        from cornerstone.errors import CornerstoneError
        from cornerstone.evaluation.dialogue import benchmark
        from cornerstone.jobs.questions import write_questions

        one, files = benchmark(self.benchmark), [Location.of(file) for file in self.files]
        if len(files) != one.files:
            raise CornerstoneError(
                f"{one.title} has {one.files} files of questions and answers, {len(files)} were given."
            )
        place = self.images or (self.files[0] if one.name == "mme" else "")
        manifest, unread = write_questions(one, files, Location.of(place) if place else None, Location.of(self.out))
        for name, reason in list(unread.items())[:5]:
            say(f"{name}: {reason}")
        if unread:
            say(f"{len(unread):,} images could not be read: their questions count as wrong")
        say(f"{manifest.rows:,} images with their questions in {self.out} (content {manifest.content_hash})")
