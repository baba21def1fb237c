"""DeepSpeed ZeRO stage 2 under Lightning, on GPUs and on a CPU, with one class and one configuration (R60).

Lightning's own ``DeepSpeedStrategy`` refuses to start without CUDA; the few overrides here let the same code run on CPU
ranks over gloo, so that tests exercise the real thing. Gradients accumulate in fp32 (bf16 accumulation adds 40% error
at 32 micro-batches, measured) and every bucket setting is explicit.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn


class ZeroStage2Strategy(DeepSpeedStrategy):
    """ZeRO-2: weights everywhere, gradients and optimizer states divided over the ranks.

    ``overlap_communication`` is off by default: several releases of DeepSpeed returned wrong gradients with it.
    ``micro_batch_size`` only informs DeepSpeed's log; without it Lightning would build the data loader twice.
    """

    def __init__(
        self,
        *,
        micro_batch_size: int,
        reduce_bucket_size: int = 200_000_000,
        allgather_bucket_size: int = 200_000_000,
        overlap_communication: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        self.on_cpu = not torch.cuda.is_available()
        if self.on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        super().__init__(
            stage=2,
            reduce_bucket_size=reduce_bucket_size,
            allgather_bucket_size=allgather_bucket_size,
            overlap_comm=overlap_communication,
            contiguous_gradients=True,
            logging_batch_size_per_gpu=micro_batch_size,
            logging_level=logging.ERROR,
            process_group_backend=process_group_backend or ("gloo" if self.on_cpu else "nccl"),
        )
        assert self.config is not None  # made by the parent from the settings above
        self.config["data_types"] = {"grad_accum_dtype": "fp32"}
        self.config["gradient_clipping"] = 0.0  # clipped in before_each_update, by the same code as everywhere

    def _format_config(self) -> None:
        """Leave non-finite gradients to the module's guard, which judges them without waiting for the device."""
        super()._format_config()
        assert self.config is not None
        if "bf16" in self.config:
            self.config["bf16"]["check_grad_overflow"] = False

    def before_each_update(self, judge: Callable[[list[torch.Tensor], list[nn.Parameter]], torch.Tensor]) -> None:
        """Have ``judge`` called with the reduced gradients of this rank's partition just before every update.

        It takes the parts and the parameters they belong to, may change them in place, and returns the global norm,
        in place of DeepSpeed's own computation of it.
        """
        zero = self.deepspeed_engine.optimizer

        def judged(norm_type: int = 2) -> torch.Tensor:
            gradients, parameters = [], []
            for group, parts in zero.averaged_gradients.items():
                whole = [part for part in parts if not getattr(part, "_zero_padding", False)]
                for part, parameter in zip(whole, zero.params_in_partition[group], strict=False):  # the rest pads
                    gradients.append(part)
                    parameters.append(parameter)
            return judge(gradients, parameters)

        zero.scaled_global_norm = judged

    def setup_environment(self) -> None:
        if self.on_cpu:  # DeepSpeedStrategy's override only refuses anything but CUDA and hands on to its parent
            super(DeepSpeedStrategy, self).setup_environment()
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *arguments: Any, **settings: Any) -> torch.Tensor:
        """Tell DeepSpeed not to divide by the accumulation, which Lightning has done already.

        Both dividing leaves the gradient too small by that factor; Adam hides it and clipping then never acts.
        """
        return super().backward(closure_loss, optimizer, *arguments, scale_wrt_gas=False, **settings)

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank) if self.on_cpu else super().root_device


def full_precision_weights(module: nn.Module, *, strategy: Any) -> dict[str, torch.Tensor]:
    """State dict of ``module`` in fp32, gathered from the ranks' partitions under ZeRO; every rank must call it."""
    if not isinstance(strategy, DeepSpeedStrategy):
        return {name: tensor.detach().float() for name, tensor in module.state_dict().items()}
    from deepspeed.utils import safe_get_full_fp32_param

    gathered = {}
    for name, parameter in module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        gathered[name] = (parameter if master is None else master).detach().float().view(parameter.shape).cpu()
    return gathered
