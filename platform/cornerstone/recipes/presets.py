"""Presets: whole recipes as Python functions. A variant calls another preset and changes a few fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.beit3 import Beit3Config
from cornerstone.recipes.blip2 import Blip2Config, QFormerText
from cornerstone.recipes.coca import CocaConfig
from cornerstone.recipes.documents import DocumentData, DocumentPairs
from cornerstone.recipes.emu import EmuConfig
from cornerstone.recipes.filip import FilipConfig
from cornerstone.recipes.flamingo import FlamingoConfig
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.lcl import LclConfig, LclLoss
from cornerstone.recipes.long_clip import LongClipConfig
from cornerstone.recipes.long_clip_tuned import LongClipTunedConfig
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.lotlip_rows import ROWS
from cornerstone.recipes.lotlip_t5 import LotlipT5Config
from cornerstone.recipes.pairs import PairData, Scenes
from cornerstone.recipes.recipe import Evaluation, Optimization, Recipe
from cornerstone.recipes.retrieval_transfer import RetrievalTransferConfig
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.recipes.towers import BertText, ClipText, CornerText, ImageTower, T5Text
from cornerstone.recipes.transfers import paper_recipe


def scenes() -> Recipe:
    """Some two minutes a trial on two cores, from stored features: shows the direction of large effects."""
    return Recipe(
        name="scenes",
        method=LotlipConfig(
            image=ImageTower(name="", size=64),
            text=CornerText(name="", width=96, layers=2, heads=3, token_limit=64),
            loss=LotlipLoss(),
        ),
        data=PairData(features="stored", crop_scale=(1.0, 1.0)),
        optimization=Optimization(
            steps=900, batch_size=128, learning_rate=2e-3, warmup_steps=100, weight_decay=0.1, betas=(0.9, 0.98)
        ),
        evaluation=Evaluation(best="eval/validation/i2t_r1"),
        verdicts="scenes-long",
    )


def scenes_long() -> Recipe:
    """The same world, trained until the trends can be judged: some 7 minutes a trial on two cores."""
    recipe = scenes().with_optimization(steps=4_000, warmup_steps=200)
    recipe = recipe.with_evaluation(every=1_000).with_data(scenes=Scenes(evaluation_images=4_000))
    return replace(recipe, name="scenes-long", verdicts="")


def scenes_siglip() -> Recipe:
    """SigLIP on the same world, from its raw captions."""
    method = SiglipConfig(image=ImageTower(name="", size=64), text=_small_bert())
    return replace(scenes(), name="scenes-siglip", method=method)


def scenes_filip() -> Recipe:
    """FILIP on the same world, from its raw captions: patches of the same locked tower, which are projected online."""
    image = ImageTower(name="", size=64, pooling="none")
    online = scenes().with_data(features="online")
    return replace(online, name="scenes-filip", method=FilipConfig(image, _small_bert(), embedding=96))


def scenes_longclip() -> Recipe:
    """LiT with Long-CLIP's primary component matching on the same world; a batch is a group."""
    return replace(scenes(), name="scenes-longclip", method=LongClipConfig(ImageTower(name="", size=64), _small_bert()))


def scenes_laclip() -> Recipe:
    """LaCLIP over the same locked tower: each step draws the raw caption or one of four rewrites, no long caption."""
    recipe = scenes().with_text(corner_tokens=0).with_loss(long_weight=0.0)
    recipe = recipe.with_data(sub_captions=0, rewrites=True, scenes=Scenes(rewrites=True))
    return _named(recipe, "scenes-laclip")


def scenes_t5() -> Recipe:
    """LoTLIP over a small T5 instead of a small BERT."""
    text = T5Text(width=96, layers=2, heads=3, token_limit=64)
    return replace(scenes(), name="scenes-t5", method=LotlipT5Config(ImageTower(name="", size=64), text))


def scenes_blip2() -> Recipe:
    """The BLIP-2-like baseline on the same world's raw captions, with the tower of `scenes-lcl` and a Q-Former of its width."""
    text = QFormerText("", width=128, layers=2, heads=4, token_limit=64, queries=16, embedding=128)
    recipe = replace(
        scenes(),
        name="scenes-blip2",
        method=Blip2Config(_small_tower(), text),
        data=PairData(sub_captions=0, crop_scale=(1.0, 1.0)),
        verdicts="",
    )
    return recipe.with_optimization(steps=300, batch_size=64, learning_rate=1e-3, warmup_steps=30)


