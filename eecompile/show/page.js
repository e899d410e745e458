"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();

  /* Plots */

  // plotly.js is compressed in the page; it becomes a script once it is unpacked.
  async function load() {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // A copy of a figure, with the theme's colours for names of CSS variables.
  function themed(part, style) {
    if (typeof part === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(part);
      return name ? style.getPropertyValue(name[1]).trim() : part;
    }
    if (Array.isArray(part)) return part.map((item) => themed(item, style));
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, item]) => [key, themed(item, style)]));
  }

  // Where there is little room, only the first trace that is seen keeps its labels.
  function sparse(data) {
    const labelled = data.filter((trace) => trace.visible && trace.mode?.includes("text"));
    for (const trace of labelled.slice(1)) trace.mode = trace.mode.replace("+text", "");
  }

  function draw(element) {
    if (element.clientWidth === 0) return;
    const { data, layout } = themed(figures[element.dataset.figure], getComputedStyle(root));
    for (const trace of data) trace.visible = !hidden.has(String(trace.meta));
    layout.width = element.clientWidth;
    if (layout.width < 480) sparse(data);
    // Figures that would touch their neighbours in a heat map: touching a cell shows them too.
    const cells = data[0]?.type === "heatmap" ? data[0].z[0].length : 0;
    if (0.7 * layout.width < 40 * cells) layout.annotations = [];
    return Plotly.react(element, data, layout, {
      displayModeBar: false,
    });
  }

  const plots = [...document.querySelectorAll(".plot")];
  const drawAll = () => Promise.all(plots.map(draw));

  async function start() {
    await load();
    await drawAll();
    const widths = new Map(plots.map((plot) => [plot, plot.clientWidth]));
    const observer = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (widths.get(target) === target.clientWidth) continue;
        widths.set(target, target.clientWidth);
        draw(target);
      }
    });
    for (const plot of plots) observer.observe(plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    const paper = (printing) => {
      root.classList.toggle("paper", printing);
      drawAll();
    };
    addEventListener("beforeprint", () => paper(true));
    addEventListener("afterprint", () => paper(false));
    root.dataset.plots = "drawn";
  }

  start().catch((error) => {
    console.error(error);
    root.dataset.plots = "failed";
    for (const plot of plots) {
      plot.style.height = "auto";
      plot.textContent = "This browser cannot draw the plot; the tables hold the same figures.";
    }
  });

  /* Which candidates are shown */

  for (const key of document.querySelectorAll("[data-key]")) {
    key.addEventListener("click", () => {
      const candidate = key.dataset.key;
      const shown = hidden.delete(candidate);
      if (!shown) hidden.add(candidate);
      key.setAttribute("aria-pressed", String(shown));
      for (const part of document.querySelectorAll(`[data-candidate="${candidate}"]`)) {
        part.hidden = !shown;
      }
      if (window.Plotly) drawAll();
    });
  }

  /* Tables */

  // The order of two cells; those without a value come last whichever way it is sorted.
  function compare(one, other, numeric, sign) {
    const value = (cell) => (numeric ? cell.dataset.value : cell.textContent.trim());
    const [a, b] = [value(one), value(other)];
    const [noA, noB] = [a === "" || a === "–", b === "" || b === "–"];
    if (noA || noB) return noA - noB;
    if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
    return sign * (float(a) < float(b) ? -1 : float(a) > float(b) ? 1 : 0);
  }

  const float = (text) => Number(text.replace("inf", "Infinity"));

  function sort(table, head) {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const numeric = head.classList.contains("number");
    const rows = [...table.tBodies[0].rows];
    const cell = (row) => row.cells[head.cellIndex];
    rows.sort((one, other) => compare(cell(one), cell(other), numeric, ascending ? 1 : -1));
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      head.firstElementChild.addEventListener("click", () => sort(table, head));
    }
  }
})();
