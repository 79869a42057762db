// Keys, and answers that feel instant: the page holds the next task already, shows it at once and
// sends the answer behind its back. Without this script every form works as an ordinary form.
"use strict";
document.documentElement.classList.add("scripted");

const work = document.getElementById("work");
const notice = document.getElementById("notice");
const remembered = { diff: false, keys: true };
let sending = null; // the answer on its way, if any
let noticeTimer = 0;

function say(text, failed = false) {
  notice.textContent = text;
  notice.classList.toggle("failed", failed);
  notice.classList.add("shown");
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => notice.classList.remove("shown"), failed ? 8000 : 1500);
}

function remember(id) {
  const box = document.getElementById(id);
  if (!box) return;
  try {
    const kept = localStorage.getItem("trueup-" + id);
    box.checked = kept === null ? remembered[id] : kept === "yes";
  } catch { /* no storage, no memory */ }
  box.addEventListener("change", () => {
    try { localStorage.setItem("trueup-" + id, box.checked ? "yes" : "no"); } catch { /* the same */ }
  });
}

function parsed(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html; // from our own server, which escaped it; a template runs nothing
  return holder.content;
}

// a long conversation opens at its last turn, which is the question
function toQuestion() {
  const turns = work.querySelector(".turns");
  const last = turns && turns.querySelector(".turn.last");
  if (last) turns.scrollTop = last.offsetTop - turns.offsetTop;
}

function show(nodes) {
  work.replaceChildren(...nodes);
  toQuestion();
  window.scrollTo(0, 0);
  const title = work.querySelector("h1");
  if (title) title.focus({ preventScroll: true });
}

async function send(form, button) {
  if (sending) await sending;
  if (!form.isConnected) return;
  const body = new FormData(form);
  if (button && button.name) body.set(button.name, button.value);
  const isUndo = Boolean(button && button.classList.contains("undo"));
  const before = [...work.childNodes];
  const ahead = isUndo ? null : work.querySelector("#ahead");
  const card = ahead && ahead.content.querySelector(".card");
  if (button) button.classList.add("chosen");
  const shownAhead = card ? card.dataset.task : null;
  if (card) show([card]);
  const address = isUndo ? "/undo" : form.getAttribute("action");
  sending = (async () => {
    try {
      const response = await fetch(address, {
        method: "POST",
        headers: { "HX-Request": "true" },
        body: new URLSearchParams(body),
        redirect: "error",
      });
      if (response.status === 401) { location.href = "/login"; return; }
      if (!response.ok) {
        const said = await response.json().catch(() => ({}));
        throw new Error([said.error, said.hint].filter(Boolean).join(" ") || "The answer was not saved.");
      }
      const fresh = parsed(await response.text());
      const next = fresh.querySelector(".card");
      if (shownAhead && next && next.dataset.task === shownAhead) {
        const later = fresh.querySelector("#ahead");
        const status = work.querySelector(".status");
        const now = next.querySelector(".status");
        if (status && now) status.replaceWith(now);
        if (later) work.append(later);
      } else {
        show([...fresh.childNodes]);
      }
      if (location.pathname !== "/") history.replaceState(null, "", "/");
      say(isUndo ? "Taken back." : "Saved.");
    } catch (error) {
      show(before);
      if (button) button.classList.remove("chosen");
      if (card) before.find((one) => one.id === "ahead")?.content.append(card);
      say(error instanceof TypeError ? "The server cannot be reached. Nothing was saved; try again." : error.message, true);
    } finally {
      sending = null;
    }
  })();
  await sending;
}

function unfold(details) {
  if (!details) return;
  details.open = true;
  details.querySelector("textarea").focus();
}

function press(key) {
  const button = work.querySelector(`button[data-key="${CSS.escape(key)}"]`);
  if (button) return button.click();
  if (key === "d") document.getElementById("diff").click();
  else if (key === "e") unfold(work.querySelectorAll(".edit")[0]);
  else if (key === "r") unfold(work.querySelectorAll(".edit")[1]);
  else if (key === "c") unfold(work.querySelector(".comment"));
  else if (key === "?") document.getElementById("help").showModal();
  else return false;
  return true;
}

if (work) {
  remember("diff");
  remember("keys");
  toQuestion();
  work.addEventListener("submit", (event) => {
    if (event.submitter && event.submitter.classList.contains("none")) return event.preventDefault();
    if (event.target.dataset.action === "/second-look/") return; // goes back to the list
    event.preventDefault();
    send(event.target, event.submitter);
  });
  document.getElementById("help-open").addEventListener("click", () => document.getElementById("help").showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    if (document.querySelector("dialog[open]")) return;
    const field = event.target.closest("textarea, select, input:not([type=checkbox])");
    if (field) {
      if (event.key === "Escape") field.blur();
      return;
    }
    if (!document.getElementById("keys").checked && event.key !== "?") return;
    if (press(event.key.length === 1 ? event.key.toLowerCase() : event.key) !== false) event.preventDefault();
  });
}
