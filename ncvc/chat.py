"""Conversations as token ids: the one chat template of training, generation, evaluation and export (R74, R77, R83).

A conversation of system, user and assistant turns becomes

    <|begin_of_text|><|system|>...<|user|>...<|assistant|>...<|end_of_text|><|user|>...<|assistant|>...<|end_of_text|>

Each turn's text is cleaned, segmented and looked up by itself, so its ids do not depend on its neighbours, and special
tokens typed in a text stay ordinary characters: only this file places ids of roles. Supervised are the tokens right
after ``<|assistant|>`` through ``<|end_of_text|>``, marked by position and never by id, because the end-of-text token
is the padding token too.

``CHAT_TEMPLATE`` says the same as a Jinja template for Hugging Face tokenizers, over text whose words are separated by
spaces; a test holds the ids of both against each other. What it does not do: tools, images, several system turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ncvc.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, ROLE_TOKENS, Tokenizer

ROLES = tuple(ROLE_TOKENS)
TooLong = Literal["refuse", "truncate"]

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ '; use system, user or assistant') }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] ~ eos_token }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user or assistant; ``content`` is raw text."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Token ids of a conversation and, for each, whether it is a target of training."""

    ids: list[int]
    supervised: list[bool]


def parse_messages(value: Any, *, where: str = "messages") -> list[Message]:
    """Messages from plain data, ``[{"role": ..., "content": ...}, ...]``.

    ``ValueError``, beginning with ``where``, for anything that is no conversation: an unknown role, an empty turn, a
    system turn that is not the first, turns that do not alternate between user and assistant.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise ValueError(f"{where}: must be a list of at least one message with role and content.")
    messages = []
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, Mapping) or not {"role", "content"} <= set(entry):
            raise ValueError(f"{where}: message {number} must be an object with role and content.")
        role, content = entry["role"], entry["content"]
        if role not in ROLES:
            raise ValueError(f"{where}: message {number} has the role {role!r}; use one of {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise ValueError(f"{where}: the content of message {number} ({role}) must be text.")
        messages.append(Message(role, content))
    check_turns(messages, where=where)
    return messages


def check_turns(messages: Sequence[Message], *, where: str = "messages") -> None:
    """``ValueError`` unless an optional system turn is followed by user and assistant in turns, none of them blank."""
    for number, message in enumerate(messages, 1):
        if not message.content.strip():
            raise ValueError(f"{where}: message {number} ({message.role}) is empty; leave the turn out or write it.")
    turns = [message.role for message in messages]
    spoken = turns[1:] if turns[:1] == ["system"] else turns
    if not spoken:
        raise ValueError(f"{where}: there is no user turn; a conversation begins with one (after a system turn).")
    for number, (found, wanted) in enumerate(zip(spoken, ("user", "assistant") * len(spoken), strict=False), 1):
        if found != wanted:
            place = number + len(turns) - len(spoken)
            raise ValueError(
                f"{where}: message {place} is {found}, and {wanted} has to come there: one system turn may stand "
                "first, then user and assistant alternate."
            )


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """``tokenizer`` with the three role tokens behind its other ids (32,768 -> 32,771, R74); itself if it has them."""
    return tokenizer if has_chat_tokens(tokenizer) else tokenizer.with_added_tokens(tuple(ROLE_TOKENS.values()))


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer knows the roles."""
    return set(ROLE_TOKENS.values()) <= set(tokenizer.added_tokens)


def encode_conversation(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    context_length: int | None = None,
    too_long: TooLong = "refuse",
    where: str = "messages",
) -> Conversation:
    """Ids and targets of a finished conversation (its last turn is the assistant's).

    A conversation over ``context_length`` tokens is refused, or, with ``too_long="truncate"``, loses its oldest turns
    and then the beginning of the last user turn; the last answer and the system turn stay whole. ``ValueError``,
    beginning with ``where``, when that is not enough, when a turn has no token, and for turns out of order.
    """
    check_turns(messages, where=where)
    if messages[-1].role != "assistant":
        raise ValueError(
            f"{where}: the last message is {messages[-1].role}; a finished conversation ends in an answer."
        )
    turns = _fitted(_turns(messages, tokenizer, where), tokenizer, context_length, 0, too_long, where)
    ids, supervised = [tokenizer.begin_id], [False]
    for role, content in turns:
        part = [_role_id(tokenizer, role), *content, *([tokenizer.end_id] if role == "assistant" else [])]
        ids += part
        supervised += [False] + [role == "assistant"] * (len(part) - 1)
    return Conversation(ids, supervised)


