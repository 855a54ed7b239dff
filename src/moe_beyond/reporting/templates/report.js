"use strict";
(() => {
  const root = document.documentElement;
  const theme = JSON.parse(document.getElementById("theme").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 420; // CSS pixels of a chart
  const MANY_MARKS = 400_000; // characters of a chart: tens of thousands of elements make a page slow

  let printing = false; // paper is white
  const mode = () => (printing ? "light" : root.dataset.mode || (dark.matches ? "dark" : "light"));
  // the twin of theme.paint: "@blue" becomes the mode's blue
  const paint = (text, which) =>
    JSON.parse(text.replace(/"@([a-z]+)"/g, (_, name) => JSON.stringify(theme.colours[which][name])));

  // ---- charts --------------------------------------------------------------------------------------------------
  const charts = [...document.querySelectorAll("figure")].map((figure) => ({
    place: figure.querySelector(".chart"),
    text: figure.querySelector("script").textContent,
    hasLegend: figure.querySelector(".legend") !== null,
    drawn: "",
  }));

  async function draw(chart, which) {
    const narrow = chart.place.clientWidth < NARROW;
    if (chart.drawn === `${which} ${narrow}`) return;
    chart.drawn = `${which} ${narrow}`;
    const spec = paint(chart.text, which);
    spec.config = paint(JSON.stringify(theme.config), which);
    spec.config.legend.disable = chart.hasLegend;
    spec.config.legend.columns = narrow ? 1 : 3;
    if (narrow) spec.config.axis.tickCount = 4;
    chart.embedded?.finalize();
    const renderer = chart.text.length > MANY_MARKS ? "canvas" : "svg";
    const options = { mode: "vega-lite", renderer, actions: false, tooltip: { theme: which } };
    chart.embedded = await vegaEmbed(chart.place, spec, options);
    // the container says in words what the chart shows
    chart.place.querySelector("svg, canvas").setAttribute("aria-hidden", "true");
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) draw(charts.find((chart) => chart.place === entry.target), mode());
      }
    },
    { rootMargin: "800px 0px" },
  );
  charts.forEach((chart) => near.observe(chart.place));
  const redraw = () => charts.filter((chart) => chart.drawn).forEach((chart) => draw(chart, mode()));
  dark.addEventListener("change", redraw);
  addEventListener("resize", redraw);
  addEventListener("beforeprint", () => {
    printing = true;
    charts.filter((chart) => chart.place.clientWidth).forEach((chart) => draw(chart, mode()));
  });
  addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });

  // ---- theme ---------------------------------------------------------------------------------------------------
  const button = document.getElementById("mode");
  const next = { automatic: "light", light: "dark", dark: "automatic" };
  button.hidden = false;
  button.addEventListener("click", () => {
    const chosen = next[root.dataset.mode || "automatic"];
    if (chosen === "automatic") delete root.dataset.mode;
    else root.dataset.mode = chosen;
    button.textContent = `Theme: ${chosen}`;
    redraw();
  });

  // ---- explorer ------------------------------------------------------------------------------------------------
  const explorer = document.getElementById("explore");
  const data = JSON.parse(explorer.querySelector("script").textContent);
  const form = explorer.querySelector("form");
  const { split, device, group, capacity, size } = form.elements;
  const table = explorer.querySelector("table");
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  function show() {
    const states = data.states[split.value][device.value];
    capacity.max = states.length - 1;
    const state = states[Math.min(capacity.value, states.length - 1)];
    size.textContent = state.label;
    capacity.setAttribute("aria-valuetext", state.label);
    const rows = state.rows.filter((row) => row.in.includes(group.value));
    const words = [split, device].map((control) => control.selectedOptions[0].text);
    const name = `${words.join(", ")}, ${state.label}: ${rows.length} of ${state.rows.length} policies`;
    explorer.querySelector(".caption").textContent = name;
    table.setAttribute("aria-label", name);
    table.tBodies[0].replaceChildren(
      ...rows.map((row) => {
        const line = element("tr", "");
        line.className = row.ours ? "chosen" : "";
        line.append(...row.cells.map((text, column) => element(column ? "td" : "th", text)));
        line.cells[0].scope = "row";
        return line;
      }),
    );
  }

  for (const [control, options] of [[split, data.splits], [device, data.devices], [group, data.groups]]) {
    options.forEach(([value, text]) => control.add(new Option(text, value)));
  }
  capacity.max = data.states[split.value][device.value].length - 1;
  capacity.value = data.start;
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
