// A page as wide as the pane, or up to three times as wide, as the one before it was; the pane then scrolls.
let width = 100;
const widen = (panel) => {
  const paper = panel?.querySelector(".paper");
  if (paper) paper.style.width = `${width}%`;
};
const zoom = (panel, larger) => {
  width = Math.min(Math.max(width + (larger ? 50 : -50), 100), 300);
  widen(panel);
  showHighlight(panel);
};

// What is highlighted is scrolled to when a page appears.
const showHighlight = (panel) => {
  const box = panel?.querySelector("rect.exact") ?? panel?.querySelector("rect.passage, .pane mark");
  const pane = panel?.querySelector(".pane");
  if (!box || !pane) return;
  const [inner, outer] = [box.getBoundingClientRect(), pane.getBoundingClientRect()];
  pane.scrollTop += inner.top - outer.top - outer.height / 3;
  pane.scrollLeft += inner.left - outer.left - 24;
};
const sources = document.getElementById("sources");
if (sources) {
  new MutationObserver(() => {
    widen(sources);
    const picture = sources.querySelector(".evidence img");
    if (picture && !picture.complete) picture.addEventListener("load", () => showHighlight(sources), { once: true });
    showHighlight(sources);
  }).observe(sources, { childList: true, subtree: true });
}