def scenes_gpu() -> Recipe:
    """A larger world of 4 × 4 cells and 400,000 pairs, for one GPU: some minutes a trial, from stored features, in bf16."""
    return Recipe(
        name="scenes-gpu",
        method=LotlipConfig(
            image=ImageTower(name="", size=128),
            text=CornerText(name="", width=384, layers=6, heads=6, token_limit=64),
            loss=LotlipLoss(),
        ),
        data=PairData(
            features="stored",
            crop_scale=(1.0, 1.0),
            scenes=Scenes(pairs=400_000, evaluation_images=4_000, cells=4, min_objects=6, max_objects=10),
        ),
        optimization=Optimization(
            steps=3_000, batch_size=2_560, learning_rate=1e-3, warmup_steps=300, weight_decay=0.1, betas=(0.9, 0.98)
        ),
        evaluation=Evaluation(every=1_000, best="eval/validation/i2t_r1"),
        precision="bf16",
    )


def smoke() -> Recipe:
    """Seconds: a few steps on a few scenes, decoded and encoded online. It shows that everything is connected."""
    recipe = scenes().with_data(features="online", scenes=Scenes(pairs=512, evaluation_images=128, tower_images=512))
    return _named(recipe.with_optimization(steps=8, batch_size=32, warmup_steps=2), "smoke")


def photos() -> Recipe:
    """A small vision transformer trained from scratch, with its text tower, on a user's own pictures."""
    return Recipe(
        name="photos",
        method=LotlipConfig(
            image=ImageTower(name="test_vit.r160_in1k", pretrained=False, locked=False, size=160),
            text=CornerText(name="", width=128, layers=2, heads=4, token_limit=128),
        ),
        # Small data are learnt by heart first: with the paper's stretching crop that takes several times the steps.
        data=PairData(tokenizer="bert-base-uncased", crop_scale=(1.0, 1.0)),
        optimization=Optimization(
            steps=400, batch_size=64, learning_rate=1e-3, warmup_steps=20, weight_decay=0.05, betas=(0.9, 0.98)
        ),
    )


def lotlip_3m() -> Recipe:
    """LoTLIP at the 3M scale of the ablations: CC3M with three captioners, batch 2560, 10 epochs, ViT-B/16 and BERT-base.

    The random crop of the paper needs the tower online; the ablations run from stored features here, and say so.
    """
    return Recipe(
        name="lotlip-3m",
        method=LotlipConfig(),
        data=PairData(
            tokenizer="bert-base-uncased", features="stored", feature_precision="bf16", crop_scale=(1.0, 1.0)
        ),
        optimization=Optimization(steps=11_790, batch_size=2_560, learning_rate=5e-4, warmup_steps=1_000),
        evaluation=Evaluation(every=2_358),
        precision="bf16",
    )


def lotlip_12m() -> Recipe:
    """The 12M scale (CC12M): as 3M, 10 epochs of 10.4M pairs."""
    return _named(lotlip_3m().with_optimization(steps=40_800, warmup_steps=2_000), "lotlip-12m")


def lotlip_30m() -> Recipe:
    """The 30M scale (CC3M + CC12M + YFCC15M): 10 epochs of 28.2M pairs."""
    return _named(lotlip_3m().with_optimization(steps=110_300, warmup_steps=5_000), "lotlip-30m")


def lotlip_100m() -> Recipe:
    """The 100M scale: batch 16,384, 10 epochs of 102.6M pairs, the tower online with its random crop; 133 A100 days."""
    recipe = lotlip_3m().with_data(features="online", crop_scale=(0.9, 1.0))
    return _named(recipe.with_optimization(steps=62_600, batch_size=16_384, warmup_steps=5_000), "lotlip-100m")


def longclip_b16() -> Recipe:
    """Long-CLIP as its authors train it, on 1.2M pairs of ShareGPT4V: batch 2,048, 6 epochs at a small rate.

    `--recipe.method.loss.initial-scale` is 100, where CLIP's training ended; from scratch it starts at 1/0.07.
    """
    return Recipe(
        name="longclip-b16",
        method=LongClipTunedConfig(),
        data=PairData(tokenizer="openai/clip-vit-base-patch16", sub_captions=32, crop_scale=(1.0, 1.0)),
        optimization=Optimization(3_500, 2_048, 1e-6, 200, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8),
        precision="bf16",
    )


