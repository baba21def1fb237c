"""Causal grouped-query attention behind one call, computed by the backend that suits the machine.

All compute the same function (R47, R59, R101), tested equal with gradients; they differ in what they need and hold:

===========  ===================================  ==================================================  ====
backend      needs                                memory in the sequence length                       maps
===========  ===================================  ==================================================  ====
``flash``    CUDA, fp16/bf16, the ``gpu`` extra   linear                                              no
``sdpa``     nothing                              linear; quadratic with documents masked             no
``blocked``  whole sequences, no mask             linear; made for training on a CPU                  no
``eager``    nothing                              quadratic                                           yes
===========  ===================================  ==================================================  ====

``auto`` takes flash where it can run, ``blocked`` where a CPU trains on whole rows (1.5-2.5x the speed of SDPA's CPU
kernel in bf16, and dropout does not make it leave the fast path), and SDPA elsewhere. This file holds no parameters.

Shapes: B batch, H query heads, K key/value heads (H divisible by K), T queries, S keys, D head width.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F

from ncvc.model.blocked_attention import blocked_attention

BACKENDS = ("auto", "flash", "sdpa", "blocked", "eager")


def flash_is_available(query: torch.Tensor) -> bool:
    """Whether flash-attn can take this query tensor: on CUDA, in half precision, with the package installed."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and importlib.util.find_spec("flash_attn") is not None


def document_mask(document_ids: torch.Tensor, *, key_document_ids: torch.Tensor | None = None) -> torch.Tensor:
    """True where a query may look: at keys of its own document that are not later than itself.

    ``document_ids`` is [B, T]; the result [B, 1, T, S]. Keys end where queries end, so S >= T.
    """
    keys = document_ids if key_document_ids is None else key_document_ids
    same = document_ids[:, :, None] == keys[:, None, :]
    return (same & causal_mask(document_ids.size(1), keys.size(1), device=document_ids.device)).unsqueeze(1)


def causal_mask(queries: int, keys: int, *, device: torch.device) -> torch.Tensor:
    """Lower-triangular [T, S] mask aligned at the end: the last query sees every key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(diagonal=keys - queries)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    backend: str = "auto",
    dropout: float = 0.0,
    document_ids: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    return_maps: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention of ``query`` [B, H, T, D] over ``key`` and ``value`` [B, K, S, D].

    Causal unless ``mask`` (bool, broadcastable to [B, 1, T, S], True = may look) replaces the rule. ``document_ids``
    [B, T] narrows it to each packed document. Returns the mixed values [B, H, T, D] and, for ``return_maps``, the
    attention probabilities [B, H, T, S] before dropout (eager only, whatever ``backend`` says).

    Raises ``ValueError`` for an unknown backend, for ``flash`` where it cannot run, and for mask and documents at once.
    """
    if backend not in BACKENDS:
        raise ValueError(f"model.attention_backend={backend!r} is not one of {', '.join(BACKENDS)}; set one of these.")
    if mask is not None and document_ids is not None:
        raise ValueError("give attend a mask or document_ids, not both: combine them into one mask.")
    if return_maps:
        return _eager(query, key, value, dropout=dropout, mask=_full_mask(query, key, document_ids, mask))
    whole = mask is None and document_ids is None and query.size(2) == key.size(2)
    if backend == "auto":
        backend = _best_backend(query, key, whole=whole, masked=mask is not None)
    if backend == "flash":
        return _flash(query, key, value, dropout=dropout, document_ids=document_ids, mask=mask), None
    if backend == "blocked" and whole:  # what it cannot mask is SDPA's
        return blocked_attention(query, key, value, dropout=dropout), None
    if backend == "eager":
        mixed, _ = _eager(query, key, value, dropout=dropout, mask=_full_mask(query, key, document_ids, mask))
        return mixed, None
    return _sdpa(query, key, value, dropout=dropout, document_ids=document_ids, mask=mask), None


def _best_backend(query: torch.Tensor, key: torch.Tensor, *, whole: bool, masked: bool) -> str:
    if not masked and flash_is_available(query):
        return "flash"
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    compiling = torch.compiler.is_compiling()
    return "blocked" if whole and trains and query.device.type == "cpu" and not compiling else "sdpa"


def _full_mask(
    query: torch.Tensor, key: torch.Tensor, document_ids: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    if mask is not None:
        return mask
    if document_ids is not None:
        return document_mask(document_ids)
    return causal_mask(query.size(2), key.size(2), device=query.device)


def _eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout: float, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    group = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)  # [B, H, S, D]
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(exact) @ key.to(exact).transpose(-2, -1)) / math.sqrt(query.size(-1))  # [B, H, T, S]
    maps = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    mixed = (F.dropout(maps, dropout, training=dropout > 0) @ value.to(exact)).to(value.dtype)  # [B, H, T, D]
    return mixed, maps


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    document_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    grouped = query.size(1) != key.size(1)
    square = query.size(2) == key.size(2)
    if query.size(2) == 1 and document_ids is None:  # the query heads of a group become its queries: no key is repeated
        batch, heads, _, width = query.shape
        rows = query.reshape(batch, key.size(1), heads // key.size(1), width)  # [B, K, H / K, D]
        mixed = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed.reshape(batch, heads, 1, width)
    if mask is None and (document_ids is not None or not square):
        mask = _full_mask(query, key, document_ids, None)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
    )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float,
    document_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    if not flash_is_available(query):
        raise ValueError(
            "model.attention_backend=flash needs a CUDA GPU, bf16 or fp16 tensors and the flash-attn package; this is "
            f"{query.dtype} on {query.device}. Set it to sdpa, or install 'ncvc[gpu]' and train in bf16."
        )
    if mask is not None:
        raise ValueError("model.attention_backend=flash takes no free mask; set model.attention_backend=sdpa.")
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # [B, T, H, D]
    if document_ids is None:
        return flash_attn_func(query, key, value, dropout_p=dropout, causal=True).transpose(1, 2)
    batch, length = document_ids.shape
    starts, longest = document_starts(document_ids)
    flat = (tensor.reshape(batch * length, tensor.size(2), tensor.size(3)) for tensor in (query, key, value))
    mixed = flash_attn_varlen_func(*flat, starts, starts, longest, longest, dropout_p=dropout, causal=True)
    return mixed.view(batch, length, mixed.size(1), mixed.size(2)).transpose(1, 2)


def document_starts(document_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Offsets of every packed document in the flattened batch (int32, with the end appended) and the longest one."""
    new = torch.ones_like(document_ids, dtype=torch.bool)  # [B, T]; a row always starts a document
    new[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = new.flatten().nonzero().flatten()
    offsets = F.pad(starts, (0, 1), value=document_ids.numel()).to(torch.int32)
    return offsets, int(offsets.diff().max())
