"""The faults, module by module: each is one that somebody might well make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutant:
    """A deliberate fault.

    Args:
        name: of the fault, for the command line.
        file: of the package; where the fault is.
        old: text that occurs exactly once in it.
        new: what takes its place.
        why: what goes wrong then.
        tests: the file of tests that finds it, should the simulation not; ``None`` if only the
            simulation can.
        simulated: whether it is in what the simulation reaches.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: str | None = None
    simulated: bool = True

    def put_into(self, package: Path) -> None:
        """Make a copy of the package faulty."""
        path = package / self.file
        text = path.read_text()
        found = text.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name}: its text is in {self.file} {found} times, not once")
        path.write_text(text.replace(self.old, self.new))


SINGLE_FLIGHT = (
    Mutant(
        "shared-task-awaited-bare",
        "_service/singleflight.py",
        "await waiter\n",
        "await flight._task\n",
        "one caller's cancellation cancels all",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "failure-shared",
        "_service/singleflight.py",
        "own = own_copy(failure)",
        "own = failure",
        "callers raise one exception object, which gathers all their tracebacks",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "stop-looks-like-cancellation",
        "_service/singleflight.py",
        "            if flight._task.cancelled():\n                raise FlightStopped\n",
        "",
        "a caller whom nobody cancelled sees CancelledError when the service closes",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "landing-by-key-alone",
        "_service/singleflight.py",
        "if self._by_key.get(flight.key) is flight:",
        "if flight.key in self._by_key:",
        "a flight that lands removes its successor, and a third flies beside it",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "successor-beside-a-leaving-flight",
        "_service/singleflight.py",
        "return None if flight is None or flight.done else flight",
        "return None if flight is None or flight.done or flight.leaving else flight",
        "a flight that is being cancelled and its successor live side by side",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "abandoned-after-commitment",
        "_service/singleflight.py",
        "if not flight.committed and not flight.done:",
        "if not flight.done:",
        "a request is cut off when its callers leave, and the token it would bring is wasted",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "never-abandoned",
        "_service/singleflight.py",
        "if not flight.committed and not flight.done:",
        "if False:",
        "a request is sent for callers who left while they waited for their turn",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "unclaimed-not-offered",
        "_service/singleflight.py",
        "        if not flight._waiters:\n            self._offer(flight)\n        for waiter",
        "        for waiter",
        "a token whose callers have left is lost",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "landing-of-a-stopped-flight-not-told",
        "_service/singleflight.py",
        "            if not waiter.done():\n",
        "            if not waiter.done() and not task.cancelled():\n",
        "callers of a flight that was stopped wait for ever",
        tests="service/test_singleflight.py",
    ),
    Mutant(
        "work-out-of-every-context",
        "_service/singleflight.py",
        "asyncio.get_running_loop().create_task(self._work(flight))",
        '__import__("aioivschat._contexts")._contexts.start_task(self._work(flight))',
        "no tracer's span is in the trace of the call that it is for",
        tests="service/test_singleflight.py",
        simulated=False,
    ),
)

