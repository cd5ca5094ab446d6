// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours. What writes a
// reply, what shows where one comes from, and what goes elsewhere are three events, so that none waits for another.
const SHOW = ["cite", "quote", "source", "sources"];
const WRITE = ["regenerate", "continue", "summarise"];
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message, ...more] = link.getAttribute("href").split("-");
  if (what === "zoom") return zoom(link.closest(".evidence"), Number(message));
  const shows = SHOW.includes(what);
  if (shows) reveal("right");
  if (what === "models") return document.getElementById("models-open")?.click();
  if (what === "upload") return document.querySelector("#attach input, #attach")?.click();
  if (what === "example") return send(link.textContent);
  trigger(shows ? "expand" : WRITE.includes(what) ? "click" : "apply", { do: what, message: Number(message), more: more.map(Number) });
});
