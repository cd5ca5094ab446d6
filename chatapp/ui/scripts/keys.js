// The keyboard: what Gradio's input does not do by itself. Keys that an input method is composing with are its own.
const input = () => document.querySelector("#text textarea");
const stopButton = () => document.querySelector("#text .stop-button");
const composing = (event) => event.isComposing || event.keyCode === 229;

const send = (text) => {
  input().value = text;
  input().dispatchEvent(new Event("input", { bubbles: true }));
  setTimeout(() => document.querySelector("#text .submit-button")?.click());
};

const newChat = () => {
  closeDrawer();
  document.getElementById("new-chat").click();
  input().focus();
};
const editLast = () => [...document.querySelectorAll('#messages a[href^="#q-edit-"]')].at(-1)?.click();

document.addEventListener(
  "keydown",
  (event) => {
    if (composing(event)) return event.key === "Enter" ? event.stopPropagation() : undefined;
    if (openSheet() || document.querySelector(":popover-open")) return;
    if (event.key === "Escape") return closeDrawer() || stopButton()?.click();
    const command = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey;
    const last = event.key === "ArrowUp" && event.target === input() && !input().value && !stopButton();
    if (!command && !last) return;
    event.preventDefault();
    command ? newChat() : editLast();
  },
  { capture: true },
);

// After a reply, and when a text to edit comes, the focus is where one types; not on a phone, where keys would cover it.
let replying = false;
const seeComposer = () => {
  const stops = Boolean(stopButton());
  if (replying && !stops) {
    announce(true);
    if (document.activeElement === document.body && !NARROW.matches) input()?.focus();
  }
  replying = stops;
};
new MutationObserver(seeComposer).observe(document.getElementById("composer"), { childList: true, subtree: true });
document.addEventListener("click", (event) => event.target.closest('a[href^="#q-edit-"]') && input().focus());
