"""Fetch the benchmarks, or check a copy: ``python -m ncvc.download benchmarks``, ``... verify dir=FOLDER``.

``benchmarks`` brings the public files that are missing, over HTTPS, at pinned hashes; ``verify`` connects to nothing.
Every setting is in ``conf/download.yaml``.
"""

import functools
import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run

tell = partial(print, flush=True)
_WHAT = ("benchmarks", "verify")
_PATHS = ("dir", "benchmarks.dir", "certificates")


def download(config: DictConfig, *, what: str, paths: dict[str, str] | None = None) -> Path:
    """Hydra's entry point: fetch or verify; returns the folder. ``paths`` are taken off the command line."""
    from ncvc.benchmark_download import DownloadSettings, download_benchmarks, verify_benchmarks
    from ncvc.benchmark_files import DATASETS
    from ncvc.settings import settings_from

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    given = paths or {}
    chosen = {name: value for name, value in plain.items() if name not in ("home", "benchmarks")}
    chosen["dir"] = given.get("dir") or given.get("benchmarks.dir") or plain["benchmarks"]["dir"]
    if "certificates" in given:
        chosen["certificates"] = given["certificates"]
    settings = settings_from(DownloadSettings, chosen, path="download")
    folder = Path(settings.dir).expanduser()
    if what == "verify":
        verify_benchmarks(folder, names=settings.datasets or DATASETS, tell=tell)
        return folder
    return download_benchmarks(settings, tell=tell)


def main(arguments: list[str]) -> None:
    """Take what to do and the paths off the command line, which Hydra would read as its own grammar, and start."""
    words = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    wants_help = {"--help", "-h", "--cfg", "-c", "--hydra-help", "--info", "-i"} & {*arguments}
    if not wants_help and (len(words) != 1 or words[0] not in _WHAT):
        told = f"{' '.join(words)!r} is neither" if words else "nothing is named"
        print(
            f"error: {told}: python -m ncvc.download benchmarks fetches them, python -m ncvc.download verify "
            "dir=FOLDER checks a copy.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    pairs = [argument.partition("=") for argument in arguments]
    paths = {name: value for name, equals, value in pairs if equals and name in _PATHS and value not in ("", "null")}
    rest = [text for text in arguments if text not in _WHAT and text.partition("=")[0] not in paths]
    what = next((word for word in words if word in _WHAT), "benchmarks")
    run(functools.wraps(download)(partial(download, what=what, paths=paths)), config_name="download", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])
