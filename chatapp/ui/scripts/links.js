// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours. What shows
// where a reply comes from is an event of its own, so that it need not wait for a reply that is being written.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message, ...more] = link.getAttribute("href").split("-");
  if (what === "zoom") return zoom(link.closest(".evidence"), Number(message));
  const shows = ["cite", "quote", "source", "sources"].includes(what);
  if (shows) reveal("right");
  if (what === "models") return document.getElementById("models-open")?.click();
  if (what === "upload") return document.querySelector("#attach input, #attach")?.click();
  if (what === "example") return send(link.textContent);
  trigger(shows ? "expand" : "click", { do: what, message: Number(message), more: more.map(Number) });
});
