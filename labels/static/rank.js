// The ranking board: cards go into columns by a click on a number, by keys, or by dragging. The
// radio buttons hold the ranks; the columns show them. Without this script the buttons still work.
"use strict";

const board = document.getElementById("rank");
const cards = [...board.querySelectorAll(".card")];
const tray = board.querySelector(".tray .cards");
const places = [...board.querySelectorAll(".cards")]; // the tray, then the columns
const submit = document.getElementById("submit"), undo = document.getElementById("undo");
const spoken = document.getElementById("spoken");
const past = []; // [[card, its rank before]] of every move
const ranks = new Map(); // card -> the rank by which it was placed

const rankOf = card => Number(card.querySelector("input:checked")?.value || 0);
const marked = () => board.querySelector(".card.marked");

function mark(card) {
  marked()?.classList.remove("marked");
  card?.classList.add("marked");
}

// Put a card where its rank says; cards of a column stay in the order of their letters.
function settle(card) {
  const to = places[rankOf(card)];
  const next = [...to.children].find(other => other !== card && other.dataset.letter > card.dataset.letter);
  to.insertBefore(card, next || null);
}

function speak(card) {
  const rank = rankOf(card);
  const others = cards.filter(c => c !== card && rank && rankOf(c) === rank).map(c => c.dataset.letter);
  const said = rank ? `rank ${rank}${others.length ? `, with ${others.join(" and ")}` : ""}` : "not ranked";
  card.setAttribute("aria-label", `Output ${card.dataset.letter}, ${said}`);
  return `Output ${card.dataset.letter}: ${said}.`;
}

function refresh() {
  const left = cards.filter(card => !rankOf(card)).length;
  submit.setAttribute("aria-disabled", left > 0);
  undo.disabled = !past.length;
  cards.forEach(speak);
}

// Give a card a rank; 0 takes it back to the tray.
function move(card, rank, remember = true) {
  for (const input of card.querySelectorAll("input")) input.checked = Number(input.value) === rank;
  if (remember && ranks.get(card) !== rank) past.push([card, ranks.get(card)]);
  ranks.set(card, rank);
  settle(card);
  refresh();
  spoken.textContent = speak(card);
}

function takeBack() {
  const last = past.pop();
  if (!last) return;
  move(last[0], last[1], false);
  mark(last[0]);
  last[0].focus();
}

// ------------------------------------------------------------------------------ buttons

for (const card of cards) {
  ranks.set(card, rankOf(card));
  card.addEventListener("change", event => {
    move(card, rankOf(card));
    event.target.focus(); // moving a card takes the focus away
  });
  card.addEventListener("focusin", () => mark(card));
}
undo.addEventListener("click", takeBack);
submit.addEventListener("click", event => {
  const open = cards.find(card => !rankOf(card));
  if (!open) return;
  event.preventDefault();
  spoken.textContent = `Output ${open.dataset.letter} has no rank yet.`;
  mark(open);
  open.focus();
});

// ------------------------------------------------------------------------------ keys

document.addEventListener("keydown", event => {
  if (typing(event.target)) return;
  const key = event.key, card = event.target.closest(".card") || marked() || cards.find(c => !rankOf(c));
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z" || plainKey(event) && key === "u") {
    event.preventDefault();
    return takeBack();
  }
  if (!plainKey(event)) return;
  if (/^[0-9]$/.test(key) && card && Number(key) < places.length) {
    event.preventDefault();
    move(card, Number(key));
    const next = Number(key) ? cards.find(c => !rankOf(c)) : card; // on to the next one
    if (next) { mark(next); next.focus({ preventScroll: false }); } else submit.focus();
  } else if ((key === "Backspace" || key === "Delete") && card) {
    event.preventDefault();
    move(card, 0);
    card.focus();
  } else if (/^Arrow/.test(key) && !event.target.matches("input")) {
    event.preventDefault();
    const order = [...board.querySelectorAll(".card")];
    const step = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    const to = order[(order.indexOf(marked()) + step + order.length) % order.length];
    mark(to);
    to.focus();
  } else if (key === "Enter" && !event.target.closest("a, button, summary")) {
    event.preventDefault();
    submit.click();
  }
});

// ------------------------------------------------------------------------------ dragging

for (const card of cards) {
  const grip = card.querySelector(".grip");
  grip.addEventListener("pointerdown", event => {
    if (event.button) return;
    event.preventDefault();
    drag(card, grip, event);
  });
}

function drag(card, grip, start) {
  const box = card.getBoundingClientRect();
  let flying = null, over = null;
  grip.setPointerCapture(start.pointerId);
  const moved = event => {
    const far = Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > 5;
    if (!flying && !far) return;
    if (!flying) {
      flying = card.cloneNode(true);
      flying.removeAttribute("id");
      flying.querySelectorAll("input").forEach(input => input.remove());
      flying.className = "card flying";
      flying.style.width = `${box.width}px`;
      document.body.append(flying);
      card.classList.add("lifted");
    }
    flying.style.left = `${box.left + event.clientX - start.clientX}px`;
    flying.style.top = `${box.top + event.clientY - start.clientY}px`;
    const edge = 60; // near the edge of the window the page scrolls along
    if (event.clientY < edge) scrollBy(0, -12);
    if (event.clientY > innerHeight - edge) scrollBy(0, 12);
    const at = document.elementFromPoint(event.clientX, event.clientY)?.closest(".column, .tray");
    if (at !== over) { over?.classList.remove("over"); at?.classList.add("over"); over = at; }
  };
  const end = event => {
    grip.removeEventListener("pointermove", moved);
    grip.removeEventListener("pointerup", end);
    grip.removeEventListener("pointercancel", end);
    flying?.remove();
    card.classList.remove("lifted");
    over?.classList.remove("over");
    if (event.type === "pointerup") {
      if (flying && over) move(card, Number(over.dataset.rank || 0));
      mark(card);
      card.focus({ preventScroll: true });
    }
  };
  grip.addEventListener("pointermove", moved);
  grip.addEventListener("pointerup", end);
  grip.addEventListener("pointercancel", end);
}

// ------------------------------------------------------------------------------ the beginning

for (const what of [board.querySelector(".columns"), undo]) what.hidden = false;
const wide = matchMedia("(min-width: 761px)").matches;
if (wide) tray.style.minHeight = `${tray.offsetHeight}px`; // the columns below stay where they are
cards.forEach(settle);
refresh();
mark(cards.find(card => !rankOf(card)) || cards[0]);
