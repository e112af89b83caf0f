"""LoTLIP, Figures 2 and 5: how many sentences of a long caption should a training text contain, without and with corners?

    python experiments/ablate_sub_captions.py                        scenes on 2 cores, about 24 minutes: no conclusions
    python experiments/ablate_sub_captions.py --preset scenes-long --seeds 5
                                                                     scenes on 2 cores, about 7 h: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_sub_captions.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, figures without numbers): from 0 (raw captions alone) to 1 every task improves (Table 2: ImageNet 43.76 →
48.87). Beyond 1, long-text retrieval improves and is flat after 3, while short-text retrieval and classification get worse,
with LoTLIP more slowly than with LiT, which is LoTLIP without corner tokens. The plot has a curve for each. Corner tokens also
raise the weight of long captions, which LiT's curve does not have: `ablate_corner_tokens.py` has the control.
"""

from cornerstone.recipes import LotlipConfig, Recipe
from cornerstone.recipes.lotlip import with_sub_captions
from cornerstone.sweeps import Place, Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import FIGURE_2

SENTENCES = (0, 1, 2, 3, 4, 6)


def sub_captions(recipe: Recipe) -> Sweep:
    """One point per number of sentences, without and with corner tokens. Nothing else differs from `recipe`."""
    if not isinstance(recipe.method, LotlipConfig) or not recipe.method.text.extra_features:
        raise SystemExit("This experiment needs corner tokens: give a preset of LoTLIP, such as --preset scenes.")
    methods = {"LiT": recipe.with_text(corner_tokens=0), "LoTLIP": recipe}
    points = [
        Point(
            f"{name}, {k}",
            with_sub_captions(one, k),
            places=(Place(name, k),),
            compared_with="" if name == "LiT" else f"LiT, {k}",
        )
        for name, one in methods.items()
        for k in SENTENCES
    ]
    return Sweep(points, baseline="LiT, 3", paper=FIGURE_2, x_label="sub-captions of a training text")


if __name__ == "__main__":
    main(sub_captions)
