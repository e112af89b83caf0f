"""What every method's configuration has in common, and how a saved configuration finds its class again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, ClassVar, TypeVar, get_type_hints

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.towers import ImageTower, TextTowerConfig

C = TypeVar("C")
_KNOWN: dict[str, type[MethodConfig]] = {}


@dataclass(frozen=True)
class MethodConfig:
    """The base of every method's configuration: its towers, its loss, and what names it.

    Each subclass has a `kind` of its own, the short name that is hashed and saved, and never changes. `implementation` is
    where its module class lives now ("package.module:Class"); it is neither hashed nor relied on by saved models of
    built-in methods, so it may move. A method called `clip` has its configuration in `cornerstone.recipes.clip`.
    """

    kind: ClassVar[str]
    implementation: ClassVar[str]
    data_kinds: ClassVar[tuple[str, ...]] = ("pairs",)
    """The kinds of data (`DataConfig.kind`) that it can be trained on."""
    judged_by: ClassVar[str] = ""
    """The evaluation task that judges its models, on whatever set; "": the tasks that a set is for."""

    def __init_subclass__(cls) -> None:
        """Remember the class by its kind. TypeError for a subclass that would be saved under another method's name."""
        if not {"kind", "implementation"} <= set(cls.__dict__):
            raise TypeError(
                f"{cls.__name__} needs a `kind` and an `implementation` of its own: they name saved models."
            )
        known = _KNOWN.setdefault(cls.kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__}: the kind {cls.kind!r} is {known.__module__}'s already."
            )
        _KNOWN[cls.kind] = cls

    @property
    def image_tower(self) -> ImageTower | None:
        """Its image tower, if it has one: named by weights in the recipe's hash, saved with the model."""
        return None

    @property
    def text_tower(self) -> TextTowerConfig | None:
        """Its text tower, if it has one: it decides how texts become token ids."""
        return None

    @property
    def text_format(self) -> tuple[str, int] | None:
        """The name of its texts' format and the most tokens of a text; None if it reads no single texts."""
        tower = self.text_tower
        return None if tower is None else (tower.format, tower.token_limit - tower.reserved_tokens)

    @property
    def weights(self) -> dict[str, str]:
        """Of weights that are read from elsewhere, those of the towers not counted: by their field, a name or a folder."""
        return {}

    @property
    def image_tokens(self) -> int:
        """Tokens of an image in a packed sequence; 0: any number, or not known before the tower is opened."""
        return 0

    def chance_loss(self, batch_size: int) -> float | None:
        """The loss of a model that cannot tell the rows of a batch apart; None if it has no such value."""
        return None

    def check(self, data: DataConfig) -> None:
        """Raise CornerstoneError if the method cannot be trained on such data."""
        if data.kind not in self.data_kinds:
            raise CornerstoneError(
                f"The method {self.kind!r} is trained on {' or '.join(self.data_kinds)}, the recipe's data are "
                f"{data.kind}: choose a preset of this method (--preset)."
            )


def implementation_of(config: MethodConfig) -> Any:
    """The module class of a configuration. CornerstoneError if it cannot be imported."""
    return imported(config.implementation)


def method_config(saved: Mapping[str, Any], config_class: str = "") -> MethodConfig:
    """The configuration that `hashing.as_json` saved, fields that are newer than it at their default.

    The class is found by the saved kind: among those imported already, in `cornerstone.recipes.<kind>`, or as
    `config_class` ("package.module:Class") for methods that live outside of Cornerstone.
    """
    kind = str(saved["kind"])
    if kind not in _KNOWN:
        _import_built_in(kind)
    if kind not in _KNOWN and config_class:
        imported(config_class)
    if kind not in _KNOWN:
        raise CornerstoneError(f"The method {kind!r} is not known here: install what defines it.")
    return from_json(_KNOWN[kind], {name: value for name, value in saved.items() if name != "kind"})


def from_json(cls: type[C], saved: Mapping[str, Any]) -> C:
    """A dataclass from its JSON form; CornerstoneError for fields that it does not have."""
    hints, names = get_type_hints(cls), {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(saved) - names - {"kind"}):
        raise CornerstoneError(
            f"{cls.__name__} has no field {unknown[0]!r}: what was saved is of a newer Cornerstone, update this one."
        )
    values: dict[str, Any] = {}
    for name, value in saved.items():
        hint = hints.get(name)
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
            values[name] = from_json(hint, value)
        elif name in names:  # early files store whole floats as integers
            values[name] = tuple(value) if isinstance(value, list) else float(value) if hint is float else value
    return cls(**values)


def _import_built_in(kind: str) -> None:
    """Import the configuration of a built-in method; nothing if there is none of this kind."""
    module = f"cornerstone.recipes.{kind.replace('-', '_')}"
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise


def imported(place: str) -> Any:
    """What "package.module:Class" names. CornerstoneError if it cannot be imported."""
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CornerstoneError(f"{place!r} cannot be imported here ({error}): install what defines it.") from error