LIMITER = (
    Mutant(
        "permit-not-due",
        "_service/limiter.py",
        "if unhindered and self._permit_due(now) <= now:",
        "if unhindered:",
        "a caller that finds nobody waiting gets a permit, due or not",
        tests="service/test_limiter.py",
    ),
    Mutant(
        "given-permits-not-counted",
        "_service/limiter.py",
        "over = len(recent) + self._unspent - self._per_window",
        "over = len(recent) - self._per_window",
        "calls of one moment do not see each other in the window",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "one-more-in-the-window",
        "_service/limiter.py",
        "self._per_window = max(1, math.floor(quota.rate))",
        "self._per_window = math.floor(quota.rate) + 1",
        "a second sees one request more than the quota",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "counted-when-given",
        "_service/fair_queue.py",
        "        self._granted_at = now\n",
        "        self._granted_at = now\n        self._spent = True\n"
        "        self._limiter._spend_permit()\n",
        "requests that a busy loop delayed come closer to later ones than the quota allows",
        tests="service/test_limiter.py",
    ),
    Mutant(
        "refund-forgotten",
        "_service/fair_queue.py",
        "        if not sent:\n            self._refund_permit(started)\n",
        "",
        "the permit of a caller who left is lost",
        tests="service/test_limiter.py",
    ),
    Mutant(
        "others-of-the-region-forgotten",
        "_service/fair_queue.py",
        "        while self._lacking and self.free > 0:\n",
        "        while False:\n",
        "who waits for a connection waits on when one is free",
        tests="service/test_leaving.py",
    ),
    Mutant(
        "left-reservation-kept",
        "_service/fair_queue.py",
        "            self._limiter._withdraw(self)\n",
        "            pass\n",
        "who left the queue is given a permit in its turn, and it is lost",
        tests="service/test_limiter.py",
    ),
    Mutant(
        "cancellation-swallowed",
        "_service/fair_queue.py",
        "                self.release()\n                raise\n",
        "                self.release()\n",
        "a flight that is cancelled while it waits goes on, without a permit",
        tests="service/test_limiter.py",
    ),
    Mutant(
        "priority-inverted",
        "_service/fair_queue.py",
        "next(queue for queue in self._queues if queue)",
        "next(queue for queue in reversed(self._queues) if queue)",
        "what is minted ahead goes before those who wait",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "no-turns",
        "_service/fair_queue.py",
        "        if in_room:\n            self._rooms.move_to_end(room)\n",
        "",
        "a storm in one room keeps all others waiting",
        tests="service/test_fairness.py",
        simulated=False,
    ),
    Mutant(
        "retry-to-the-tail",
        "_service/fair_queue.py",
        "self._queues[reservation.priority].add(reservation, at_head=again)",
        "self._queues[reservation.priority].add(reservation)",
        "a throttled call waits through the whole queue once more",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "one-more-in-the-queue",
        "_service/fair_queue.py",
        "return self.waiting >= self._max_waiting and",
        "return self.waiting > self._max_waiting and",
        "the queue overflows by one",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "wait-foreseen-without-those-ahead",
        "_service/limiter.py",
        "self._paced_due(now, ahead), now)",
        "self._paced_due(now), now)",
        "who cannot be served in time is let in, and waits in vain",
        tests="service/test_limiter.py",
        simulated=False,
    ),
    Mutant(
        "throttles-teach-nothing",
        "_service/limiter.py",
        "        self._throttled += 1\n",
        "",
        "others' share of the quota is run into, second after second",
        tests="service/test_limiter.py",
        simulated=False,
    ),
)

