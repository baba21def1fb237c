"""Hidden vectors of documents: the mean of a Transformer's last hidden states over a text's tokens.

The model is (a) a model directory of ncvc, read with its own tokenizer: the begin-of-text token goes ahead and is not
averaged; or (b) a directory of a transformers ``AutoModel`` (safetensors on disk, no code of its own, nothing is
fetched): all tokens its tokenizer gives are averaged. Only the first ``max_tokens`` tokens of a text are read.

A vector depends on its text alone, not on the texts beside it: a batch always has ``batch_size`` rows of one of a few
lengths, filled up with padding where texts are missing. So the same texts give the same bits in any order and in any
number of workers (same machine, same ``device`` and ``threads``). Costs the network's forward pass: this is the
expensive part of the quality classifier (R104). Always float32.

Shapes: B batch_size, T tokens of a batch (a multiple of 32), d hidden_size.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ncvc.corpus.characters import SPACE
from ncvc.corpus.quality.classifier import VectorSettings
from ncvc.storage import check_file, file_record, read_manifest

LENGTH_STEP = 32  # tokens; the lengths that a batch can have are its multiples
CHARACTERS_PER_TOKEN = 8  # beyond so many characters per token that is read, a text is not even tokenized
_DECISIVE_FILES = ("config.json", "*.safetensors", "tokenizer*", "vocab*", "merges*", "special_tokens_map*", "*.model")


class DocumentVectors:
    """Texts to vectors by one model; open with `open_vectors`.

    ``identity`` is all that decides a vector, as plain JSON values, without where the model lies.
    """

    def __init__(
        self,
        settings: VectorSettings,
        *,
        tokenize: Callable[[str], list[int]],
        hidden_states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        skip: int,
        longest: int,
        hidden_size: int,
        model_identity: dict[str, Any],
    ) -> None:
        """``tokenize`` gives at most ``longest`` ids; ``hidden_states`` maps ids and mask [B, T] to [B, T, d].

        The first ``skip`` tokens are read and not averaged, unless there are no others.
        """
        self.settings, self.hidden_size = settings, hidden_size
        self._tokenize, self._hidden_states, self._skip, self._longest = tokenize, hidden_states, skip, longest
        self.identity = {
            **model_identity,
            "hidden_size": hidden_size,
            "max_tokens": settings.max_tokens,
            "pooling": "mean of the last hidden states",
        }

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [documents, hidden_size], in the order of ``texts``; an empty text has a vector too."""
        limit = self.settings.max_tokens * CHARACTERS_PER_TOKEN
        ids = [self._tokenize(text[:limit]) for text in texts]
        found = np.empty((len(ids), self.hidden_size), dtype=np.float32)
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(ids):
            by_length.setdefault(self._padded(len(row)), []).append(number)
        size = self.settings.batch_size
        with _threads(self.settings.threads), torch.inference_mode():
            for length in sorted(by_length):
                numbers = by_length[length]
                for start in range(0, len(numbers), size):
                    batch = numbers[start : start + size]
                    found[batch] = self._pooled([ids[number] for number in batch], length)
        return found

    def _padded(self, length: int) -> int:
        return min(-(-length // LENGTH_STEP) * LENGTH_STEP, self._longest)

    def _pooled(self, rows: list[list[int]], length: int) -> np.ndarray:
        token_ids = torch.zeros(self.settings.batch_size, length, dtype=torch.long)
        present = torch.zeros(self.settings.batch_size, length, dtype=torch.bool)
        averaged = torch.zeros(self.settings.batch_size, length, 1)
        for place in range(self.settings.batch_size):
            row = rows[place] if place < len(rows) else rows[0]  # a copy fills the batch: no row is all padding
            token_ids[place, : len(row)] = torch.tensor(row)
            present[place, : len(row)] = True
            averaged[place, self._skip if len(row) > self._skip else 0 : len(row)] = 1.0
        device = self.settings.device
        hidden = self._hidden_states(token_ids.to(device), present.to(device)).float()  # [B, T, d]
        averaged = averaged.to(device)
        mean = (hidden * averaged).sum(dim=1) / averaged.sum(dim=1)  # [B, d]
        return mean[: len(rows)].cpu().numpy()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's threads inside; another number of them may add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_vectors(settings: VectorSettings) -> DocumentVectors:
    """Load the model that ``settings`` names.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the setting: no directory, no model of a known kind, weights
    that are not safetensors, a ``max_tokens`` the model cannot read, a device that is not there; and
    ``ModuleNotFoundError`` for a transformers directory without transformers.
    """
    directory = Path(settings.model).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"vectors.model={settings.model} is no directory here (nothing is fetched by name); name the 'model' "
            "folder of a run of ncvc, or a folder that transformers saved."
        )
    try:
        device = torch.device(settings.device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"vectors.device={settings.device} cannot be used ({error}); set cpu.") from error
    if (directory / "model_config.json").is_file():
        return _open_ncvc(directory, settings)
    if (directory / "config.json").is_file():
        return _open_transformers(directory, settings)
    raise ValueError(
        f"vectors.model={settings.model} holds no model: neither model_config.json (of ncvc) nor config.json (of "
        "transformers) is there; name another folder."
    )


def _check_length(settings: VectorSettings, longest: int | None, *, room: int, setting: str) -> None:
    if longest is not None and settings.max_tokens + room > longest:
        raise ValueError(
            f"vectors.max_tokens={settings.max_tokens} is more than the model of vectors.model reads ({setting} "
            f"{longest}); set at most {longest - room}."
        )


def _open_ncvc(directory: Path, settings: VectorSettings) -> DocumentVectors:
    from ncvc.model.checkpoint import FORMAT, MANIFEST, load_model_directory

    model, tokenizer = load_model_directory(directory, device=settings.device)
    model = model.float()
    _check_length(settings, model.config.context_length, room=1, setting="context_length")
    weights = read_manifest(directory, manifest_format=MANIFEST, version=FORMAT)["files"]["model.safetensors"]
    check_file(directory / "model.safetensors", weights, verify=True, cure="restore it from a complete copy")

    def tokenize(text: str) -> list[int]:
        return [tokenizer.begin_id, *tokenizer.encode(text)[: settings.max_tokens]]

    def hidden_states(token_ids: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return model.hidden_states(token_ids)  # causal: what follows a text cannot change it

    return DocumentVectors(
        settings,
        tokenize=tokenize,
        hidden_states=hidden_states,
        skip=1,
        longest=settings.max_tokens + 1,
        hidden_size=model.config.hidden_size,
        model_identity={
            "kind": "ncvc",
            "weights_sha256": weights["sha256"],
            "model": model.config.to_dict() | {"attention_backend": "auto"},
            "tokenizer": tokenizer.fingerprint,
        },
    )


def _open_transformers(directory: Path, settings: VectorSettings) -> DocumentVectors:
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"vectors.model={settings.model} is a transformers model, and transformers is not installed; "
            "pip install transformers"
        ) from error
    on_disk: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(directory, **on_disk)
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder-decoder; one network that reads a text is needed")
        tokenizer = AutoTokenizer.from_pretrained(directory, **on_disk)
        # eager: the other kernels are chosen by whether any text of the batch has padding
        model = AutoModel.from_pretrained(
            directory, use_safetensors=True, dtype=torch.float32, attn_implementation="eager", **on_disk
        )
    except (ValueError, OSError, RuntimeError, ImportError, KeyError) as error:
        raise ValueError(
            f"vectors.model={settings.model} cannot be opened by transformers ({error}); name a folder with "
            "config.json, safetensors weights and a tokenizer that need no code of their own."
        ) from error
    model = model.to(settings.device).eval()
    _check_length(settings, _positions(model.config), room=0, setting="positions")
    tokenizer.truncation_side = "right"  # the beginning is read, whatever the folder says
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def tokenize(text: str) -> list[int]:
        plain = text.replace(SPACE, " ").encode("utf-8", "replace").decode()
        found = tokenizer(plain, truncation=True, max_length=settings.max_tokens)["input_ids"]
        return found or [padding]

    def hidden_states(token_ids: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        token_ids = token_ids.masked_fill(~present, padding)
        return model(input_ids=token_ids, attention_mask=present.long()).last_hidden_state

    return DocumentVectors(
        settings,
        tokenize=tokenize,
        hidden_states=hidden_states,
        skip=0,
        longest=settings.max_tokens,
        hidden_size=model.config.hidden_size,
        model_identity={"kind": "transformers", "files_sha256": _files_hash(directory)},
    )


def _positions(config: Any) -> int | None:
    """Positions that a model has; RoBERTa and its kin leave the first ``pad_token_id`` + 1 of theirs unused."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None or not isinstance(longest, int):
        return None
    shifted = any(name in str(config.model_type) for name in ("roberta", "camembert", "longformer"))
    return longest - (config.pad_token_id or 0) - 1 if shifted else longest


def _files_hash(directory: Path) -> str:
    """sha256 over the names and contents of configuration, weights and tokenizer."""
    names = {path.name for pattern in _DECISIVE_FILES for path in directory.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{file_record(directory / name)['sha256']}\0".encode())
    return digest.hexdigest()
