// Panes and sections fold, and on a phone panes are drawers. What is folded, and which drawer is open, is written on
// the row of panes, where the style sheets see it; what is folded is remembered.
const root = document.getElementById("panes");
const NARROW = window.matchMedia("(max-width: 800px)");
const folded = new Set((localStorage.getItem("folded") ?? (innerWidth < 1200 ? "right" : "")).split(" ").filter(Boolean));
let drawnBy;

const LANDMARKS = { left: "navigation", centre: "main", right: "complementary" };
const PANES = Object.keys(LANDMARKS);
const isOpen = (name) => (NARROW.matches && PANES.includes(name) ? root.dataset.drawer === name : !folded.has(name));

const nameLandmarks = () => {
  document.querySelector(".gradio-container main")?.setAttribute("role", "presentation"); // Gradio's, around all three
  for (const [id, role] of Object.entries(LANDMARKS)) {
    document.getElementById(id).setAttribute("role", role);
    document.getElementById(id).setAttribute("aria-labelledby", `${id}-title`);
  }
  for (const info of document.querySelectorAll("#left .info-text")) info.parentElement.title = info.textContent;
};

const showPanes = () => {
  root.dataset.folded = [...folded].join(" ");
  for (const button of document.querySelectorAll("button[data-fold]"))
    button.setAttribute("aria-expanded", isOpen(button.dataset.fold)), (button.title = button.textContent);
  for (const button of document.querySelectorAll("button[data-drawer]"))
    button.setAttribute("aria-expanded", root.dataset.drawer === button.dataset.drawer);
};

const unfold = (name, open = true) => {
  open ? folded.delete(name) : folded.add(name);
  localStorage.setItem("folded", [...folded].join(" "));
  showPanes();
};

// A drawer takes the focus, the rest of the page waits, and what opened it gets the focus back. What is only about to
// become visible can't take it, and Gradio may draw the button anew, so it is tried with each frame.
const focusOnceVisible = (pane) =>
  requestAnimationFrame(() => {
    if (root.dataset.drawer !== pane) return;
    const button = document.querySelector(`#${pane} [data-fold="${pane}"]`);
    button?.focus();
    if (document.activeElement !== button) focusOnceVisible(pane);
  });
const keepFocus = () => root.dataset.drawer && document.activeElement === document.body && focusOnceVisible(root.dataset.drawer);
const draw = (name) => {
  if (root.dataset.drawer === name) return;
  drawnBy ??= document.activeElement;
  root.dataset.drawer = name;
  for (const pane of PANES) document.getElementById(pane).inert = pane !== name;
  focusOnceVisible(name);
  showPanes();
};
const closeDrawer = () => {
  if (!root.dataset.drawer) return false;
  delete root.dataset.drawer;
  for (const pane of PANES) document.getElementById(pane).inert = false;
  drawnBy?.focus();
  drawnBy = undefined;
  showPanes();
  return true;
};

// A drawer closes with a tap beside it, and with what goes on in the chat or in a sheet.
const LEAVING = "#new-chat, #conversations label, #settings-open, #models-open";
const leaves = (target) => target.closest(LEAVING) !== null || target.closest(`#${root.dataset.drawer}`) === null;

// What shows in a pane is to be seen: the pane unfolds, or is drawn.
const reveal = (name) => (NARROW.matches ? draw(name) : unfold(name));

document.addEventListener("click", (event) => {
  if (event.defaultPrevented) return; // a link of ours, which may just have drawn a pane
  const button = event.target.closest("button[data-fold], button[data-drawer]");
  const name = button?.dataset.fold;
  if (button?.dataset.drawer) draw(button.dataset.drawer);
  else if (root.dataset.drawer && (name === root.dataset.drawer || leaves(event.target))) closeDrawer();
  else if (name) unfold(name, folded.has(name));
});
NARROW.addEventListener("change", closeDrawer);

// A swipe towards its edge closes a drawer.
let touched;
document.addEventListener("touchstart", (event) => (touched = event.touches[0]), { passive: true });
document.addEventListener(
  "touchend",
  (event) => {
    const [across, down] = ["clientX", "clientY"].map((axis) => event.changedTouches[0][axis] - touched[axis]);
    const away = root.dataset.drawer === "left" ? -across : across;
    if (root.dataset.drawer && away > 60 && away > 2 * Math.abs(down)) closeDrawer();
  },
  { passive: true },
);
nameLandmarks();
showPanes();
// Gradio draws what holds the buttons anew once it has their texts.
for (const place of document.querySelectorAll("#brand, #fold, #top .narrow-only, .section-head"))
  new MutationObserver(() => (showPanes(), keepFocus())).observe(place, { childList: true, subtree: true });