def scenes_lcl() -> Recipe:
    """LCL on the built-in documents, from scratch: a small vision transformer and a small OPT, 64 px, 16 tokens an image."""
    return Recipe(
        name="scenes-lcl",
        method=LclConfig(
            image=_small_tower(),
            language=_small_language(),
            embedding=128,
            pooling_heads=4,
        ),
        data=DocumentData(image_size=64, crop_scale=(1.0, 1.0)),
        optimization=Optimization(
            steps=200, batch_size=16, learning_rate=1.5e-3, warmup_steps=20, weight_decay=0.1, betas=(0.9, 0.98)
        ),
    )


def scenes_flamingo() -> Recipe:
    """The Flamingo-like baseline on the same documents, with the same tower and language model."""
    method = FlamingoConfig(_small_tower(), _small_language(), latents=16, resampler_layers=2, heads=4, head_width=32)
    return replace(scenes_lcl(), name="scenes-flamingo", method=method)


def scenes_emu() -> Recipe:
    """The Emu-like baseline on the same documents, with the same tower and language model: 16 embeddings an image."""
    method = EmuConfig(_small_tower(), _small_language(), tokens=16, former_layers=2, former_width=128, former_heads=4)
    return replace(scenes_lcl(), name="scenes-emu", method=method)


def scenes_coca() -> Recipe:
    """The CoCa baseline on the (image, matched sentence) pairs of the same documents, as many images a step, the same tower."""
    text = ClipText(width=128, layers=2, heads=4, token_limit=64, pooling="trailing")
    method = CocaConfig(_small_tower(), text, decoder_layers=2, queries=16)
    data = DocumentPairs(sub_captions=0, crop_scale=(1.0, 1.0))
    return replace(scenes_lcl().with_optimization(batch_size=70), name="scenes-coca", method=method, data=data)


def scenes_clip_pair() -> Recipe:
    """The CLIP baseline on the same pairs: CoCa without captioning, its text read at the end token."""
    recipe = scenes_coca().with_loss(caption_weight=0.0).with_text(pooling="end")
    return _named(recipe, "scenes-clip-pair")


def scenes_beit3() -> Recipe:
    """The BEiT-3-like baseline on the same documents, with the same tower, whose blocks the text shares."""
    method = Beit3Config(_small_tower(), positions=256, min_block=2)
    return replace(scenes_lcl(), name="scenes-beit3", method=method)


def _small_bert() -> BertText:
    return BertText(name="", width=96, layers=2, heads=3, token_limit=64)


def _small_tower() -> ImageTower:
    return ImageTower("vit_base_patch16_224", False, False, 64, "none", width=128, layers=3, heads=4, patch=16)


def _small_language() -> CausalText:
    return CausalText(width=128, layers=2, heads=4, positions=256)


def lcl_mmc4_b16() -> Recipe:
    """LCL's ablations on MMC4: ViT-B/16 from scratch, 250,000 steps of 8,000 images (paper, section 4.1 and appendix A.1).

    A packed sequence of 2,048 tokens holds about 4 images under MMC4's filter: 2,048 sequences are about 8,000 images.
    """
    return Recipe(
        name="lcl-mmc4-b16",
        method=LclConfig(image=ImageTower("vit_base_patch16_224", False, False, 224, "none", drop_path=0.1)),
        data=DocumentData(tokenizer="facebook/opt-125m", images_per_sequence=4.0),
        optimization=Optimization(
            steps=250_000,
            batch_size=2_048,
            learning_rate=3e-4,
            warmup_steps=2_000,
            weight_decay=0.1,
            betas=(0.9, 0.98),
        ),
        evaluation=Evaluation(every=25_000),
        precision="bf16",
    )


def lcl_laion_b16() -> Recipe:
    """The same on LAION-Random: the image before or after its caption. Its peak learning rate is higher (appendix A.1)."""
    return _named(lcl_mmc4_b16().with_optimization(learning_rate=5e-4), "lcl-laion-b16")


def lcl_l14() -> Recipe:
    """LCL's main model: ViT-L/14, 200,000 steps of 64,000 images, LAION-400M and MMC4 mixed (paper, section 4.3)."""
    recipe = lcl_mmc4_b16().with_optimization(steps=200_000, batch_size=16_384)
    return _named(recipe.with_image(name="vit_large_patch14_224", drop_path=0.2), "lcl-l14")


def lcl_authors_b16() -> Recipe:
    """As the released code has it: pooling and image tokens share the value path, CLIP's text transformer and vocabulary."""
    method = LclConfig(
        image=ImageTower("vit_base_patch16_clip_224", False, False, 224, "none"),
        language=CausalText(activation="gelu", restart_positions=False),
        shared_values=True,
        loss=LclLoss(unpreceded="authors"),
    )
    recipe = replace(lcl_mmc4_b16(), name="lcl-authors-b16", method=method)
    recipe = recipe.with_data(tokenizer="openai/clip-vit-base-patch16")
    return recipe.with_optimization(weight_decay=0.2)


