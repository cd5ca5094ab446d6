// A reply is read out sentence by sentence: the component's own live region would begin anew with each token.
const live = document.createElement("div");
live.className = "only-read";
live.setAttribute("aria-live", "polite");
document.getElementById("centre").append(live);
const SENTENCES = /^[\s\S]*(?:[.!?…](?=\s)|[。！？])/;
let read = "";

const announce = (ended = false) => {
  const bubble = [...document.querySelectorAll("#messages .bot.message")].at(-1);
  if (!bubble) return;
  const whole = [...bubble.querySelectorAll(".prose > :not(.acts, .cited)")].map((part) => part.textContent).join(" ");
  if (!whole.startsWith(read)) read = "";
  const more = ended ? whole.slice(read.length) : (whole.slice(read.length).match(SENTENCES)?.[0] ?? "");
  if (more.trim()) live.textContent = more;
  read = ended ? "" : read + more;
};
setInterval(() => {
  document.querySelector("#messages [role=log][aria-live=polite]")?.setAttribute("aria-live", "off");
  if (replying) announce();
}, 1500);
