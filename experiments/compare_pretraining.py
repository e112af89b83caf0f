"""LCL, Table 1: methods of pre-training on the same interleaved documents, with the same tower and language model.

    python experiments/compare_pretraining.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     documents of scenes, three trials at a time on 2 cores
    python experiments/compare_pretraining.py --transfer classification retrieval caption --seeds 3
                                                                     and frozen transfer, with a floor and a ceiling
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_pretraining.py \\
        --preset lcl-mmc4-b16 --train s3://bucket/mmc4-packed --workers 32 --placement.gpus-per-worker 1 \\
        --transfer classification --classification.train s3://bucket/in1k --classification.eval in1k=s3://bucket/in1k-val

Expect (paper, frozen transfer, IN-1k top-1 and COCO TR@1): LCL 75.2 and 48.5, Flamingo 24.0 and 10.6, Emu 5.7 and 2.3: methods
that only generate collapse, although their text loss is close. The baselines are the least faithful forms that a reviewer
accepts; the docstrings of `models/flamingo.py` and `models/emu.py` say what they leave out. The paper's other rows (CLIP, CoCa,
BLIP2, BEiT3) are not here. All points use the recipe's learning rate unless --recipe.evaluation.best names the metric by which
each chooses one of three.
"""

import re
from dataclasses import replace

from cornerstone.recipes import EmuConfig, FlamingoConfig, ImageTower, LclConfig, Recipe
from cornerstone.sweeps import Sweep, TransferOptions, main, tuned, with_transfers
from cornerstone.sweeps.papers.lcl import TABLE_1


def pretraining(recipe: Recipe, options: TransferOptions = TransferOptions()) -> Sweep:  # noqa: B008 - frozen
    """One point a method, with the recipe's tower, language model, data and steps."""
    if not isinstance(lcl := recipe.method, LclConfig):
        raise SystemExit("This experiment compares with LCL: give one of its presets, such as --preset scenes-lcl.")
    image, language = lcl.image, lcl.language
    heads, wide = language.heads, language.width // language.heads
    flamingo = FlamingoConfig(
        image, language, latents=min(64, patches(image)), resampler_layers=6, heads=heads, head_width=wide
    )
    # As many causal embeddings as the documents were packed with, so that all methods read the same packing.
    emu = EmuConfig(
        image, language, patches(image), former_layers=language.layers, former_width=language.width, former_heads=heads
    )
    methods = {"LCL": lcl, "Flamingo": flamingo, "Emu": emu}
    points = [tuned(name, replace(recipe, method=method)) for name, method in methods.items()]
    return with_transfers(Sweep(points, baseline="LCL", paper=TABLE_1), options)


def patches(image: ImageTower) -> int:
    """Patches of an image. Raises SystemExit if the tower's name does not tell a patch's side."""
    named = re.search(r"patch(\d+)", image.name)
    if not (image.patch or named):
        raise SystemExit(
            f"The side of a patch of {image.name} is not known: give it as --recipe.method.image.patch, in pixels."
        )
    return (image.size // (image.patch or int(named[1] if named else 0))) ** 2


if __name__ == "__main__":
    main(pretraining, preset="scenes-lcl", options=TransferOptions)
