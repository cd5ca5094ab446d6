// Files go in through Gradio's own inputs, whether they are dropped, pasted or in folders. A file of a folder is named
// with the folders that it is in, so that two of the same name stay apart.
const inputs = {
  shelf: () => document.querySelector("#files input[type=file]"),
  question: () => document.getElementById("attach")?.parentElement.querySelector("input[type=file]"),
};
const kinds = () => document.querySelector("#target [data-kinds]")?.dataset.kinds.split(" ") ?? [];
const hidden = (name) => /(^|\/)(\.|~\$|__MACOSX)/.test(name);
const readable = (name) => kinds().some((kind) => name.toLowerCase().endsWith(kind));

const give = (place, files) => {
  const input = inputs[place]();
  if (!input || !files.length) return;
  const carrier = new DataTransfer();
  for (const file of files) carrier.items.add(file);
  input.multiple = true;
  input.files = carrier.files;
  if (place === "question") expectChips();
  input.dispatchEvent(new Event("change", { bubbles: true }));
};

// What a folder holds beside files that can be read is left out, and counted.
const giveFolder = (place, named) => {
  const chosen = named.filter(([name]) => !hidden(name) && readable(name));
  give(place, chosen.map(([name, file]) => new File([file], name, { type: file.type })));
  if (chosen.length < named.length) trigger("click", { do: "skipped", count: named.length - chosen.length });
};

const entriesOf = async (folder) => {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some);
  }
};

const walk = async (entry) => {
  if (entry.isFile) {
    return [[entry.fullPath.slice(1), await new Promise((resolve, reject) => entry.file(resolve, reject))]];
  }
  return (await Promise.all((await entriesOf(entry)).map(walk))).flat();
};

const giveDropped = async (place, transfer) => {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const alone = [...transfer.files].filter((_, at) => !entries[at]?.isDirectory);
  const folders = entries.filter((entry) => entry.isDirectory);
  if (!folders.length) return give(place, alone);
  const inside = (await Promise.all(folders.map(walk))).flat();
  giveFolder(place, [...alone.map((file) => [file.name, file]), ...inside]);
};

const chooseFolder = () => {
  const input = Object.assign(document.createElement("input"), { type: "file", webkitdirectory: true });
  input.addEventListener("change", () =>
    giveFolder("shelf", [...input.files].map((file) => [file.webkitRelativePath || file.name, file])));
  input.click();
};

// Over the chat a file is put beside the question, over the left pane it goes to the shelf.
const placeOf = (target) => (target.closest?.("#centre") ? "question" : target.closest?.("#left") ? "shelf" : null);
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const mark = (place) => {
  document.getElementById("centre")?.classList.toggle("dropping", place === "question");
  document.getElementById("files")?.classList.toggle("dropping", place === "shelf");
};
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault(); // else the browser would leave the page for the file
  mark(placeOf(event.target));
}, true);
document.addEventListener("dragleave", (event) => event.relatedTarget || mark(null), true);
document.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  event.stopPropagation();
  mark(null);
  const place = placeOf(event.target);
  if (place) giveDropped(place, event.dataTransfer);
}, true);
document.addEventListener("paste", (event) => {
  if (!event.target.closest?.("#text") || !event.clipboardData?.files.length) return;
  event.preventDefault();
  give("question", [...event.clipboardData.files]);
}, true);

// A question that is sent while its files are on their way waits until they have arrived.
let awaited = 0;
let held = false;
const expectChips = () => { awaited = Date.now(); held = false; };
document.getElementById("attach")?.parentElement.addEventListener("change", (event) => {
  if (event.target.type === "file") expectChips();
}, true);
const holdBack = (event) => {
  if (held || Date.now() - awaited > 60000) return; // asked twice: it goes
  held = true;
  event.preventDefault();
  event.stopImmediatePropagation();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.closest?.("#text")) holdBack(event);
}, true);
document.addEventListener("click", (event) => {
  if (event.isTrusted && event.target.closest?.("#text .submit-button")) holdBack(event);
}, true);
const chips = document.getElementById("chips");
const lookedAt = () => chips.querySelector(".chips")?.dataset.at;
if (chips) {
  let last;
  new MutationObserver(() => {
    if (lookedAt() === last) return; // a sign of Gradio's that it is at work
    last = lookedAt();
    awaited = 0;
    if (held) document.querySelector("#text .submit-button")?.click();
    held = false;
  }).observe(chips, { childList: true, subtree: true, characterData: true });
}
