"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.toLowerCase();
  };
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const sign = falling ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [keyOf(a, column), keyOf(b, column)];
        return x < y ? -sign : x > y ? sign : 0;
      });
      body.append(...rows);
    });
  });
  const bar = document.createElement("div");
  bar.className = "filter";
  const label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search";
  const count = document.createElement("output");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  input.addEventListener("input", filter);
  label.append("Only rows with ", input);
  bar.append(label, count);
  table.parentElement.before(bar);
  filter();
}
for (const shown of document.querySelectorAll("pre.copied")) {
  const bar = document.createElement("div");
  bar.className = "filter";
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  const said = document.createElement("output");
  button.addEventListener("click", async () => {
    // Selected first: where the browser does not let a page copy, a key does.
    getSelection().selectAllChildren(shown);
    try {
      await navigator.clipboard.writeText(shown.textContent);
      said.textContent = "copied";
    } catch {
      said.textContent = "selected: copy it with Ctrl+C or Cmd+C";
    }
  });
  bar.append(button, said);
  shown.before(bar);
}
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => {
    for (const fold of document.querySelectorAll(`${link.hash} > details.fold`)) fold.open = true;
  });
}
