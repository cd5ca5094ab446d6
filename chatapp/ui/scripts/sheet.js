// A sheet is a dialog: it takes the focus, keeps it, and gives it back; Esc closes it.
const FOCUSABLE = "a[href], button, input, select, textarea, [tabindex='0']";
const openSheet = () => [...document.querySelectorAll(".sheet")].find((sheet) => sheet.checkVisibility());
const closeSheet = () => openSheet()?.querySelector(".sheet-close")?.click();
let shownSheet, openedBy;

new MutationObserver(() => {
  const sheet = openSheet();
  if (sheet === shownSheet) return;
  shownSheet = sheet;
  if (!sheet) return openedBy?.focus();
  openedBy = document.activeElement;
  sheet.setAttribute("role", "dialog");
  sheet.setAttribute("aria-modal", "true");
  sheet.setAttribute("aria-labelledby", sheet.id.replace("-sheet", "-title"));
  sheet.querySelector(FOCUSABLE)?.focus();
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ["class"] });

document.addEventListener("keydown", (event) => {
  const sheet = openSheet();
  if (!sheet) return;
  if (event.key === "Escape") return closeSheet();
  if (event.key !== "Tab") return;
  const stops = [...sheet.querySelectorAll(FOCUSABLE)].filter((stop) => !stop.disabled && stop.checkVisibility());
  const [first, last] = event.shiftKey ? [stops.at(-1), stops[0]] : [stops[0], stops.at(-1)];
  if (document.activeElement !== last) return;
  event.preventDefault();
  first.focus();
});
