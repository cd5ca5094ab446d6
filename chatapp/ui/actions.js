// Links below messages, "#q-<what>-<message>", become events: the chat component shows no buttons of ours.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#q-"]');
  if (!link) return;
  event.preventDefault();
  const [, what, message, ...more] = link.getAttribute("href").split("-");
  const right = document.getElementById("right");
  if (what === "fold") return right?.classList.toggle("folded");
  if (what === "zoom") return zoom(link.closest(".evidence"), Number(message));
  if (what === "cite") right?.classList.remove("folded");
  trigger("click", { do: what, message: Number(message), more: more.map(Number) });
});

// A page as wide as the pane, or up to three times as wide; the pane then scrolls.
const zoom = (panel, larger) => {
  const paper = panel?.querySelector(".paper");
  if (!paper) return;
  const width = Number(paper.dataset.width || 100) + (larger ? 50 : -50);
  paper.dataset.width = Math.min(Math.max(width, 100), 300);
  paper.style.width = `${paper.dataset.width}%`;
  showHighlight(panel);
};

// What is highlighted is scrolled to when a page appears.
const showHighlight = (panel) => {
  const box = panel?.querySelector("rect.exact, rect.passage, .sheet mark");
  const sheet = panel?.querySelector(".sheet");
  if (!box || !sheet) return;
  const [inner, outer] = [box.getBoundingClientRect(), sheet.getBoundingClientRect()];
  sheet.scrollTop += inner.top - outer.top - outer.height / 3;
  sheet.scrollLeft += inner.left - outer.left - 24;
};
const sources = document.getElementById("sources");
if (sources) {
  new MutationObserver(() => {
    const picture = sources.querySelector(".evidence img");
    if (picture && !picture.complete) picture.addEventListener("load", () => showHighlight(sources), { once: true });
    showHighlight(sources);
  }).observe(sources, { childList: true, subtree: true });
}

// The chat component copies what it was given: for the user's messages that is escaped, and sources and links follow.
const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
if (write) {
  navigator.clipboard.writeText = (text) => {
    const [body, links] = text.split('\n\n<div class="acts', 2);
    if (links === undefined) return write(text);
    const cited = /<a class="mark"[^>]*>\[\d+\]<\/a>|<sup class="unsupported"[^>]*>\?<\/sup>|<span class="unsupported"[^>]*>|<\/span>/g;
    if (!links.startsWith(" user")) return write(body.split('\n\n<details class="cited">')[0].replace(cited, ""));
    const page = new DOMParser().parseFromString(body.replaceAll("<br>", "\n"), "text/html");
    return write(page.body.textContent.replaceAll("\u00a0", " "));
  };
}
