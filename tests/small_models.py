"""A tiny network that has learned a few sentences by heart: its logits have something to lose."""

from pathlib import Path

import torch
from conftest import SENTENCES, TINY_SHAPE, write_tiny_model

from ncvc.chat import with_chat_tokens
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.tokenizer import Tokenizer


def write_fitted_model(folder: Path, *, steps: int = 120, chat: bool = False, **changes: object) -> Path:
    """A model directory fitted to ``SENTENCES`` (to begin, sentence, end); seconds on one core, the same every time.

    ``chat`` adds the role tokens, ``changes`` are fields of the configuration.
    """
    tokenizer = Tokenizer.load(write_tiny_model(folder / "tiny") / "tokenizer")
    tokenizer = with_chat_tokens(tokenizer) if chat else tokenizer
    shape = {**TINY_SHAPE, "context_length": 128, "vocab_size": tokenizer.vocab_size, **changes}
    network = Transformer(ModelConfig(**shape), seed=3)
    rows = [[tokenizer.begin_id, *tokenizer.encode(text), tokenizer.end_id] for text in SENTENCES]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.end_id] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = network.loss(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.save(folder / "tokenizer")
    save_model_directory(
        folder / "model",
        config=network.config,
        weights=network.state_dict(),
        tokenizer=folder / "tokenizer",
        training={"steps": steps},
    )
    return folder / "model"
