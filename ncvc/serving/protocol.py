"""OpenAI's chat and text completions as plain data: what a request may ask, and how it is refused.

Every field is used, is harmless to leave out, or is refused by its name: nothing that changes an answer is passed over
in silence. A body is JSON of finite numbers and of text that can be written as UTF-8. Special tokens in a text stay
characters, since ``ncvc.chat`` alone places them; prompts of token ids are therefore refused.
Knows nothing of HTTP beyond status codes. Not spoken: tools, images, logprobs, several answers at once.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ncvc.chat import Message, parse_messages
from ncvc.settings import suggestion

TEXT_DEFAULT_TOKENS = 16  # of /v1/completions, as OpenAI has it
MOST_STOPS, LONGEST_STOP = 4, 256

_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {  # field -> values without effect, why others are refused
    "n": ((None, 1), "one answer is made per request; send the request again with another seed"),
    "best_of": ((None, 1), "one answer is made per request"),
    "frequency_penalty": ((None, 0), "use repetition_penalty instead"),
    "presence_penalty": ((None, 0), "use repetition_penalty instead"),
    "logit_bias": ((None, {}), "logits cannot be biased here"),
    "logprobs": ((None, False), "log-probabilities are not returned; python -m ncvc.generate options=... prints them"),
    "top_logprobs": ((None, 0), "log-probabilities are not returned"),
    "echo": ((None, False), "the prompt is not repeated"),
    "suffix": ((None, ""), "text is only continued, never filled in"),
    "tools": ((None, []), "this model was not trained to call tools"),
    "tool_choice": ((None, "none", "auto"), "this model was not trained to call tools"),
    "functions": ((None, []), "this model was not trained to call functions"),
    "function_call": ((None, "none", "auto"), "this model was not trained to call functions"),
    "response_format": ((None, {"type": "text"}), "answers are plain text"),
    "modalities": ((None, ["text"]), "answers are plain text"),
    "audio": ((None,), "answers are plain text"),
    "prediction": ((None,), "predicted outputs are not supported"),
    "reasoning_effort": ((None, "none"), "this model has no separate reasoning"),
    "verbosity": ((None,), "this model has no such control"),
    "web_search_options": ((None,), "this server reaches no other machine"),
    "store": ((None, False), "nothing is stored"),
}
_WITHOUT_EFFECT = {"user", "metadata", "parallel_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key"}
_SHARED = {"model", "max_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop"}
_SHARED |= {"stream", "stream_options"}
_STREAM_OPTIONS = {"include_usage", "include_obfuscation"}


class Refusal(Exception):
    """A request that is not answered: HTTP status, and the parts of OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, checked. ``messages`` of a chat or ``prompt`` of a text; ``max_tokens`` None: all that fits."""

    model: str | None
    messages: tuple[Message, ...] = field(default=(), repr=False)
    prompt: str = field(default="", repr=False)
    max_tokens: int | None
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation and no text to continue."""
        return bool(self.messages)


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; ``Refusal`` for anything else."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refusal("the body is not UTF-8.") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(f"the body is not valid JSON: {reason}.") from error
    if not isinstance(value, dict):
        raise Refusal("the body must be a JSON object.")
    return value


