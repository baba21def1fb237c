"""Continue a prompt token by token with a static key/value cache.

Greedy at temperature 0, else sampling from the softmax at that temperature, cut to the smallest set of tokens that
holds ``top_p`` of it. Randomness comes from a generator of its own, so sampling during training leaves training's
alone. One prompt at a time; costs one forward pass over the prompt and one token's pass per new token.
"""

from collections.abc import Callable

import torch

from ncvc.model.transformer import KeyValueCache, Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt_ids: list[int],
    *,
    max_new_tokens: int,
    end_id: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    on_token: Callable[[int], None] | None = None,
) -> list[int]:
    """New token ids after ``prompt_ids``, without the prompt, ending before ``end_id`` or at ``max_new_tokens``.

    A prompt longer than the context keeps its end. The model's mode (training or not) is put back afterwards.
    Raises ``ValueError`` for an empty prompt or a setting outside its range.
    """
    if not prompt_ids:
        raise ValueError("the prompt has no tokens; give at least one, for example the begin-of-text token.")
    if not temperature >= 0 or not 0 < top_p <= 1 or repetition_penalty <= 0 or max_new_tokens < 1:
        raise ValueError(
            f"temperature={temperature}, top_p={top_p}, repetition_penalty={repetition_penalty}, "
            f"max_new_tokens={max_new_tokens}: need temperature >= 0, 0 < top_p <= 1, the other two above 0."
        )
    context = model.config.context_length
    kept = min(len(prompt_ids), max(context - max_new_tokens, context // 2, 1))
    prompt_ids, max_new_tokens = prompt_ids[-kept:], min(max_new_tokens, context - kept)
    weight = model.embedding.weight
    generator = torch.Generator(weight.device).manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        cache = KeyValueCache(
            model.config,
            batch=1,
            capacity=len(prompt_ids) + max_new_tokens,
            device=weight.device,
            dtype=_activation_dtype(weight),
        )
        ids = torch.tensor([prompt_ids], device=weight.device)
        seen, new = torch.tensor(sorted(set(prompt_ids)), device=weight.device), []
        for _ in range(max_new_tokens):
            hidden = model.hidden_states(ids, cache=cache)[:, -1]
            logits = model.head(hidden).float()[0]  # [V]
            if repetition_penalty != 1.0:
                logits[seen] = torch.where(
                    logits[seen] > 0, logits[seen] / repetition_penalty, logits[seen] * repetition_penalty
                )
            token = _pick(logits, temperature=temperature, top_p=top_p, generator=generator)
            if token == end_id:
                break
            new.append(token)
            if on_token is not None:
                on_token(token)
            ids = torch.tensor([[token]], device=weight.device)
            seen = torch.unique(torch.cat((seen, ids[0])))
        return new
    finally:
        model.train(was_training)


def _activation_dtype(weight: torch.Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _pick(logits: torch.Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(dim=0).sort(descending=True)
    before = probabilities.cumsum(dim=0) - probabilities  # mass ahead of each token; the first is always kept
    probabilities = probabilities.where(before < top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
