// A sheet is a dialog: it takes the focus, keeps it, and gives it back; Esc closes it. The app draws it when it is first
// opened; from then on it is hidden and shown here.
const FOCUSABLE = "a[href], button, input, select, textarea, [tabindex='0']";
const openSheet = () => [...document.querySelectorAll(".sheet")].find((sheet) => sheet.checkVisibility());
let shownSheet, openedBy;

const hide = (sheet, hidden) => {
  if (sheet) sheet.hidden = hidden;
};

// What opens one (name-open), and what closes it: also a download that is loaded, since one chats with it.
document.addEventListener("click", ({ target }) => {
  const opener = target.closest("button[id$='-open']");
  if (opener) hide(document.getElementById(opener.id.replace("-open", "-sheet")), false);
  if (target.closest(".sheet-close")) hide(openSheet(), true);
});
document.addEventListener("pressed", ({ detail }) => detail === "load" && hide(openSheet(), true));

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
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ["class", "hidden"] });

document.addEventListener("keydown", (event) => {
  const sheet = openSheet();
  if (!sheet) return;
  if (event.key === "Escape") return hide(sheet, true);
  if (event.key !== "Tab") return;
  const stops = [...sheet.querySelectorAll(FOCUSABLE)].filter((stop) => !stop.disabled && stop.checkVisibility());
  const [first, last] = event.shiftKey ? [stops.at(-1), stops[0]] : [stops[0], stops.at(-1)];
  if (document.activeElement !== last) return;
  event.preventDefault();
  first.focus();
});
