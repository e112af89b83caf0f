"""LCL, Table 5: pairs, interleaved documents, or both to pre-train on?

    python experiments/compare_pretraining_data.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     scenes, three trials at a time on 2 cores: too short
                                                                     for conclusions
    python experiments/compare_pretraining_data.py --transfer classification retrieval --seeds 5
                                                                     with frozen transfer of each tower, a floor, a ceiling
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_pretraining_data.py \\
        --preset lcl-mmc4-b16 --data "LAION=s3://bucket/laion-random-packed" "MMC4=s3://bucket/mmc4-packed" \\
        --sequences 910 2048 --workers 32 --placement.gpus-per-worker 1

Expect (paper, frozen transfer, IN-1k top-1 and COCO TR@1/CIDEr): LAION 75.1 and 48.3/88.1, MMC4 75.2 and 48.5/87.5, OBELICS
73.9 and 47.0/84.8, LAION + MMC4 75.8 and 49.4/88.9. Make your own data with `cornerstone data derive laion-random`, `data pack`
and, of packings, `data mix`; call them as the paper does to see its numbers beside yours.

Without --data every row is made of the same built-in documents: MMC4 whole, OBELICS cut where a sequence is full, LAION their
images with the matched sentences alone. So the rows differ in their context, and not in their images, as the paper's do. L_gen
is measured on the same interleaved documents for every row. Sequences a step are chosen so that all rows see about as many
images. The paper trains LAION at a higher rate: --recipe.evaluation.best METRIC lets each row choose one of three.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from cornerstone.recipes import DocumentData, Recipe
from cornerstone.recipes.documents import Form
from cornerstone.sweeps import Point, Sweep, TransferOptions, main, with_transfers
from cornerstone.sweeps.papers.lcl import TABLE_5

BUILT_IN: dict[str, tuple[Form, float]] = {
    "LAION": ("laion-random", 0.5),
    "MMC4": ("mmc4", 1.0),
    "OBELICS": ("obelics", 1.0),
    "LAION + MMC4": ("laion-random + mmc4", 0.75),
}
"""The form of the built-in documents, and its sequences a step as a share of the recipe's."""


@dataclass(frozen=True)
class DataOptions(TransferOptions):
    """A row for each data set."""

    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ..")] = ()
    """A packing, or a mixture of packings, for each row; none: the built-in documents in four forms."""
    sequences: tuple[int, ...] = ()
    """Sequences a step of each --data; by default the recipe's batch for all, however many images they hold."""


def pretraining_data(recipe: Recipe, options: DataOptions = DataOptions()) -> Sweep:
    """One point a data set. Nothing else differs from `recipe`, but for the sequences a step."""
    if not isinstance(data := recipe.data, DocumentData):
        raise SystemExit("This experiment trains on packed documents: give a preset such as --preset scenes-lcl.")
    if data.train:
        raise SystemExit("Name a packing for each row with --data NAME=DIR .., in place of --train.")
    batch = recipe.optimization.batch_size
    if not options.data:
        made = {
            name: recipe.with_data(scenes=replace(data.scenes, form=form)).with_optimization(
                batch_size=max(2, round(share * batch))
            )
            for name, (form, share) in BUILT_IN.items()
        }
    else:
        if any("=" not in one for one in options.data) or len(options.sequences) not in (0, len(options.data)):
            raise SystemExit("Give --data NAME=DIR for each row, and --sequences for none of them or for each.")
        named = [one.partition("=")[::2] for one in options.data]
        sizes = options.sequences or (batch,) * len(named)
        made = {
            name: recipe.with_data(train=folder).with_optimization(batch_size=size)
            for (name, folder), size in zip(named, sizes, strict=True)
        }
    points = [Point.at_best_rate(name, one) for name, one in made.items()]
    return with_transfers(Sweep(points, baseline=points[0].name, paper=TABLE_5), options)


if __name__ == "__main__":
    main(pretraining_data, preset="scenes-lcl", options=DataOptions)
