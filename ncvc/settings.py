"""Settings held against the types of what takes them, with messages that name the setting.

`settings_from` builds a settings dataclass from plain values and tells all that is wrong with them at once; `fits`,
`words` and `suggestion` are what it and `ncvc.config` share. Knows nothing of Hydra.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def settings_from(kind: type[Settings], values: Mapping[str, Any], *, path: str) -> Settings:
    """An instance of the dataclass ``kind`` from ``values``; ``path`` is where they stand in the configuration.

    Raises one ``ValueError`` with every unknown, missing or ill-typed setting; what the dataclass itself refuses comes
    as its own ``ValueError``.
    """
    expected = hints_of(kind)
    found = []
    for key, value in values.items():
        if key not in expected:
            found.append(f"{path}.{key}: no such setting{suggestion(key, expected)}")
        elif not fits(value, expected[key]):
            found.append(f"{path}.{key}={value!r}: must be {words(expected[key])}.")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            found.append(f"{path}.{field.name}: needed and not set; set {path}.{field.name}=...")
    if found:
        raise ValueError("\n".join(found))
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of our own constructors; foreign ones are too loose or too clever to hold a value against."""
    if not getattr(target, "__module__", "").startswith(("ncvc", "data_modules", "lit_modules")):
        return {}
    found = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return {name: hint for name, hint in found.items() if name != "return" or not inspect.isclass(target)}


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` may stand where ``hint`` is asked; what the hint leaves open is accepted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint in (int, float, bool, str):
        exact = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}[hint]
        return isinstance(value, exact) and (hint is bool or not isinstance(value, bool))
    if hint is Path:
        return isinstance(value, str | Path)
    if (origin or hint) in (list, tuple):
        wanted = [argument for argument in arguments if argument is not Ellipsis]
        items_fit = isinstance(value, list | tuple) and (
            not wanted or all(fits(item, wanted[min(place, len(wanted) - 1)]) for place, item in enumerate(value))
        )
        fixed = (origin or hint) is tuple and arguments and Ellipsis not in arguments
        return items_fit and (not fixed or len(value) == len(arguments))
    if (origin or hint) in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def words(hint: Any) -> str:
    """What a value must be to fit ``hint``, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if (origin or hint) in (list, tuple):
        return "a list" if not arguments else f"a list of {words(arguments[0]).removeprefix('a ')}s"
    if (origin or hint) is dict:
        return "a group of settings"
    return "null" if hint is type(None) else names.get(hint, str(hint))


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``key``: the nearest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}."


def plain_texts(
    arguments: Sequence[str], *, names: Collection[str], keep_lists: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The arguments without ``NAME=TEXT`` of ``names``, and these texts by name; the last of a name counts.

    Hydra's grammar has no Japanese outside quotation marks, reads commas as a sweep and ``${...}`` as a reference, so
    free texts and paths are taken off the command line as they stand. ``null`` stays an argument, for there it means
    that nothing is set; with ``keep_lists`` so does what begins with a bracket.
    """
    rest, texts = [], {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in names and value != "null" and not (keep_lists and value.startswith("[")):
            texts[name] = value
        else:
            rest.append(argument)
    return rest, texts
