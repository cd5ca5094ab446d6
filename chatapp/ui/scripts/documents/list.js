// The list of files is drawn anew while files are read; what is typed or asked back here has to outlive that.
const asking = new Set();
const typed = () => (document.querySelector("#filter textarea, #filter input")?.value ?? "").trim().toLowerCase();

const redraw = () => {
  const words = typed();
  for (const row of element.querySelectorAll("li[data-file]")) {
    row.classList.toggle("asking", asking.has(row.dataset.file));
    row.hidden = words !== "" && !row.querySelector(".name").textContent.toLowerCase().includes(words);
  }
};
new MutationObserver(redraw).observe(element, { childList: true, subtree: true });
document.getElementById("left")?.addEventListener("input", (event) => event.target.closest("#filter") && redraw());

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const { base, file } = button.closest("li").dataset;
  const what = button.dataset.do;
  if (what === "ask") asking.add(file);
  else asking.delete(file);
  redraw();
  if (what === "ask") return button.closest("li").querySelector(".sure button")?.focus();
  if (what !== "keep") trigger("click", { do: what, base, file });
});
document.getElementById("target")?.addEventListener("click", (event) => {
  if (event.target.closest("[data-do=folder]")) chooseFolder();
});
