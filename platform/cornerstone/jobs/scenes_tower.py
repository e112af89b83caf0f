"""Pretraining of the image tower on built-in scenes: a small vision transformer learns the whole image, not only its class.

It takes the place of the ImageNet-21k tower that LoTLIP locks. It is trained on images of its own, and must encode what long
captions describe. Linear heads on the class token (which retrieval uses) predict the colour and shape in every cell, the
background and the salient object's class. An auxiliary head on the patch tokens, which is dropped after training, predicts
what each patch shows.

B images, S pixels per side, D width, C cells, P patches, T tokens; K colours or shapes and one more for an empty cell.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import cornerstone.models  # noqa: F401 - patches torchvision before timm is imported
from cornerstone.data.draws import permutation
from cornerstone.data.scenes.draw import encode, paint
from cornerstone.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SPECIES,
    Scene,
    ScenesSpec,
    colour_of,
    draw_scene,
    shape_of,
)
from cornerstone.errors import CornerstoneError

EMPTY_COLOUR, EMPTY_SHAPE = len(COLOURS), len(SHAPES)
_MEAN = _STD = 0.5
_WARMUP_STEPS = 30
_ARCHITECTURE = (
    "vit_tiny_patch16_224"  # timm's simplest vision transformer; its sizes are overridden by `TowerTraining`
)
# Standard deviation of the initial position embeddings. With timm's 0.02, positions are too similar for the class token to
# distinguish cells within this training budget.
_POSITIONS = 1.0


@dataclass(frozen=True)
class TowerTraining:
    """Architecture and training of the tower. The defaults take about half a minute on one core."""

    seed: int = 0
    image_size: int = 64
    cells: int = 3
    min_objects: int = 4
    max_objects: int = 7
    width: int = 128
    depth: int = 3
    heads: int = 8
    patch: int = 0
    """Side of a patch in pixels; 0: the size of a cell, which learns fastest."""
    images: int = 12_000
    """Training images, which are in no other set."""
    epochs: int = 3
    batch: int = 32
    learning_rate: float = 4e-3
    held_out: int = 2_000
    """Images for evaluating the heads, JPEG-compressed as in shards."""
    device: str = "cpu"
    threads: int = 1
    """Matrices this small gain little from a second thread, and the result would depend on the number of cores."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise CornerstoneError(f"width {self.width}, heads {self.heads}: expected a width divisible by heads.")
        if not 0 <= self.patch <= self.image_size:
            raise CornerstoneError(
                f"patch {self.patch}: expected 1 to {self.image_size} pixels, or 0 for the size of a cell."
            )
        if min(self.images, self.epochs, self.batch, self.held_out, self.threads) < 1:
            raise CornerstoneError(
                "images, epochs, batch, held_out and threads of the pretraining: expected 1 or more."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps. The last images of an epoch are dropped if they do not fill a batch."""
        return self.epochs * max(1, self.images // self.batch)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels, with 0 resolved."""
        return self.patch or self.image_size // self.cells

    def scenes(self, stream: str, indices: npt.NDArray[np.int64]) -> list[Scene]:
        """Scenes of the tower's own streams, `train` or `held-out`, which share no random numbers with other sets."""
        spec = ScenesSpec(
            set=f"tower-{stream}",
            seed=self.seed,
            image_size=self.image_size,
            cells=self.cells,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
        )
        return [draw_scene(spec, spec.rng("scene", int(i))) for i in indices]


class Content(NamedTuple):
    """What the images show: the targets of the heads."""

    colour_BC: Tensor
    shape_BC: Tensor
    background_B: Tensor
    salient_B: Tensor
    small_BC: Tensor
    """True for cells with an object that is not the salient one."""


def content_of(scenes: list[Scene]) -> Content:
    """The targets of some scenes."""
    shape = (len(scenes), scenes[0].cells ** 2)
    colour_BC, shape_BC = np.full(shape, EMPTY_COLOUR), np.full(shape, EMPTY_SHAPE)
    small_BC = np.zeros(shape, dtype=bool)
    for b, scene in enumerate(scenes):
        for thing in scene.things:
            colour_BC[b, thing.cell] = colour_of(thing.species)
            shape_BC[b, thing.cell] = shape_of(thing.species)
            small_BC[b, thing.cell] = thing is not scene.salient
    background_B = np.array([scene.background for scene in scenes])
    salient_B = np.array([scene.salient.species for scene in scenes])
    return Content(*map(torch.from_numpy, (colour_BC, shape_BC, background_B, salient_B, small_BC)))


class Dense(nn.Module):
    """The tower with its training heads."""

    cell_of_patch_P: Tensor

    def __init__(self, settings: TowerTraining) -> None:
        super().__init__()
        self.tower: Any = _new_tower(settings)
        self.cells = settings.cells**2
        colours, shapes = EMPTY_COLOUR + 1, EMPTY_SHAPE + 1
        self.colour = nn.Linear(settings.width, self.cells * colours)
        self.shape = nn.Linear(settings.width, self.cells * shapes)
        self.background = nn.Linear(settings.width, len(BACKGROUNDS))
        self.salient = nn.Linear(settings.width, SPECIES)
        self.patch_colour = nn.Linear(settings.width, colours)
        self.patch_shape = nn.Linear(settings.width, shapes)
        side = settings.image_size // settings.patch_size
        middle = (torch.arange(side) + 0.5) * settings.patch_size * settings.cells / settings.image_size
        cell = middle.long()
        self.register_buffer("cell_of_patch_P", (cell[:, None] * settings.cells + cell).flatten())

    def named(self, cls_BD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of colour (B, C, K) and shape (B, C, K) in every cell, of background (B, K) and salient species (B, K)."""
        batch = len(cls_BD)
        colour_BCK = self.colour(cls_BD).view(batch, self.cells, -1)
        shape_BCK = self.shape(cls_BD).view(batch, self.cells, -1)
        return colour_BCK, shape_BCK, self.background(cls_BD), self.salient(cls_BD)

    def loss(self, image_B3SS: Tensor, content: Content) -> Tensor:
        """Weighted sum of cross-entropies. Cells have the largest weights, since they are most of the content."""
        token_BTD = self.tower.forward_features(image_B3SS)
        colour_BCK, shape_BCK, background_BK, salient_BK = self.named(token_BTD[:, 0])
        patch_BPD = token_BTD[:, 1:]
        return (
            2 * _cross_entropy(colour_BCK, content.colour_BC)
            + 2 * _cross_entropy(shape_BCK, content.shape_BC)
            + 0.3 * _cross_entropy(background_BK, content.background_B)
            + 0.5 * _cross_entropy(salient_BK, content.salient_B)
            + _cross_entropy(self.patch_colour(patch_BPD), content.colour_BC[:, self.cell_of_patch_P])
            + _cross_entropy(self.patch_shape(patch_BPD), content.shape_BC[:, self.cell_of_patch_P])
        )


def pretrain_tower(
    out_folder: Path | str, *, progress: Callable[[int, int], None] | None = None, **fields: Any
) -> dict[str, float]:
    """Pretrain a tower and save it in timm's folder layout, for `timm.create_model("local-dir:" + folder)`.

    `fields` are those of `TowerTraining`; `progress` is called with finished steps and all steps. Returns the accuracies of the
    linear heads on the class token on held-out images: `salient` (96 classes), `background` (6 classes), `colour` and `shape`
    of the objects that are not salient, and `empty` (recall of empty cells); and the last `loss`. Equal fields give the same
    tower. Torch's global generator and number of threads are restored.
    """
    settings = TowerTraining(**fields)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        dense, loss = _trained(settings, progress)
        metrics = {**_judge(dense, settings), "loss": loss}
    finally:
        torch.set_num_threads(threads)
    _save(dense.tower, Path(out_folder), settings)
    return metrics


def pixels(pictures: list[npt.NDArray[np.uint8]]) -> Tensor:
    """Convert images (S, S, 3) uint8 to the tower's input (B, 3, S, S), floats in [-1, 1]."""
    image_BSS3 = torch.from_numpy(np.stack(pictures))
    return ((image_BSS3.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD).contiguous()


def _trained(settings: TowerTraining, progress: Callable[[int, int], None] | None) -> tuple[Dense, float]:
    """Train the tower and its heads. Returns them and the loss of the last step."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        dense = Dense(settings).to(device)
    dense.train()
    decayed = [p for p in dense.parameters() if p.ndim > 1]
    others = [p for p in dense.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / settings.steps)
    )
    loss = torch.tensor(float("nan"))
    for step, indices in enumerate(_batches(settings)):
        scenes = settings.scenes("train", indices)
        images = pixels([paint(scene, settings.image_size) for scene in scenes]).to(device)
        loss = dense.loss(images, Content(*(x.to(device) for x in content_of(scenes))))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    return dense.eval(), loss.item()


def _batches(settings: TowerTraining) -> Iterator[npt.NDArray[np.int64]]:
    """Image numbers of each batch, shuffled in each epoch."""
    for epoch in range(settings.epochs):
        order = permutation(settings.images, settings.seed, "scenes/tower/order", epoch)
        for start in range(0, max(1, settings.images - settings.batch + 1), settings.batch):
            yield order[start : start + settings.batch]


@torch.no_grad()
def _judge(dense: Dense, settings: TowerTraining) -> dict[str, float]:
    """Accuracies of the heads on held-out images."""
    right: dict[str, list[Tensor]] = {}
    for start in range(0, settings.held_out, 250):
        scenes = settings.scenes("held-out", np.arange(start, min(start + 250, settings.held_out)))
        files = [encode(paint(scene, settings.image_size)) for scene in scenes]
        pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
        truth = content_of(scenes)
        logits = dense.named(dense.tower(pixels(pictures).to(settings.device)))
        colour_BC, shape_BC, background_B, salient_B = (x.argmax(-1).cpu() for x in logits)
        found = {
            "salient": salient_B == truth.salient_B,
            "background": background_B == truth.background_B,
            "colour": (colour_BC == truth.colour_BC)[truth.small_BC],
            "shape": (shape_BC == truth.shape_BC)[truth.small_BC],
            "empty": (colour_BC == EMPTY_COLOUR)[truth.colour_BC == EMPTY_COLOUR],
        }
        for name, hits in found.items():
            right.setdefault(name, []).append(hits)
    return {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}


def _new_tower(settings: TowerTraining) -> nn.Module:
    import timm

    tower: Any = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=0, **_arguments(settings))
    nn.init.normal_(tower.pos_embed, std=_POSITIONS)
    return tower


def _arguments(settings: TowerTraining) -> dict[str, Any]:
    return {
        "img_size": settings.image_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.width,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "mlp_ratio": 2.0,
        "global_pool": "token",
    }


def _save(tower: nn.Module, folder: Path, settings: TowerTraining) -> None:
    """Write config.json and model.safetensors in timm's layout."""
    from timm.models import save_for_hf

    config = {
        "model_args": _arguments(settings),
        "pretrained_cfg": {
            "tag": "scenes",
            "input_size": (3, settings.image_size, settings.image_size),
            "mean": (_MEAN,) * 3,
            "std": (_STD,) * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    }
    save_for_hf(tower.cpu(), str(folder), model_config=config, safe_serialization=True)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), target.flatten())
