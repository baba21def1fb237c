"""The tokenizer as files for Hugging Face: a fast tokenizer for text whose words are separated by spaces.

What it does: ``write_tokenizer`` writes ``tokenizer.json`` and ``tokenizer_config.json`` (and ``chat_template.jinja``
for a tokenizer with roles), which transformers, vLLM and others load without any code of ours; ``segmenter`` opens the
one thing they lack, the segmentation of raw text. Over segmented text the ids are those of ``ncvc.tokenizer``, and a
conversation's ids and targets those of ``ncvc.chat``. Decoding gives the same text as well, except after byte pieces
that form no character, which an untrained model may emit: the ``tokenizers`` package writes a whole run of byte pieces
as one U+FFFD a byte then, ours keeps the characters in it that are whole.

Special tokens typed in a text: a file of the ``tokenizers`` package splits them out of any text it is given. Analysers
cut them into several words, which keeps them apart; a user dictionary could keep one whole. ``segment_for_export``
therefore puts a space into every one that is left, at a place where its ids stay the same, and the chat template puts
one into those of contents that nobody segmented, so that no message can open a turn of its own.

What it does not do: segment by itself. Raw text goes in word by word only after ``segmenter`` or the lines of the
model card; without them it is read, but in pieces that the model has not seen in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, processors
from tokenizers import Tokenizer as FileTokenizer

from ncvc.chat import CHAT_TEMPLATE, Message, encode_conversation, has_chat_tokens
from ncvc.corpus.cleaning import SPACE
from ncvc.tokenizer import BEGIN_ID, BEGIN_OF_TEXT, END_OF_TEXT, MODEL_FILE, Tokenizer

NCVC_FOLDER = "ncvc_tokenizer"  # our own tokenizer directory inside an exported one
_CONTENT, _LOOP = "message['content']", "{%- for message in messages %}"
_CURE = "set the tested version of transformers and tokenizers (see pyproject.toml)."
_SILENT = r"\A(<unk>|<\|unused_[0-9]+\|>)\z"  # entries that no text gives and that stand for no text


def write_tokenizer(directory: Path, *, tokenizer: Tokenizer, context_length: int) -> None:
    """Write the files of the fast tokenizer, and the tokenizer directory itself under ``ncvc_tokenizer``."""
    directory = Path(directory)
    tokenizer.save(directory / NCVC_FOLDER)
    special = special_tokens(tokenizer)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if roles := special[2:]:
        config["additional_special_tokens"] = list(roles)
    (directory / "tokenizer.json").write_text(fast_tokenizer(directory / NCVC_FOLDER).to_str(), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    if has_chat_tokens(tokenizer):
        (directory / "chat_template.jinja").write_text(chat_template(tokenizer), encoding="utf-8")


def special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Begin of text, end of text, then the added tokens: what the exported tokenizer splits out of a text."""
    return (BEGIN_OF_TEXT, END_OF_TEXT, *tokenizer.added_tokens)


def fast_tokenizer(directory: Path) -> FileTokenizer:
    """The saved tokenizer of ``directory`` as the ``tokenizers`` package has it, made to begin with begin of text.

    Segmented text to ids and back; entries that stand for no text decode to nothing, as in ``Tokenizer.decode``.
    """
    fast = FileTokenizer.from_file(str(Path(directory) / MODEL_FILE))
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(_SILENT), ""),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(SPACE, " "),
        ]
    )
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, BEGIN_ID)],
    )
    return fast


def chat_template(tokenizer: Tokenizer) -> str:
    """``ncvc.chat.CHAT_TEMPLATE`` with every special token inside a content made ordinary text by a space."""
    inert = "".join(f" | replace('{token}', '{token[0]} {token[1:]}')" for token in special_tokens(tokenizer))
    template = CHAT_TEMPLATE.replace(_CONTENT, "content")
    return template.replace(_LOOP, f"{_LOOP}{{%- set content = {_CONTENT}{inert} %}}", 1)


def check_tokenizer(directory: Path, *, tokenizer: Tokenizer) -> None:
    """``ValueError`` unless transformers, from the written files, gives the ids of ``tokenizer`` and its text back.

    Held against each other: every entry of the vocabulary as a word, typed special tokens, and a conversation with its
    targets.
    """
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(Path(directory), local_files_only=True)
    loaded.model_max_length = len(tokenizer.pieces) * 32  # no warning about a row that no network reads
    special = special_tokens(tokenizer)
    words = [piece for piece in tokenizer.pieces if not any(token in piece for token in special)]
    words = [piece for piece in words if not piece.isspace()]
    typed = [
        segment_for_export(f"前{token}後 1\n{token}", tokenizer=tokenizer) for token in (*special, "<unk>", "<0x41>")
    ]
    for text in (" ".join(words), *typed):
        ids = tokenizer.encode_segmented(text)
        if loaded(text, add_special_tokens=False)["input_ids"] != ids or loaded(text)["input_ids"] != [BEGIN_ID, *ids]:
            raise ValueError(f"transformers gives other ids than ncvc for {text[:60]!r}; {_CURE}")
        if loaded.decode(ids) != tokenizer.decode(ids):
            raise ValueError(f"transformers decodes {text[:60]!r} to another text than ncvc; {_CURE}")
    if has_chat_tokens(tokenizer):
        turns = [Message("system", "医師"), Message("user", special[0]), Message("assistant", "肺炎\n")]
        told = encode_conversation(turns, tokenizer=tokenizer)
        plain = [
            {"role": turn.role, "content": segment_for_export(turn.content, tokenizer=tokenizer)} for turn in turns
        ]
        found = loaded.apply_chat_template(plain, return_dict=True, return_assistant_tokens_mask=True)
        if found["input_ids"] != told.ids or list(map(bool, found["assistant_masks"])) != told.supervised:
            raise ValueError(f"transformers' chat template gives other ids or targets than ncvc; {_CURE}")


def segmenter(directory: Path | str) -> Callable[[str], str]:
    """A function from raw text to the text that the exported tokenizer in ``directory`` takes.

    Raises ``FileNotFoundError`` when the directory lacks its ``ncvc_tokenizer``, and what ``Tokenizer.load`` raises.
    """
    tokenizer = Tokenizer.load(Path(directory) / NCVC_FOLDER)
    return lambda text: segment_for_export(text, tokenizer=tokenizer)


def segment_for_export(text: str, *, tokenizer: Tokenizer) -> str:
    """Raw text cleaned and segmented, in which no special token of the exported tokenizer stands as one word.

    The exported tokenizer gives the ids of ``tokenizer.encode(text)``. Only where a single learned piece holds a whole
    special token (a training text full of them, kept whole by a user dictionary) the ids differ: they stay text.
    """
    segmented = tokenizer.segment(text)
    special = special_tokens(tokenizer)
    if not any(token in segmented for token in special):
        return segmented
    lines = segmented.split("\n")
    return "\n".join(" ".join(_broken(word, tokenizer, special) for word in line.split(" ")) for line in lines)


def _broken(word: str, tokenizer: Tokenizer, special: tuple[str, ...]) -> str:
    """``word`` with a space inside each special token, where two of its pieces meet if they do inside it."""
    found = [(word.index(token), len(token)) for token in special if token in word]
    if not found:
        return word
    start, length = min(found)
    place, inside = 0, start + 1
    for id in tokenizer.encode_segmented(word):
        place += int(tokenizer.character_counts[id])
        if start < place < start + length:
            inside = place
            break
    return word[:inside] + " " + _broken(word[inside:], tokenizer, special)
