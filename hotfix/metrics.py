"""Metrics of a server, in Prometheus' text format. The one door to prometheus_client."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotfix.errors import HotfixError
from hotfix.stack import Applied

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metrics:
    """What is counted while a server runs, in a registry of its own."""

    registry: "CollectorRegistry"
    changes: "Counter"
    seconds: "Histogram"
    responses: "Counter"


def metrics() -> Metrics:
    """Everything at zero.

    Raises:
        HotfixError: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, Counter, Histogram
    except ImportError as error:
        hint = "pip install 'diffusion-hotfix[serve]'"
        raise HotfixError("serving needs prometheus_client, which is not installed", hint=hint) from error
    registry = CollectorRegistry()
    return Metrics(
        registry,
        Counter("hotfix_changes", "Changes of the stack that were asked for.", ["result"], registry=registry),
        Histogram("hotfix_change_seconds", "From reading the lock to the stack being on.", registry=registry),
        Counter("hotfix_responses", "Responses, by the stack that made them.", ["stack"], registry=registry),
    )


def text(known: Metrics, on: Sequence[Applied]) -> bytes:
    """What was counted, and the patches that are on, as read from the pipeline for this answer."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    now = CollectorRegistry()
    gauge = Gauge("hotfix_patch", "1 if all layers of a patch act, else 0.", ["name", "version", "id"], registry=now)
    for one in on:
        gauge.labels(one.name, one.version, one.id).set(one.state == "on")
    return generate_latest(now) + generate_latest(known.registry)
