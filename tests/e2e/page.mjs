// A chat page: `?user=` is who it is for, `?edge=` is the chat edge's URL, `?server=` is the
// origin of the token endpoint, if that is another one.

import { ChatRoom, SendMessageRequest } from "amazon-ivs-chat-messaging";

const wanted = new URLSearchParams(location.search);
const endpoint = `${wanted.get("server") ?? ""}/chat/token`;
const { createTokenProvider } = await import(`${endpoint}-provider.js`);
const state = document.querySelector("#state");
const form = document.querySelector("form");

const room = new ChatRoom({
  regionOrUrl: wanted.get("edge"),
  tokenProvider: createTokenProvider({
    url: endpoint,
    headers: { "X-User": wanted.get("user") },
  }),
});
room.logLevel = "error";

for (const name of ["connecting", "connect", "disconnect"]) {
  room.addListener(name, () => {
    state.value = room.state;
  });
}
room.addListener("message", ({ content, sender }) => {
  const item = document.createElement("li");
  item.textContent = `${sender.userId}: ${content}`;
  document.querySelector("#messages").append(item);
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await room.sendMessage(new SendMessageRequest(form.elements.text.value));
  form.reset();
});
room.connect();