CACHE = (
    Mutant(
        "margin-ignored",
        "_service/cache.py",
        "self._margin = policy.min_remaining",
        "self._margin = 0.0",
        "a token is handed out that dies on its way to the client",
        tests="service/test_cache.py",
    ),
    Mutant(
        "margin-off-by-one",
        "_service/cache.py",
        "            entry.monotonic_end - self._monotonic() >= self._margin\n"
        "            and entry.wall_end - self._wall() >= self._margin\n        )\n",
        "            entry.monotonic_end - self._monotonic() > self._margin\n"
        "            and entry.wall_end - self._wall() > self._margin\n        )\n",
        "a token with just the least remaining life is thrown away",
        tests="service/test_cache.py",
        simulated=False,
    ),
    Mutant(
        "life-by-the-wall-clock-only",
        "_service/cache.py",
        "            entry.monotonic_end - self._monotonic() >= self._margin\n"
        "            and entry.wall_end - self._wall() >= self._margin\n        )\n",
        "            entry.wall_end - self._wall() >= self._margin\n        )\n",
        "a wall clock that is stepped back brings the dead to life",
        tests="service/test_cache.py",
    ),
    Mutant(
        "life-by-the-monotonic-clock-only",
        "_service/cache.py",
        "            entry.monotonic_end - self._monotonic() >= self._margin\n"
        "            and entry.wall_end - self._wall() >= self._margin\n        )\n",
        "            entry.monotonic_end - self._monotonic() >= self._margin\n        )\n",
        "a host that slept hands out what died meanwhile",
        tests="service/test_cache.py",
    ),
    Mutant(
        "short-cut-past-a-clock",
        "_service/cache.py",
        "            and entry.wall_end - self._wall() >= self._margin\n            and (\n",
        "            and (\n",
        "the same, in the call that is made most often",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "short-cut-past-the-fence",
        "_service/cache.py",
        "or not self._fences.is_fenced(entry.generation, entry.identity)",
        "or True",
        "who was banned gets the last token once more",
        tests="service/test_service.py",
    ),
    Mutant(
        "invalidate-forgets-the-stock",
        "_service/stock.py",
        "if self._cache.is_usable(stocked.entry):",
        "if self._cache.is_alive(stocked.entry):",
        "a token that was minted ahead outlives its invalidation",
        tests="service/test_fences.py",
    ),
    Mutant(
        "stock-not-removed",
        "_service/stock.py",
        "            stocked = pop()\n            self._mark_taken(stocked, same)\n"
        "            if self._cache.is_usable(stocked.entry):\n"
        "                return stocked.entry\n",
        "            if self._cache.is_usable(same[0].entry):\n"
        "                return same[0].entry\n"
        "            stocked = pop()\n            self._mark_taken(stocked, same)\n",
        "a token from stock goes to many",
        tests="service/test_stock.py",
    ),
    Mutant(
        "delivered-and-stocked",
        "_service/stock.py",
        "        self._cache.remove(entry)\n",
        "",
        "callers who leave as the flight lands make one token two",
        tests="service/test_stock.py",
    ),
    Mutant(
        "handed-out-and-restocked",
        "_service/stock.py",
        "if entry.handed_out:",
        "if False:",
        "a token that somebody was given goes to a second one as new",
        tests="service/test_stock.py",
        simulated=False,
    ),
    Mutant(
        "reuse-not-told",
        "_service/cache.py",
        "if self.handed_out and not self.token.reused:",
        "if False:",
        "who is given a token again takes it for a new one",
        tests="service/test_cache.py",
    ),
    Mutant(
        "expired-unused-not-counted",
        "_service/stock.py",
        "            self.expired_unused += 1\n            if not same:",
        "            if not same:",
        "tokens that were minted for nothing are not told of",
        tests="service/test_stock.py",
    ),
    Mutant(
        "hit-before-the-look",
        "_service/cache.py",
        "        del self._entries[key]\n        return None\n",
        "        self.hits += 1\n        del self._entries[key]\n        return None\n",
        "a token that could not be given again is counted as if it was",
        tests="service/test_cache.py",
        simulated=False,
    ),
)

