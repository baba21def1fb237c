"""The model directory as a Hugging Face directory, and back: the same network under the names that others load.

``export_huggingface`` writes safetensors, configuration, generation settings, fast tokenizer, chat template, model card
and SHA256SUMS. No code of ours goes along: transformers loads it with its own classes.

- ``arcee``: ArceeForCausalLM with SiLU, the same network to the last parameter
- ``llama``: LlamaForCausalLM for engines whose Arcee knows only squared ReLU: the up projection is the constant 1 (zero
  weight, bias 1), which leaves gate and SiLU; half as many MLP weights more, that say nothing
- ``apertus``: ApertusForCausalLM with SiLU, for networks with query and key norms (``model.qk_norm``), which the others
  have no place for

The embedding's factor sqrt(d) (R51) is multiplied into the table, gates into their matrices. An export is finished only
when transformers' network, loaded from the written files, gives the logits and the greedy tokens of ours
(``ncvc.model.agreement``); otherwise nothing is left behind, and an older export stays as it was.

``import_huggingface`` makes a model directory of an export again: the same logits bit for bit, and the same weights,
except that a table divided by a sqrt(d) that is no power of two may differ in the last bit.

Costs up to twice the weights in fp32 in memory (4.8 GB at 1.2B; one network is open at a time, a shard or packed
matrices beside it) and the passes of the comparison.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ncvc.huggingface_tokenizer import NCVC_FOLDER, check_tokenizer, write_tokenizer
from ncvc.model.agreement import Figures, compare_figures, figures_of, figures_of_other, told
from ncvc.model.checkpoint import (
    check_tokenizer_fits,
    load_model_directory,
    read_model_record,
    refuse_int8,
    save_model_directory,
)
from ncvc.model.huggingface_weights import (
    FORMS,
    PLAIN,
    Form,
    Precision,
    check_form,
    configuration,
    constant_tensors,
    count_constants,
    exported_tensors,
    folded,
    read_weights,
    unfolded_table,
    write_weights,
)
from ncvc.model.initialization import variant_named
from ncvc.model.transformer import ModelConfig
from ncvc.model_card import model_card
from ncvc.storage import atomic_directory, read_manifest, require_free_space, write_json, write_manifest
from ncvc.tokenizer import BEGIN_ID, END_ID, Tokenizer

FORMAT, MANIFEST = 1, "ncvc-huggingface"
SUMS = "SHA256SUMS"


def export_huggingface(
    directory: Path, *, output: Path, form: Form = "arcee", dtype: Precision = "float32"
) -> dict[str, Any]:
    """Write the model directory as a Hugging Face directory of this ``form``; what was written and how well it agrees.

    With ``dtype`` bfloat16 the weights are rounded; they are held against our network with the same rounded weights,
    and ``rounding`` of the result is the largest difference of a logit from the unrounded network's.

    ``ValueError`` for a network that the form has no place for, for an export that does not compute the same, and for a
    damaged model directory; ``FileExistsError`` when something else than an export is in the way.
    """
    directory, output = Path(directory), Path(output)
    _require_transformers()
    refuse_int8(directory, purpose="Export the model directory that it was made from")
    record = read_model_record(directory)
    network, tokenizer = load_model_directory(directory)
    network, config = network.float(), network.config
    check_form(config, form=form, dtype=dtype)
    constants = count_constants(config, form=form)
    size = (config.num_parameters + constants) * (4 if dtype == "float32" else 2)
    require_free_space(output, size + 50_000_000, what="the Hugging Face directory")
    facts: dict[str, Any] = {"form": form, "architecture": FORMS[form].architecture, "dtype": dtype}
    with atomic_directory(output, manifest_format=MANIFEST) as partial:
        ours, rounding = figures_of(network), None
        plain = folded(network, dtype=dtype)
        del network
        if dtype == "bfloat16":
            unrounded, ours = ours, figures_of(plain)
            rounding = ours.largest_difference(unrounded)
        tensors = chain(exported_tensors(plain, form=form), constant_tensors(config, form=form))
        write_weights(tensors, partial, dtype=dtype)
        del plain, tensors
        write_json(partial / "config.json", configuration(config, form=form, dtype=dtype))
        ids = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": END_ID}
        write_json(partial / "generation_config.json", {**ids, "do_sample": False})
        write_tokenizer(partial, tokenizer=tokenizer, context_length=config.context_length)
        agreement = compare_figures(ours, _figures_of_files(partial, config), what=f"form={form}")
        check_tokenizer(partial, tokenizer=tokenizer)
        facts |= {"parameters": config.num_parameters, "constants": constants, "bytes": size, "rounding": rounding}
        facts |= {**agreement, "told": told(agreement)}
        _describe(partial, facts, record=record, tokenizer=tokenizer, name=output.name)
    return facts


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "format=huggingface needs the package 'transformers', which is not installed; run: "
            "pip install 'transformers>=5.0,<6'"
        ) from error


def _figures_of_files(directory: Path, config: ModelConfig) -> Figures:
    """What transformers' own class computes from the written files, in fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, output_loading_info=True
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    network, loading = loaded
    if problems := {kind: sorted(map(str, names)) for kind, names in loading.items() if names}:
        raise ValueError(f"transformers does not find its weights in the written files: {problems}")
    network.eval()
    network.generation_config.eos_token_id = None  # compare all tokens, those after the end too

    def continue_greedily(prompt: list[int], length: int) -> list[int]:
        ids = torch.tensor([prompt])
        new = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        return new[0, len(prompt) :].tolist()

    return figures_of_other(
        config, logits_of=lambda ids: network(ids, use_cache=False).logits, continue_greedily=continue_greedily
    )


