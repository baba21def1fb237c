"""The model that a training starts from: where it lies, whether it fits, and its weights, grown where chats need it.

``base`` may name a model directory, a run's folder, a checkpoint ``step=...``, or ``last``: the newest finished run
that is not tuned on chats yet. A checkpoint is made a model directory under ``home/bases``, once. A run pins its base
(path and sha256 of the weights, in ``base.json``), so that ``last`` means the same when it is resumed, and other
weights in the same place are refused. Costs reading the weights twice: against their manifest's hash, and into memory.
"""

import fcntl
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ncvc.chat import with_chat_tokens
from ncvc.checkpoints import newest_complete, open_checkpoint
from ncvc.model.checkpoint import FORMAT, MANIFEST, read_model_config
from ncvc.model.growth import grow
from ncvc.model.transformer import ModelConfig
from ncvc.resuming import BASE_FILE, is_finished, read_pinned_base
from ncvc.storage import check_file, read_manifest, write_json
from ncvc.tokenizer import METADATA_FILE, ROLE_TOKENS, Tokenizer

_WEIGHTS = "model.safetensors"
# what a training may choose for itself; everything else of the network comes from the base
_FREE = {"vocab_size", "context_length", "attention_dropout", "residual_dropout", "mask_documents", "attention_backend"}


# ---- where it lies -------------------------------------------------------------------------------------------------


def find_base(base: str, *, home: Path) -> Path:
    """The model directory that ``base`` names: itself, a run's folder, a checkpoint ``step=...``, or ``last``.

    ``FileNotFoundError`` when there is none, ``ValueError`` for a torn checkpoint.
    """
    home = Path(home).expanduser()
    folder = _newest_base(home) if base == "last" else Path(base).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"base={base}: there is no such folder. Name a model directory, a run's folder, a checkpoint's folder "
            "(.../checkpoints/step=...), or last."
        )
    if (folder / "model_config.json").is_file():
        return folder
    if (folder / "state.json").is_file() or folder.name.startswith("step="):
        return _from_checkpoint(folder, home=home)
    if (folder / "model" / "model_config.json").is_file():
        return folder / "model"
    if (folder / "checkpoints").is_dir():
        newest, passed_over = newest_complete(folder / "checkpoints")
        if newest is None:
            told = "; ".join(passed_over) or "there is none"
            raise FileNotFoundError(f"base={base}: {folder} holds no complete checkpoint ({told}); name another run.")
        return _from_checkpoint(newest.path, home=home)
    raise FileNotFoundError(
        f"base={base}: {folder} is neither a model directory (with model_config.json) nor a run's folder nor a "
        "checkpoint; name one of these, for example .ncvc/runs/<name>/<time>/model, or last."
    )


def _newest_base(home: Path) -> Path:
    """Model directory of the finished run under ``home`` that was started last, chat-tuned ones left out."""
    runs = [path.parent for path in home.glob("runs/*/*/config.yaml")]
    found = [run for run in runs if is_finished(run) and (run / "model" / "model_config.json").is_file()]
    found = [run for run in found if not has_role_tokens(run / "model")]
    if not found:
        raise FileNotFoundError(
            f"base=last: under {home}/runs is no finished run of a base model. Train one first (python -m ncvc.train "
            "experiment=quickstart), or set base=FOLDER to a model directory, a run or a checkpoint."
        )
    return max(found, key=lambda run: (run.name, run)) / "model"  # named by the time of their start


def has_role_tokens(directory: Path) -> bool:
    """Whether the tokenizer of a model directory knows the roles of a chat; reads its metadata only."""
    path = Path(directory) / "tokenizer" / METADATA_FILE
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", ())
    except (OSError, ValueError, AttributeError):
        return False  # told by name when the tokenizer is opened
    return set(ROLE_TOKENS.values()) <= set(added)


