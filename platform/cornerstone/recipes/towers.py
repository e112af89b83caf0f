"""What a recipe says of its towers. A method's configuration is made of these parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class ImageTower:
    """A timm vision transformer. LoTLIP locks it (LiT): only the text tower and the temperature learn (paper, 7.2.3)."""

    name: str = "vit_base_patch16_224.augreg_in21k"
    """A timm model name, a folder in timm's own layout (config.json and model.safetensors), or a run's folder `model`,
    whose image tower is taken."""
    pretrained: bool = True
    """Load the pretrained weights; a folder's weights are always loaded."""
    locked: bool = True
    """Keep it as it is; False trains it too."""
    size: int = 224
    """Side of the square that it sees, in pixels."""
    pooling: Literal["token", "average", "attention", "none"] = "token"
    """What becomes the image's feature: the class token, the mean of the patches, attention pooling with one learnable
    query, or nothing (a method that reads the patches alone)."""
    projection: int = 0
    """Width of a linear projection of the pooled feature; 0 for none."""
    drop_path: float = 0.0
    """Largest rate of stochastic depth, rising linearly over the blocks."""
    layer_scale: float = 0.0
    """Initial value of layer scale; 0 for none."""
    width: int = 0
    """With `layers`, `heads` and `patch`: sizes other than those of the named model, for a tower from scratch; 0 as named."""
    layers: int = 0
    heads: int = 0
    patch: int = 0
    """Pixels of a patch's side."""
    mlp_ratio: float = 0.0
    """Width of the feed-forward layers in widths of the tower; 0 as named."""
    position_std: float = 0.0
    """Standard deviation of the initial position embeddings; 0 as timm's, 0.02. With larger ones a small tower tells places
    apart within a short training."""

    def __post_init__(self) -> None:
        if self.pretrained and self.sizes:
            raise CornerstoneError(
                f"Pretrained weights have sizes of their own, but {', '.join(self.sizes)} is set as well: set "
                f"--recipe.method.image.no-pretrained, or leave the sizes out."
            )
        if self.size < 8:
            raise CornerstoneError(
                f"An image of {self.size} pixels is too small: set --recipe.method.image.size to 32."
            )
        if not 0 <= self.drop_path < 1:
            raise CornerstoneError(f"Drop-path {self.drop_path} is not in [0, 1) (--recipe.method.image.drop-path).")
        if self.locked and self.projection:
            raise CornerstoneError(
                f"A locked image tower does not train a projection to {self.projection}: set "
                f"--recipe.method.image.no-locked, or --recipe.method.image.projection 0."
            )
        if self.projection < 0 or self.layer_scale < 0:
            raise CornerstoneError(
                f"Projection {self.projection}, layer scale {self.layer_scale}: expected 0 or more "
                f"(--recipe.method.image.projection, --recipe.method.image.layer-scale)."
            )

    @property
    def patches(self) -> int:
        """Patches of an image. Raises CornerstoneError if neither `patch` nor the name tells a patch's side."""
        if not (side := self._patch_side):
            raise CornerstoneError(
                f"The side of a patch of {self.name} is not known: give it as --recipe.method.image.patch, in pixels."
            )
        return (self.size // side) ** 2

    @property
    def patches_if_known(self) -> int:
        """`patches`; 0 if only the tower itself tells them, as one that is loaded from a folder."""
        return (self.size // self._patch_side) ** 2 if self._patch_side and "/" not in self.name else 0

    @property
    def _patch_side(self) -> int:
        named = re.search(r"patch(\d+)", self.name)
        return self.patch or int(named[1] if named else 0)

    @property
    def sizes(self) -> dict[str, float]:
        """The sizes that differ from the named model's, by timm's names."""
        given = {"embed_dim": self.width, "depth": self.layers, "num_heads": self.heads, "patch_size": self.patch}
        return {name: value for name, value in {**given, "mlp_ratio": self.mlp_ratio}.items() if value}


def from_scratch() -> ImageTower:
    """ViT-B/16 from scratch without pooling of its own: the tower of LCL's ablations (section 4.1)."""
    return ImageTower(name="vit_base_patch16_224", pretrained=False, locked=False, pooling="none")


def needs_patches_alone(tower: ImageTower, method: str) -> None:
    """Raise CornerstoneError for a tower that pools what the method pools itself."""
    if tower.pooling != "none":
        raise CornerstoneError(
            f"{method} pools the patches itself: set --recipe.method.image.pooling none (given: {tower.pooling})."
        )
    if tower.projection:
        raise CornerstoneError(
            f"{method} reads the patches alone, which no projection to {tower.projection} changes: set "
            f"--recipe.method.image.projection 0."
        )


@dataclass(frozen=True)
class TextTowerConfig:
    """The base of what a recipe says of a text tower; each kind of tower is a subclass."""

    implementation: ClassVar[str]
    """Its module class, a `cornerstone.models.text_tower.TextTower`."""
    format: ClassVar[str]
    """How a text's sentences become token ids; a name in `cornerstone.data.texts.FORMATS`."""

    name: str = ""
    """What the weights are loaded from; empty for a new tower of the sizes below."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    token_limit: int = 128
    """Most tokens of a text, in training and evaluation; what the tower adds is counted."""
    dropout: float = 0.0
    """0 in every preset: with dropout the numbers depend on how many workers share a batch."""

    def __post_init__(self) -> None:
        if self.token_limit < self.reserved_tokens + 3:
            raise CornerstoneError(
                f"A token limit of {self.token_limit} leaves no room for [CLS], {self.reserved_tokens} learnable tokens, a "
                f"word and [SEP]: raise --recipe.method.text.token-limit to {self.reserved_tokens + 3} or more."
            )
        if self.width % self.heads:
            raise CornerstoneError(
                f"Width {self.width} is not a multiple of {self.heads} heads (--recipe.method.text.heads)."
            )
        if not 0 <= self.dropout < 1:
            raise CornerstoneError(f"Dropout {self.dropout} is not in [0, 1) (--recipe.method.text.dropout).")

    @property
    def reserved_tokens(self) -> int:
        """Places of the token limit that the tower fills itself; the data are cut to what remains."""
        return 0

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Sentences on what is set and changes nothing, given the rest: they are said before a run."""
        return ()


@dataclass(frozen=True)
class BertText(TextTowerConfig):
    """A BERT whose [CLS] is the text's feature."""

    implementation: ClassVar[str] = "cornerstone.models.corner_text:CornerBert"
    format: ClassVar[str] = "sentences"

    name: str = "bert-base-uncased"
    """A Hugging Face BERT by name or folder, or a run's folder `model`, whose weights are loaded; empty for a new one of
    the sizes below."""
    token_limit: int = 128
    """Most tokens of a text, in training and evaluation; [CLS], [SEP]s and learnable tokens are counted."""


@dataclass(frozen=True)
class CornerText(BertText):
    """A BERT with corner tokens (LoTLIP, section 4.3)."""

    corner_tokens: int = 2
    """Learnable tokens after [CLS], each with a loss of its own; 0 is plain LiT with long captions."""
    corner_mask: bool = True
    """Corners and [CLS] do not attend to each other, and text attends to no corner (the paper's A(q, k)); False makes them
    ordinary tokens."""
    registers: bool = False
    """The learnable tokens are register tokens (appendix, Table 7): ordinary tokens whose outputs are thrown away."""

    def __post_init__(self) -> None:
        if self.corner_tokens < 0:
            raise CornerstoneError(
                f"{self.corner_tokens} corner tokens: expected 0 or more (--recipe.method.text.corner-tokens)."
            )
        if self.registers and self.corner_mask:
            raise CornerstoneError(
                "Register tokens are ordinary tokens, but the mask of the corner tokens is on: set "
                "--recipe.method.text.no-corner-mask, or --recipe.method.text.no-registers."
            )
        super().__post_init__()

    @property
    def reserved_tokens(self) -> int:
        """The learnable tokens."""
        return self.corner_tokens

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The mask, and whether the tokens are registers, if there are none."""
        if self.corner_tokens or self.corner_mask:
            return ()
        option = "--recipe.method.text.registers" if self.registers else "--recipe.method.text.no-corner-mask"
        return (f"{option} has no effect with 0 learnable tokens (--recipe.method.text.corner-tokens).",)

    @property
    def extra_features(self) -> int:
        """One of each corner token; register tokens give none."""
        return 0 if self.registers else self.corner_tokens

    def plain(self) -> BertText:
        """The same BERT without learnable tokens, for methods that have none."""
        return BertText(self.name, self.width, self.layers, self.heads, self.token_limit, self.dropout)


@dataclass(frozen=True)
class T5Text(CornerText):
    """A T5 encoder with corner tokens: a learnable token stands for [CLS], the next ones are the corners."""

    implementation: ClassVar[str] = "cornerstone.models.t5_text:T5TextTower"
    format: ClassVar[str] = "ended"

    name: str = ""
    """A Hugging Face T5 by name or folder, whose encoder is loaded; empty for a new one of the sizes below."""

    @property
    def reserved_tokens(self) -> int:
        """The token that stands for [CLS], and the learnable tokens."""
        return 1 + self.corner_tokens


@dataclass(frozen=True)
class ClipText(TextTowerConfig):
    """CLIP's text transformer: causal attention, pre-norm, learned positions (Radford et al. 2021)."""

    implementation: ClassVar[str] = "cornerstone.models.clip_text:ClipTextTransformer"
    format: ClassVar[str] = "plain"

    name: str = ""
    """A CLIP or Long-CLIP in the layout of transformers, by name or folder, whose weights are loaded; with more tokens than
    it has positions these are stretched as Long-CLIP's are, 77 to 248. Empty for a new one of the sizes below."""
    width: int = 512
    heads: int = 8
    token_limit: int = 77
    """Most tokens of a text, and learned positions; a trailing token is counted."""
    pooling: Literal["end", "trailing"] = "end"
    """What is the text's feature: the output at the token that ends the text (CLIP), or at a learnable token behind it
    (CoCa), whose position is always the last one."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """quick_gelu is OpenAI's x · sigmoid(1.702 x), which its weights and Long-CLIP's need."""
    correct_cls_mask: bool = True
    """False hides from the trailing token the places that CoCa's released weights were trained without: of a text with
    padding it then sees the first padding token in place of itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and self.pooling != "end":
            raise CornerstoneError(
                f"The weights of {self.name!r} have no trailing token: set --recipe.method.text.pooling end, or leave "
                f"--recipe.method.text.name empty."
            )
        if self.dropout:
            raise CornerstoneError(
                f"CLIP's text transformer has no dropout (given: {self.dropout}): set --recipe.method.text.dropout 0."
            )
        if not self.correct_cls_mask and self.pooling != "trailing":
            raise CornerstoneError(
                "The mask of the trailing token has no effect on a text that is pooled at its end: set "
                "--recipe.method.text.pooling trailing, or leave --recipe.method.text.correct-cls-mask as it is."
            )

    @property
    def reserved_tokens(self) -> int:
        """The trailing token."""
        return int(self.pooling == "trailing")
