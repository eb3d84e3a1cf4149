"""Somebody is told: through a webhook on the loopback, and by the alerts of a logger."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_gradguard import GradGuard
from lightning_gradguard.diagnostics import AlertSink, Webhook
from lightning_gradguard.diagnostics.alerts import alert_of
from lightning_gradguard.diagnostics.delivery import Delivery
from lightning_gradguard.diagnostics.webhook import kind_of, message, payload
from tests.diagnostics.examples import incident

INCIDENT = incident()

SECRET = "s3cret-token"


class Server:
    """A webhook that answers as it is told to, and remembers what it got."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.answers: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.answers.pop(0) if outer.answers else 200
                if status == 200:
                    outer.got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    started = Server()
    monkeypatch.setenv("GRADGUARD_WEBHOOK_URL", f"http://127.0.0.1:{started.http.server_port}/{SECRET}")
    yield started
    started.http.shutdown()
    started.http.server_close()


def test_an_incident_is_told_when_it_opens_and_when_it_closes(server: Server) -> None:
    sink = Webhook(every=0.0)
    for event in ("opened", "acted"):
        sink.incident(INCIDENT, event)  # type: ignore[arg-type]
    sink.close()
    sink.incident(INCIDENT, "closed")
    sink.close()
    assert [one["messages"][0]["event"] for one in server.got] == ["opened", "closed"]
    assert server.got[0]["source"] == "gradguard" and "incident 1" in server.got[0]["text"]


def test_what_comes_too_fast_becomes_one_post(server: Server) -> None:
    sink = Webhook(every=60.0)
    began = time.monotonic()
    sink.incident(INCIDENT, "opened")
    while not server.got and time.monotonic() < began + 10:
        time.sleep(0.01)
    for _ in range(5):
        sink.incident(INCIDENT, "opened")
    time.sleep(0.2)
    assert len(server.got) == 1
    sink.close()
    assert [len(one["messages"]) for one in server.got] == [1, 5]
    assert time.monotonic() < began + 20


def test_a_server_that_stumbles_is_asked_again_and_one_that_refuses_is_not(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Webhook(every=0.0)
    sink._delivery._pause = 0.01
    server.answers = [503, 429]
    sink.incident(INCIDENT, "opened")
    sink.close()
    assert len(server.got) == 1
    server.answers = [404]
    with caplog.at_level(logging.WARNING):
        sink.incident(INCIDENT, "opened")
        sink.close()
    assert len(server.got) == 1 and "answers 404" in caplog.text and SECRET not in caplog.text


def test_a_server_that_is_not_there_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRADGUARD_WEBHOOK_URL", f"http://127.0.0.1:9/{SECRET}")
    sink = Webhook(tries=2, timeout=0.5)
    sink._delivery._pause = 0.01
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        sink.incident(INCIDENT, "opened")
        assert time.monotonic() - began < 0.3
        sink.close()
    assert SECRET not in caplog.text and "are not delivered" in caplog.text


def test_without_an_address_the_sink_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("GRADGUARD_WEBHOOK_URL", raising=False)
    sink = Webhook()
    with caplog.at_level(logging.WARNING):
        sink.incident(INCIDENT, "opened")
        sink.close()
    assert "GRADGUARD_WEBHOOK_URL are not delivered: it holds none" in caplog.text


def test_the_address_is_kept_nowhere(server: Server) -> None:
    sink = Webhook(kind="slack")
    guard = GradGuard(sinks=[sink])
    kept = repr(sink) + repr(guard) + str(guard.state_dict()) + str(pickle.dumps(sink)) + str(vars(copy.deepcopy(sink)))
    assert SECRET not in kept and repr(sink) == "Webhook(kind='slack')"


@pytest.mark.parametrize(
    ("url", "kind", "where"),
    [
        ("https://hooks.slack.com/services/T/B/x", "slack", "text"),
        ("https://discord.com/api/webhooks/1/x", "discord", "content"),
        ("https://x.webhook.office.com/webhookb2/x", "teams", "attachments"),
        ("https://prod-1.westeurope.logic.azure.com/workflows/x", "teams", "attachments"),
        ("https://example.org/slack.com", "json", "messages"),
        ("https://notslack.com/x", "json", "messages"),
    ],
)
def test_each_service_gets_its_own_form(url: str, kind: str, where: str) -> None:
    assert kind_of(url) == kind
    body = payload([message(INCIDENT, "opened")], kind)
    assert where in body and "incident 1" in json.dumps(body)
    assert len(json.dumps(payload([message(INCIDENT, "opened")] * 50, "discord"))) < 2100


@pytest.mark.parametrize("wrong", [{"kind": "irc"}, {"every": -1.0}, {"tries": 0}, {"timeout": 0}, {"variable": 3}])
def test_settings_are_checked_at_construction(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Webhook(**wrong)


def test_a_delivery_that_is_flooded_drops_and_goes_on() -> None:
    got: list[int] = []
    gate = threading.Event()

    def send(messages: list[int]) -> None:
        gate.wait(5)
        got.extend(messages)

    delivery: Delivery[int] = Delivery(send, print, every=0.0, tries=1)
    for number in range(500):
        delivery.put(number)
    gate.set()
    delivery.close(5)
    assert 100 <= len(got) <= 202


class WandbLogger:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.experiment = SimpleNamespace(alert=lambda **told: self.told.append(told))


def test_the_alerts_of_wandb_are_used_where_that_logger_is() -> None:
    logger = WandbLogger()
    alert = alert_of(logger)
    assert alert is not None and alert_of(object()) is None
    AlertSink(alert).incident(INCIDENT, "opened")
    assert logger.told[0]["level"] == "ERROR" and "incident 1" in logger.told[0]["title"]


def test_the_alerts_of_trackio_are_used_where_that_logger_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    levels = SimpleNamespace(ERROR="its error", INFO="its info")
    module = SimpleNamespace(alert=lambda **more: told.append(more), AlertLevel=levels)
    monkeypatch.setitem(__import__("sys").modules, "trackio", module)  # type: ignore[arg-type]
    logger = type("TrackioLogger", (), {})()
    alert = alert_of(logger)
    assert alert is not None
    AlertSink(alert).incident(INCIDENT, "closed")
    assert told[0]["level"] in ("its error", "its info")