def encode_prompt(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    context_length: int | None = None,
    reserve: int = 0,
    too_long: TooLong = "refuse",
    where: str = "messages",
) -> list[int]:
    """Ids up to and with the ``<|assistant|>`` that asks for an answer; the last message is the user's.

    ``reserve`` tokens of ``context_length`` are kept free for the answer; the rest as in ``encode_conversation``.
    """
    check_turns(messages, where=where)
    if messages[-1].role != "user":
        raise ValueError(f"{where}: the last message is {messages[-1].role}; an answer is asked for by a user turn.")
    turns = _fitted(_turns(messages, tokenizer, where), tokenizer, context_length, reserve + 1, too_long, where)
    ids = [tokenizer.begin_id]
    for role, content in turns:
        ids += [_role_id(tokenizer, role), *content, *([tokenizer.end_id] if role == "assistant" else [])]
    return [*ids, _role_id(tokenizer, "assistant")]


def render(messages: Iterable[Message], *, tokenizer: Tokenizer, generation_prompt: bool = False) -> str:
    """The conversation as one line of text with its special tokens, each turn segmented; for display and export."""
    parts = [BEGIN_OF_TEXT]
    for message in messages:
        end = END_OF_TEXT if message.role == "assistant" else ""
        parts.append(ROLE_TOKENS[message.role] + tokenizer.segment(message.content) + end)
    return "".join(parts) + (ROLE_TOKENS["assistant"] if generation_prompt else "")


def _turns(messages: Sequence[Message], tokenizer: Tokenizer, where: str) -> list[tuple[str, list[int]]]:
    turns = []
    for number, message in enumerate(messages, 1):
        ids = tokenizer.encode(message.content)
        if not ids:
            raise ValueError(f"{where}: message {number} ({message.role}) is empty once it is cleaned; write it anew.")
        turns.append((message.role, ids))
    return turns


def _role_id(tokenizer: Tokenizer, role: str) -> int:
    token = ROLE_TOKENS[role]
    if token not in tokenizer.added_tokens:
        raise ValueError(
            f"the tokenizer has no {token}: it is a base model's. Tune the model on conversations first "
            "(python -m ncvc.train experiment=sft_quickstart), or continue plain text instead of chatting."
        )
    return tokenizer.id_of(token)


def _length(turns: Sequence[tuple[str, list[int]]]) -> int:
    """Tokens of begin-of-text and these turns."""
    return 1 + sum(1 + len(ids) + (role == "assistant") for role, ids in turns)


def _fitted(
    turns: list[tuple[str, list[int]]],
    tokenizer: Tokenizer,
    context_length: int | None,
    reserve: int,
    too_long: TooLong,
    where: str,
) -> list[tuple[str, list[int]]]:
    """The turns, or with ``truncate`` what is kept of them, in ``context_length`` - ``reserve`` tokens."""
    length = _length(turns)
    if context_length is None or length + reserve <= context_length:
        return turns
    kept_free = f", {reserve} kept for the answer" if reserve else ""
    if too_long == "refuse":
        raise ValueError(
            f"{where}: the conversation has {length} tokens{kept_free}, and the model's context is {context_length}; "
            "shorten it, or allow too_long=truncate (the oldest turns go first, never the answer)."
        )
    system, spoken = (turns[:1], turns[1:]) if turns[0][0] == "system" else ([], turns)
    last = spoken[-2:] if spoken[-1][0] == "assistant" else spoken[-1:]
    room = context_length - reserve
    while len(spoken) > len(last) and _length([*system, *spoken]) > room:
        spoken = spoken[2:]
    excess = _length([*system, *spoken]) - room
    if excess > 0:
        role, ids = spoken[0]
        if excess >= len(ids):
            raise ValueError(
                f"{where}: system turn and answer alone{kept_free} leave no room for the question in a context of "
                f"{context_length} tokens; shorten them."
            )
        spoken = [(role, ids[excess:]), *spoken[1:]]
    return [*system, *spoken]
