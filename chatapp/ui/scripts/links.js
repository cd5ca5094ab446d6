// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message, ...more] = link.getAttribute("href").split("-");
  const right = document.getElementById("right");
  if (what === "fold") return right?.classList.toggle("folded");
  if (what === "zoom") return zoom(link.closest(".evidence"), Number(message));
  if (["cite", "quote", "source"].includes(what)) right?.classList.remove("folded");
  trigger("click", { do: what, message: Number(message), more: more.map(Number) });
});