MINTING = (
    Mutant(
        "life-from-the-answer",
        "_service/minting.py",
        "end, wall_end = started + minted.life, started_wall + minted.life",
        "end, wall_end = clock.monotonic() + minted.life, clock.wall() + minted.life",
        "a token whose answer was slow lives too long by as much",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "wall-clock-for-monotonic",
        "_service/minting.py",
        "end, wall_end = started + minted.life, started_wall + minted.life",
        "end, wall_end = started_wall + minted.life, started_wall + minted.life",
        "a wall clock that is stepped back lengthens lives",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "generation-of-the-answer",
        "_service/minting.py",
        "Entry(request.identity, minted.token, end, wall_end, flight.generation)",
        "Entry(request.identity, minted.token, end, wall_end, self.fences.generation)",
        "a token that was under way outlives its invalidation",
        tests="service/test_service.py",
    ),
    Mutant(
        "committed-too-late",
        "_service/minting.py",
        "        self.sent += 1\n        self.commit()\n",
        "        self.sent += 1\n",
        "a request is cut off when its callers leave, though AWS may have minted",
        tests="service/test_cancellation.py",
    ),
    Mutant(
        "committed-for-good",
        "_service/minting.py",
        "            flight.uncommit()\n            if isinstance",
        "            if isinstance",
        "a retry waits for its turn, and is sent, for callers who have left",
        tests="service/test_cancellation.py",
    ),
    Mutant(
        "stopped-before-it-began",
        "_service/minting.py",
        "        self.reservation.release()\n        super().stop()\n",
        "        super().stop()\n",
        "a flight whose task never ran keeps its place, and its permit is lost",
    ),
    Mutant(
        "minted-before-success",
        "_service/minting.py",
        "            reservation.release()\n        counters.minted += 1\n",
        "            reservation.release()\n            counters.minted += 1\n",
        "failures count as tokens",
        tests="aws/test_upstream_faults.py",
    ),
    Mutant(
        "stocked-before-success",
        "_service/minting.py",
        "        if self.stock.restock(entry):\n            self._note_stocked(flight)\n",
        "        self.stock.restock(entry)\n        self._note_stocked(flight)\n",
        "tokens that came too late to be kept count as stock",
    ),
    Mutant(
        "dead-on-arrival",
        "_service/issuing.py",
        "return entry.hand_out() if self.cache.is_alive(entry) else None",
        "return entry.hand_out()",
        "a token that died while its caller had to wait for the loop is handed out",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "short-life-accepted",
        "_service/minting.py",
        "if not self.cache.is_alive(entry):",
        "if False:",
        "tokens that cannot be handed out are minted without end",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "deadline-not-checked",
        "_service/admission.py",
        "if expected > call.deadline:",
        "if False:",
        "who cannot be served in time waits in vain",
        tests="service/test_admission.py",
    ),
    Mutant(
        "overflow-not-refused",
        "_service/admission.py",
        "if limiter.full:",
        "if False:",
        "the queue grows without bound",
        tests="service/test_admission.py",
    ),
    Mutant(
        "retry-without-a-permit",
        "_service/minting.py",
        "        flight.reserve(again=True)\n        return None\n",
        "        return None\n",
        "retries go round the limiter",
        tests="aws/test_upstream_faults.py",
    ),
    Mutant(
        "retry-for-nobody",
        "_service/minting.py",
        "            flight.callers > 0\n            and self.lifecycle.is_open\n",
        "            self.lifecycle.is_open\n",
        "what was sent for callers who left is sent again",
        tests="service/test_cancellation.py",
    ),
    Mutant(
        "retry-past-the-deadline",
        "_service/minting.py",
        "            and self.clock.monotonic() + delay < flight.call.deadline\n",
        "",
        "who cannot be served in time any more is kept waiting",
        tests="aws/test_upstream_faults.py",
        simulated=False,
    ),
    Mutant(
        "sleeper-joined",
        "_service/issuing.py",
        "if flight is not None and flight.asleep_until >= call.deadline:",
        "if False:",
        "one long Retry-After shuts everybody out from its key",
        tests="service/test_sleepers.py",
        simulated=False,
    ),
    Mutant(
        "sleeper-beside-its-successor",
        "_service/issuing.py",
        "            sleeper.supersede()\n",
        "            pass\n",
        "an attempt costs two tokens",
        tests="service/test_sleepers.py",
        simulated=False,
    ),
    Mutant(
        "patience-of-the-first-caller",
        "_service/minting.py",
        "deadline, priority = max(own.deadline, call.deadline), ",
        "deadline, priority = own.deadline, ",
        "a flight gives up by the deadline of one caller, and fails the others",
        tests="service/test_admission.py",
    ),
    Mutant(
        "urgency-of-the-first-caller",
        "_service/minting.py",
        "            self.reservation.promote(call.priority)\n",
        "            pass\n",
        "an urgent call waits as long as the one whose flight it joined",
        tests="service/test_service.py",
        simulated=False,
    ),
)

SERVICE = (
    Mutant(
        "fresh-shared",
        "_service/issuing.py",
        "return None if fresh else request.identity",
        "return request.identity",
        "a fresh token is one that somebody was handed",
        tests="service/test_service.py",
    ),
    Mutant(
        "attempt-key-ignored",
        "_service/issuing.py",
        "return Attempt((request.identity, idempotency_key))",
        "return request.identity",
        "two attempts share a token that connects once",
        tests="service/test_service.py",
    ),
    Mutant(
        "attempt-from-stock-forgotten",
        "_service/issuing.py",
        "            if key is not None:\n                self.cache.put(key, entry)\n",
        "",
        "the retry of an attempt that was served from stock spends another token",
        tests="service/test_service.py",
    ),
    Mutant(
        "fence-ignored-under-way",
        "_service/issuing.py",
        "if flight is not None and not self.fences.is_fenced(flight.generation, identity):",
        "if flight is not None:",
        "a call after an invalidation joins a flight of before",
        tests="service/test_service.py",
    ),
    Mutant(
        "closing-keeps-the-queue",
        "_service/minting.py",
        "            if not flight.committed:\n                flight.stop()\n",
        "            pass\n",
        "calls that still wait for their turn hold up the closing",
        tests="service/test_closing.py",
    ),
    Mutant(
        "closing-does-not-wait",
        "_service/minting.py",
        "async with time_limit(grace):",
        "async with time_limit(0):",
        "requests that were sent are cut off",
        tests="service/test_closing.py",
    ),
    Mutant(
        "closing-cancelled-with-its-caller",
        "_service/service.py",
        "await asyncio.wait((closing := self._closing,))",
        "await (closing := self._closing)",
        "a closing that is cancelled stops half-way",
        tests="service/test_closing.py",
    ),
)

