"""Engines: one optimizer step on one worker's share of a batch.

`PlainEngine` is PyTorch alone, one process: the reference, and what a bare loop measures. `DeepSpeedEngine` is the same step
under ZeRO. Both have the same door; the loop does not know which one it drives.

A loss is local sum / global count × workers, and DeepSpeed averages gradients over the workers: together that is the
gradient of the global mean, for any number of workers and masked rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cornerstone.data.batches import Batch
from cornerstone.errors import CornerstoneError
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.resharding import TAG, UNIVERSAL, resharded
from cornerstone.training.schedule import build_optimizer

SHARDED = "zero.json"
"""Says, in a checkpoint, by which stage and over how many workers its state is sharded."""
Precision = Literal["fp32", "bf16"]


class Method(Protocol):
    """What a method's module gives the step: features of a batch, and the parts of the loss from them."""

    def __call__(self, batch: Batch) -> Any:
        """Features of a batch."""
        ...

    def losses(self, features: Any, batch: Batch, group: Any = None) -> dict[str, Tensor]:
        """The parts of the loss, which add up to it."""
        ...


class Engine(Protocol):
    """One step of training, the state behind it, and the weights it has learnt."""

    device: torch.device

    def step(self, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward, clip, update; the parts of this worker's loss."""
        ...

    def save(self, folder: str, step: int) -> None:
        """Write this worker's part of a checkpoint."""
        ...

    def load(self, folder: str) -> int:
        """Go on from a checkpoint; the number of steps done."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer that training may have changed, whole."""
        ...


def pick_device() -> torch.device:
    """This worker's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse bf16 where the device computes it only by emulation: other hardware, same experiment, other numbers."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise CornerstoneError(f"{torch.cuda.get_device_name(device)} has no bf16: set --recipe.precision fp32.")


class PlainEngine:
    """PyTorch alone, on one device."""

    def __init__(self, model: nn.Module, optimization: Optimization, precision: Precision = "fp32") -> None:
        self.device = next(model.parameters()).device
        check_precision(precision, self.device)
        self.model, self.precision, self.clip_norm = model, precision, optimization.clip_norm
        self.optimizer = build_optimizer(model, optimization)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def step(self, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward, clip, update; returns the parts of the loss."""
        _set_learning_rate(self.optimizer, learning_rate)
        with self._autocast():
            features = self.model(batch)
        parts: dict[str, Tensor] = self.model.losses(features, batch)  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)
        sum(parts.values()).backward()  # type: ignore[union-attr]
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return {name: part.detach() for name, part in parts.items()}

    def save(self, folder: str, step: int) -> None:
        """Model, optimizer and step in one file."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        torch.save(state, os.path.join(folder, "plain.pt"))

    def load(self, folder: str) -> int:
        """Go on from `save`; returns the number of steps done."""
        state = torch.load(os.path.join(folder, "plain.pt"), map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer that training may have changed."""
        return dict(self.model.state_dict())


class DeepSpeedEngine:
    """The same step under DeepSpeed ZeRO, stages 0 to 3, one process a worker."""

    def __init__(
        self, model: nn.Module, optimization: Optimization, stage: int, rows: int, precision: Precision = "fp32"
    ) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        import deepspeed
        import torch.distributed as dist

        self.device, self.stage = pick_device(), stage
        check_precision(precision, self.device)
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self._deepspeed = deepspeed
        if self.device.type == "cpu":
            # An all-reduce through shared memory that is compiled at its first use (25 s, a C++ compiler): gloo does it too.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model.to(self.device),
            optimizer=build_optimizer(model, optimization),
            config={
                "train_micro_batch_size_per_gpu": rows,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": optimization.clip_norm,
                "zero_optimization": {"stage": stage},
                "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 10**9,
            },
        )

    def step(self, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward, clip, update; returns this worker's parts of the loss, whose mean over workers is the loss."""
        _set_learning_rate(self.optimizer, learning_rate)
        features = self.engine(batch)
        parts = self.engine.module.losses(features, batch)
        self.engine.backward(sum(parts.values()))
        self.engine.step()
        return {name: part.detach() for name, part in parts.items()}

    def save(self, folder: str, step: int) -> None:
        """This worker's shard of model, optimizer and step; every worker calls it."""
        self.engine.save_checkpoint(folder, tag=TAG, client_state={"step": step})
        if self.rank == 0:
            Path(folder, SHARDED).write_text(json.dumps({"stage": self.stage, "world": self.world}))

    def load(self, folder: str) -> int:
        """Go on from `save`, at stages 0 to 2 by any number of workers; returns the number of steps done.

        Every worker calls it. Raises CornerstoneError for a checkpoint of another stage, and at stage 3 for one of another
        number of workers.
        """
        saved = json.loads(Path(folder, SHARDED).read_text())
        if saved["stage"] != self.stage:  # DeepSpeed would go on without the optimizer's state, and not say so
            raise CornerstoneError(
                f"The checkpoint {folder} is of ZeRO stage {saved['stage']}, the run of stage {self.stage}: give "
                f"--zero-stage {saved['stage']} as before."
            )
        if self.stage == 0 or saved["world"] == self.world:
            return self._load(folder, TAG)
        if (
            self.stage == 3
        ):  # the universal form loses the optimizer's state of small parameters there (DeepSpeed 0.19.8)
            raise CornerstoneError(
                f"The checkpoint {folder} is sharded over {saved['world']} workers by ZeRO stage 3, and this run has "
                f"{self.world}: resume with --workers {saved['world']}. Stages 0 to 2 go on with any number."
            )
        with resharded(folder) as universal:
            # What the setting `checkpoint.load_universal` sets; it is not known before there is a checkpoint to look at.
            self.engine._config.load_universal_checkpoint = True
            step = self._load(universal, UNIVERSAL)
            self.engine._config.load_universal_checkpoint = False
        return step

    def _load(self, folder: str, tag: str) -> int:
        path, state = self.engine.load_checkpoint(folder, tag=tag)
        if path is None:
            raise CornerstoneError(f"No DeepSpeed checkpoint in {folder}.")
        return int(state["step"])

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer, whole, on every worker (gathered from the shards at stage 3)."""
        module = self.engine.module
        if self.stage < 3:
            return dict(module.state_dict())
        with self._deepspeed.zero.GatheredParameters(list(module.parameters())):
            return {name: value.detach().clone() for name, value in module.state_dict().items()}

    def whole_module(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The model with all its parameters, to encode with: at stage 3 a copy, which `build` makes, with gathered weights."""
        if self.stage < 3:
            return self.engine.module
        weights = self.weights()
        model = build().to(self.device)
        model.load_state_dict(weights)
        return model


def _set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
