"""The webhook: its address is a secret, and it has limits in everything, because nobody waits for it."""

import os
import threading
import time
import urllib.parse
from typing import Any, NamedTuple

import requests

from qlora_pipelines.components.notify.message import JSON, SLACK

URL_VARIABLE, FORMAT_VARIABLE = "QLORA_WEBHOOK_URL", "QLORA_WEBHOOK_FORMAT"
SLACK_HOST = "hooks.slack.com"
BACKOFF = (1.0, 3.0, 10.0)
"""Seconds between two tries; the last one repeats."""
PASSING = {408, 425, 429}
"""Statuses below 500 that may pass; with 5xx they are tried again."""


class HookError(Exception):
    """Why the webhook was not told, in one line without its address."""


class Webhook(NamedTuple):
    """Where to post, and the form of the message: `json` or `slack`."""

    url: str
    form: str

    def post(self, message: dict[str, Any], timeout: float, tries: int) -> None:
        """Posts the message, and again where the hook does not answer or says that it may work later.

        The hook can get a message twice, where its answer was lost.

        Args:
            message: a JSON object.
            timeout: seconds for each try.
            tries: how many there are.

        Raises:
            HookError: it did not take the message.
        """
        for number in range(tries):
            if number:
                time.sleep(BACKOFF[min(number, len(BACKOFF)) - 1])
            why, passing = self._try(message, timeout)
            if not why:
                return
            if not passing:
                break
        raise HookError(why)

    def _try(self, message: dict[str, Any], timeout: float) -> tuple[str, bool]:
        """One try: '' or why it failed, and whether another try may pass."""
        answer: list[tuple[str, bool]] = []
        # requests limits neither the search for a host's address nor an answer that comes byte by byte. A thread that
        # is left behind ends with the process.
        thread = threading.Thread(target=lambda: answer.append(_send(self.url, message, timeout)), daemon=True)
        thread.start()
        thread.join(timeout)
        return answer[0] if answer else (f"no answer within {timeout:g} s", True)


def from_environment() -> Webhook | None:
    """The webhook of the environment; None: there is none.

    Raises:
        HookError: its address or its format cannot be used.
    """
    url = os.environ.get(URL_VARIABLE, "").strip()
    if not url:
        return None
    if not _is_web(url):
        raise HookError(f"{URL_VARIABLE} is no address that begins with http:// or https://")
    form = os.environ.get(FORMAT_VARIABLE, "").strip().lower() or (SLACK if f"//{SLACK_HOST}/" in url else JSON)
    if form not in (JSON, SLACK):
        raise HookError(f"{FORMAT_VARIABLE} is neither {JSON} nor {SLACK}")
    return Webhook(url, form)


def _is_web(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        known = bool(parts.hostname) and parts.port != 0  # a port that is no number is a ValueError
    except ValueError:  # whose text has a part of the address
        return False
    return known and parts.scheme in ("http", "https") and url.isprintable() and " " not in url


def _send(url: str, message: dict[str, Any], timeout: float) -> tuple[str, bool]:
    try:
        # No redirect is followed: requests would make a GET of most, without the message.
        with requests.post(url, json=message, timeout=timeout, allow_redirects=False, stream=True) as answer:
            status = answer.status_code
    except requests.Timeout:
        return f"no answer within {timeout:g} s", True
    except requests.exceptions.SSLError:
        return "no secure connection; is its certificate of a known authority?", False
    except requests.ConnectionError:
        return "it cannot be reached", True
    except Exception:  # whose texts have the address
        return f"{URL_VARIABLE} cannot be used", False
    if 300 <= status < 400:
        return f"it answers with a redirect ({status}), which is not followed: set {URL_VARIABLE} to its target", False
    if status >= 400:
        return f"it answers with HTTP status {status}", status >= 500 or status in PASSING
    return "", False
