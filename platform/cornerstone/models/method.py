"""The contract of a method: what training, evaluation and saved models expect of its module, and nothing more.

B rows of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.documents.config import SpecialIds
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower
from cornerstone.recipes.method import MethodConfig

if TYPE_CHECKING:
    from cornerstone.models.language_model import LanguageModel

B = TypeVar("B")
"""The batch that it reads; see `cornerstone.data.batch.Batch`."""
F = TypeVar("F", bound=tuple[Any, ...])
"""Its features: a flat NamedTuple of tensors (or None), each with rows first, (B, ...) of two or more dimensions, or of the
shape (1,): a value that all rows share, such as the temperature."""


class Losses(NamedTuple):
    """What a step computes from the features."""

    parts: dict[str, Tensor]
    """Their sum is the loss. Each is local sum / global count × workers, so that the mean over workers is the global mean."""
    reports: dict[str, Tensor]
    """Logged and never summed: `logit_scale`, the share of steps at its cap, an accuracy."""


class Group(NamedTuple):
    """Parameters that the optimizer treats alike."""

    parameters: list[nn.Parameter]
    decays: bool = True
    """Whether weight decay applies."""
    lr_scale: float = 1.0
    """Factor on the learning rate of the step."""
    frozen: bool = False
    """Leave these parameters as they are."""


@dataclass(frozen=True)
class Inputs:
    """What a method's module is built from, besides its configuration."""

    vocab_size: int
    """Token ids of the tokenizer; reserved and special tokens have ids beyond these."""
    image_width: int = 0
    """Length of an image's feature, from the tower or a feature store."""
    image_tower: TimmTower | None = None
    """The image tower; None if stored features stand for it, and for methods that have none."""
    special_ids: SpecialIds | None = None
    """Of documents: what stands between the words; three of them follow the tokenizer's own ids."""
    language_model: LanguageModel | None = None
    """Of transfers that bring a language model of their own, pretrained or not."""
    length_buckets: int = 1
    """Runs of a batch of texts, sorted by length, through the text tower: a matter of speed that changes no number."""


class Method(nn.Module, ABC, Generic[B, F]):
    """A method as one module: `losses(module(batch), batch)` is a step's loss.

    Every parameter must be used in `forward` (also an LM head), since ZeRO-3 gathers parameters there, and how often a
    submodule is called must depend on the configuration alone, so that all workers make the same calls. `losses` is computed
    from features and the batch, with no parameter: the engine may compute it from features that were gathered from
    micro-batches (gradient caching). Parameters have one dimension or more, since DeepSpeed cannot shard a scalar.
    """

    config: MethodConfig
    whole_share: ClassVar[bool] = False
    """Whether `forward` compares the rows of a share with each other, so that it cannot be cut into micro-batches."""

    @classmethod
    @abstractmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train; all that is drawn belongs to `seed`, without moving torch's own generator."""

    @abstractmethod
    def forward(self, batch: B) -> F:
        """Features of a batch."""

    @abstractmethod
    def losses(self, features: F, batch: B, group: ProcessGroup | None = None) -> Losses:
        """The parts of the loss, and what is logged beside them."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """JSON values that `rebuilt` needs besides the configuration."""

    @classmethod
    @abstractmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded; asks no hub."""

    @property
    def image_tower(self) -> TimmTower | None:
        """The image tower that a saved model must hold, whether or not its weights are among the module's own."""
        return None

    def image_features(self, image: Tensor) -> Tensor:
        """(B, V): the mean of the image tower's patches, which probes of a frozen tower read, the same for every method."""
        tower = self.image_tower
        if tower is None:
            raise CornerstoneError(f"The method {self.config.kind!r} has no image tower to probe.")
        patches: Tensor = tower(image).patches
        return patches.mean(1)

    def parameter_groups(self) -> list[Group]:
        """All trained parameters: weight decay on matrices, none on biases, norms and temperatures."""
        return grouped(self.parameters())


def grouped(parameters: Iterable[nn.Parameter], lr_scale: float = 1.0) -> list[Group]:
    """The trained ones among some parameters: weight decay on matrices, none on biases, norms and temperatures."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        Group([p for p in trained if dimensions(p) > 1], lr_scale=lr_scale),
        Group([p for p in trained if dimensions(p) <= 1], decays=False, lr_scale=lr_scale),
    ]


def dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of a parameter; under ZeRO-3 it is empty outside its module's forward, and DeepSpeed keeps its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
