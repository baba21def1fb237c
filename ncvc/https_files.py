"""One file over HTTPS, of known size and sha256: whole or not there, resumed where it was cut, refused if another.

A transfer goes into ``.<name>.download`` beside its place; what is there already is asked for no more (Range), and only
the whole file with the right sha256 gets the name. Certificates are checked, against a file of one's own where a
company's proxy needs it; redirects to anything but HTTPS are refused; proxies come from the environment (HTTPS_PROXY,
NO_PROXY). Transient faults (a cut connection, a timeout, 408, 429, 5xx) are tried again with growing pauses.

Costs one connection a file, and 64 KiB of memory. Does not: send anything about the user, run what it fetches, or
unpack.
"""

from __future__ import annotations

import email.message
import hashlib
import http.client
import re
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ncvc.storage import sync

_BLOCK = 1 << 16
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0
_AGENT = "ncvc-download"


class Unreachable(OSError):
    """No connection to the server can be made: asking for further files is of no use."""


class Missing(OSError):
    """The server says that it has no such file (404 or 410)."""


class Stopped(Exception):
    """The transfer was ended from outside; what came so far is kept."""


class _Cut(Exception):
    """A fault that may be over soon; ``pause`` is what the server asks for, in seconds."""

    def __init__(self, why: str, *, connected: bool, pause: float = 0.0) -> None:
        super().__init__(why)
        self.connected, self.pause = connected, pause


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """``certificates``: a PEM file of authorities to trust besides the system's. ``attempts`` without a byte more end a
    transfer; between them is a pause that starts at ``pause_seconds`` and doubles."""

    certificates: Path | None = None
    timeout_seconds: float = 30.0
    attempts: int = 4
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        found = []
        if self.timeout_seconds <= 0:
            found.append(f"timeout_seconds={self.timeout_seconds}: must be above 0.")
        if self.attempts < 1:
            found.append(f"attempts={self.attempts}: must be at least 1.")
        if self.pause_seconds < 0:
            found.append(f"pause_seconds={self.pause_seconds}: must be 0 or above.")
        if found:
            raise ValueError("\n".join(found))


class _DiskFault(OSError):
    """Writing failed, which no further attempt mends."""


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        request: urllib.request.Request,
        handle: IO[bytes],
        code: int,
        message: str,
        headers: http.client.HTTPMessage | email.message.Message,
        url: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(url).scheme.lower() != "https":
            raise ValueError(f"{request.full_url} leads on to {url}, which is not HTTPS; refused.")
        return super().redirect_request(request, handle, code, message, headers, url)  # type: ignore[arg-type]


