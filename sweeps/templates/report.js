"use strict";
// Tables: sorting, searching, hiding. Charts: drawn from the specifications in the page.

(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ------------------------------------------------------------------ the comparison table
  const table = document.getElementById("comparison");
  const rows = table ? all("tr[data-row]", table) : [];
  const search = document.getElementById("search");
  const again = document.getElementById("show-all");
  const references = document.getElementById("with-references");
  const hidden = new Set();

  const refresh = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const found = words.every((word) => text.includes(word));
      row.hidden = hidden.has(row) || !found;
    }
    for (const part of all("tbody.apart", table)) part.hidden = !references.checked;
    again.hidden = hidden.size === 0;
    again.textContent = `show ${hidden.size} hidden`;
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    const given = cell.dataset.value;
    if (given !== undefined) return given === "" ? null : Number(given);
    return cell.textContent.trim().toLowerCase();
  };

  const sortable = (target) => {
    const heads = all("thead th", target);
    heads.forEach((head, column) => {
      if (head.dataset.fixed !== undefined) return;
      head.tabIndex = 0;
      head.classList.add("sorts");
      const sort = () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        for (const body of target.tBodies) {
          const lines = all("tr[data-row]", body);
          const order = lines.map((row, at) => ({ row, at, value: valueOf(row, column) }));
          order.sort((a, b) => {
            if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
            const by = a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
            return (down ? -by : by) || a.at - b.at;
          });
          order.forEach(({ row }) => body.append(row));
        }
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  };

  if (table) {
    all("table.sortable").forEach(sortable);
    search.addEventListener("input", refresh);
    references.addEventListener("change", refresh);
    again.addEventListener("click", () => { hidden.clear(); refresh(); });
    for (const row of rows) {
      const button = document.createElement("button");
      button.className = "hide";
      button.type = "button";
      button.textContent = "×";
      button.title = "hide this row";
      button.addEventListener("click", () => { hidden.add(row); refresh(); });
      row.cells[0].append(button);
    }
    document.getElementById("tools").hidden = false;
  }

  // ------------------------------------------------------------------ copy and download
  const contents = (name) => JSON.parse(document.getElementById(`file-${name}`).textContent).text;
  const said = document.getElementById("said");
  const tell = (text) => { said.textContent = text; setTimeout(() => { said.textContent = ""; }, 2500); };
  const save = (name, data) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data]));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a file of the disk may have no clipboard
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    tell("copied");
  };
  const actions = {
    "copy-csv": () => copy(contents("csv")),
    "save-csv": () => save("comparison.csv", contents("csv")),
    "copy-latex": () => copy(contents("latex")),
    "save-latex": () => save("comparison.tex", contents("latex")),
    "save-parquet": () => {
      const text = atob(document.getElementById("file-parquet").textContent.trim());
      save("comparison.parquet", Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
    },
  };
  for (const [name, act] of Object.entries(actions)) {
    document.getElementById(name)?.addEventListener("click", act);
  }

  // ------------------------------------------------------------------ charts
  const names = { best: "--blue", chosen: "--orange", other: "--grey", ink: "--ink" };
  const painted = (part) => {  // names of colours of a specification -> the page's colours
    if (Array.isArray(part)) return part.map(painted);
    if (part === null || typeof part !== "object") return part;
    const out = {};
    for (const [key, value] of Object.entries(part)) {
      const colourful = ["value", "stroke", "range"].includes(key);
      const named = (text) => (typeof text === "string" && names[text] ? colour(names[text]) : text);
      if (key === "values") out[key] = value;  // data, which may hold any text
      else if (colourful && Array.isArray(value)) out[key] = value.map(named);
      else out[key] = colourful && typeof value === "string" ? named(value) : painted(value);
    }
    return out;
  };
  const config = (width) => {
    const soft = colour("--soft"), rule = colour("--rule"), ink = colour("--ink");
    return {
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { labelColor: soft, titleColor: soft, gridColor: rule, domainColor: rule,
        tickColor: rule, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 },
      legend: { labelColor: ink, titleColor: soft, orient: "bottom", labelLimit: 140,
        columns: Math.max(2, Math.min(6, Math.floor(width / 85))) },  // all names fit a phone
      text: { color: ink, fontSize: 12 },
      line: { stroke: colour("--blue") },
      bar: { fill: colour("--blue") },
      point: { fill: colour("--blue") },
    };
  };
  const views = [];
  const draw = (figure) => {
    const spec = JSON.parse(figure.nextElementSibling.textContent);
    figure.classList.add("drawn");
    vegaEmbed(figure, painted(spec), {
      ast: true, renderer: "svg", actions: { export: true, source: false, compiled: false,
        editor: false }, config: config(figure.clientWidth), downloadFileName: spec.description,
    }).then((found) => views.push(found.view)).catch((error) => {
      figure.textContent = `This chart could not be drawn: ${error.message}`;
    });
  };
  all(".vega").forEach(draw);

  // ------------------------------------------------------------------ paper
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])").filter((part) => !part.closest("td"));
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
})();