def parse_chat(fields: Mapping[str, Any], *, most_messages: int, most_tokens: int, temperature: float) -> Request:
    """The request of ``/v1/chat/completions``; ``temperature`` holds where it names none."""
    _check_names(fields, {*_SHARED, "messages", "max_completion_tokens"})
    sent = fields.get("messages")
    if not isinstance(sent, list):
        raise Refusal("messages must be a list of objects with role and content.", param="messages")
    if len(sent) > most_messages:
        raise Refusal(f"{len(sent)} messages; this server takes {most_messages} at most.", param="messages")
    try:
        messages = parse_messages([_message(entry, number) for number, entry in enumerate(sent, 1)])
    except ValueError as error:
        raise Refusal(str(error), param="messages") from error
    if messages[-1].role != "user":
        raise Refusal("the last message must be the user's: it is what gets answered.", param="messages")
    newer, older = fields.get("max_completion_tokens"), fields.get("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise Refusal("max_tokens and max_completion_tokens differ; send one of them.", param="max_completion_tokens")
    name = "max_tokens" if newer is None else "max_completion_tokens"
    limit = _whole(fields, name, None, least=1, most=most_tokens)
    return Request(messages=tuple(messages), max_tokens=limit, **_sampling(fields, temperature))


def parse_text(fields: Mapping[str, Any], *, most_tokens: int, temperature: float) -> Request:
    """The request of ``/v1/completions``; without ``max_tokens`` it asks for 16, as OpenAI has it."""
    _check_names(fields, {*_SHARED, "prompt"})
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise Refusal("prompt must be one text; send one request per text. Token ids are not taken.", param="prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refusal("prompt must be a text that is not empty.", param="prompt")
    _check_text(prompt, "prompt")
    limit = _whole(fields, "max_tokens", min(TEXT_DEFAULT_TOKENS, most_tokens), least=1, most=most_tokens)
    return Request(prompt=prompt, max_tokens=limit, **_sampling(fields, temperature))


def shown(text: str) -> str:
    """The beginning of a text of the client's, fit to stand in a message to it."""
    return text[:80].encode("utf-8", "replace").decode()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_names(fields: Mapping[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name in known or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            allowed = {*known, *_NEUTRAL}
            text = f"there is no field {shown(name)}{suggestion(name, allowed)}"
            raise Refusal(text, param=shown(name), code="unknown_field")
        harmless, reason = _NEUTRAL[name]
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
            raise Refusal(f"{name}: {reason}; leave it out.", param=name, code="unsupported_field")


def _message(entry: Any, number: int) -> dict[str, Any]:
    """One message as ``ncvc.chat`` takes it: parts of text joined, unknown keys refused unless they say nothing."""
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
        raise Refusal(f"message {number} must be an object with role and content.", param=f"messages[{number - 1}]")
    where = f"messages[{number - 1}].content"
    content = entry.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refusal(f"message {number}: only parts of type text are understood.", param=where)
            parts.append(part["text"])
        content = "".join(parts)
    for key, value in entry.items():
        if key not in ("role", "content") and value not in (None, [], ""):
            raise Refusal(f"message {number}: {shown(key)} is not supported; send role and content.", param=where)
    if not isinstance(content, str):
        raise Refusal(f"the content of message {number} must be text.", param=where)
    _check_text(content, where)
    return {"role": shown(entry["role"]), "content": content}


def _check_text(text: str, param: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(f"{param} holds half of a surrogate pair, which is no character.", param=param) from error


def _sampling(fields: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    options = fields.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not set(options) <= _STREAM_OPTIONS):
        raise Refusal("stream_options may hold include_usage only.", param="stream_options")
    stream = _flag(fields, "stream")
    if options and not stream:
        raise Refusal("stream_options needs stream=true.", param="stream_options")
    if fields.get("model") is not None and not isinstance(fields["model"], str):
        raise Refusal("model must be a text.", param="model")
    seed = _whole(fields, "seed", None, least=-(2**63), most=2**63 - 1)
    return {
        "model": fields.get("model"),
        "temperature": _number(fields, "temperature", temperature, most=2.0),
        "top_p": _number(fields, "top_p", 1.0, most=1.0, above=True),
        "repetition_penalty": _number(fields, "repetition_penalty", 1.0, most=10.0, above=True),
        "seed": secrets.randbits(63) if seed is None else seed,
        "stop": _stops(fields.get("stop")),
        "stream": stream,
        "include_usage": _flag(options or {}, "include_usage"),
    }


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(f"{name} must be true or false.", param=name)
    return bool(value)


def _whole(fields: Mapping[str, Any], name: str, default: int | None, *, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refusal(f"{name} must be a whole number from {least} to {most}.", param=name)
    return value


def _number(fields: Mapping[str, Any], name: str, default: float, *, most: float, above: bool = False) -> float:
    value = fields.get(name)
    if value is None:
        return default
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
    if not fits or (above and value < 1e-6):
        raise Refusal(
            f"{name} must be a number {'above' if above else 'from'} 0 {'up ' if above else ''}to {most:g}.", param=name
        )
    return float(value)


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise Refusal(f"stop must be a text or a list of {MOST_STOPS} texts at most.", param="stop")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= LONGEST_STOP:
            raise Refusal(f"stop: each must be a text of 1 to {LONGEST_STOP} characters.", param="stop")
        _check_text(stop, "stop")
    return tuple(stops)