class Fetcher:
    """Fetches files with one set of settings; may be used by several threads. ``stop`` ends every transfer.

    ``FileNotFoundError`` or ``ValueError`` for a certificate file that cannot be used.
    """

    def __init__(self, settings: TransferSettings) -> None:
        self.settings, self.stop = settings, threading.Event()
        context = ssl.create_default_context()
        if settings.certificates is not None:
            if not settings.certificates.is_file():
                raise FileNotFoundError(
                    f"certificates={settings.certificates} is no file; set the PEM file of the authority, or null."
                )
            try:
                context.load_verify_locations(cafile=str(settings.certificates))
            except ssl.SSLError as error:
                raise ValueError(
                    f"certificates={settings.certificates} holds no certificate in PEM form ({error.reason or error})."
                ) from error
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _OnlyHttps())

    def fetch(
        self,
        url: str,
        path: Path,
        *,
        num_bytes: int,
        sha256: str,
        on_bytes: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Put the file at ``url`` into ``path``; ``on_bytes`` hears how many bytes more are there (fewer: below 0).

        Raises ``Unreachable``, ``Missing``, ``OSError`` where it cannot be had, ``ValueError`` where it is another
        file, ``Stopped``.
        """
        partial = path.with_name(f".{path.name}.download")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = partial.stat().st_size if partial.is_file() else 0
        on_bytes(kept)
        for last in (False, True):
            in_pieces = self._all_of(url, partial, num_bytes=num_bytes, on_bytes=on_bytes)
            found = _sha256(partial)
            if found == sha256:
                sync(partial)
                partial.replace(path)
                sync(path.parent)
                return
            begins = _beginning(partial)
            on_bytes(-partial.stat().st_size)
            partial.unlink()
            if last or not in_pieces:  # pieces may be of two versions: once more, whole
                break
        raise ValueError(
            f"{url} is not the file that is pinned: sha256 {found[:16]}..., wanted {sha256[:16]}...{begins}. Refused; "
            "nothing was written."
        )

    def _all_of(self, url: str, partial: Path, *, num_bytes: int, on_bytes: Callable[[int], object]) -> bool:
        """Fill ``partial`` up to ``num_bytes``; returns whether it was put together from pieces."""
        failures, pieces = 0, 0
        while True:
            there = partial.stat().st_size if partial.is_file() else 0
            if there >= num_bytes:
                return pieces != 1
            pieces += 1
            try:
                self._piece(url, partial, there=there, num_bytes=num_bytes, on_bytes=on_bytes)
                return pieces > 1 or there > 0
            except _Cut as cut:
                more = partial.stat().st_size > there if partial.is_file() else False
                failures = 1 if more else failures + 1
                if failures >= self.settings.attempts:
                    kind = OSError if cut.connected else Unreachable
                    raise kind(f"{url} cannot be had: {cut} (attempts: {failures})") from cut
                pause = max(cut.pause, self.settings.pause_seconds * 2 ** (failures - 1))
                if self.stop.wait(min(pause, _LONGEST_PAUSE)):
                    raise Stopped from None

    def _piece(self, url: str, partial: Path, *, there: int, num_bytes: int, on_bytes: Callable[[int], object]) -> None:
        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
        if there:
            headers["Range"] = f"bytes={there}-"
        connected = False
        try:
            with self._opener.open(
                urllib.request.Request(url, headers=headers), timeout=self.settings.timeout_seconds
            ) as answer:
                connected = True
                goes_on = answer.status == 206 and _starts_at(answer.headers.get("Content-Range"), there)
                if answer.status == 206 and not goes_on:
                    _discard(partial, on_bytes)
                    raise _Cut("the server sent another part than was asked for", connected=True)
                if there and not goes_on:
                    on_bytes(-there)  # the server does not resume
                with partial.open("ab" if goes_on else "wb") as handle:
                    self._copy(answer, handle, url, left=num_bytes - (there if goes_on else 0), on_bytes=on_bytes)
        except urllib.error.HTTPError as error:
            error.close()
            self._refused(url, error, partial, on_bytes)
        except _DiskFault:
            raise
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, resets, half answers
            raise self._fault(url, error, connected=connected) from error

    def _copy(
        self,
        answer: http.client.HTTPResponse,
        handle: IO[bytes],
        url: str,
        *,
        left: int,
        on_bytes: Callable[[int], object],
    ) -> None:
        while True:
            if self.stop.is_set():
                raise Stopped
            block = answer.read1(min(_BLOCK, left + 1))
            if len(block) > left:
                Path(handle.name).unlink()
                raise ValueError(f"{url} is longer than the file that is pinned. Refused; nothing was written.")
            if not block:
                break
            try:
                handle.write(block)
            except OSError as error:  # of the disk, not of the net
                raise _DiskFault(error.errno, f"writing {handle.name} failed: {error.strerror}") from error
            left -= len(block)
            on_bytes(len(block))
        if left:
            raise _Cut(f"the connection ended {left:,} bytes too early", connected=True)

    def _refused(
        self, url: str, error: urllib.error.HTTPError, partial: Path, on_bytes: Callable[[int], object]
    ) -> None:
        """The server said something else than yes."""
        code = error.code
        if code in (404, 410):
            raise Missing(f"{url} is not there ({code})") from error
        if code == 416:  # nothing is left of what was asked for
            _discard(partial, on_bytes)
            raise _Cut("the server has no such part", connected=True) from error
        if code in _TRANSIENT:
            asked = (error.headers.get("Retry-After") or "") if error.headers else ""
            pause = float(asked) if re.fullmatch(r"\d{1,6}", asked.strip()) else 0.0
            raise _Cut(f"the server answers {code} {error.reason}", connected=True, pause=pause) from error
        raise OSError(f"{url} cannot be had: the server answers {code} {error.reason}") from error

    def _fault(self, url: str, error: Exception, *, connected: bool) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            host = urllib.parse.urlsplit(url).hostname
            return Unreachable(
                f"the certificate of {host} is not trusted ({reason.verify_message}). Behind a proxy that signs "
                "connections itself, set certificates=FILE to the PEM file of its authority."
            )
        if isinstance(reason, OSError) and "Tunnel connection failed" in str(reason):
            return Unreachable(f"the proxy of HTTPS_PROXY lets no connection through ({reason})")
        return _Cut(str(reason) or type(reason).__name__, connected=connected)


def _starts_at(content_range: str | None, place: int) -> bool:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return found is not None and int(found[1]) == place


def _discard(partial: Path, on_bytes: Callable[[int], object]) -> None:
    if partial.is_file():
        on_bytes(-partial.stat().st_size)
        partial.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _beginning(path: Path) -> str:
    """A word about a file that is no benchmark: the page that a portal or a proxy answers with."""
    with path.open("rb") as handle:
        start = handle.read(200).lstrip().lower()
    return "; it is a web page, as a login portal sends" if start.startswith((b"<!doctype", b"<html")) else ""
