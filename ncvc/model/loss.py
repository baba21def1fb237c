"""Next-token cross entropy straight from hidden states, without ever holding the logits of more than one chunk.

At the report's shape the fp32 logits of one micro-batch (8 x 2,048 tokens x 32,768 words) are 2.1 GB and their gradient
as much again. Here the vocabulary projection, the loss and both gradients are made chunk by chunk in the forward pass,
so nothing is recomputed: memory is one chunk of logits plus the gradient of the head, which training needs anyway.
Equal to ``F.cross_entropy(hidden @ weight.T)`` in value and gradient (tested in fp32 and fp64). Not twice
differentiable.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

IGNORE = -100  # label of a position without a loss; padding is marked by position, never by token id (R83)


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, chunk_size: int = 1024
) -> torch.Tensor:
    """Sum over positions of -log softmax(hidden @ weight.T)[label], in nats, as a fp32 scalar (R63).

    ``hidden`` [N, hidden_size], ``weight`` [vocab_size, hidden_size], ``labels`` [N] int64 with ``IGNORE`` where there
    is no loss. Under autocast the products run in autocast's type; softmax and sum are always fp32.
    """
    if labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit hidden states of shape {tuple(hidden.shape)}: give one "
            "label per row."
        )
    return _LinearCrossEntropy.apply(hidden, weight, labels, chunk_size, _product_dtype(hidden))


@torch.no_grad()
def token_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, chunk_size: int = 1024
) -> torch.Tensor:
    """Loss of each position in nats, [N] fp32, 0 where the label is ``IGNORE``; for evaluation, no gradient."""
    dtype = _product_dtype(hidden)
    weight = weight.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        losses = [
            F.cross_entropy((rows.to(dtype) @ weight.T).float(), targets, ignore_index=IGNORE, reduction="none")
            for rows, targets in zip(hidden.split(chunk_size), labels.split(chunk_size), strict=True)
        ]
    return torch.cat(losses)


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk_size, dtype):  # noqa: ANN001, ANN205 (autograd's own signature)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        exact = hidden.dtype == torch.float64
        total = torch.zeros((), dtype=torch.float64 if exact else torch.float32, device=hidden.device)
        product_weight = weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        sums = torch.promote_types(weight.dtype, torch.float32)
        weight_gradient = torch.zeros_like(weight, dtype=sums) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.size(0), chunk_size):
                rows = hidden[start : start + chunk_size].to(dtype)  # [C, d]
                targets = labels[start : start + chunk_size]
                counted = targets != IGNORE
                safe = targets.where(counted, 0).unsqueeze(1)  # [C, 1]
                logits = rows @ product_weight.T  # [C, V]
                logits = logits if exact else logits.float()
                largest = logits.amax(dim=1, keepdim=True)  # [C, 1]
                target = logits.gather(1, safe)
                weights = logits.sub_(largest).exp_()  # softmax up to its normalizer, in place
                normalizer = weights.sum(dim=1, keepdim=True)
                total += (normalizer.log() + largest - target).squeeze(1).where(counted, 0).sum()
                if not (needs_hidden or needs_weight):
                    continue
                counts = counted.unsqueeze(1).to(weights.dtype)
                gradient = weights.mul_(counts / normalizer)
                gradient.scatter_add_(1, safe, -counts)
                gradient = gradient.to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[start : start + chunk_size] = gradient @ product_weight
                if weight_gradient is not None and sums == dtype:
                    weight_gradient.addmm_(gradient.T, rows)
                elif weight_gradient is not None:
                    weight_gradient += gradient.T @ rows
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # noqa: ANN001, ANN205
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * upstream,
            None if weight_gradient is None else (weight_gradient * upstream).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