PREWARMING = (
    Mutant(
        "minted-ahead-of-callers",
        "_service/prewarming.py",
        "Call(request, room, None, Priority.BACKGROUND, self._opening)",
        "Call(request, room, None, Priority.HIGH, self._opening)",
        "callers are pushed back by what is minted for nobody yet",
        tests="service/test_prewarming.py",
    ),
    Mutant(
        "takeover-by-two",
        "_service/pending.py",
        "            self.forget(pending)\n            is_over = flight.done or flight.leaving\n",
        "            is_over = flight.done or flight.leaving\n"
        "            if is_over:\n                self.forget(pending)\n",
        "two fresh calls take the same flight over, and get one token",
        tests="service/test_service.py",
    ),
    Mutant(
        "takeover-of-an-invalidated-flight",
        "_service/pending.py",
        "if not is_over and not self._fences.is_fenced(flight.generation, identity):",
        "if not is_over:",
        "a call after an invalidation takes over what was under way before",
        tests="service/test_prewarming.py",
    ),
    Mutant(
        "pending-though-its-caller-came",
        "_service/pending.py",
        "            self.forget(pending)\n            if pending.flight is None:\n"
        "                pending.queue.take_back(pending)\n",
        "            if pending.flight is None:\n                pass\n",
        "one viewer costs two tokens",
        tests="service/test_prewarming.py",
    ),
    Mutant(
        "budget-ignored",
        "_service/prewarming.py",
        "self._limiter.rate * self._budget * _JUST_BELOW_RATE",
        "self._limiter.rate * _JUST_BELOW_RATE",
        "what was to be left to the crowd is spent",
        tests="service/test_prewarming.py",
        simulated=False,
    ),
    Mutant(
        "too-early-for-the-doors",
        "_service/prewarming.py",
        "return self._opening - min(takes, self._prewarmer.longest_lead)",
        "return self._opening - takes",
        "tokens are minted that are dead when the doors open",
        tests="service/test_prewarming.py",
        simulated=False,
    ),
    Mutant(
        "prewarming-outlives-its-caller",
        "_service/prewarming.py",
        "        for waiter in self._under_way.values():\n            waiter.cancel()\n",
        "        pass\n",
        "a call that was cancelled goes on minting",
        tests="service/test_prewarming.py",
    ),
    Mutant(
        "prewarming-outlives-its-doors",
        "_service/prewarming.py",
        "limit = time_limit(None if self._opening == NEVER else seconds)",
        "limit = time_limit(None)",
        "an AWS that does not answer keeps whoever opens the doors waiting",
        tests="service/test_sleepers.py",
        simulated=False,
    ),
)

RETRY = (
    Mutant(
        "one-request-more",
        "_service/retry.py",
        "tenacity.stop_after_attempt(self._policy.max_attempts)",
        "tenacity.stop_after_attempt(self._policy.max_attempts + 1)",
        "a call costs more requests than it may",
        tests="service/test_retry.py",
    ),
    Mutant(
        "retry-after-ignored",
        "_service/retry.py",
        "return max(delay, asked or 0.0)",
        "return delay",
        "AWS is asked again before it said to",
        tests="service/test_retry.py",
    ),
    Mutant(
        "every-failure-retried",
        "_service/retry.py",
        "isinstance(error, retried) and error.may_pass",
        "isinstance(error, Exception)",
        "a refusal that came after a failure is asked for again and again",
        tests="service/test_retry.py",
    ),
)

