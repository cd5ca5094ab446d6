// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message, ...more] = link.getAttribute("href").split("-");
  if (what === "zoom") return zoom(link.closest(".evidence"), Number(message));
  if (what === "cite") reveal("right");
  if (what === "models") return document.getElementById("models-open")?.click();
  trigger("click", { do: what, message: Number(message), more: more.map(Number) });
});
