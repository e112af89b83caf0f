"""`cornerstone recaption`: long captions by a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cornerstone.commands.terminal import bar, say


@dataclass(frozen=True)
class RecaptionCommand:
    """Describe every image by a vision-language model; the text becomes another long caption of the row."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of pair shards."""
    captioner: str
    """A Hugging Face image-text-to-text model: its name, or a folder that every machine can read."""
    out: str
    """A new folder or URI. In the folder of an interrupted run, finished shards are kept."""
    source: str = ""
    """`source` of the new captions; default: the base name of the model."""
    replace: bool = False
    """Replace existing long captions of that source, which are an error otherwise."""
    prompt: str = "Describe the image in detail."
    """What the model is asked."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 0.0
    """0: greedy decoding."""
    top_p: float = 1.0
    """Nucleus sampling: draw from the most likely tokens of this total probability."""
    seed: int = 0
    """Seed of the draws; each row has draws of its own."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    batch_size: int = 16
    """Images per batch, within a row group."""
    actors: int = 0
    """Number of actors, each with a copy of the model; 0: one per GPU, or per CPU without GPUs."""
    gpus_per_actor: float = 0.0
    """0: one if the cluster has GPUs."""

    def run(self) -> None:
        """Check the arguments, caption with Ray Data, and report the counts."""
        import cornerstone.models  # noqa: F401 - repairs torchvision, which models of transformers import
        from cornerstone.jobs.captioner import CaptionerConfig
        from cornerstone.jobs.recaption import prepare_recaption, recaption
        from cornerstone.runtime.cluster import connect, stoppable

        names = ("prompt", "max_new_tokens", "temperature", "top_p", "seed", "precision")
        config = CaptionerConfig(self.captioner, **{name: getattr(self, name) for name in names})
        job = prepare_recaption(
            self.data, self.out, config, source=self.source, replaces=self.replace, batch_size=self.batch_size
        )
        if self.temperature == 0 and (self.top_p, self.seed) != (1.0, 0):
            say("--top-p and --seed have no effect at --temperature 0")
        with connect(say), stoppable("Run the same command again to continue: finished shards are kept.", say):
            report = recaption(
                job, actors=self.actors, gpus_per_actor=self.gpus_per_actor, progress=bar("captioning"), say=say
            )
        say(f"{report.manifest.rows:,} rows in {self.out} (content {report.manifest.content_hash})")
        for count, why in ((report.undecodable, "undecodable images"), (report.without_text, "empty answers")):
            if count:
                say(f"{count:,} {why}: their rows have no new caption")
