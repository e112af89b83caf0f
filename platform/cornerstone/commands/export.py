"""`cornerstone export`: a model in the layout of the library that opens it elsewhere, with a model card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.commands.terminal import say


@dataclass(frozen=True)
class ExportCommand:
    """Write a model in the Hugging Face layout, with a model card: metrics, recipe, hash of the data, and code that opens it.

    A dual encoder with a BERT opens with transformers and timm. Of other methods only the image tower does, and the command
    says so."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder or its `model`; a released model of transformers: hf:NAME, or a folder."""
    out: str
    """A new folder of this machine."""
    metrics: str = ""
    """A file that `cornerstone evaluate` or `cornerstone train` wrote with --json, for the card."""

    def run(self) -> None:
        """Write the folder."""
        from cornerstone.data.storage import Location
        from cornerstone.errors import CornerstoneError
        from cornerstone.inference.export import export
        from cornerstone.inference.load import load

        metrics = {}
        if self.metrics:
            if not (place := Location.of(self.metrics)).exists():
                raise CornerstoneError(f"There is no file {self.metrics} (--metrics).")
            found = json.loads(place.read_text())
            metrics = {name: value for name, value in found.items() if isinstance(value, int | float)}
        opened, why = export(load(self.model), self.out, metrics)
        by = "transformers and timm" if opened == "dual-encoder" else "transformers"
        say(
            f"{self.out} opens with Cornerstone only: {why}."
            if why
            else f"{self.out} opens with {by}; see its README.md."
        )
