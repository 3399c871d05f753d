"""What a service counts."""

from __future__ import annotations

from dataclasses import dataclass

from aioivschat._service.pace import Learnt


@dataclass(slots=True)
class Counters:
    """Counted from the start; `Stats` says what each is."""

    requests: int = 0
    minted: int = 0
    throttled: int = 0
    failed: int = 0
    stock: int = 0
    joined: int = 0
    shed: int = 0
    shared: int = 0
    stocked: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the service was made, and the state of the moment.

    Args:
        requests: requests sent to AWS, or for which no connection could be opened.
        minted: tokens that AWS gave.
        throttled: requests that AWS throttled.
        failed: requests that failed otherwise.
        cached: calls served with a token that was handed out before.
        stock: calls served with a token that nobody had been given.
        joined: calls that joined a flight under way.
        shed: calls refused at once, as they could not be served in time.
        shared: tokens that came from the fleet instead of from AWS.
        rejected: values of the fleet that could not be opened, and were not used.
        stocked: tokens that went into the stock.
        expired_unused: stocked tokens that were dropped before anybody was given them.
        flights: flights under way.
        waiting: reservations that wait for a permit.
        tokens_held: delivered tokens held.
        stock_held: undelivered tokens held.
        learnt: what is known of the quota of each account and region that was used.
    """

    requests: int
    minted: int
    throttled: int
    failed: int
    cached: int
    stock: int
    joined: int
    shed: int
    shared: int
    rejected: int
    stocked: int
    expired_unused: int
    flights: int
    waiting: int
    tokens_held: int
    stock_held: int
    learnt: tuple[Learnt, ...]