CLIENTS = (
    Mutant(
        "two-clients-at-once",
        "_aws/clients.py",
        "        if opening is None:\n",
        "        if True:\n",
        "each of the first callers opens a client, and all but one leak",
        tests="aws/test_opening.py",
    ),
    Mutant(
        "date-ignored",
        "_aws/clients.py",
        "answered = answer_date(metadata) or datetime.fromtimestamp(asked_at, UTC)",
        "answered = datetime.fromtimestamp(asked_at, UTC)",
        "a wrong clock of the host makes tokens live too long, or not at all",
        tests="service/test_token_life.py",
    ),
    Mutant(
        "longer-than-a-minute",
        "_aws/clients.py",
        "life = min((token_end - answered).total_seconds(), TOKEN_LIFE_SECONDS)",
        "life = (token_end - answered).total_seconds()",
        "without a Date, a clock that is slow makes tokens live too long",
        tests="service/test_token_life.py",
        simulated=False,
    ),
    Mutant(
        "empty-token-accepted",
        "_aws/clients.py",
        "if not isinstance(token, str) or not token:",
        "if not isinstance(token, str):",
        "a caller is given nothing, and told that it is a token",
        tests="aws/test_upstream_faults.py",
        simulated=False,
    ),
    Mutant(
        "session-over-accepted",
        "_aws/clients.py",
        "if end <= answered:",
        "if False:",
        "a caller is given a token whose session is over",
        tests="aws/test_upstream_faults.py",
        simulated=False,
    ),
    Mutant(
        "throttle-by-code-only",
        "_aws/errors.py",
        "kind = _CLASS_BY_CODE.get(code) or _CLASS_BY_STATUS.get(status)",
        "kind = _CLASS_BY_CODE.get(code)",
        "a 429 without a body is not known as throttling",
        tests="aws/test_upstream_faults.py",
        simulated=False,
    ),
    Mutant(
        "two-layers-of-retries",
        "_aws/clients.py",
        '"retries": {"total_max_attempts": 1, "mode": "standard"}',
        '"retries": {"max_attempts": 1, "mode": "standard"}',
        "the client retries below us, and round the limiter",
        tests="aws/test_upstream_faults.py",
        simulated=False,
    ),
    Mutant(
        "message-kept",
        "_aws/redaction.py",
        "if quotes or _holds_any(message, secrets):",
        "if False:",
        "an error of AWS shows who asked",
        tests="aws/test_redaction.py",
        simulated=False,
    ),
)

PREPARED = (
    Mutant(
        "listeners-missed",
        "_aws/interception.py",
        "if before is not None and before.still_holds():",
        "if before is not None:",
        "whoever puts on instrumentation later hears nothing",
        tests="aws/test_interception.py",
        simulated=False,
    ),
    Mutant(
        "redirects-followed",
        "_aws/http_session.py",
        "allow_redirects=False, ",
        "",
        "user id, attributes and session token go wherever an answer points",
        tests="aws/test_connections.py",
        simulated=False,
    ),
    Mutant(
        "unasked-bytes-read",
        "_aws/http_session.py",
        "    if not protocol.idle:\n",
        "    if True:\n",
        "an answer that came twice is the next caller's",
        tests="aws/test_connections.py",
        simulated=False,
    ),
    Mutant(
        "clock-left-wrong",
        "_aws/signing.py",
        "            self.offset = offset\n",
        "",
        "a host whose clock is wrong gets no token",
        tests="aws/test_clock_skew.py",
        simulated=False,
    ),
    Mutant(
        "signing-key-of-yesterday",
        "_aws/signing.py",
        "if self._key_origin != (secret, day):",
        "if self._key_origin[0] != secret:",
        "all requests are refused from midnight on",
        tests="aws/test_signing.py",
        simulated=False,
    ),
)

MODELS = (
    Mutant(
        "duration-ignored",
        "_models.py",
        "return room, user, granted, pairs, minutes",
        "return room, user, granted, pairs, 60",
        "a call for three hours gets a token for one",
        tests="service/test_requests.py",
    ),
    Mutant(
        "attributes-ignored",
        "_models.py",
        "return room, user, granted, pairs, minutes",
        "return room, user, granted, (), minutes",
        "a call gets a token that shows another name",
        tests="service/test_requests.py",
    ),
    Mutant(
        "order-of-attributes",
        "_models.py",
        "    return tuple(sorted(pairs.items()))\n",
        "    return tuple(pairs.items())\n",
        "equal requests are not equal, and each costs a token",
        tests="service/test_requests.py",
        simulated=False,
    ),
)

MUTANTS = (
    *SINGLE_FLIGHT,
    *LIMITER,
    *CACHE,
    *MINTING,
    *SERVICE,
    *PREWARMING,
    *RETRY,
    *CLIENTS,
    *PREPARED,
    *MODELS,
)
