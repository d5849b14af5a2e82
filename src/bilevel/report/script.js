(() => {
  "use strict";
  const live = document.querySelector(".live");

  // Sorting: a head becomes a button; up, down, then the order of the page again.
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  const key = (row, column) => {
    const cell = row.children[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };

  // What has no value stays last, in either direction.
  const order = (rows, column, direction) => {
    const empty = (row) => ["", "—"].includes(key(row, column));
    const sign = direction === "ascending" ? 1 : -1;
    const full = rows.filter((row) => !empty(row));
    full.sort((a, b) => sign * compare(key(a, column), key(b, column)));
    return [...full, ...rows.filter(empty)];
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const direction = NEXT[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (direction !== "none") head.setAttribute("aria-sort", direction);
        body.append(...(direction === "none" ? original : order(original, column, direction)));
        live.textContent = direction === "none" ? "Original order" : `Sorted by ${button.textContent.trim()}, ${direction}`;
      });
    });
  };

  // Filtering: all words have to be in the row, and every choice has to be met.
  const filter = (table, tools) => {
    const search = tools.querySelector("input");
    const selects = [...tools.querySelectorAll("select")];
    const count = tools.querySelector("output");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        const chosen = selects.every((select) => !select.value || row.dataset[select.dataset.key] === select.value);
        row.hidden = !(chosen && words.every((word) => text.includes(word)));
      });
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    };
    [search, ...selects].forEach((control) => control.addEventListener("input", apply));
    apply();
    tools.hidden = false;
  };

  const searchable = (table) => {
    const tools = document.createElement("div");
    tools.className = "tools";
    tools.innerHTML = '<label class="search">Filter <input type="search" autocomplete="off"></label><output class="count"></output>';
    table.closest(".scroll").before(tools);
    filter(table, tools);
  };

  document.querySelectorAll("table[data-sortable]").forEach(sortable);
  document.querySelectorAll("table[data-searchable]").forEach(searchable);
  document.querySelectorAll(".tools[data-filter]").forEach((tools) => {
    const table = document.getElementById(tools.dataset.filter);
    if (table) filter(table, tools);
  });

  // Paper has nothing to click on.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open], .configuration)")];
    closed.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((details) => (details.open = false)));

  // The contents follow the reader.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  document.querySelector(".contents").classList.add("folded");
  let waiting = false;
  const follow = () => {
    waiting = false;
    const above = sections.filter((section) => section.getBoundingClientRect().top < innerHeight / 3);
    links.forEach((link) => link.removeAttribute("aria-current"));
    if (above.length) links.get(above[above.length - 1].id).setAttribute("aria-current", "true");
  };
  addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(follow);
    waiting = true;
  }, { passive: true });
  follow();
})();
