// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message] = link.getAttribute("href").split("-");
  trigger("click", { do: what, message: Number(message) });
});

// The chat component copies what it was given: for the user's messages that is escaped, and sources and links follow.
const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
if (write) {
  navigator.clipboard.writeText = (text) => {
    const [body, links] = text.split('\n\n<div class="acts', 2);
    if (links === undefined) return write(text);
    if (!links.startsWith(" user")) return write(body.split('\n\n<details class="cited">')[0]);
    const page = new DOMParser().parseFromString(body.replaceAll("<br>", "\n"), "text/html");
    return write(page.body.textContent.replaceAll("\u00a0", " "));
  };
}
