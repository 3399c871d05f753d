"""Tracers, each with how it is put on, taken off, and asked for the spans that it has recorded.

Nothing of a tracer is imported before it is put on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """A span as a tracer recorded it.

    Attributes:
        name: what it is of.
        id: its own; its trace's ids are in ``trace``.
        parent: the id of the span above it.
        trace: the id of its trace.
        attributes: all else that the tracer says of it, but for times.
    """

    name: str
    id: str
    parent: str | None
    trace: str
    attributes: dict[str, Any] = field(default_factory=dict)


class Tracer:
    """A tracer; subclasses say how it works."""

    def put_on(self) -> None:
        """Begin to trace calls."""
        raise NotImplementedError

    def take_off(self) -> None:
        """Do not trace calls any more; called only for tracers that offer it."""
        raise NotImplementedError

    def caller(self, name: str) -> AbstractContextManager[object]:
        """Return a span of the application's own, that begins a trace."""
        raise NotImplementedError

    def spans(self) -> list[Span]:
        """Return all spans so far."""
        raise NotImplementedError


class _OpenTelemetry(Tracer):
    def __init__(self, *paths: str) -> None:
        self._paths = paths

    def put_on(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("application")
        self._instrumentors = [_imported(path)() for path in self._paths]
        for one in self._instrumentors:
            one.instrument(tracer_provider=provider)

    def take_off(self) -> None:
        for one in self._instrumentors:
            one.uninstrument()

    def caller(self, name: str) -> AbstractContextManager[object]:
        span: AbstractContextManager[object] = self._tracer.start_as_current_span(name)
        return span

    def spans(self) -> list[Span]:
        return [
            Span(
                one.name,
                f"{one.context.span_id:016x}",
                one.parent and f"{one.parent.span_id:016x}",
                f"{one.context.trace_id:032x}",
                {"kind": one.kind.name, "status": one.status.status_code.name, **one.attributes},
            )
            for one in self._exporter.get_finished_spans()
        ]


class _XRay(Tracer):
    def put_on(self) -> None:
        from aws_xray_sdk.core import patch, xray_recorder
        from aws_xray_sdk.core.async_context import AsyncContext

        sent: list[dict[str, Any]] = []

        class Emitter:
            def send_entity(self, entity: Any) -> None:
                sent.append(entity.to_dict())

            def set_daemon_address(self, address: str | None) -> None:
                pass

        # AsyncContext gives the loop its task factory.
        xray_recorder.configure(
            sampling=False, context=AsyncContext(), emitter=Emitter(), context_missing="LOG_ERROR"
        )
        patch(("aiobotocore",))
        self._recorder = xray_recorder
        self._sent = sent

    def caller(self, name: str) -> AbstractContextManager[object]:
        segment: AbstractContextManager[object] = self._recorder.in_segment(name)
        return segment

    def spans(self) -> list[Span]:
        def flat(entity: dict[str, Any], parent: str | None, trace: str) -> Iterator[Span]:
            attributes = {name: entity.get(name) for name in ("aws", "http", "namespace", "fault")}
            yield Span(entity["name"], entity["id"], parent, trace, attributes)
            for child in entity.get("subsegments", ()):
                yield from flat(child, entity["id"], trace)

        return [
            span
            for segment in self._sent
            for span in flat(segment, None, segment["trace_id"].replace("-", "")[1:])
        ]


class _Sentry(Tracer):
    def __init__(self, *, everything: bool) -> None:
        self._everything = everything
        self._events: list[dict[str, Any]] = []

    def put_on(self) -> None:
        import sentry_sdk
        from sentry_sdk.integrations.aiohttp import AioHttpIntegration
        from sentry_sdk.transport import Transport

        events = self._events

        class Kept(Transport):
            def capture_envelope(self, envelope: Any) -> None:
                events.extend(
                    item.payload.json for item in envelope.items if item.type == "transaction"
                )

        self._sdk = sentry_sdk
        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            release="r",
            traces_sample_rate=1.0,
            transport=Kept,
            integrations=[AioHttpIntegration()],
            default_integrations=self._everything,
            auto_enabling_integrations=self._everything,
        )

    def take_off(self) -> None:
        self._sdk.init()

    @contextmanager
    def caller(self, name: str) -> Iterator[None]:
        with self._sdk.isolation_scope(), self._sdk.start_transaction(name=name):
            yield

    def spans(self) -> list[Span]:
        return [
            Span(
                one.get("transaction") or one["description"],
                context["span_id"],
                context.get("parent_span_id"),
                context["trace_id"],
                {name: context.get(name) for name in ("op", "origin", "status")}
                | {"data": {k: v for k, v in context["data"].items() if k != "thread.id"}},
            )
            for event in self._events
            for one, context in [
                (event, event["contexts"]["trace"]),
                *((span, span) for span in event["spans"]),
            ]
        ]


