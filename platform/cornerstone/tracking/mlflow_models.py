"""The best model of a sweep in MLflow's registry: a version with a signature, tags, a description and the alias `best`.

The weights stay where the run left them. What MLflow gets is a model of its own kind (`MLmodel` with the signature) that
names their place, with the recipe and the configuration beside it: a server refuses a version whose source is a folder of
another machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ALIAS = "best"
FLAVOR = "cornerstone"
MEASURE, VALUE = "cornerstone.measure", "cornerstone.value"
"""Tags of a version."""
ANY = -1
"""A length that is not fixed, in a signature."""


@dataclass(frozen=True)
class ModelShapes:
    """What a model takes and gives: images (n, 3, S, S), token ids (n, `tokens`), features (n, `width`); S is `image_size`."""

    image_size: int = ANY
    tokens: int = ANY
    width: int = ANY

    def signature(self) -> ModelSignature:
        """As MLflow writes it."""
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        size, real, whole = self.image_size, np.dtype(np.float32), np.dtype(np.int64)
        return ModelSignature(
            inputs=Schema(
                [
                    TensorSpec(real, (ANY, 3, size, size), "images"),
                    TensorSpec(whole, (ANY, self.tokens), "token_ids"),
                ]
            ),
            outputs=Schema(
                [
                    TensorSpec(real, (ANY, self.width), "image_features"),
                    TensorSpec(real, (ANY, self.width), "text_features"),
                ]
            ),
        )


@dataclass(frozen=True)
class RegisteredModel:
    """A model to register: the name, the MLflow run that trained it, and where its folder is."""

    name: str
    run: str
    location: str
    shapes: ModelShapes
    measure: str
    """What `value` measures; models of the same measure can be compared."""
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Small files, by their names."""

    @property
    def all_tags(self) -> dict[str, str]:
        """Its own, and by what it is the best."""
        return {**self.tags, MEASURE: self.measure, VALUE: repr(self.value)}

    @property
    def description(self) -> str:
        """How to open it."""
        return (
            f"The weights are in `{self.location}`. Open them with\n\n```python\nimport cornerstone\n"
            f"model = cornerstone.load({self.location!r})\n```\n\nThis entry has the signature, the configuration and the "
            f"recipe, not the weights: `mlflow.pyfunc.load_model` does not open it."
        )


def register(client: MlflowClient, experiment: str, model: RegisteredModel) -> str:
    """The model's version: a new one, or the one that an earlier start of the sweep made of this run.

    It gets the alias unless the version that has it is better by the same measure.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"run_id = '{model.run}'")
    version = next((one.version for one in known if one.name == model.name), None) or _version(
        client, experiment, model
    )
    if not _is_beaten(client, model):
        client.set_registered_model_alias(model.name, ALIAS, version)
    return str(version)


def _is_beaten(client: MlflowClient, model: RegisteredModel) -> bool:
    """Whether the version that has the alias has a higher value of the same measure."""
    holder = client.get_registered_model(model.name).aliases.get(ALIAS)
    if holder is None:
        return False
    tags = client.get_model_version(model.name, holder).tags
    return tags.get(MEASURE) == model.measure and float(tags[VALUE]) > model.value


def _version(client: MlflowClient, experiment: str, model: RegisteredModel) -> str:
    logged: Any = client.create_logged_model(
        experiment, name=model.name, source_run_id=model.run, tags=model.all_tags, model_type=FLAVOR
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, text in model.files.items():
            Path(folder, name).write_text(text)
        _mlmodel(model, logged.model_id).save(str(Path(folder, "MLmodel")))
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    made = client.create_model_version(
        model.name,
        source=logged.artifact_location,  # `models:/ID` would be looked up in the store of the process
        run_id=model.run,
        tags=model.all_tags,
        description=model.description,
        await_creation_for=0,
        model_id=logged.model_id,
    )
    return str(made.version)


def _mlmodel(model: RegisteredModel, model_id: str) -> Any:
    from mlflow.models import Model

    found = Model(run_id=model.run, signature=model.shapes.signature(), model_id=model_id)
    found.add_flavor(FLAVOR, location=model.location)
    return found
