"""Starting a program under Hydra: problems of its command line all at once, expected errors without a stack trace.

Composes the configuration that the arguments ask for; where that fails, takes the overrides one at a time, so that each
bad one gets its own message, and checks what the good ones compose to. Costs one composition (about 0.3 s) when all
is well.
"""

import contextlib
import difflib
import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ncvc.config import CONF_DIRECTORY, as_message, problems_of, register_with_hydra
from ncvc.resuming import RunStopped, is_first_rank, newest_run

_OF_A_RUN = ("train", "bench")  # the other programs' few settings are checked where they are used


def problems_of_command_line(arguments: list[str], *, config_name: str) -> list[str]:
    """Messages for every override that cannot be applied and for every problem of what the others compose to.

    Sweeps (``a=1,2`` with ``--multirun``) are checked at each value in turn. Help and info requests are left to Hydra.
    """
    register_with_hydra()
    parsed = get_args_parser().parse_args(arguments)
    if parsed.help or parsed.hydra_help or parsed.info or parsed.shell_completion:
        return []
    if parsed.config_path or parsed.config_name or parsed.config_dir:
        return []  # another place for configurations: Hydra composes it, and training checks the result
    found: list[str] = []
    check = not parsed.cfg and config_name in _OF_A_RUN
    for overrides in _single_runs(parsed.overrides, multirun=parsed.multirun):
        found += _problems(overrides, config_name=config_name, check=check)
    return list(dict.fromkeys(found))


def _single_runs(overrides: list[str], *, multirun: bool) -> list[list[str]]:
    """The override lists to try: one for a plain run; for a sweep, each value once with the others at their first."""
    if not multirun:
        return [overrides]
    choices = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            choices.append([text])
            continue
        sweeping = override.is_sweep_override() and override.is_discrete_sweep()
        key = f"{override.key_or_group}" if not override.package else f"{override.key_or_group}@{override.package}"
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if sweeping else [text])
    first = [options[0] for options in choices]
    runs = [first]
    for place, options in enumerate(choices):
        runs += [[*first[:place], option, *first[place + 1 :]] for option in options[1:]]
    return runs


def _problems(overrides: list[str], *, config_name: str, check: bool) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIRECTORY), version_base="1.3"):
        try:
            config = compose(config_name, overrides=overrides)
            return problems_of(config) if check else []
        except (HydraException, OmegaConfBaseException):
            pass
        found: list[str] = []
        good: list[str] = []
        config = compose(config_name)
        for override in sorted(overrides, key=lambda text: not text.startswith("experiment=")):
            try:
                config = compose(config_name, overrides=[*good, override])
                good.append(override)
            except (HydraException, OmegaConfBaseException) as error:
                found.append(_message(override, error, config))
        return found + (problems_of(config) if check else [])


def _message(override: str, error: Exception, config: DictConfig) -> str:
    key, _, _ = override.partition("=")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("is not in struct" in line or "Could not override" in line for line in lines):
        known = list(_keys(config, ""))
        close = difflib.get_close_matches(key.lstrip("+~"), known, n=1)
        return f"{override}: there is no setting {key}" + (f"; did you mean {close[0]}?" if close else ".")
    text = " ".join(lines).partition(" Config search path")[0]
    return f"{override}: {text}"


def _keys(node: DictConfig, path: str) -> list[str]:
    found = []
    for key in node:
        name = f"{path}.{key}" if path else str(key)
        found.append(name)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            found += _keys(child, name)
    return found


