// Buttons in HTML that is drawn anew every second: a press may begin on one and end on its successor, which is the
// same one for the user, and the focus goes on to the successor as well.
const keyOf = (button) => button && `${button.dataset.do} ${button.dataset.id}`;
const buttonAt = (event) => event.target.closest?.("[data-do]");
let pressed, focused;

const act = (button) => {
  if (button.dataset.sure && !window.confirm(button.dataset.sure)) return;
  const { do: what, id } = button.dataset;
  trigger("click", { do: what, id });
  element.dispatchEvent(new CustomEvent("pressed", { bubbles: true, detail: what }));
};
element.addEventListener("pointerdown", (event) => { pressed = keyOf(buttonAt(event)); });
element.addEventListener("pointercancel", () => { pressed = undefined; });
element.addEventListener("pointerup", (event) => {
  const button = buttonAt(event);
  if (event.button === 0 && button && keyOf(button) === pressed) act(button);
  pressed = undefined;
});
element.addEventListener("click", (event) => {
  event.stopPropagation();
  if (event.detail === 0 && buttonAt(event)) act(buttonAt(event));  // by the keyboard, or a screen reader
});
element.addEventListener("focusin", (event) => { focused = keyOf(buttonAt(event)); });
element.addEventListener("focusout", (event) => { if (event.relatedTarget) focused = undefined; });
new MutationObserver(() => {
  if (!focused || document.activeElement !== document.body) return;
  [...element.querySelectorAll("[data-do]")].find((button) => keyOf(button) === focused)?.focus();
}).observe(element, { childList: true, subtree: true });
