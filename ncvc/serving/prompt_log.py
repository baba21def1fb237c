"""The opt-in record of what was asked and answered: one JSON line each, readable by the owner alone.

Off by default. Lines are written whole; when the disk refuses one, that is told once and serving goes on.
"""

import json
import os
import sys
import time
from pathlib import Path

from ncvc.serving.protocol import Request


class PromptLog:
    """Appends to ``path``; ``OSError`` at once when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(self._file, 0o600)
        self._told = False

    def write(self, id: str, request: Request, answer: str) -> None:
        """One exchange, also one that its client left in the middle."""
        asked = (
            {"messages": [{"role": message.role, "content": message.content} for message in request.messages]}
            if request.is_chat
            else {"prompt": request.prompt}
        )
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        settings = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        line = json.dumps({"time": when, "id": id, **asked, **settings, "answer": answer}, ensure_ascii=False)
        try:
            os.write(self._file, line.encode() + b"\n")
        except OSError as error:
            if not self._told:
                print(f"note: the record of prompts cannot be written: {error}", file=sys.stderr, flush=True)
            self._told = True
