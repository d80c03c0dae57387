// What htmx does not do: staying up to date with one stream for all tabs, changing a page under somebody's hands, coming back after a
// log-in, copying, and asking before something ends.
"use strict";

const page = () => document.getElementById("live"); // what is brought up to date, if it has topics
const fields = "input:not([type=hidden]), textarea, select";

// Whether somebody has changed a field.
function changed(field) {
  if (field.matches("select")) return [...field.options].some((o) => o.selected !== o.defaultSelected);
  return field.matches("[type=checkbox], [type=radio]") ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;
}
const written = (within) => [...document.querySelectorAll(within + " :is(input:not([type=hidden]), textarea)")].some(changed);

// What the page waits for: a button must not move away under somebody who decides, nor text under somebody who copies it.
function busy() {
  if (document.activeElement?.closest("form.decide") || written("form.decide")) return "waits while you write";
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(page(), true) ? "waits while you select" : "";
}

// A page is changed in place. What somebody writes, has opened or has sent is left as it is.
if (window.Idiomorph) {
  Idiomorph.defaults.callbacks.beforeNodeMorphed = (old) =>
    !(old.nodeType === Node.ELEMENT_NODE && old.matches(fields) && (old === document.activeElement || changed(old)));
  Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, element) =>
    !(name === "open" && element.matches("details") || element.matches("button[aria-busy]"));
}

// It is asked for once for all that is new at a time.
let due = 0;
function refresh() {
  due ||= setTimeout(() => {
    due = 0;
    if (page()?.dataset.topics && !document.hidden) htmx.trigger(page(), "stale");
  }, 50);
}
let kept = false; // something new is kept back
function keepBack(event) {
  if (event.target.id !== "live" || !busy()) return;
  kept = true;
  show();
  if (event.type === "htmx:beforeSwap") event.detail.shouldSwap = false;
  else event.preventDefault();
}
document.addEventListener("htmx:beforeRequest", keepBack);
document.addEventListener("htmx:beforeSwap", keepBack);
for (const type of ["focusout", "input", "selectionchange"]) {
  document.addEventListener(type, () => kept && setTimeout(() => {
    if (!busy()) {
      kept = false;
      refresh();
    }
    show();
  }));
}

// Whoever is not logged in any more is led to the log-in and back, and who has logged in anew meanwhile, maybe as somebody else, gets the page anew,
// unless they would lose what they wrote. So does who looks at what is gone, which the page then says. The console says each in a header: an answer
// without may be of a proxy before it, whose page would not lead back.
let link; // where they go when they like; undefined: they may stay
document.addEventListener("htmx:beforeOnLoad", (event) => {
  const { xhr } = event.detail;
  const here = location.pathname + location.search;
  link = undefined;
  if (xhr.getResponseHeader("HX-Redirect")) link = ["/login?next=" + encodeURIComponent(here), "log in again"];
  else if (xhr.getResponseHeader("HX-Refresh")) link = [here, "open it again"];
  if (!link) return;
  event.preventDefault();
  if (!written("main")) location.assign(link[0]);
});

let failed = false; // what is new was asked for, and not given
document.addEventListener("htmx:afterRequest", (event) => {
  failed = !event.detail.successful;
  show();
});

let state = ""; // of the stream: live, lost, or not known yet
function show() {
  const shown = document.getElementById("connection");
  if (!shown) return;
  const old = state === "lost" || failed;
  shown.classList.toggle("lost", old);
  if (link) {
    const a = document.createElement("a");
    [a.href, a.textContent] = link;
    shown.replaceChildren(a);
  } else {
    shown.textContent = old ? "not up to date" : kept && busy() || state;
  }
}

// All tabs hear of what is new, from the one that has the stream: over HTTP/1.1 a browser has six connections for all of them. It is one
// that is seen, since browsers put others to sleep.
const tabs = new BroadcastChannel("wayleave");
function hear(said) {
  if (said.state) {
    if (!state) refresh(); // for what was new since this page was made
    state = said.state;
    show();
  }
  const topics = page()?.dataset.topics?.split(" ") ?? [];
  if (topics.includes(said.topic) || said.topic === "all" || said.topic === "over") refresh();
}
function tell(said) {
  hear(said);
  tabs.postMessage(said);
}

const silence = 75_000; // in which there are two ticks
let stream; // undefined: this tab does not have it
let leave; // ends having the stream, or waiting for it; undefined: this tab does neither
function join() {
  if (leave || document.hidden || !page()?.dataset.topics) return;
  const waiting = new AbortController();
  let again;
  let silent; // ends a connection that died without a word, as when a machine was asleep: the browser would wait for it
  const heard = (said) => {
    clearTimeout(silent);
    silent = setTimeout(() => {
      stream.close();
      tell({ state: "lost" });
      tell({ topic: "all" });
      open();
    }, silence);
    if (said) tell(said);
  };
  const open = () => {
    stream = new EventSource("/events");
    heard();
    stream.onopen = () => heard({ state: "live" });
    stream.onerror = () => {
      tell({ state: "lost" });
      if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again
      clearTimeout(silent);
      tell({ topic: "all" }); // who is not logged in any more finds out by asking
      again = setTimeout(open, 5000);
    };
    for (const topic of ["all", "grants", "fleet", "decisions", "approvals", "sessions", "tick", "over"]) {
      stream.addEventListener(topic, () => heard({ topic }));
    }
  };
  const ended = new Promise((end) => {
    leave = () => {
      leave = undefined;
      waiting.abort();
      clearTimeout(again);
      clearTimeout(silent);
      stream?.close();
      stream = undefined;
      end();
    };
  });
  if (!navigator.locks) { // over HTTP, but for this machine: each tab that is seen has its own
    open();
    return;
  }
  navigator.locks.request("wayleave events", { signal: waiting.signal }, () => {
    if (waiting.signal.aborted) return undefined;
    open();
    return ended;
  }).catch((error) => {
    if (error.name !== "AbortError") throw error;
  });
  ask();
}
const ask = () => tabs.postMessage({ question: "state" });

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    leave?.();
  } else {
    join();
    refresh(); // for what was new meanwhile
  }
});
addEventListener("pagehide", () => leave?.());

const login = document.querySelector(".login[data-next]");
tabs.onmessage = ({ data }) => {
  if (login) {
    if (data.loggedIn) location.replace(login.dataset.next);
  } else if (data.question === "state") {
    if (stream && state) tabs.postMessage({ state }); // others may have heard less, and an answer of theirs come late
  } else {
    hear(data);
  }
};
if (login) { // a link that was printed for one log-in knows of no page: this tab may have come from one
  const next = login.querySelector("input[name=next]");
  if (!next) sessionStorage.setItem("next", login.dataset.next);
  else if (!new URLSearchParams(location.search).has("next")) next.value = sessionStorage.getItem("next") ?? next.value;
} else if (window.htmx) {
  sessionStorage.removeItem("next");
  tabs.postMessage({ loggedIn: true });
  join();
}

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

// A page that comes back from the browser's own memory is not busy any more, and may be old.
addEventListener("pageshow", (event) => {
  for (const button of document.querySelectorAll("button[aria-busy]")) {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
  if (event.persisted && window.htmx) {
    join();
    refresh();
  }
});
