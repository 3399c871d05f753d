/**
 * Chat clients in one process: the real SDK with the token provider that the endpoint serves.
 *
 * Its argument is a JSON object: the URLs of the modules `sdk` and `provider`, of the `endpoint` and
 * the `edge`, and for the clock `speed` and `ahead`, see clock.mjs. It reads commands from standard
 * input, one JSON object a line, and writes what happens to standard output likewise.
 */

import { createInterface } from "node:readline";
import { clearInterval, setInterval } from "node:timers";

import { setClock } from "./clock.mjs";

const { sdk, endpoint, provider, edge, speed, ahead } = JSON.parse(process.argv[2]);

const fetchTokens = speed === 1 && ahead === 0 ? fetch : setClock(speed, ahead);
const { ChatRoom, SendMessageRequest, DeleteMessageRequest, DisconnectUserRequest } = await import(
  sdk
);
const source = await (await fetch(provider)).text();
const { createTokenProvider } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const rooms = new Map();
const stays = new Map();
const chats = new Map();

function tell(event, user, more = {}) {
  process.stdout.write(`${JSON.stringify({ event, user, ...more })}\n`);
}

const commands = {
  join({ user }) {
    const stay = new AbortController();
    const getToken = createTokenProvider({
      url: endpoint,
      headers: { "X-User": user },
      signal: stay.signal,
      fetch: fetchTokens,
    });
    const room = new ChatRoom({
      regionOrUrl: edge,
      tokenProvider: async () => {
        try {
          const token = await getToken();
          tell("token", user, { token: token.token });
          return token;
        } catch (error) {
          tell("noToken", user, { message: error.message, status: error.status });
          throw error;
        }
      },
    });
    room.logLevel = "error";
    room.logger = { debug() {}, info() {}, error() {} };
    room.addListener("connecting", () => tell("connecting", user));
    room.addListener("connect", () => tell("connect", user));
    room.addListener("disconnect", (reason) => tell("disconnect", user, { reason }));
    room.addListener("message", ({ id, content, sender }) =>
      tell("message", user, { id, text: content, from: sender.userId }),
    );
    room.addListener("messageDelete", ({ messageId, reason }) =>
      tell("messageDelete", user, { id: messageId, reason }),
    );
    room.addListener("userDisconnect", ({ userId, reason }) =>
      tell("userDisconnect", user, { whom: userId, reason }),
    );
    rooms.set(user, room);
    stays.set(user, stay);
    room.connect();
  },

  async say({ user, text }) {
    const { id } = await rooms.get(user).sendMessage(new SendMessageRequest(text));
    tell("said", user, { id, text });
  },

  async delete({ user, id, reason }) {
    await rooms.get(user).deleteMessage(new DeleteMessageRequest(id, reason));
  },

  async disconnect({ user, whom, reason }) {
    await rooms.get(user).disconnectUser(new DisconnectUserRequest(whom, reason));
  },

  /** Say a numbered message again and again, whatever the connection is doing. */
  chat({ user, every }) {
    const chat = { said: 0 };
    const say = () => commands.say({ user, text: `${user} ${chat.said++}` }).catch(failed(user));
    chat.timer = setInterval(say, every);
    chats.set(user, chat);
  },

  hush({ user }) {
    const { timer, said } = chats.get(user);
    clearInterval(timer);
    tell("hushed", user, { said });
  },

  connect({ user }) {
    rooms.get(user).connect();
  },

  /** Leave for good: without the signal, the SDK may come back by itself. */
  leave({ user }) {
    stays.get(user).abort();
    rooms.get(user).disconnect();
  },
};

function failed(user) {
  return (error) =>
    tell("failed", user, { code: error.errorCode, message: error.errorMessage ?? error.message });
}

tell("ready", null);
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...more } = JSON.parse(line);
  Promise.resolve(commands[command](more)).catch(failed(more.user));
}
process.exit(0);
