"""The step under DeepSpeed ZeRO, and its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cornerstone.data.batch import Batch
from cornerstone.errors import CornerstoneError
from cornerstone.models.method import Method
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import Precision, check_precision, set_learning_rate
from cornerstone.training.report import StepReport
from cornerstone.training.resharding import TAG, UNIVERSAL, resharded
from cornerstone.training.schedule import build_optimizer
from cornerstone.training.step import forward_backward

REDUCE_BUCKET, GATHER_BUCKET = 50_000_000, 200_000_000
"""Elements of DeepSpeed's buffers. Its default for the first, 500,000,000, takes 4 GB."""
SHARDED = "zero.json"
"""Says, in a checkpoint, by which stage and over how many workers its state is sharded."""


class DeepSpeedEngine:
    """The same step under DeepSpeed ZeRO, stages 0 to 3, one process a worker."""

    def __init__(
        self,
        model: Method[Any, Any],
        optimization: Optimization,
        stage: int,
        rows: int,
        precision: Precision = "fp32",
        micro_batch: int = 0,
        *,
        device: torch.device | None = None,
        gradient_reduction: Precision = "fp32",
    ) -> None:
        """`rows` of a worker's share; `micro_batch` is the most rows of a forward pass, 0 the whole share.

        `device` is where this worker computes, by default the CPU: a worker without a GPU of its own must not use one that
        it sees. `gradient_reduction` is the type in which gradients are summed over the workers, at every stage the same.
        """
        self.device, self.stage, self.micro_batch = device or torch.device("cpu"), stage, micro_batch
        os.environ["DS_ACCELERATOR"] = self.device.type
        if self.device.index is not None:
            os.environ["LOCAL_RANK"] = str(self.device.index)  # DeepSpeed takes it for the index of the device
        import deepspeed
        import torch.distributed as dist

        check_precision(precision, self.device)
        self._skipped_here = 0
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self._deepspeed = deepspeed
        if self.device.type == "cpu":
            # Private to DeepSpeed, which has no setting for it: its all-reduce through shared memory is compiled at first
            # use (25 s, and a C++ compiler must be there). gloo reduces as well.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if precision == "bf16" and gradient_reduction == "bf16":
            # Private to DeepSpeed: under autocast, stages 1 to 3 read the type from each parameter, and not from the setting.
            from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

            for parameter in model.parameters():
                setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model.to(self.device),
            optimizer=build_optimizer(model, optimization),
            config={
                "train_micro_batch_size_per_gpu": rows,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": optimization.clip_norm,
                "zero_optimization": {
                    "stage": stage,
                    "memory_efficient_linear": False,  # stage 3's own linear layers round otherwise than PyTorch's in bf16
                    "reduce_bucket_size": REDUCE_BUCKET,
                    "allgather_bucket_size": GATHER_BUCKET,
                },
                # An empty list: otherwise stages 1 to 3 would sum the gradients of linear layers in bf16, stage 0 in fp32.
                "torch_autocast": {
                    "enabled": precision == "bf16",
                    "dtype": "bfloat16",
                    "lower_precision_safe_modules": [],
                },
                "communication_data_type": gradient_reduction,
                "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 10**9,
            },
        )

    def step(self, batch: Batch, learning_rate: float) -> StepReport:
        """Forward, backward, clip, update; the mean of all workers' losses is the loss."""
        set_learning_rate(self.optimizer, learning_rate)
        self._norm = torch.zeros(())
        losses = forward_backward(self.engine.module, batch, self.micro_batch, self.engine, self._backward)
        return StepReport(*losses, self._norm.to(self.device), learning_rate, self._skipped())

    def _skipped(self) -> int:
        """Steps that were skipped for a gradient that is not finite: DeepSpeed counts its own, at stages 1 to 3."""
        return int(self.engine.skipped_steps) + self._skipped_here

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Backward; after the step's last micro-batch also clip and update."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)
        if last and self.stage == 0:  # DeepSpeed reports the norm only at the other stages
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self._norm = nn.utils.get_total_norm(gradients).detach()
            if not torch.isfinite(self._norm):  # the other stages skip such a step by themselves
                self._skipped_here += 1
                self.engine.zero_grad()
                return
        self.engine.step()
        if last and self.stage > 0:
            self._norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32).detach()

    def save(self, folder: str, step: int) -> None:
        """This worker's shard of model, optimizer and step; every worker calls it."""
        self.engine.save_checkpoint(folder, tag=TAG, client_state={"step": step})
        if self.rank == 0:
            Path(folder, SHARDED).write_text(json.dumps({"stage": self.stage, "world": self.world}))

    def load(self, folder: str) -> int:
        """Resume from `save`, at stages 0 to 2 with any number of workers; returns the number of steps done.

        Every worker calls it. Raises CornerstoneError for a checkpoint of another stage, and at stage 3 for one of another
        number of workers.
        """
        saved = json.loads(Path(folder, SHARDED).read_text())
        if saved["stage"] != self.stage:  # DeepSpeed would resume without the optimizer's state, and not say so
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
                f"{self.world}: resume with --workers {saved['world']}. Stages 0 to 2 resume with any number."
            )
        with resharded(folder) as universal:
            # The private attribute that the setting `checkpoint.load_universal` sets: whether it is needed is not known
            # when the engine is made.
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

    def whole_module(self, build: Callable[[], Method[Any, Any]]) -> Method[Any, Any]:
        """The model with all its parameters, to encode with: at stage 3 a copy made by `build` with gathered weights."""
        if self.stage < 3:
            module: Method[Any, Any] = self.engine.module
            return module
        weights = self.weights()
        model = build().to(self.device)
        model.load_state_dict(weights)
        return model
