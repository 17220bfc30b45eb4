"""Messages to a webhook when a run starts, ends or fails, in Slack's format: {"text": "..."}.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks; Mattermost, Rocket.Chat and Google Chat take
the same.
"""

from __future__ import annotations

import html
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from config import ConfigProblem

TRIES = 3
SECONDS_A_TRY = 3.0
PAUSE = 0.5
"""Seconds between tries."""
SECONDS = TRIES * (SECONDS_A_TRY + PAUSE)
"""A message holds the run up for no longer."""


def check_url(url: str) -> None:
    """Check the address of a webhook; an empty one sends nothing.

    Raises:
        ConfigProblem: it has another scheme than http or https, or no host.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        fits = False
    if url and not fits:
        raise ConfigProblem(f"notify is {url!r}, but messages go to a webhook: give an address such as https://host/…")


def notify(url: str, text: str) -> None:
    """Post `text`; returns when it is out, or after SECONDS. Never fails: one line on stderr says what went wrong.

    Args:
        url: of the webhook, as `check_url` takes it. Nothing is sent where it is empty.
    """
    if not url:
        return
    faults: list[str] = []
    # Another thread, as looking a name up has no time limit of its own. Waiting, as the process may end right after.
    thread = threading.Thread(target=_deliver, args=(url, text, faults), daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        faults = [f"no answer within {SECONDS:g} s"]
    if faults:
        # Only the host: the path of a webhook is its password.
        print(f"notify: no message to {urlsplit(url).hostname} ({faults[-1]})", file=sys.stderr, flush=True)


def _deliver(url: str, text: str, faults: list[str]) -> None:
    """Post until it succeeds or TRIES are over; what went wrong with the last try stays in `faults`."""
    headers = {"Content-Type": "application/json"}
    # Slack reads <module> as a link: &, < and > are to be written as entities.
    body = json.dumps({"text": html.escape(text, quote=False)}).encode()
    for tried in range(TRIES):
        try:
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=SECONDS_A_TRY):
                faults.clear()
                return
        except Exception as error:  # http.client and the name's encoding have errors of their own
            faults[:] = [str(error) or type(error).__name__]
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                return  # 404: such a webhook does not exist, and won't half a second later
        if tried < TRIES - 1:
            time.sleep(PAUSE)
