"""LCL, Table 1: methods of pre-training on the same interleaved documents, with the same tower and language model.

    python experiments/compare_pretraining.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     documents of scenes, three trials at a time on 2 cores
    python experiments/compare_pretraining.py --transfer classification retrieval caption --seeds 3
                                                                     and frozen transfer, with a floor and a ceiling
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_pretraining.py \\
        --preset lcl-mmc4-b16 --train s3://bucket/mmc4-packed --recipe.data.pairs s3://bucket/mmc4-pairs \\
        --workers 32 --placement.gpus-per-worker 1 \\
        --transfer classification --classification.train s3://bucket/in1k --classification.eval in1k=s3://bucket/in1k-val

Expect (paper, frozen transfer, IN-1k top-1 and COCO TR@1): LCL 75.2 and 48.5, CoCa 75.4 and 48.6, CLIP 74.8 and 46.4, Flamingo
24.0 and 10.6, Emu 5.7 and 2.3: methods that only generate collapse, although their text loss is close. CLIP, CoCa and BLIP2
are trained on MMC4-Pair, the images with their matched sentences (`cornerstone data derive mmc4-pair` of the same documents),
as many images a step; without --recipe.data.pairs a user's own documents leave these rows out. The baselines are the least
faithful forms that a reviewer accepts; the docstrings of their modules in `models/` say what they leave out. All points use the
recipe's learning rate unless --recipe.evaluation.best names the metric by which each chooses one of three. Sets of --eval
judge the points that they suit.
"""

from dataclasses import replace

from cornerstone.recipes import (
    Beit3Config,
    Blip2Config,
    ClipText,
    CocaConfig,
    CocaLoss,
    DocumentData,
    EmuConfig,
    FlamingoConfig,
    LclConfig,
    MethodConfig,
    QFormerText,
    Recipe,
)
from cornerstone.sweeps import Point, Sweep, TransferOptions, main, with_transfers
from cornerstone.sweeps.papers.lcl import TABLE_1

WITHOUT_PAIRS = "CLIP, CoCa and BLIP2 are trained on pairs: name those of the same documents with --recipe.data.pairs."
PSEUDO = (
    "BEiT3's L_gen is a pseudo-likelihood, which reads the text on both sides: no other row's can be compared with it."
)


def pretraining(recipe: Recipe, options: TransferOptions = TransferOptions()) -> Sweep:  # noqa: B008 - frozen
    """One point a method, with the recipe's tower, language model, data and steps."""
    if not isinstance(lcl := recipe.method, LclConfig) or not isinstance(documents := recipe.data, DocumentData):
        raise SystemExit("This experiment compares with LCL: give one of its presets, such as --preset scenes-lcl.")
    recipe = recipe.with_evaluation(skip_unsuited=True)
    image, language, seen = lcl.image, lcl.language, lcl.image.patches
    width, layers, heads = language.width, language.layers, language.heads
    on_documents: dict[str, MethodConfig] = {
        "LCL": lcl,
        "Flamingo": FlamingoConfig(image, language, min(64, seen), 6, heads=heads, head_width=width // heads),
        # As many causal embeddings as the documents were packed with, so that all methods read the same packing.
        "Emu": EmuConfig(image, language, seen, former_layers=layers, former_width=width, former_heads=heads),
        "BEiT3": Beit3Config(image, positions=language.positions, min_block=max(2, round(16 / 196 * seen))),
    }
    text = ClipText(width=width, layers=layers, heads=heads)
    trailing, queries = replace(text, pooling="trailing"), QFormerText("", width, layers, heads, queries=min(32, seen))
    pairwise: dict[str, MethodConfig] = {
        "CLIP": CocaConfig(image, text, loss=CocaLoss(caption_weight=0)),
        "CoCa": CocaConfig(image, trailing, decoder_layers=layers, queries=min(256, seen)),
        "BLIP2": Blip2Config(image, queries),
    }
    points = [Point.at_best_rate(name, replace(recipe, method=method)) for name, method in on_documents.items()]
    without = bool(documents.train and not documents.pairs)
    if not without:
        images = round(recipe.optimization.batch_size * documents.images_per_sequence)  # as many a step
        recipe = recipe.with_optimization(batch_size=images)
        on_pairs = {name: replace(recipe, method=one, data=documents.as_pairs()) for name, one in pairwise.items()}
        points += [Point.at_best_rate(name, one) for name, one in on_pairs.items()]
    notes = (PSEUDO, WITHOUT_PAIRS) if without else (PSEUDO,)
    return with_transfers(Sweep(points, baseline="LCL", paper=TABLE_1, notes=notes), options)


if __name__ == "__main__":
    main(pretraining, preset="scenes-lcl", options=TransferOptions)
