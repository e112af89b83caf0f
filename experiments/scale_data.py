"""LoTLIP, Tables 10 and 11: LiT and LoTLIP on more and more data, with two sizes of patches.

    python experiments/scale_data.py                                 scenes of four sizes on 2 cores, about 16 minutes
    python experiments/scale_data.py --preset scenes-long --seeds 5  scenes on 2 cores, about 5 h: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/scale_data.py --preset lotlip-3m \\
        --scales 3M=s3://bucket/cc3m-long 12M=s3://bucket/cc12m-long 30M=s3://bucket/mix30m 100M=s3://bucket/mix100m \\
        --eval dci=s3://bucket/dci in1k=s3://bucket/in1k-val --workers 8 --placement.gpus-per-worker 1

Expect (paper, B/16, DCI image→text / text→image R@1 and ImageNet): at 3M LiT 27.14/24.13 and 43.76, LoTLIP 49.46/47.82 and
50.34; at 100M LiT 41.78/40.90 and 73.70, LoTLIP 62.10/61.06 and 72.16. LiT reads raw captions alone, as in the tables.

Scales named as the paper's train with steps, batch and warmup of their preset `lotlip-SCALE`, 10 epochs; others, all scales
with --equal-steps, and scenes (3, 12, 30 and 100 % of the same pairs) with the recipe's: fewer pairs are then seen more often.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.recipes import LotlipConfig, PairData, Recipe, preset
from cornerstone.recipes.lotlip import with_sub_captions
from cornerstone.sweeps import Place, Point, Sweep, main
from cornerstone.sweeps.papers.lotlip_zero_shot import SCALES, TABLES_10_11

SHARES = (0.03, 0.12, 0.3, 1.0)
SCALE = re.compile(r"(\d[\d.]*)([kMB]?)=(.+)")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
VITS = ("B/32=vit_base_patch32_224.augreg_in21k", "B/16=vit_base_patch16_224.augreg_in21k")


@dataclass(frozen=True)
class Options:
    """The scales, and the towers at each of them."""

    scales: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ..")] = ()
    """Training sets, each named by its number of pairs (3M, 500k), in place of --train; none: scenes of four sizes."""
    towers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]TOWER ..")] = VITS
    """Image towers for --scales; scenes have their own."""
    equal_steps: bool = False
    """Train every scale for the recipe's steps: the same number of samples."""


def scale_data(recipe: Recipe, options: Options = Options()) -> Sweep:
    """LiT and LoTLIP for each tower and scale, all at the recipe's learning rate."""
    if not isinstance(recipe.method, LotlipConfig) or not isinstance(recipe.data, PairData):
        raise SystemExit("This experiment compares with LoTLIP: give one of its presets, such as --preset scenes.")
    if recipe.data.train or not all(map(SCALE.fullmatch, options.scales)):
        raise SystemExit("Name the training set of each scale by its pairs: --scales 3M=DIR .., in place of --train.")
    points: list[Point] = []
    for (*tower, scale), pairs, lotlip in own(recipe, options) if options.scales else scenes(recipe, recipe.data):
        for method, one in (("LiT", with_sub_captions(lotlip.with_text(corner_tokens=0), 0)), ("LoTLIP", lotlip)):
            curve = Place(", ".join([method, *tower]), pairs)
            lit = points[-1].name if method == "LoTLIP" else ""
            points.append(Point(f"{curve.curve}, {scale}", one, places=(curve,), compared_with=lit))
    return Sweep(points, baseline=points[0].name, paper=TABLES_10_11, x_label="pairs")


def scenes(recipe: Recipe, data: PairData) -> Iterator[tuple[tuple[str, ...], float, Recipe]]:
    """Name, pairs and recipe of each share of the built-in pairs, which are made once."""
    for share in SHARES:
        pairs = max(recipe.optimization.batch_size, round(share * data.scenes.pairs))
        yield (f"{pairs} pairs",), pairs, recipe.with_data(limit_rows=pairs)


def own(recipe: Recipe, options: Options) -> Iterator[tuple[tuple[str, ...], float, Recipe]]:
    """The same of each tower and training set, with the names of both."""
    for tower, _, name in (one.rpartition("=") for one in options.towers):
        for number, unit, folder in (SCALE.findall(one)[0] for one in options.scales):
            scale = number + unit
            usual = preset(f"lotlip-{scale.lower()}") if scale in SCALES and not options.equal_steps else recipe
            length = {field: getattr(usual.optimization, field) for field in ("steps", "batch_size", "warmup_steps")}
            one = recipe.with_data(train=folder).with_image(name=name).with_optimization(**length)
            yield (tower or name, scale), float(number) * UNITS[unit], one


if __name__ == "__main__":
    main(scale_data, options=Options)
