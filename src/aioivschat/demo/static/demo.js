/**
 * The demo's page: two people who chat, and what becomes of their tokens.
 *
 * Whatever people write is shown as text, never as markup.
 */

import { createTokenProvider } from "./chat/token-provider.js";

const PEOPLE = [
  {
    id: "host",
    name: "Host",
    may: "May write, delete and disconnect.",
    other: { id: "viewer", name: "viewer" },
    moderates: true,
  },
  {
    id: "viewer",
    name: "Viewer",
    may: "May write.",
    moderates: false,
  },
];

const CROWD = 50;
const POLL = 500; // milliseconds; half a second
const SAMPLES = 60; // of the charts: half a minute of polls
const LINES_KEPT = 200;
const CLOSED_IN_ORDER = 1000;
const LONGEST_BACKOFF = 5_000;

const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * @typedef {"asking" | "connecting" | "in" | "out"} State waiting for a token; opening the
 *     connection; connected; neither connected nor trying to be
 */

/** A chat client: one connection at a time, and a new token for each. */
class ChatClient {
  #requests = 0;
  #socket = null;

  /**
   * @param {object} options
   * @param {URL} options.url the chat edge
   * @param {() => Promise<{token: string}>} options.tokenProvider
   * @param {(state: State, reason: string) => void} options.onState
   * @param {(frame: object) => void} options.onFrame
   */
  constructor({ url, tokenProvider, onState, onFrame }) {
    this.url = url;
    this.tokenProvider = tokenProvider;
    this.onState = onState;
    this.onFrame = onFrame;
    /** @type {State} */
    this.state = "out";
  }

  /** Connect, and come back whenever the connection is lost, until it is closed in order. */
  async stay() {
    for (let failures = 0; ; failures++) {
      if (failures > 1) await sleep(Math.min(LONGEST_BACKOFF, 250 * 2 ** failures));
      let token;
      try {
        this.#enter("asking");
        ({ token } = await this.tokenProvider());
      } catch (error) {
        this.#enter("out", `No token: ${error.message}`);
        return;
      }
      this.#enter("connecting");
      const { code, opened } = await this.#connection(token);
      if (opened) failures = 0;
      if (code === CLOSED_IN_ORDER) {
        this.#enter("out", "Disconnected");
        return;
      }
    }
  }

  /**
   * Ask the edge for something.
   * @param {string} action
   * @param {object} members
   */
  request(action, members) {
    const id = `request-${++this.#requests}`;
    this.#socket.send(JSON.stringify({ Action: action, RequestId: id, ...members }));
  }

  /** Carry one connection from its handshake to its end. */
  #connection(token) {
    return new Promise((resolve) => {
      let opened = false;
      // The token is the subprotocol: that is how the edge takes it.
      const socket = new WebSocket(this.url, token);
      this.#socket = socket;
      socket.addEventListener("open", () => {
        opened = true;
        this.#enter("in");
      });
      socket.addEventListener("message", ({ data }) => this.onFrame(JSON.parse(data)));
      socket.addEventListener("close", ({ code }) => resolve({ code, opened }));
    });
  }

  #enter(state, reason = "") {
    this.state = state;
    this.onState(state, reason);
  }
}

/** One person's part of the page. */
class Person {
  #connections = 0;
  #asked = 0;