def _describe(
    directory: Path, facts: dict[str, Any], *, record: dict[str, Any], tokenizer: Tokenizer, name: str
) -> None:
    """Card, manifest and the hashes of all files."""
    card = model_card(
        name=name, model=record["model"], training=record.get("training") or {}, tokenizer=tokenizer, export=facts
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    kept = {key: facts[key] for key in ("form", "dtype", "max_difference", "bound", "rounding")}
    manifest = {"format": MANIFEST, "version": FORMAT, **kept, "tokenizer": tokenizer.fingerprint}
    write_manifest(directory, {**manifest, "model": record["model"], "training": record.get("training") or {}})
    lines = [f"{_sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in _files(directory)]
    (directory / SUMS).write_text("".join(lines), encoding="utf-8")


def _files(directory: Path) -> Iterator[Path]:
    """Every file of an export that its SHA256SUMS lists, in the order of their names."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in (".lock", SUMS):
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# ---- back ----------------------------------------------------------------------------------------------------------


def import_huggingface(directory: Path, *, output: Path) -> dict[str, Any]:
    """Make a model directory of a directory that ``export_huggingface`` wrote, in fp32; what was found, for printing.

    Weights trained elsewhere come back too: put ``manifest.json`` and ``ncvc_tokenizer`` of the export beside them, and
    no SHA256SUMS. Gates stay multiplied in (the network's ``init`` is then the report's), and so does the embedding's
    factor where no table gives these products (``init`` no_embedding_scale); both compute the same.

    ``FileNotFoundError`` or ``ValueError`` names what is missing, altered, or of another shape or tokenizer.
    """
    directory, output = Path(directory), Path(output)
    manifest = read_manifest(directory, manifest_format=MANIFEST, version=FORMAT)
    if (directory / SUMS).is_file():
        check_sums(directory)
    form = manifest.get("form")
    if form not in FORMS:
        raise ValueError(f"{directory / 'manifest.json'}: form={form!r} is not one of {', '.join(FORMS)}; restore it.")
    try:
        config = ModelConfig.from_dict(manifest.get("model") or {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / 'manifest.json'}: {error}") from error
    _check_configuration(directory, config, form=form)
    tokenizer = Tokenizer.load(directory / NCVC_FOLDER)
    check_tokenizer_fits(tokenizer.vocab_size, config=config, where=str(directory))
    weights = read_weights(directory, config=config, form=form).state_dict()
    kept = replace(config, init="report" if variant_named(config.init).gates else config.init)
    factor, what = kept.embedding_multiplier, "as it was"
    if factor != 1.0:
        table = unfolded_table(weights["embedding.weight"], factor)
        kept = replace(kept, init=PLAIN) if table is None else kept
        weights["embedding.weight"] = weights["embedding.weight"] if table is None else table
        what = "with its factor inside" if table is None else f"divided by {factor:.6g}"
    training = manifest.get("training") or {}
    save_model_directory(
        output, config=kept, weights=weights, tokenizer=directory / NCVC_FOLDER, training={**training, "form": form}
    )
    return {"form": form, "parameters": kept.num_parameters, "init": kept.init, "embedding": what}


def check_sums(directory: Path) -> None:
    """``FileNotFoundError`` or ``ValueError`` naming the first file that is not what SHA256SUMS says."""
    path = Path(directory) / SUMS
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.partition("  ")
        file = path.parent / name
        if len(digest) != 64 or not name or not file.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f"{path}, line {number}: no line of sha256 and file name; restore it from the export.")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, though {SUMS} lists it; restore it from a complete copy.")
        if _sha256(file) != digest:
            raise ValueError(
                f"{file} was altered (its sha256 is not that of {SUMS}); restore it from a complete copy, or remove "
                f"{SUMS} if these are weights that you trained further."
            )


def _check_configuration(directory: Path, config: ModelConfig, *, form: str) -> None:
    """``ValueError`` when config.json describes another network than the manifest."""
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; restore it from a complete copy of the export.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs = dict(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no configuration ({error}); restore it from a complete copy.") from error
    beside = {"attention_dropout", "use_cache", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id"}
    wanted = {name: value for name, value in configuration(config, form=form, dtype="").items() if name not in beside}
    other = [name for name, value in wanted.items() if name in pairs and pairs[name] != value]
    if other:
        told_of = "; ".join(f"{name} is {pairs[name]!r}, not {wanted[name]!r}" for name in other)
        raise ValueError(f"{path} is of another network than its manifest.json: {told_of}; restore both.")
