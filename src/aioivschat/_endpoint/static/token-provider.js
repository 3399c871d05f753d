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
 * Idempotency-Key and Prefer. No header of the answer needs to be exposed.
 *
 * It runs in browsers, in Node, and in React Native, where `url` must be absolute.
 */

const FIRST_BACKOFF = 250;
const LONGEST_BACKOFF = 5_000;
const JITTER = 1_000;

/** What `fetch` fails with if no answer came, by name; all else is a fault of the application's. */
const NO_ANSWER = ["TypeError", "AbortError", "NetworkError", "TimeoutError"];

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
 * @property {number} [timeout] milliseconds for one call with all its waits, those for the
 *     application's own functions too; 30,000 by default
 * @property {() => unknown} [refreshCredentials] called once in a call on status 401, before the
 *     request is sent again
 * @property {AbortSignal} [signal] ends calls under way, and all later ones
 * @property {typeof globalThis.fetch} [fetch] fails with a TypeError if no answer comes
 */

/** Why there is no token. */
export class TokenProviderError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, problem?: Problem, cause?: unknown}} [details]
   */
  constructor(message, { status = 0, problem, cause } = {}) {
    super(message);
    this.name = "TokenProviderError";
    /** What was thrown, if anything was: by a function of the application's, say. */
    this.cause = cause;
    /** The last answer's HTTP status; 0 without an answer. */
    this.status = status;
    /** What the endpoint said about it. */
    this.problem = problem;
  }
}

/**
 * @param {TokenProviderOptions} options
 * @returns {() => Promise<ChatToken>} the SDK's `tokenProvider`; it rejects with a
 *     {@link TokenProviderError}: at once if asking again cannot help
 */
export function createTokenProvider({
  url,
  body = {},
  headers = {},
  credentials = "same-origin",
  timeout = 30_000,
  refreshCredentials,
  signal,
  fetch,
}) {
  // When the endpoint is ready for this client again: the next call must not knock earlier.
  let notBefore = 0;

  return async function tokenProvider() {
    const send = fetch ?? globalThis.fetch;
    if (typeof send !== "function") throw new TokenProviderError("there is no `fetch` here");
    if (!fetch && !globalThis.location && !/^https?:/i.test(url)) {
      throw new TokenProviderError("`url` must be absolute where there is no page");
    }
    const deadline = monotonic() + timeout;
    const key = uniqueKey();
    const end = new AbortController();
    let failure = new TokenProviderError("no answer in time");
    let sleeping;
    let stop;
    const stopped = new Promise((_, reject) => {
      stop = (cause) => {
        const { status, problem } = failure;
        reject(new TokenProviderError("ended before there was a token", { status, problem, cause }));
        end.abort();
      };
    });
    const onAbort = () => stop(signal.reason);
    const timer = setTimeout(() => stop(new Error("timed out")), timeout);
    signal?.addEventListener("abort", onAbort);
    if (signal?.aborted) onAbort();

    try {
      // A race, as what the application hands in may never end, or heed no signal.
      return await Promise.race([stopped, askUntilAnswered()]);
    } finally {
      end.abort();
      clearTimeout(timer);
      clearTimeout(sleeping);
      signal?.removeEventListener("abort", onAbort);
    }

    async function askUntilAnswered() {
      let refreshed = false;
      let redirect = "follow";
      let isRedirect = false;
      await sleep(notBefore - monotonic());
      for (let attempt = 0; ; attempt++) {
        const answer = await request(redirect);
        if (answer.token) return answer.token;
        // A redirect to where this page may not read, such as another origin's login page, looks
        // like a dead network. So after no answer a request follows none, to see whether there is
        // one; and the next one does again, as it may have been the network nevertheless.
        const wasRedirect = isRedirect;
        isRedirect = answer.isRedirect ?? false;
        redirect = redirect === "follow" && answer.failure?.status === 0 ? "manual" : "follow";
        if (isRedirect) continue;
        failure = answer.failure;
        if (wasRedirect && failure.status === 0) {
          const { cause } = failure;
          throw new TokenProviderError("redirected to where this page may not read", { cause });
        }
        if (failure.status === 401 && refreshCredentials && !refreshed) {
          refreshed = true;
          await called("refreshCredentials", refreshCredentials);
          continue;
        }
        if (answer.isFinal) throw failure;
        const wait = pause(answer.retryAfter, attempt);
        if (answer.retryAfter !== undefined) notBefore = monotonic() + wait;
        await sleep(wait);
      }
    }

    async function request(redirect) {
      const own = await called("headers", async () => new Headers(await valueOf(headers)));
      own.set("Content-Type", "application/json");
      own.set("Idempotency-Key", key);
      own.set("Prefer", `wait=${Math.max(1, Math.floor((deadline - monotonic()) / 1000))}`);
      const asked = await called("body", async () => JSON.stringify(await valueOf(body)));
      if (end.signal.aborted) throw failure;
      let response;
      try {
        response = await send(url, {
          method: "POST",
          headers: own,
          body: asked,
          credentials,
          redirect,
          cache: "no-store",
          signal: end.signal,
        });
      } catch (cause) {
        if (NO_ANSWER.includes(cause?.name)) return noAnswer(cause);
        throw new TokenProviderError("the application's `fetch` failed", { cause });
      }
      if (redirect === "manual" && isRedirectResponse(response)) return { isRedirect: true };
      return readAnswer(response);
    }

    /** Call a function of the application's; its failure ends the call, as what it is. */
    async function called(name, own) {
      try {
        return await own();
      } catch (cause) {
        const { status, problem } = failure;
        const message = `the application's \`${name}\` failed`;
        throw new TokenProviderError(message, { status, problem, cause });
      }
    }

    /** Wait, unless the call's time would be over by then: nothing could come of it. */
    async function sleep(milliseconds) {
      if (end.signal.aborted || monotonic() + milliseconds >= deadline) throw failure;
      if (milliseconds > 0) {
        await new Promise((resolve) => {
          sleeping = setTimeout(resolve, milliseconds);
        });
      }
    }
  };
}

