"""NEFTune: uniform noise on the embeddings while a model is tuned (R81; Jain et al. 2023, arXiv 2310.05914).

Each position of a conversation of L tokens gets alpha / sqrt(L * d) * uniform(-1, 1)^d, added to the embedding's scaled
output. L is the length of the conversation itself: padding and neighbours in a packed row do not count, so the noise
does not depend on how a batch is laid out. It comes from a generator of its own and leaves dropout's alone. Costs one
tensor of the size of the embeddings per micro-batch; evaluation has none.
"""

import torch

from ncvc.randomness import mix

_PURPOSE = 0x4E454654  # keeps this stream apart from dropout's


def conversation_lengths(
    input_ids: torch.Tensor, *, document_ids: torch.Tensor | None = None, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Tokens of the conversation that each position of ``input_ids`` [B, T] belongs to, [B, T]; 0 on padding.

    ``document_ids`` [B, T] are consecutive numbers of the conversations packed into a row; ``lengths`` [B] are the
    tokens of each row before its padding. Without either a row is one text.
    """
    batch, length = input_ids.shape
    real = torch.ones_like(input_ids, dtype=torch.bool)
    if lengths is not None:
        real = torch.arange(length, device=input_ids.device) < lengths.to(input_ids.device)[:, None]
    if document_ids is None:
        return real.sum(dim=1, keepdim=True) * real
    new = torch.ones_like(real)
    new[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    number = new.flatten().cumsum(0) - 1  # of the document, over the whole batch: rows begin anew
    counts = torch.zeros(batch * length, dtype=torch.long, device=input_ids.device)
    counts.index_add_(0, number, real.flatten().long())
    return counts[number].view(batch, length) * real


def neftune_noise(lengths: torch.Tensor, *, hidden_size: int, alpha: float, seed: tuple[int, ...]) -> torch.Tensor:
    """Noise [B, T, hidden_size] fp32 for the ``lengths`` [B, T] of ``conversation_lengths``; zero where they are 0.

    ``seed`` is what the noise is a function of: (seed, step, micro-step, rank).
    """
    generator = torch.Generator(lengths.device).manual_seed(mix(_PURPOSE, *seed) >> 1)
    noise = torch.empty(*lengths.shape, hidden_size, device=lengths.device).uniform_(-1.0, 1.0, generator=generator)
    scale = alpha * (lengths.clamp(min=1) * hidden_size).float().rsqrt() * (lengths > 0)
    return noise.mul_(scale.unsqueeze(-1))
