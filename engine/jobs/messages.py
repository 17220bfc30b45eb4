"""What has happened in a queue: a line on the screen for each step, and messages about what ends or fails."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

from engine import background
from engine.files import FileProblem, write_text
from engine.jobs.entry import ENDED, Event
from engine.jobs.store import Store

TOLD = "told"
"""File in the queue's folder: number of the last event that a message was sent about."""
PATIENCE = 15.0
"""Seconds that a scheduler which stops waits for its last messages; engine.notify gives each one 10.5."""


class Messages:
    """Prints new events of a queue and posts those that people wait for, also those that no scheduler has seen.

    Args:
        url: of a webhook; where it is empty, events are printed only.
    """

    def __init__(self, store: Store, url: str) -> None:
        self.store, self.url = store, url
        self.path = store.folder / TOLD
        newest = max((event.number for event in store.events()), default=0)
        self.printed = newest
        self.sent = self._told(newest)
        if url:
            self._note(self.sent)
        self.pending: queue.Queue[tuple[int, str] | None] = queue.Queue()
        self.thread: threading.Thread | None = None

    def tell(self) -> None:
        """Print what is new, and have it posted; does not wait for the network."""
        for event in self.store.events(since=min(self.printed, self.sent)):
            if event.number > self.printed:
                print(line(event), flush=True)
                self.printed = event.number
            if event.number > self.sent:
                self.sent = event.number
                if self.url and (text := self._message(event)):
                    self._post(event.number, text)

    def close(self) -> None:
        """Wait a while until all messages are out."""
        if self.thread is not None:
            self.pending.put(None)
            self.thread.join(PATIENCE)

    def _told(self, newest: int) -> int:
        """The event up to which messages were sent; those of a queue's past are not sent to a new webhook."""
        try:
            return min(int(self.path.read_text(encoding="utf-8")), newest)
        except (OSError, ValueError):
            return newest

    def _message(self, event: Event) -> str:
        """What to post about an event, if anything."""
        if event.after in ENDED and event.after != "cancelled":  # that was asked for
            return said(event)
        held = event.before == "running" and event.after == "queued" and self.store.entries([event.id])
        if held and held[0].held and held[0].reason == event.reason:
            return f"{event.name}: held: {event.reason}"
        return ""

    def _post(self, number: int, text: str) -> None:
        if self.thread is None:
            # Another thread: a webhook that does not answer must not keep anything from being started.
            self.thread = threading.Thread(target=self._deliver, daemon=True)
            self.thread.start()
        self.pending.put((number, text))

    def _deliver(self) -> None:
        from engine.notify import notify  # here: its network modules take memory that most schedulers don't need

        while (message := self.pending.get()) is not None:
            number, text = message
            notify(self.url, text)
            self._note(number)

    def _note(self, number: int) -> None:
        with suppress(FileProblem, OSError):  # the worst is a message that comes twice
            write_text(self.path, str(number))


def said(event: Event) -> str:
    """An event in a few words."""
    name = event.name or "queue"
    return f"{name}: {event.after}" + (f": {event.reason}" if event.reason else "")


def line(event: Event) -> str:
    """An event as a line with its time."""
    return f"{background.date(event.time)}  {said(event)}"
