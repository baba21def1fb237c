"""What a synthesis tells while it runs and when it is done: lines with rate and time left, and the summary table."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any


class Progress:
    """One line per teacher every `every` seconds: answers, accepted share, requests per second, time left.

    May be called from several threads.
    """

    def __init__(self, *, every: float, tell: Callable[[str], None]) -> None:
        self._every, self._tell = every, tell
        self._lock = threading.Lock()
        self._teachers: dict[str, dict[str, float]] = {}

    def begin(self, teacher: str, *, wanted: int, attempts: int, answered: int) -> None:
        """A teacher starts: documents wanted of it, the most answers for each, answers there from earlier runs."""
        now = time.monotonic()
        self._teachers[teacher] = {
            "wanted": wanted, "attempts": attempts, "before": answered,
            "answers": 0, "accepted": 0, "begun": now, "told": now,
        }  # fmt: skip
        if answered:
            self._tell(f"{teacher}: {answered:,} answers are there already")

    def count(self, teacher: str, *, accepted: bool) -> None:
        """One answer came."""
        with self._lock:
            state = self._teachers[teacher]
            state["answers"] += 1
            state["accepted"] += accepted
            now = time.monotonic()
            if now - state["told"] >= self._every:
                state["told"] = now
                self._tell(self._line(teacher))

    def end(self) -> None:
        """Tell the last state of every teacher that answered anything."""
        for teacher, state in self._teachers.items():
            if state["answers"]:
                self._tell(self._line(teacher))

    def _line(self, teacher: str) -> str:
        state = self._teachers[teacher]
        rate = state["answers"] / max(1e-9, time.monotonic() - state["begun"])
        share = state["accepted"] / state["answers"]
        answered = state["before"] + state["answers"]
        expected = state["before"] + max(0.0, state["wanted"] - state["before"] * share) / max(share, 1e-3)
        left = max(0.0, min(expected, state["wanted"] * state["attempts"]) - answered) / rate
        return (
            f"{teacher}: {answered:,.0f} answers for {state['wanted']:,.0f} documents, {share:.1%} usable, "
            f"{rate:.2f} requests/s, about {duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Seconds as the two largest of days, hours, minutes and seconds."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min {seconds % 60:.0f} s" if minutes else f"{seconds:.0f} s"


def summary_table(manifest: Mapping[str, Any]) -> str:
    """Markdown: per teacher the documents wanted and kept, answers, accepted share, and every reason with its count."""
    teachers = manifest["teachers"]
    reasons = list(dict.fromkeys(reason for entry in teachers.values() for reason in entry["rejected"]))
    head = ["teacher", "documents wanted", "kept", "lost", "answers", "accepted", "characters", *reasons]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    total = {key: sum(entry[key] for entry in teachers.values()) for key in ("wanted", "accepted", "lost", "answers")}
    total |= {"characters": sum(entry["characters"] for entry in teachers.values())}
    total["rejected"] = {  # type: ignore[assignment]
        reason: sum(entry["rejected"].get(reason, 0) for entry in teachers.values()) for reason in reasons
    }
    rows = [*teachers.items(), *([("all", total)] if len(teachers) > 1 else [])]
    for name, entry in rows:
        share = entry["accepted"] / entry["answers"] if entry["answers"] else 0.0
        cells = [f"{entry[key]:,}" for key in ("wanted", "accepted", "lost", "answers")]
        cells += [f"{share:.1%}", f"{entry['characters']:,}"]
        cells += [f"{entry['rejected'].get(reason, 0):,}" for reason in reasons]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)
