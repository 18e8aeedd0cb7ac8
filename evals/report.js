"use strict";
// The buttons show the prompts of one category alone; without this script all are shown.
const filter = document.querySelector(".filter");
const articles = document.querySelectorAll("article[data-category]");
if (filter) {
  filter.hidden = false;
  filter.addEventListener("click", (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    for (const button of filter.querySelectorAll("button"))
      button.setAttribute("aria-pressed", button === pressed);
    const wanted = pressed.dataset.show;
    for (const article of articles)
      article.hidden = wanted !== "" && article.dataset.category !== wanted;
  });
}
// On paper nothing can be opened.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