def lcl_retrieval() -> Recipe:
    """LCL's transfer to retrieval: a locked tower (`--image-tower RUN/model`), CC12M, CC3M and SBU, 5,000 steps (appendix).

    `--recipe.method.image.no-locked` trains the tower too, at a hundredth of the learning rate. For a floor and several
    seeds in one table use `cornerstone transfer --task retrieval`.
    """
    return Recipe(
        name="lcl-retrieval",
        method=RetrievalTransferConfig(image=ImageTower(pooling="none"), text=BertText(name="", token_limit=77)),
        data=PairData(tokenizer="bert-base-uncased", sub_captions=0),
        optimization=Optimization(
            steps=5_000, batch_size=16_384, learning_rate=1e-3, warmup_steps=500, weight_decay=0.1, betas=(0.9, 0.98)
        ),
        precision="bf16",
    )


def lcl_classification() -> Recipe:
    """LCL's transfer to ImageNet-1k: a classifier on a locked tower (`--image-tower RUN/model`), 14,000 steps (appendix).

    `--recipe.method.no-frozen` trains the tower too. Several towers and seeds in one table: `experiments/transfer.py`.
    """
    return _named(paper_recipe("classification", ImageTower(pooling="none")), "lcl-classification")


def lcl_caption() -> Recipe:
    """LCL's transfer to captioning: a new language model on a locked tower's patches, 20,000 steps (appendix)."""
    return _named(paper_recipe("caption", ImageTower(pooling="none")), "lcl-caption")


def lcl_dialogue() -> Recipe:
    """LCL's transfer to dialogue: LLaVA-1.5's second stage with Vicuna, 5,198 steps (appendix).

    `--recipe.method.stage projector --recipe.data.style plain` is the first one, whose model `--recipe.method.projector` names.
    """
    recipe = paper_recipe("dialogue", ImageTower(pooling="none")).with_optimization(learning_rate=2e-5)
    vicuna = "lmsys/vicuna-7b-v1.5"
    return _named(recipe.with_method(language_model=vicuna).with_data(tokenizer=vicuna), "lcl-dialogue")


def _row(base: Callable[[], Recipe], row: str) -> Recipe:
    """A row of LoTLIP's tables at a scale, as `base-row`."""
    recipe = base()
    return _named(ROWS[row](recipe), f"{recipe.name}-{row}")


def _named(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, name=name)


PRESETS: dict[str, Callable[[], Recipe]] = {
    "smoke": smoke,
    "scenes": scenes,
    "scenes-long": scenes_long,
    "scenes-siglip": scenes_siglip,
    "scenes-blip2": scenes_blip2,
    "scenes-filip": scenes_filip,
    "scenes-longclip": scenes_longclip,
    "scenes-laclip": scenes_laclip,
    "scenes-t5": scenes_t5,
    "scenes-gpu": scenes_gpu,
    "photos": photos,
    "lotlip-3m": lotlip_3m,
    "lotlip-12m": lotlip_12m,
    "lotlip-30m": lotlip_30m,
    "lotlip-100m": lotlip_100m,
    "longclip-b16": longclip_b16,
    "scenes-lcl": scenes_lcl,
    "scenes-flamingo": scenes_flamingo,
    "scenes-emu": scenes_emu,
    "scenes-coca": scenes_coca,
    "scenes-clip-pair": scenes_clip_pair,
    "scenes-beit3": scenes_beit3,
    "lcl-mmc4-b16": lcl_mmc4_b16,
    "lcl-laion-b16": lcl_laion_b16,
    "lcl-l14": lcl_l14,
    "lcl-authors-b16": lcl_authors_b16,
    "lcl-retrieval": lcl_retrieval,
    "lcl-classification": lcl_classification,
    "lcl-caption": lcl_caption,
    "lcl-dialogue": lcl_dialogue,
}
PRESETS |= {f"scenes-{row}": partial(_row, scenes, row) for row in ROWS if f"scenes-{row}" not in PRESETS}
PRESETS |= {f"lotlip-3m-{row}": partial(_row, lotlip_3m, row) for row in ROWS}


def preset(name: str) -> Recipe:
    """The preset of that name."""
    if name not in PRESETS:
        raise CornerstoneError(f"Unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]()
