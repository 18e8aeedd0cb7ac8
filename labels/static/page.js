// What every page does: enter with the code after #, send forms so that nothing is lost, count the
// seconds that the page is looked at, keep drafts, and the keys of the rating page.
"use strict";

// ------------------------------------------------------------------------------ entering

const enter = document.getElementById("enter");
if (enter && location.hash.length > 1) {
  enter.code.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname); // the code leaves the address and the history
  enter.submit();
}

// ------------------------------------------------------------------------------ seconds

// Time while the page is visible, of a clock that never jumps.
let looked = 0, since = document.hidden ? null : performance.now();
document.addEventListener("visibilitychange", () => {
  if (since !== null) looked += performance.now() - since;
  since = document.hidden ? null : performance.now();
});
const seconds = () => (looked + (since === null ? 0 : performance.now() - since)) / 1000;

const clock = document.querySelector(".time");
if (clock) setInterval(() => {
  const total = Math.floor(Number(clock.dataset.seconds) + seconds());
  clock.textContent = `${Math.floor(total / 60)}:${String(total % 60).padStart(2, "0")}`;
}, 1000);

// ------------------------------------------------------------------------------ sending

const lost = document.getElementById("lost");
const tell = text => { lost.textContent = text; lost.hidden = !text; };
const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

// Send a form until the server has answered. The server knows a form that it has kept: sending it
// twice gives one answer.
async function send(form) {
  if (form.dataset.sending) return; // a double click
  form.dataset.sending = "1";
  if (form.seconds) form.seconds.value = seconds().toFixed(1);
  const body = new URLSearchParams(new FormData(form));
  for (let tries = 0; ; tries++) {
    try {
      const answer = await fetch(form.action, {
        method: "POST", body, headers: { Accept: "application/json" } });
      tell("");
      if (answer.ok && answer.headers.get("Content-Type").startsWith("application/json")) {
        forget(form);
        location.assign((await answer.json()).next);
        return;
      }
      if (answer.redirected) { location.assign(answer.url); return; } // the session has ended
      if (answer.status === 503 || answer.status === 502) throw new Error("busy");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const problem = page.querySelector(".problem, main p");
      tell(problem ? problem.textContent : "This was not kept.");
      delete form.dataset.sending;
      return;
    } catch (error) {
      const wait = Math.min(1 + tries, 10);
      tell("No connection. Your answer is still here and is sent again every few seconds.");
      await pause(wait * 1000);
    }
  }
}

for (const form of document.querySelectorAll("form[data-send]")) {
  form.addEventListener("submit", event => { event.preventDefault(); send(form); });
}

// A page that the browser kept (back button) asks the server again.
window.addEventListener("pageshow", event => { if (event.persisted) location.reload(); });

// ------------------------------------------------------------------------------ drafts

// What is typed survives a reload of this tab, until it is sent.
const place = form => `draft ${form.dataset.draft}`;
function forget(form) { if (form.dataset.draft) sessionStorage.removeItem(place(form)); }
for (const form of document.querySelectorAll("form[data-draft]")) {
  const areas = [...form.querySelectorAll("textarea")];
  const kept = JSON.parse(sessionStorage.getItem(place(form)) || "{}");
  for (const area of areas) if (kept[area.name]) area.value = kept[area.name];
  form.addEventListener("input", () => sessionStorage.setItem(place(form),
    JSON.stringify(Object.fromEntries(areas.map(area => [area.name, area.value])))));
}

// ------------------------------------------------------------------------------ keys

const typing = target => target.closest("textarea, select, input:not([type=radio], [type=checkbox])");
const plainKey = event => !(event.ctrlKey || event.metaKey || event.altKey || typing(event.target));

const rate = document.querySelector("form.rate");
if (rate) document.addEventListener("keydown", event => {
  if (!plainKey(event)) return;
  const choice = rate.querySelector(`[name=likert][value="${event.key}"]`);
  if (choice) { choice.checked = true; choice.focus(); }
  if (event.key === "Enter" && !event.target.closest("a, button, summary")) {
    event.preventDefault();
    rate.requestSubmit();
  }
});
for (const keys of document.querySelectorAll(".keys")) keys.hidden = matchMedia("(pointer: coarse)").matches;

const waiting = document.querySelector("[data-reload]");
if (waiting) setTimeout(() => location.reload(), 1000 * waiting.dataset.reload);