def _from_checkpoint(checkpoint: Path, *, home: Path) -> Path:
    """The checkpoint as a model directory under ``home``, named by its hash; made by the first process that asks."""
    from ncvc.model.consolidation import consolidate

    found = open_checkpoint(checkpoint, thorough=False)
    identity = json.loads((found.path / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    directory = home / "bases" / f"{found.path.name}-{identity[:16]}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "manifest.json").is_file():
            consolidate(found.path, output=directory)
    return directory


# ---- which one a run started from ----------------------------------------------------------------------------------


def pin_base(base: str, *, home: Path, run: Path, resumed: bool, first_rank: bool) -> Path:
    """The base of the run in the folder ``run``, recorded there by its first rank; a resumed run's is the recorded one.

    ``ValueError`` when the weights are torn, or not those that the run started from.
    """
    recorded = read_pinned_base(Path(run)) if resumed or not first_rank else None
    if recorded is not None and (base == "last" or not Path(base).expanduser().is_dir()):
        directory = Path(recorded["path"])
        if not directory.is_dir():
            raise FileNotFoundError(
                f"base={base}: this run started from {directory}, which is no longer there. Put it back, or set "
                "base=FOLDER to where it lies now."
            )
    else:
        directory = find_base(base, home=home)
    found = weights_hash(directory, verify=first_rank)
    if recorded is not None and found != recorded["sha256"]:
        raise ValueError(
            f"base={base}: the weights in {directory} are not those that this run started from (sha256 "
            f"{recorded['sha256'][:12]}..., now {found[:12]}...). Put them back, set base to where they lie now, or "
            "start a new run in another folder."
        )
    if first_rank and not (resumed and recorded is not None and Path(recorded["path"]) == directory.absolute()):
        write_json(Path(run) / BASE_FILE, {"path": str(directory.absolute()), "sha256": found})
    return directory


def weights_hash(directory: Path, *, verify: bool) -> str:
    """sha256 of a model directory's weights; with ``verify`` the file is read and held against its manifest."""
    files = read_manifest(directory, manifest_format=MANIFEST, version=FORMAT)["files"]
    if _WEIGHTS not in files:
        raise ValueError(
            f"{directory} holds no {_WEIGHTS} to train ({', '.join(files)}); name the model directory that it was made "
            "from."
        )
    check_file(directory / _WEIGHTS, files[_WEIGHTS], verify=verify, cure="restore it from a complete copy")
    return files[_WEIGHTS]["sha256"]


# ---- whether it fits, and its weights ------------------------------------------------------------------------------


def base_weights(directory: Path, config: ModelConfig, *, seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of a model directory for the network ``config``, and a record of where they come from.

    A base without role tokens grows by their rows when ``config`` has that many more (R74; the record's ``growth``).
    ``ValueError`` names every field in which the base is another network, with what to set.
    """
    directory = Path(directory)
    base = read_model_config(directory)
    new_rows = 0 if has_role_tokens(directory) else len(ROLE_TOKENS)
    if found := misfits(base, config, new_rows=new_rows):
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(found, 1))
        raise ValueError(f"base={directory} is another network than the one configured:\n{lines}")
    path = directory / _WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it from a complete copy.") from error
    if whole := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise ValueError(
            f"{path} holds whole numbers ({whole[0]}, ...): it was made for running, not for training; name the model "
            "directory that it was made from."
        )
    weights = {name: tensor.float() for name, tensor in weights.items()}
    training = json.loads((directory / "model_config.json").read_text(encoding="utf-8")).get("training") or {}
    known = {name: training[name] for name in ("steps", "tokens_seen", "data_fingerprint") if name in training}
    record = {"weights": weights_hash(directory, verify=False), **known, "growth": None}
    if config.vocab_size != base.vocab_size:
        weights, record["growth"] = grow(weights, base, new_rows=new_rows, seed=seed)
    return weights, record


def misfits(base: ModelConfig, config: ModelConfig, *, new_rows: int) -> list[str]:
    """What makes the network of ``config`` another one than ``base``, grown by up to ``new_rows``; one message each."""
    there, here = asdict(base), asdict(config)
    found = [
        f"model.{name}={here[name]}, and the base has {there[name]}; set model.{name}={there[name]}."
        for name in there
        if name not in _FREE and here[name] != there[name]
    ]
    if config.vocab_size not in (base.vocab_size, base.vocab_size + new_rows):
        grown = f", or {base.vocab_size + new_rows} with the role tokens of chats" if new_rows else ""
        found.insert(
            0,
            f"model.vocab_size={config.vocab_size}, and the base has {base.vocab_size}{grown}; set "
            f"model.vocab_size={base.vocab_size + new_rows}.",
        )
    if config.context_length > base.context_length:
        found.append(
            f"model.context_length={config.context_length} is longer than the base's {base.context_length}; set "
            f"model.context_length={base.context_length} or less."
        )
    return found


def check_base_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """``ValueError`` unless ``tokenizer`` is the one of the model directory, or that one with the role tokens."""
    own = Tokenizer.load(Path(directory) / "tokenizer")
    if tokenizer.fingerprint not in (own.fingerprint, with_chat_tokens(own).fingerprint):
        raise ValueError(
            f"base={directory} was trained with another tokenizer (fingerprint {own.fingerprint[:12]}..., the data's "
            f"is {tokenizer.fingerprint[:12]}...): its ids would mean other pieces. Set tokenizer.directory to "
            f"{Path(directory) / 'tokenizer'}, or name the base that belongs to the data."
        )
