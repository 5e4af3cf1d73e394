"use strict";
(() => {
  const rows = [...document.querySelectorAll("details.row")];
  const search = document.getElementById("search");
  const only = document.getElementById("only");
  const found = document.getElementById("found");
  const unfold = document.getElementById("unfold");

  if (search) {
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const marks = rows.map((row) => row.dataset.marks.split("|"));
    const narrow = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const mark = only ? only.value : "";
      let left = 0;
      rows.forEach((row, at) => {
        const fits = words.every((word) => texts[at].includes(word)) && (!mark || marks[at].includes(mark));
        row.hidden = !fits;
        left += fits;
      });
      found.value = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    };
    search.addEventListener("input", narrow);
    if (only) only.addEventListener("change", narrow);
    search.form.addEventListener("submit", (event) => event.preventDefault());
    unfold.addEventListener("click", () => {
      const open = unfold.getAttribute("aria-pressed") !== "true";
      unfold.setAttribute("aria-pressed", String(open));
      unfold.textContent = open ? "Fold all" : "Unfold all";
      rows.forEach((row) => { row.open = open; });
    });
    narrow();
  }

  // a tooltip is made when it is looked for: a page has a hundred thousand tokens
  const tell = (event) => {
    const piece = event.target.closest ? event.target.closest("i[data-p]") : null;
    if (piece && !piece.title) piece.title = `${piece.dataset.p} nats`;
  };
  document.addEventListener("pointerover", tell);
  let shown = null;
  document.addEventListener("click", (event) => {
    if (shown) shown.remove();
    shown = null;
    const piece = event.target.closest("i[data-p]");
    if (!piece) return;
    shown = document.createElement("span");
    shown.className = "told";
    shown.textContent = ` ${piece.dataset.p} nats `;
    piece.after(shown);
  });
})();
