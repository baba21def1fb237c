"""The training state where it lives: weights and optimizer states of any strategy as named slices, and back again.

A checkpoint knows parameters by name and flat ranges, never ranks or partitions (``ncvc/model/training_state.py``).
Here each strategy says which ranges this rank holds: under ZeRO its partition of the fp32 master weights and moments,
otherwise an even share of what every rank has. So two ranks can read what one wrote, and DDP what ZeRO wrote, bit for
bit. Frozen weights are no state: beside adapters they come from the base. Also: the schedule and Lightning's counters
are set to a step, which is all the position that a run has.
"""

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ncvc.model.training_state import ParameterSlice, StateReader, even_slices

WEIGHT = "weight"


def _names(network: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in network.named_parameters()}


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: all of them, or the adapters alone."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def base_optimizer(strategy: Any) -> Optimizer:
    """The optimizer that does the update: the one inside DeepSpeed's wrapper under ZeRO."""
    return strategy.deepspeed_engine.optimizer.optimizer if _is_zero(strategy) else strategy.optimizers[0]


def _is_zero(strategy: Any) -> bool:
    return isinstance(strategy, DeepSpeedStrategy)


def _zero_ranges(network: nn.Module, strategy: Any) -> Iterator[tuple[str, int, int, torch.Tensor, int]]:
    """(name, start, stop, flat master partition, offset in it) of every parameter part that this rank updates."""
    zero, names = strategy.deepspeed_engine.optimizer, _names(network)
    for group, parameters in enumerate(zero.round_robin_bit16_groups):
        size = int(zero.partition_size[group])
        begin = torch.distributed.get_rank(group=zero.real_dp_process_group[group]) * size
        for parameter, offset in zip(parameters, zero.round_robin_bit16_offsets[group], strict=True):
            first, last = max(offset, begin), min(offset + parameter.numel(), begin + size)
            if first < last:
                partition = zero.single_partition_of_fp32_groups[group]
                yield names[id(parameter)], first - offset, last - offset, partition, first - begin


def _moments(optimizer: Optimizer, owner: torch.Tensor) -> dict[str, torch.Tensor]:
    """Optimizer states of the size of their parameter (AdamW: exp_avg, exp_avg_sq)."""
    state = optimizer.state.get(owner, {})
    return {name: value for name, value in state.items() if torch.is_tensor(value) and value.numel() == owner.numel()}


def live_slices(network: nn.Module, strategy: Any) -> list[ParameterSlice]:
    """This rank's part of the training state as flat views of the live tensors; over all ranks each value once."""
    optimizer = base_optimizer(strategy)
    slices = []
    if _is_zero(strategy):
        for name, start, stop, partition, place in _zero_ranges(network, strategy):
            whole = {WEIGHT: partition, **_moments(optimizer, partition)}
            tensors = {kind: tensor.detach()[place : place + stop - start] for kind, tensor in whole.items()}
            slices.append(ParameterSlice(name=name, start=start, stop=stop, tensors=tensors))
        return slices
    parameters = trained(network)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    for name, start, stop in even_slices(sizes, rank=strategy.global_rank, world_size=strategy.world_size):
        whole = {WEIGHT: parameters[name], **_moments(optimizer, parameters[name])}
        tensors = {kind: tensor.detach().view(-1)[start:stop] for kind, tensor in whole.items()}
        slices.append(ParameterSlice(name=name, start=start, stop=stop, tensors=tensors))
    return slices


def applied_updates(strategy: Any) -> int:
    """Updates the optimizer has made, left-out ones not counted (AdamW's step); waits for the device."""
    counts = [state["step"] for state in base_optimizer(strategy).state.values() if "step" in state]
    return int(counts[0]) if counts else 0


@torch.no_grad()
def restore_slices(network: nn.Module, strategy: Any, reader: StateReader, *, updates: int) -> None:
    """Write a checkpoint's weights and optimizer states into the live tensors of this rank."""
    optimizer = base_optimizer(strategy)
    kinds = [kind for kind in reader.kinds if kind != WEIGHT]
    if _is_zero(strategy):
        owners = {}
        for name, start, stop, partition, place in _zero_ranges(network, strategy):
            partition[place : place + stop - start].copy_(reader.read(WEIGHT, name, start, stop))
            owners[id(partition)] = partition
            for kind in kinds:
                moment = _moment(optimizer, partition, kind)
                moment[place : place + stop - start].copy_(reader.read(kind, name, start, stop))
        strategy.deepspeed_engine.optimizer.update_lp_params()
        held: list[torch.Tensor] = list(owners.values())
    else:
        parameters = trained(network)
        for name, parameter in parameters.items():
            parameter.copy_(reader.read_full(WEIGHT, name, parameter.shape))
            for kind in kinds:
                _moment(optimizer, parameter, kind).copy_(reader.read_full(kind, name, parameter.shape))
        held = list(parameters.values())
    for owner in held:
        _set_updates(optimizer, owner, updates, without_moments=not kinds)


def _moment(optimizer: Optimizer, owner: torch.Tensor, kind: str) -> torch.Tensor:
    """The optimizer's own tensor of this kind (kept, because DeepSpeed refers to it), made if there is none yet."""
    state = optimizer.state[owner]
    if kind not in state:
        state[kind] = torch.zeros_like(owner)
    return state[kind]


def _set_updates(optimizer: Optimizer, owner: torch.Tensor, updates: int, *, without_moments: bool) -> None:
    state = optimizer.state[owner]
    if without_moments:  # a checkpoint from before the first update
        for tensor in _moments(optimizer, owner).values():
            tensor.zero_()
        if "step" not in state:
            del optimizer.state[owner]
            return
    if "step" in state:
        state["step"].fill_(updates)
    else:
        state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=owner.device)


def set_schedule(trainer: lightning.Trainer, *, step: int) -> None:
    """Set the learning rate to what it is after ``step`` updates; the schedule is a function of the step alone."""
    for config in trainer.strategy.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, LambdaLR):
            raise ValueError(
                f"schedule is a {type(schedule).__name__}, whose rate is no plain function of the update's number, so "
                "a run cannot be resumed with it; set a schedule of torch.optim.lr_scheduler.LambdaLR."
            )
        schedule.last_epoch, schedule._step_count = step, step + 1
        rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def set_position(trainer: lightning.Trainer, *, step: int, in_batch_end_hook: bool) -> None:
    """Make ``step`` the trainer's global step; batches are counted as if the run had come here unbroken."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.ready = step
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    batches = step * trainer.accumulate_grad_batches
    total = loop.batch_progress.total
    total.ready = total.started = total.processed = batches
    total.completed = batches - 1 if in_batch_end_hook else batches  # Lightning counts it after the hook
