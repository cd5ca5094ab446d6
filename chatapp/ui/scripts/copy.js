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
