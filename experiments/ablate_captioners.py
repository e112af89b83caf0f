"""LoTLIP, Table 9: long captions by one captioner alone, or by all of them?

    python experiments/ablate_captioners.py                          scenes on 2 cores, about 8 minutes: no conclusions
    python experiments/ablate_captioners.py --preset scenes-long --seeds 5
                                                                     scenes on 2 cores, hours: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_captioners.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1 \\
        --captioners InstructBLIP=longIB LLaVA=longLLA ShareGPT4V=longSV

Expect (paper, 3M, DCI image→text / text→image R@1 and ImageNet): InstructBLIP 39.94/38.54 and 50.32, LLaVA 41.67/40.37 and
48.10, ShareGPT4V 47.21/46.71 and 49.34, all 49.46/47.82 and 50.34. With all of them, each step draws one for each image, so
that a captioner alone is seen three times as often. The captioners of scenes: A writes 4 sentences without places, with 3 %
errors; B 7 sentences with 20 % errors; C 6 to 8 with 4 %, of everything. Expected there: C best in long-text retrieval, A close
to it in classification, all best on average.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.recipes import PairData, Recipe
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_9

SCENES = ("A", "B", "C")
DREAMLIP = ("InstructBLIP=longIB", "LLaVA=longLLA", "ShareGPT4V=longSV")


@dataclass(frozen=True)
class Options:
    """A row for each captioner."""

    captioners: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]SOURCE ..")] = ()
    """Captioners, by the source of their captions in the shards; by default those of scenes, or with --train of
    `cornerstone data import dreamlip-csv`."""


def captioners(recipe: Recipe, options: Options = Options()) -> Sweep:
    """One point a captioner, and one for all of them. Nothing else differs from `recipe`."""
    if not isinstance(recipe.data, PairData) or not recipe.data.sub_captions:
        raise SystemExit(
            "This experiment needs long captions of pairs: give a preset of LoTLIP, such as --preset scenes."
        )
    given = options.captioners or (DREAMLIP if recipe.data.train else SCENES)
    named = {name or source: source for name, _, source in (one.rpartition("=") for one in given)}
    points = [Point(name, recipe.with_data(captioners=(source,))) for name, source in named.items()]
    every = tuple(named.values()) if options.captioners else ()  # (): all that the data have
    points.append(Point("All", recipe.with_data(captioners=every)))
    return Sweep(points, baseline="All", paper=TABLE_9)


if __name__ == "__main__":
    main(captioners, options=Options)
