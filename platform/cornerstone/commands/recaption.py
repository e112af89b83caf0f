"""`cornerstone recaption`: long captions by a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from cornerstone.commands.terminal import bar, say


@dataclass(frozen=True)
class RecaptionCommand:
    """Have a vision-language model describe every image; its text joins the captions of the row."""

    data: tyro.conf.Positional[str]
    """Folder or URI of pair shards."""
    captioner: str
    """A Hugging Face image-text-to-text model: its name, or a folder that every machine sees."""
    out: str
    """A new folder or URI; one left by an interrupted run goes on after its finished shards."""
    source: str = ""
    """What the new captions are called by; the model's base name by default."""
    replace: bool = False
    """Take away long captions by that name; without it they are refused."""
    prompt: str = "Describe the image in detail."
    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that make up this share."""
    seed: int = 0
    """Decides the draws, row by row."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    batch_size: int = 16
    """Images at a time, within a row group."""
    actors: int = 0
    """Copies of the model at work; 0: one a GPU, or one a CPU."""
    gpus_per_actor: float = 0.0
    """0: one where the cluster has GPUs."""

    def run(self) -> None:
        """Check, caption, count."""
        import cornerstone.models  # noqa: F401 - mends torchvision, which models of transformers import
        from cornerstone.jobs.captioner import CaptionerConfig
        from cornerstone.jobs.recaption import prepare_recaption, recaption
        from cornerstone.runtime.cluster import connect, stoppable

        decides = ("prompt", "max_new_tokens", "temperature", "top_p", "seed", "precision")
        config = CaptionerConfig(self.captioner, **{name: getattr(self, name) for name in decides})
        job = prepare_recaption(
            self.data, self.out, config, source=self.source, replaces=self.replace, batch_size=self.batch_size
        )
        if self.temperature == 0 and (self.top_p, self.seed) != (1.0, 0):
            say("--top-p and --seed have no effect at --temperature 0")
        with connect(say), stoppable("The same command goes on after the finished shards.", say):
            report = recaption(
                job, actors=self.actors, gpus_per_actor=self.gpus_per_actor, progress=bar("captioning"), say=say
            )
        say(f"{report.manifest.rows:,} rows in {self.out} (content {report.manifest.content_hash})")
        for count, why in ((report.undecodable, "undecodable images"), (report.without_text, "empty answers")):
            if count:
                say(f"{count:,} {why}: their rows have no new caption")
