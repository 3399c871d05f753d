/**
 * Makes the `tokenProvider` of the Amazon IVS Chat SDK from the token endpoint of aioivschat.
 *
 *     import { ChatRoom } from "amazon-ivs-chat-messaging";
 *     import { createTokenProvider } from "/chat/token-provider.js";
 *
 *     const room = new ChatRoom({
 *       regionOrUrl: "us-east-1",
 *       tokenProvider: createTokenProvider({ url: "/chat/token", body: { room: arn } }),
 *     });
 *
 * The SDK asks again at once when its provider fails, and gives up after three times. So all
 * waiting and retrying happens within one call, which names its attempt by one idempotency key:
 * however often it is sent, it brings one token.
 *
 * For an endpoint on another origin, CORS must allow the request headers Content-Type,
 * Idempotency-Key and Prefer.
 */

const FIRST_BACKOFF = 250;
const LONGEST_BACKOFF = 5_000;
const JITTER = 1_000;

/**
 * Problem details (RFC 9457), as the endpoint sends them.
 * @typedef {object} Problem
 * @property {string} [type]
 * @property {string} [title]
 * @property {number} [status]
 * @property {string} [detail]
 * @property {string} [instance] what to name when asking the operator
 * @property {number} [retryAfter] seconds after which to come back
 */

/**
 * @typedef {object} ChatToken
 * @property {string} token
 * @property {Date} sessionExpirationTime
 * @property {Date} tokenExpirationTime
 */

/**
 * @typedef {object} TokenProviderOptions
 * @property {string | URL} url the token endpoint
 * @property {object | (() => object | Promise<object>)} [body] what to ask for, or what tells it
 *     for each call
 * @property {HeadersInit | (() => HeadersInit | Promise<HeadersInit>)} [headers] the
 *     application's own headers, or what gives them for each request
 * @property {RequestCredentials} [credentials] as for `fetch`; "same-origin" by default
 * @property {number} [timeout] milliseconds for one call with all its waits; 30,000 by default
 * @property {() => unknown} [refreshCredentials] called once in a call on status 401, before the
 *     request is sent again
 * @property {AbortSignal} [signal] ends calls under way, and all later ones
 * @property {typeof globalThis.fetch} [fetch]
 */

/** Why there is no token. */
export class TokenProviderError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, problem?: Problem, cause?: unknown}} [details]
   */
  constructor(message, { status = 0, problem, cause } = {}) {
    super(message, { cause });
    this.name = "TokenProviderError";
    /** The last answer's HTTP status; 0 without an answer. */
    this.status = status;
    /** What the endpoint said about it. */
    this.problem = problem;
  }
}

/**
 * @param {TokenProviderOptions} options
 * @returns {() => Promise<ChatToken>} the SDK's `tokenProvider`; it rejects with a
 *     {@link TokenProviderError}
 */
export function createTokenProvider({
  url,
  body = {},
  headers = {},
  credentials = "same-origin",
  timeout = 30_000,
  refreshCredentials,
  signal,
  fetch = (...request) => globalThis.fetch(...request),
}) {
  // When the endpoint is ready for this client again: the next call must not knock earlier.
  let notBefore = 0;

  return async function tokenProvider() {
    const deadline = Date.now() + timeout;
    const key = uuid();
    const end = new AbortController();
    const onAbort = () => end.abort(signal.reason);
    const timer = setTimeout(() => end.abort(new Error("timed out")), timeout);
    signal?.addEventListener("abort", onAbort);
    if (signal?.aborted) onAbort();
    let refreshed = false;
    let failure = new TokenProviderError("no answer in time");

    try {
      await sleep(Math.max(0, notBefore - Date.now()));
      for (let attempt = 0; ; attempt++) {
        const answer = await request().catch((cause) => ({ status: 0, cause }));
        end.signal.throwIfAborted();
        if (answer.token) return answer.token;
        failure = new TokenProviderError(
          answer.problem?.title ?? (answer.status ? `status ${answer.status}` : "no answer"),
          answer,
        );
        if (answer.status === 401 && refreshCredentials && !refreshed) {
          refreshed = true;
          await refreshCredentials();
          continue;
        }
        if (answer.status && answer.status < 500 && ![408, 429].includes(answer.status)) {
          throw failure;
        }
        const wait = pause(answer.retryAfter, attempt);
        if (answer.retryAfter !== undefined) notBefore = Date.now() + wait;
        await sleep(wait);
      }
    } catch (error) {
      throw end.signal.aborted && error === end.signal.reason ? stopped(error) : error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    }

    async function request() {
      const own = new Headers(await valueOf(headers));
      own.set("Content-Type", "application/json");
      own.set("Idempotency-Key", key);
      own.set("Prefer", `wait=${Math.max(1, Math.floor((deadline - Date.now()) / 1000))}`);
      const response = await fetch(url, {
        method: "POST",
        headers: own,
        body: JSON.stringify(await valueOf(body)),
        credentials,
        cache: "no-store",
        signal: end.signal,
      });
      if (response.ok) return { token: parse(await response.json(), clockError(response)) };
      /** @type {Problem | undefined} */
      const problem = await response.json().catch(() => undefined);
      const retryAfter = seconds(response.headers.get("Retry-After")) ?? problem?.retryAfter;
      return { status: response.status, problem, retryAfter };
    }

    /** Wait, unless the call's time would be over by then: nothing could come of it. */
    async function sleep(milliseconds) {
      if (Date.now() + milliseconds >= deadline) throw failure;
      await new Promise((resolve, reject) => {
        const awake = setTimeout(done, milliseconds);
        end.signal.addEventListener("abort", done);
        function done() {
          clearTimeout(awake);
          end.signal.removeEventListener("abort", done);
          if (end.signal.aborted) reject(end.signal.reason);
          else resolve();
        }
      });
    }

    function stopped(cause) {
      const { status, problem } = failure;
      return new TokenProviderError("ended before there was a token", { status, problem, cause });
    }
  };
}

function pause(retryAfter, attempt) {
  if (retryAfter !== undefined) return retryAfter * 1000 + Math.random() * JITTER;
  return Math.random() * Math.min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** attempt);
}

/** Read a Retry-After header: seconds, or a date. */
function seconds(header) {
  if (!header) return undefined;
  const wait = /^\d+$/.test(header.trim())
    ? Number(header)
    : (Date.parse(header) - Date.now()) / 1000;
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}

/**
 * By how many milliseconds this machine's clock is ahead of the server's, at least; 0 where the
 * answer does not tell. The SDK compares a token's times with this machine's clock: if that is an
 * hour ahead, or if a minute seems to have 60.1 seconds left, it reconnects without end.
 */
function clockError(response) {
  // The header leaves out the fraction of its second.
  return Date.now() - (Date.parse(response.headers.get("Date")) + 1000) || 0;
}

function parse({ token, sessionExpirationTime, tokenExpirationTime }, clockError) {
  if (typeof token !== "string" || !token) throw new TypeError("an answer without a token");
  return {
    token,
    sessionExpirationTime: new Date(Date.parse(sessionExpirationTime) + clockError),
    tokenExpirationTime: new Date(Date.parse(tokenExpirationTime) + clockError),
  };
}

function valueOf(option) {
  return typeof option === "function" ? option() : option;
}

/** Return a random UUID; pages without HTTPS have no `randomUUID`. */
function uuid() {
  if (globalThis.crypto.randomUUID) return globalThis.crypto.randomUUID();
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