def taken_up(arguments: list[str]) -> list[str]:
    """``resume=FOLDER`` (or ``last``) and ``replay=STEP`` as the command that started that run, in its folder.

    The run's own overrides come first, then the given ones; ``resume=auto`` and a plain start are left as they are.
    Raises ``FileNotFoundError`` with the cure when the folder holds no run.
    """
    given = dict(_keyed(arguments))
    resume, replay = given.get("resume", ""), given.get("replay", "null")
    replaying = replay not in ("null", "")
    if not replaying and resume.strip("'\"") in ("", "null", "auto"):
        return arguments
    if "--multirun" in arguments or "-m" in arguments:
        raise ValueError(
            "resume=FOLDER goes on with one run; to go on with a sweep, repeat its command with hydra.sweep.dir=FOLDER."
        )
    resume = resume.strip("'\"")
    if resume == "auto" and replaying:
        return [*arguments, "hydra.output_subdir=null"]
    home = Path(given.get("paths.home") or os.environ.get("NCVC_HOME") or ".ncvc")
    folder = newest_run(home) if resume in ("", "null", "last") else Path(resume).expanduser()
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise FileNotFoundError(
            f"resume={folder}: no run was started there (it has no .hydra/overrides.yaml); name a run's folder "
            "(.ncvc/runs/<name>/<time>), or repeat the run's command with resume=auto and paths.run=FOLDER."
        )
    own = [str(text) for text in OmegaConf.to_container(OmegaConf.load(stored)) or []]
    replaced = {"resume", "replay", "allow_changes", *given}
    kept = [text for text in own if text.partition("=")[0].lstrip("+~") not in replaced]
    added = {text.partition("=")[0].lstrip("+") for text in own if text.startswith("+")}
    rest = [
        f"+{text}" if text.partition("=")[0] in added else text
        for text in arguments
        if text.partition("=")[0].lstrip("+") not in ("resume", "hydra.run.dir")
    ]
    where = [f'hydra.run.dir="{folder}"', *(["hydra.output_subdir=null"] if replaying else [])]
    return [*kept, *rest, "resume=auto", *where]


def quoted(argument: str) -> str:
    """``key=value`` with quotes around a value that has a sign of its own, as ``step=00009600`` in a checkpoint's path.

    Lists, groups, sweeps and what has quotes already stay as they are.
    """
    key, _, value = argument.partition("=")
    return f'{key}="{value}"' if "=" in value and not set(value) & set("\"'[]{}(),$\\") else argument


def _keyed(arguments: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in arguments if "=" in text and not text.startswith("-")]
    return [(key.lstrip("+~"), value) for key, _, value in pairs]


def run(task: Callable[[DictConfig], Any], *, config_name: str, arguments: list[str] | None = None) -> None:
    """Start ``task`` under Hydra with this configuration, after telling all problems of the command line at once."""
    import hydra

    register_with_hydra()
    if arguments is not None:
        sys.argv = [sys.argv[0], *arguments]
    sys.argv[1:] = [quoted(text) for text in sys.argv[1:]]
    if config_name == "train":
        try:
            sys.argv[1:] = taken_up(sys.argv[1:])
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
    if found := problems_of_command_line(sys.argv[1:], config_name=config_name):
        print(as_message(found), file=sys.stderr)
        raise SystemExit(2)
    hydra.main(version_base="1.3", config_path=str(CONF_DIRECTORY), config_name=config_name)(_plainly(task))()


def _plainly(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """``task`` with errors that are the user's to mend told as one message; the trace goes to the run's folder."""

    @functools.wraps(task)
    def told(config: DictConfig) -> Any:
        try:
            return task(config)
        except RunStopped as stop:
            if is_first_rank():
                print(stop, file=sys.stderr, flush=True)
            raise SystemExit(stop.exit_code if is_first_rank() else 0) from stop
        except (ValueError, OSError, ModuleNotFoundError) as error:
            from hydra.core.hydra_config import HydraConfig

            folder, where = Path(HydraConfig.get().runtime.output_dir), ""
            with contextlib.suppress(OSError):  # the disk may be what went wrong
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
                where = f"\n(the trace is in {folder / 'error.txt'})"
            words = str(error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and "free" not in words:
                words = (
                    f"{words}: the disk of {folder} is full. What was complete on it is untouched. Free some space, "
                    f"then go on: python -m ncvc.train resume={folder}"
                )
            print(f"error: {words}{where}", file=sys.stderr)
            raise SystemExit(1) from error

    return told