class _Datadog(Tracer):
    def __init__(self, *, auto: bool) -> None:
        self._auto = auto

    def put_on(self) -> None:
        os.environ |= {
            "DD_TRACE_AIOBOTOCORE_ENABLED": "true",
            "DD_TRACE_AGENT_URL": "http://127.0.0.1:9",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
            "DD_CRASHTRACKING_ENABLED": "false",
            "DD_TRACE_STARTUP_LOGS": "false",
        }
        if self._auto:
            import ddtrace.auto
        else:
            import ddtrace

            ddtrace.patch(aiobotocore=True, aiohttp=True)
        from ddtrace.trace import TraceFilter, tracer

        spans: list[Any] = []

        class Kept(TraceFilter):
            def process_trace(self, trace: list[Any]) -> None:
                spans.extend(trace)

        tracer.configure(trace_processors=[Kept()])
        self._tracer = tracer
        self._spans = spans

    def take_off(self) -> None:
        from ddtrace.contrib.internal.aiobotocore.patch import unpatch as unpatch_aiobotocore
        from ddtrace.contrib.internal.aiohttp.patch import unpatch as unpatch_aiohttp

        unpatch_aiobotocore()
        unpatch_aiohttp()

    def caller(self, name: str) -> AbstractContextManager[object]:
        span: AbstractContextManager[object] = self._tracer.trace(name)
        return span

    def spans(self) -> list[Span]:
        return [
            Span(
                one.name,
                f"{one.span_id:016x}",
                f"{one.parent_id:016x}" if one.parent_id else None,
                f"{one.trace_id:032x}",
                {
                    "resource": one.resource,
                    "service": one.service,
                    "type": one.span_type,
                    "error": one.error,
                    **one.get_tags(),
                },
            )
            for one in self._spans
        ]


class _Elastic(Tracer):
    def put_on(self) -> None:
        import elasticapm

        self._client = elasticapm.Client(
            service_name="application",
            transport_class="tracers.elastic_transport.Kept",
            central_config=False,
            cloud_provider="none",
            metrics_interval="0s",
            disable_log_record_factory=True,
            span_compression_enabled=False,
            span_stack_trace_min_duration="-1ms",
        )
        self._elasticapm = elasticapm
        elasticapm.instrument()

    def take_off(self) -> None:
        self._elasticapm.uninstrument()

    @contextmanager
    def caller(self, name: str) -> Iterator[None]:
        self._client.begin_transaction("test")
        try:
            yield
        finally:
            self._client.end_transaction(name, "ok")

    def spans(self) -> list[Span]:
        names = ("type", "subtype", "action", "outcome", "context")
        return [
            Span(
                one["name"],
                one["id"],
                one.get("parent_id"),
                one["trace_id"],
                {name: one.get(name) for name in names},
            )
            for one in self._client._transport.kept
        ]


class _NewRelic(Tracer):
    def put_on(self) -> None:
        os.environ |= {
            "NEW_RELIC_DEVELOPER_MODE": "true",
            "NEW_RELIC_LICENSE_KEY": "0" * 40,
            "NEW_RELIC_APP_NAME": "application",
        }
        import newrelic.agent
        from newrelic.core.agent import Agent

        newrelic.agent.initialize()
        self._application = newrelic.agent.register_application(timeout=10.0)
        self._agent = newrelic.agent
        self._transactions: list[Any] = []
        transactions = self._transactions
        record = Agent.record_transaction

        def record_and_keep(agent: Any, name: str, transaction: Any) -> None:
            transactions.append(transaction)
            record(agent, name, transaction)

        Agent.record_transaction = record_and_keep

    def caller(self, name: str) -> AbstractContextManager[object]:
        task: AbstractContextManager[object] = self._agent.BackgroundTask(
            self._application, name=name
        )
        return task

    def spans(self) -> list[Span]:
        return [
            Span(
                own["name"].removeprefix("Function/"),
                own["guid"],
                own.get("parentId"),
                own["traceId"],
                {name: own.get(name) for name in ("category", "component", "span.kind")}
                | of_user
                | of_agent,
            )
            for one in self._transactions
            for own, of_user, of_agent in one.span_events(self._application.settings)
        ]


def _imported(path: str) -> Any:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


_BOTOCORE = "opentelemetry.instrumentation.botocore.AiobotocoreInstrumentor"
_AIOHTTP = "opentelemetry.instrumentation.aiohttp_client.AioHttpClientInstrumentor"

TRACERS: dict[str, Callable[[], Tracer]] = {
    "opentelemetry-botocore": lambda: _OpenTelemetry(_BOTOCORE),
    "opentelemetry-aiohttp": lambda: _OpenTelemetry(_AIOHTTP),
    "opentelemetry-both": lambda: _OpenTelemetry(_BOTOCORE, _AIOHTTP),
    "x-ray": _XRay,
    "sentry-aiohttp": lambda: _Sentry(everything=False),
    "sentry": lambda: _Sentry(everything=True),
    "ddtrace": lambda: _Datadog(auto=False),
    "ddtrace-auto": lambda: _Datadog(auto=True),
    "elastic": _Elastic,
    "newrelic": _NewRelic,
}