  constructor({ id, name, may, other, moderates }) {
    const part = $("person").content.cloneNode(true).firstElementChild;
    const find = (selector) => part.querySelector(selector);
    this.id = id;
    this.moderates = moderates;
    this.part = part;
    this.log = find(".log");
    this.stateLine = find(".state");
    this.connectionButton = find(".connection");
    part.id = id;
    find("h2").id = `${id}-name`;
    part.setAttribute("aria-labelledby", `${id}-name`);
    find("h2").textContent = name;
    find(".may").textContent = may;
    find(".unseen").textContent = `Message from the ${id}`;
    this.log.setAttribute("aria-label", `What the ${id} sees`);
    // Both see the same messages: a screen reader is to say each once.
    if (moderates) this.log.setAttribute("role", "log");

    find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(event.target.elements.text);
    });
    this.connectionButton.addEventListener("click", () => this.#dropOrConnect());
    // What only works while connected.
    this.buttons = [find("form button")];
    if (other) {
      const button = this.#disconnectButton(other);
      this.buttons.push(button);
      find(".actions").append(button);
    }

    const edge = new URL("edge", location.href);
    edge.protocol = edge.protocol.replace("http", "ws");
    this.client = new ChatClient({
      url: edge,
      tokenProvider: createTokenProvider({
        url: "chat/token",
        headers: { "Demo-Person": id },
      }),
      onState: (state, reason) => this.#show(state, reason),
      onFrame: (frame) => this.#hear(frame),
    });
  }

  #disconnectButton({ id, name }) {
    const button = element("button", "quiet", `Disconnect ${name}`);
    button.type = "button";
    button.addEventListener("click", () => {
      this.#ask("DISCONNECT_USER", { UserId: id, Reason: "the host asked for it" });
    });
    return button;
  }

  #send(field) {
    const text = field.value.trim();
    if (text && this.#ask("SEND_MESSAGE", { Content: text })) field.value = "";
  }

  #ask(action, members) {
    if (this.client.state !== "in") {
      this.#note("Not connected");
      return false;
    }
    this.client.request(action, members);
    return true;
  }

  #dropOrConnect() {
    if (this.client.state === "out") {
      this.client.stay();
    } else if (this.client.state === "in") {
      // The server cuts it, as a lost network would: there is no good-bye.
      fetch("demo/drop", { method: "POST", headers: { "Demo-Person": this.id } });
    }
  }

  #show(state, reason) {
    const busy = state === "asking" || state === "connecting";
    if (state === "asking") {
      this.#asked = performance.now();
      if (this.stateLine.classList.contains("in")) this.#note("Connection lost");
    }
    if (state === "in") {
      const took = ((performance.now() - this.#asked) / 1000).toFixed(1);
      this.#note(`Connected with token ${++this.#connections}, after ${took} s`);
    }
    if (reason) this.#note(reason);
    this.stateLine.className = `state ${busy ? "busy" : state}`;
    this.stateLine.textContent = {
      asking: "Waiting for a token",
      connecting: "Connecting",
      in: "Connected",
      out: "Not connected",
    }[state];
    this.connectionButton.textContent = state === "out" ? "Connect" : "Drop connection";
    // Not disabled: whoever is at it with the keyboard would lose their place.
    this.connectionButton.setAttribute("aria-disabled", String(busy));
    for (const button of this.buttons) {
      button.setAttribute("aria-disabled", String(state !== "in"));
    }
  }

  #hear(frame) {
    if (frame.Type === "MESSAGE") this.#addMessage(frame);
    else if (frame.Type === "ERROR") this.#note(`Refused: ${frame.ErrorMessage}`);
    else if (frame.EventName === "aws:DELETE_MESSAGE") this.#delete(frame.Attributes.MessageID);
    else if (frame.EventName === "aws:DISCONNECT_USER") {
      const who = frame.Attributes.UserId;
      this.#note(who === this.id ? "The host disconnects you" : `The ${who} was disconnected`);
    }
  }

  #addMessage({ Id, Content, Sender }) {
    const own = Sender.UserId === this.id;
    const item = element("li", own ? "message own" : "message");
    item.dataset.id = Id;
    const words = element("div");
    const name = Sender.Attributes?.displayName ?? Sender.UserId;
    words.append(element("b", "", own ? "You" : name), element("span", "", Content));
    item.append(words);
    if (this.moderates) {
      const button = element("button", "", "Delete");
      button.type = "button";
      button.setAttribute("aria-label", `Delete the message “${Content}”`);
      button.addEventListener("click", () => {
        this.#ask("DELETE_MESSAGE", { Id, Reason: "the host asked for it" });
        this.log.focus();
      });
      item.append(button);
    }
    this.#add(item);
  }

  #delete(id) {
    const item = [...this.log.children].find((each) => each.dataset.id === id);
    if (!item) return;
    item.classList.add("deleted");
    item.querySelector("span").textContent = "Deleted by the host";
    item.querySelector("button")?.remove();
  }

  #note(text) {
    this.#add(element("li", "note", text));
  }

  #add(item) {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    this.log.append(item);
    if (this.log.children.length > LINES_KEPT) this.log.firstElementChild.remove();
    // Whoever reads further up is left there.
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

/** What becomes of the tokens. */
class Figures {
  #rates = [];
  #waiting = [];
  #crowd = "";

  show(state) {
    for (const name of ["issued", "waiting", "coalesced", "refused", "throttled", "connections"]) {
      $(name).textContent = state[name];
    }
    $("allowed").textContent = state.quota;
    $("wait").textContent = state.wait;
    $("quota").max = state.quota;
    $("quota").value = state.rate;
    $("quota-text").textContent = `${state.rate} of ${state.quota} a second`;

    const mostWaiting = Math.max(...keep(this.#waiting, state.waiting));
    // The quota's line is at three quarters of the height.
    drawBars($("rate-chart"), keep(this.#rates, state.rate), state.quota / 0.75);
    drawBars($("waiting-chart"), this.#waiting, Math.max(10, mostWaiting));
    $("rate-chart").querySelector(".limit").setAttribute("d", "M0 5H60");
    $("most-waiting").textContent = mostWaiting;
    this.#showCrowd(state.crowd);
  }

  #showCrowd({ all, in: connected, max }) {
    $("crowd-come").setAttribute("aria-disabled", String(all + CROWD > max));
    $("crowd-leave").setAttribute("aria-disabled", String(all === 0));
    let text = "Nobody yet.";
    if (all) text = connected < all ? `${all} viewers want in.` : `All ${all} viewers are in.`;
    // A screen reader says whatever is set here, also if it is what was there.
    if (text !== this.#crowd) $("crowd").textContent = this.#crowd = text;
  }
}

/** Add a sample, and forget those that are too old. */
function keep(samples, value) {
  samples.push(value);
  if (samples.length > SAMPLES) samples.shift();
  return samples;
}

/** Draw samples as bars from the right, in a box of 60 by 20. */
function drawBars(chart, samples, top) {
  const first = SAMPLES - samples.length;
  const bars = samples.map((value, index) => {
    const height = Math.min(20, (20 * value) / top);
    return `M${first + index} 20v${-height}h.8v${height}z`;
  });
  chart.querySelector(".bars").setAttribute("d", bars.join(""));
}

async function follow() {
  const figures = new Figures();
  for (;;) {
    try {
      const response = await fetch("demo/state");
      figures.show(await response.json());
      $("ended").hidden = true;
    } catch {
      $("ended").hidden = false;
    }
    await sleep(POLL);
  }
}

function whenEnabled(button, act) {
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") act();
  });
}

whenEnabled($("crowd-come"), () =>
  fetch("demo/crowd", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ viewers: CROWD }),
  }),
);
whenEnabled($("crowd-leave"), () => fetch("demo/crowd", { method: "DELETE" }));

for (const one of PEOPLE) {
  const person = new Person(one);
  $("people").append(person.part);
  person.client.stay();
}
follow();
