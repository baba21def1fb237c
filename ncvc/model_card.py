"""The README.md beside weights: what the model is, how it was trained, how to load it, and what it is not.

Written from the model's own record and tokenizer, so that every figure is the file's; nothing is typed by hand. Says
nothing of a licence: that follows from the training text, which only its owner knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ncvc.chat import has_chat_tokens
from ncvc.storage import whole_file
from ncvc.tokenizer import Tokenizer

_HEADER = """---
language: ja
library_name: {library}
pipeline_tag: text-generation
tags: [medical, japanese]
---
"""
_PURPOSE = """
Not a medical device: for research on language models. It makes things up, has seen no patient, and was checked for no
clinical use. Do not decide anything about anybody's health by its answers.
医療機器ではありません。診断や治療の判断に使わないでください。
"""
_OWN = """
```sh
python -m ncvc.generate model={folder} prompt="肺炎とは"
python -m ncvc.export model={folder} format=huggingface   # for transformers, vLLM and others
```
"""
_CHAT = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained({folder}), AutoModelForCausalLM.from_pretrained({folder})
messages = [{{"role": "user", "content": segment("肺炎とは何ですか。")}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))
```
"""
_TEXT = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained({folder}), AutoModelForCausalLM.from_pretrained({folder})
prompt = tokenizer(segment("肺炎とは"), return_tensors="pt")
new = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1]:]
print(tokenizer.decode(new, skip_special_tokens=True))
```
"""
_EXACT = """
The tokenizer takes text whose words are separated by spaces. `segment` makes it, exactly as in training (cleaning and
the same analyser; needs ncvc):

```python
from ncvc.huggingface_tokenizer import segmenter
segment = segmenter({folder})
```
"""
_SUDACHI = """
or, for text that is clean already (no line breaks of its own but `\\n`, NFKC, no web addresses), with SudachiPy alone
(`pip install sudachipy=={version} sudachidict-{dictionary}=={dictionary_version}`):

```python
import re, sudachipy
cut = sudachipy.Dictionary(dict="{dictionary}").tokenizer(mode="{mode}").tokenize
def segment(text): return "\\n".join(" ".join(m.surface() for s in re.findall("[^。！？!?]+[。！？!?]*|[。！？!?]+", line) for m in cut(s) if m.surface()) for line in text.replace(" ", "▁").split("\\n"))
```
"""  # noqa: E501 (two lines are what a reader copies)
_ENGINES = """
Servers do not segment: send contents through `segment` first. Without it a text is still read, in pieces that the model
has not seen in training. Special tokens typed in a message are ordinary text (the chat template sees to it); in plain
completions only segmented text is safe. Bytes that form no character print as U+FFFD.

| engine | form | |
| --- | --- | --- |
| transformers 5 | any | held against ncvc when this was written, see below |
| `transformers serve FOLDER` | any | run with transformers 5.23: chat and completions |
| vLLM | llama | its Arcee class takes squared ReLU only, its Apertus class xIELU only; not run here |
| llama.cpp | GGUF | `python -m ncvc.export model=... format=gguf` |
"""
_AGREEMENT = """
Loaded from these files, transformers {how} as ncvc does from its own{rounded}: {told}.
"""


def model_card(
    *,
    name: str,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    tokenizer: Tokenizer,
    export: Mapping[str, Any] | None = None,
) -> str:
    """The card of a model called ``name``: ``model`` and ``training`` as in ``model_config.json``.

    ``export`` holds the facts of ``export_huggingface``; without it the card is that of a model directory.
    """
    name = " ".join(name.split()) or "model"
    chat = has_chat_tokens(tokenizer)
    kind = "answers in conversations (system, user, assistant)" if chat else "continues Japanese text"
    parts = [
        _HEADER.format(library="transformers" if export else "ncvc"),
        f"# {name}\n\nA Japanese medical language model of the NCVC-slm-1 family, trained with ncvc; it {kind}.\n",
        _PURPOSE,
        "\n## How to load it\n",
        _loading(name, tokenizer, chat=chat) if export else _OWN.format(folder=name),
        "\n## What it is\n\n",
        _table(_shape(model, tokenizer, export)),
        "\n## How it was trained\n\n",
        _table(_flat(training)) if training else "Its record says nothing of its training.\n",
        "\nThe fingerprint names the training text: equal fingerprints are equal text, tokenized alike.\n",
    ]
    if export:
        parts += ["\n## Where it runs\n", _ENGINES, _told(export)]
    return "".join(parts)


def write_card(directory: Path) -> None:
    """Write README.md into a model directory, from its own ``model_config.json`` and tokenizer."""
    directory = Path(directory)
    record = json.loads((directory / "model_config.json").read_text(encoding="utf-8"))
    card = model_card(
        name=directory.absolute().name,
        model=record["model"],
        training=record.get("training") or {},
        tokenizer=Tokenizer.load(directory / "tokenizer"),
    )
    with whole_file(directory / "README.md") as handle:
        handle.write(card.encode("utf-8"))


def _loading(name: str, tokenizer: Tokenizer, *, chat: bool) -> str:
    folder, identity = json.dumps(name, ensure_ascii=False), tokenizer.analyzer_identity
    plain = identity["name"] == "sudachi" and "user_dictionary" not in identity
    return (
        _EXACT.format(folder=folder)
        + (_SUDACHI.format(**identity) if plain else "")
        + "\nThen:\n"
        + (_CHAT if chat else _TEXT).format(folder=folder)
    )


def _shape(
    model: Mapping[str, Any], tokenizer: Tokenizer, export: Mapping[str, Any] | None
) -> Iterator[tuple[str, object]]:
    for key in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"):
        yield key, model[key]
    yield "context_length", model["context_length"]
    yield "vocab_size", tokenizer.vocab_size
    yield "words by", " ".join(map(str, tokenizer.analyzer_identity.values()))
    yield "tokenizer fingerprint", tokenizer.fingerprint
    if export:
        yield "class", f"{export['architecture']} ({export['form']} form), {export['dtype']}"
        yield "parameters", export["parameters"]
        if export["constants"]:
            yield "constants of the form", export["constants"]
        yield "bytes of weights", export["bytes"]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _table(rows: Iterator[tuple[str, object]]) -> str:
    lines = ["| | |", "| --- | --- |"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", r"\|").split())


def _told(export: Mapping[str, Any]) -> str:
    rounded = ""
    if export["rounding"] is not None:
        rounded = f" once they are rounded to bfloat16 (which moves a logit by up to {export['rounding']:.2g})"
    return _AGREEMENT.format(how="computes", rounded=rounded, told=export["told"])