function noAnswer(cause) {
  return { failure: new TokenProviderError("no answer", { cause }) };
}

function isRedirectResponse({ type, status }) {
  return type === "opaqueredirect" || (status >= 300 && status < 400);
}

/** Return what an answer is: a token, or why there is none and whether asking again may help. */
async function readAnswer(response) {
  const { ok, status } = response;
  const type = response.headers.get("Content-Type")?.split(";", 1)[0];
  let cut;
  const text = await response.text().catch((cause) => {
    cut = { cause };
    return "";
  });
  const reply = parseJson(text);
  if (ok && typeof reply?.token === "string" && reply.token) return { token: readToken(reply) };
  if (ok && (cut || (reply === undefined && text && /json$/i.test(type)))) {
    return noAnswer(cut?.cause); // it ended on its way
  }
  const from = response.redirected ? `redirected to ${response.url.split("?", 1)[0]}, ` : "";
  const message = `${from}status ${status} with ${text ? (type ?? "a body") : "no body"}`;
  if (ok) return { failure: new TokenProviderError(`no token: ${message}`, { status }), isFinal: true };
  return {
    failure: new TokenProviderError(reply?.title ?? message, { status, problem: reply }),
    isFinal: status < 500 && ![408, 429].includes(status),
    retryAfter: readRetryAfter(response.headers, reply),
  };
}

function pause(retryAfter, attempt) {
  if (retryAfter !== undefined) return retryAfter * 1000 + Math.random() * JITTER;
  return Math.random() * Math.min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** attempt);
}

/** Return the seconds after which to come back: of the header, or else of the body. */
function readRetryAfter(headers, problem) {
  const header = headers.get("Retry-After")?.trim() ?? "";
  // A date is by the server's clock, which its own header tells if that can be read.
  const now = Date.parse(headers.get("Date")) || Date.now();
  const told = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - now) / 1000;
  const seconds = [told, problem?.retryAfter].find(Number.isFinite);
  return seconds === undefined ? undefined : Math.max(0, seconds);
}

/**
 * Take the token out of a reply, its times by this machine's clock: the SDK compares them with it,
 * and would reconnect without end if it was an hour ahead of the server's.
 */
function readToken({ token, sessionExpirationTime, tokenExpirationTime, now }) {
  const ahead = Date.now() - Date.parse(now) || 0;
  return {
    token,
    sessionExpirationTime: new Date(Date.parse(sessionExpirationTime) + ahead),
    tokenExpirationTime: new Date(Date.parse(tokenExpirationTime) + ahead),
  };
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function valueOf(option) {
  return typeof option === "function" ? option() : option;
}

/** Return milliseconds that go on evenly, whatever is done to this machine's clock. */
function monotonic() {
  return performance.now();
}

/** Return a key that no other attempt of this user has; it need not be hard to guess. */
function uniqueKey() {
  const { crypto } = globalThis;
  if (crypto?.randomUUID) return crypto.randomUUID(); // on pages with HTTPS
  const bytes = new Uint8Array(16);
  if (crypto?.getRandomValues) crypto.getRandomValues(bytes);
  else bytes.forEach((_, index) => (bytes[index] = Math.random() * 256)); // in React Native
  const random = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${random}-${Date.now().toString(16)}`;
}
