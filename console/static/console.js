// What htmx does not do: copying, asking before something ends, and saying whether this page is up to date.
"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    button.textContent = "Selected";
  }
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  const button = event.submitter;
  const question = (button && button.dataset.confirm) || form.dataset.confirm;
  if (question && !confirm(question)) {
    event.preventDefault();
    return;
  }
  if (button) setTimeout(() => { button.disabled = true; button.setAttribute("aria-busy", "true"); });
});

// A page that comes back from the browser's own memory is not busy any more.
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button[aria-busy]")) {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
});

// Somebody who is about to decide keeps what they have written: the page is asked for again with the next event, and what was
// asked for before they began is not shown.
function deciding() {
  const form = document.activeElement && document.activeElement.closest("form.decide");
  return form || [...document.querySelectorAll("form.decide input:not([type=hidden])")].some((input) => input.value);
}
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "live" && deciding()) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id === "live" && deciding()) event.detail.shouldSwap = false;
});

function connection(text, lost) {
  const shown = document.getElementById("connection");
  if (!shown) return;
  shown.textContent = text;
  shown.classList.toggle("lost", lost);
}
document.addEventListener("htmx:sseOpen", () => connection("live", false));
document.addEventListener("htmx:sseError", () => connection("not up to date", true));
