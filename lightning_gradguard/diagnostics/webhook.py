"""Telling people of incidents through a webhook: Slack's, Discord's, Teams', or any that takes JSON."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning_gradguard import checks
from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.delivery import Delivery, Refused
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.records import Incident, to_json

logger = logging.getLogger("lightning_gradguard")

Kind = Literal["slack", "discord", "teams", "json"]
LONGEST_MESSAGE = 1900
"""Characters of a message; Discord takes 2,000."""
_HOSTS: dict[str, Kind] = {
    "slack.com": "slack",
    "discord.com": "discord",
    "discordapp.com": "discord",
    "office.com": "teams",
    "logic.azure.com": "teams",
    "powerplatform.com": "teams",
}


@dataclass(frozen=True, slots=True)
class Message:
    """What is told of an incident: a heading, a text, the event, and the incident as JSON."""

    title: str
    text: str
    event: str
    incident: Any


def message(incident: Incident, event: Event) -> Message:
    """Return what is told of an incident."""
    title = f"GradGuard: incident {incident.number} {'closed' if event == 'closed' else 'opened'}"
    lines = [wording.result(incident) if event == "closed" else wording.opening(incident)]
    lines += [f"{name}: {text}" for name, text in wording.findings(incident)]
    return Message(title, "\n".join(lines), event, to_json(incident))


class Webhook(Sink):
    """Post each incident, when it opens and when it closes, to the address that an environment variable holds.

    Nothing waits for it: messages leave in a thread of their own, are tried again where that may help, and become one
    where they come too fast. The address is a secret; it is read when it is needed, and kept nowhere.

    Args:
        variable: Name of the environment variable with the address.
        kind: Whose form messages have; None for what the address tells, and plain JSON where it tells nothing.
        every: Least seconds between two posts.
        tries: How often one is tried.
        timeout: Seconds after which a try has failed.

    Raises:
        ValueError: An argument is out of range; the message names it, the constraint and the value.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.diagnostics import Webhook
        >>> guard = GradGuard(sinks=[Webhook()])
    """

    def __init__(
        self,
        *,
        variable: str = "GRADGUARD_WEBHOOK_URL",
        kind: Kind | None = None,
        every: float = 30.0,
        tries: int = 4,
        timeout: float = 10.0,
    ) -> None:
        self.variable = checks.instance("variable", variable, str)
        self.kind = None if kind is None else checks.choice("kind", kind, ("slack", "discord", "teams", "json"))
        self.every = checks.number("every", every, least=0.0)
        self.tries = checks.whole("tries", tries, least=1)
        self.timeout = checks.number("timeout", timeout, above=0.0)
        self._delivery: Delivery[Message] = Delivery(self._post, self._failed, every=self.every, tries=self.tries)

    def __repr__(self) -> str:
        """Return it as it would be constructed; of the address only where it is kept."""
        return checks.described(self)

    def incident(self, incident: Incident, event: Event) -> None:
        """Queue a message for delivery."""
        if event != "acted":
            self._delivery.put(message(incident, event))

    def close(self) -> None:
        """Wait for messages that are being delivered, as long as one try may take."""
        self._delivery.close(self.timeout)

    def _post(self, messages: list[Message]) -> None:
        url = os.environ.get(self.variable, "")
        body = json.dumps(payload(messages, self.kind or kind_of(url)), allow_nan=False).encode()
        if urlsplit(url).scheme not in ("http", "https"):
            raise Refused("it holds none" if not url else "it begins with neither http nor https")
        asked = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(asked, timeout=self.timeout):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise Refused(f"the server answers {error.code} {error.reason}") from None
            raise

    def _failed(self, why: str) -> None:
        logger.warning("GradGuard: messages to the address in %s are not delivered: %s", self.variable, why)


def kind_of(url: str) -> Kind:
    """Return whose webhook an address is.

    >>> kind_of("https://hooks.slack.com/services/T0/B0/x"), kind_of("http://127.0.0.1:8000/")
    ('slack', 'json')
    """
    host = f".{urlsplit(url).hostname or ''}"
    return next((kind for name, kind in _HOSTS.items() if host.endswith(f".{name}")), "json")


def payload(messages: list[Message], kind: str) -> dict[str, Any]:
    """Return what is posted for a few messages."""
    return _PAYLOADS[kind](messages)


def _words(messages: list[Message]) -> str:
    told = "\n\n".join(f"{one.title}\n{one.text}" for one in messages)
    return told if len(told) <= LONGEST_MESSAGE else told[: LONGEST_MESSAGE - 1] + "…"


def _slack(messages: list[Message]) -> dict[str, Any]:
    # These three are markup there.
    return {"text": _words(messages).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def _discord(messages: list[Message]) -> dict[str, Any]:
    return {"content": _words(messages), "allowed_mentions": {"parse": []}}


def _teams(messages: list[Message]) -> dict[str, Any]:
    blocks = [
        {"type": "TextBlock", "text": text, "wrap": True, "weight": weight}
        for one in messages
        for text, weight in ((one.title, "Bolder"), (one.text.replace("\n", "\n\n")[:LONGEST_MESSAGE], "Default"))
    ]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": blocks,
    }
    return {
        "type": "message",
        "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}],
    }


def _json(messages: list[Message]) -> dict[str, Any]:
    told = [{"title": m.title, "text": m.text, "event": m.event, "incident": m.incident} for m in messages]
    return {"source": "gradguard", "text": _words(messages), "messages": told}


_PAYLOADS: dict[str, Callable[[list[Message]], dict[str, Any]]] = {
    "slack": _slack,
    "discord": _discord,
    "teams": _teams,
    "json": _json,
}
