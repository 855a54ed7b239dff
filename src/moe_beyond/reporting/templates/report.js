"use strict";
(() => {
  const root = document.documentElement;
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PIXELS_PER_LEGEND_COLUMN = 215;
  const NARROW = 420;
  const MANY_MARKS = 400_000; // characters of a chart: tens of thousands of elements make a page slow

  const mode = () => root.dataset.mode || (dark.matches ? "dark" : "light");

  // the twin of theme.paint: "@blue" becomes the theme's blue
  const paint = (text, which) =>
    JSON.parse(text.replace(/"@([a-z]+)"/g, (_, name) => JSON.stringify(themes.colours[which][name])));

  // ---- tooltip -------------------------------------------------------------------------------------------------
  const tip = document.getElementById("tip");
  const showTip = (_handler, event, _item, value) => {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    const list = document.createElement("dl");
    for (const [key, text] of Object.entries(typeof value === "object" ? value : { "": value })) {
      list.append(Object.assign(document.createElement("dt"), { textContent: key }));
      list.append(Object.assign(document.createElement("dd"), { textContent: text }));
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
    const top = event.clientY + 14 + box.height > innerHeight ? event.clientY - 14 - box.height : event.clientY + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };

  // ---- charts --------------------------------------------------------------------------------------------------
  const charts = [...document.querySelectorAll("figure")].map((figure) => ({
    place: figure.querySelector(".chart"),
    text: figure.querySelector("script").textContent,
    hasLegend: figure.querySelector(".legend") !== null,
    embedded: null,
    drawn: "",
  }));

  const legendColumns = (width) => Math.max(1, Math.min(4, Math.floor(width / PIXELS_PER_LEGEND_COLUMN)));

  async function draw(chart, which) {
    const columns = legendColumns(chart.place.clientWidth);
    const state = `${which} ${columns}`;
    if (chart.drawn === state) return;
    chart.drawn = state;
    const spec = paint(chart.text, which);
    spec.config = paint(JSON.stringify(themes.config), which);
    spec.config.legend.columns = columns;
    spec.config.legend.disable = chart.hasLegend;
    if (chart.place.clientWidth < NARROW) spec.config.axis.tickCount = 4;
    if (chart.embedded) chart.embedded.finalize();
    const renderer = chart.text.length > MANY_MARKS ? "canvas" : "svg";
    const options = { mode: "vega-lite", renderer, actions: false, tooltip: showTip };
    chart.embedded = await vegaEmbed(chart.place, spec, options);
    // the container says in words what the chart shows
    chart.place.querySelector("svg, canvas").setAttribute("aria-hidden", "true");
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const chart = charts.find((candidate) => candidate.place === entry.target);
        chart.near = entry.isIntersecting;
        if (chart.near) draw(chart, mode());
      }
    },
    { rootMargin: "800px 0px" },
  );
  charts.forEach((chart) => near.observe(chart.place));
  const redraw = () => charts.filter((chart) => chart.near || chart.drawn).forEach((chart) => draw(chart, mode()));
  dark.addEventListener("change", redraw);
  let pending = 0;
  addEventListener("resize", () => {
    clearTimeout(pending);
    pending = setTimeout(redraw, 120);
  });
  // paper is white: print light charts, all of them
  addEventListener("beforeprint", () => {
    root.dataset.before = root.dataset.mode || "";
    root.dataset.mode = "light";
    charts.forEach((chart) => draw(chart, "light"));
  });
  addEventListener("afterprint", () => {
    if (root.dataset.before) root.dataset.mode = root.dataset.before;
    else delete root.dataset.mode;
    redraw();
  });

  // ---- theme ---------------------------------------------------------------------------------------------------
  const button = document.getElementById("mode");
  const names = { "": "automatic", light: "light", dark: "dark" };
  const next = { "": "light", light: "dark", dark: "" };
  button.hidden = false;
  button.addEventListener("click", () => {
    const chosen = next[root.dataset.mode || ""];
    if (chosen) root.dataset.mode = chosen;
    else delete root.dataset.mode;
    button.textContent = `Theme: ${names[chosen]}`;
    redraw();
  });

  // ---- contents ------------------------------------------------------------------------------------------------
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const passed = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  document.querySelectorAll("main > section[id]").forEach((section) => passed.observe(section));

  // ---- explorer ------------------------------------------------------------------------------------------------
  const explorer = document.getElementById("explore");
  if (explorer) {
    const data = JSON.parse(explorer.querySelector("script").textContent);
    const form = explorer.querySelector("form");
    const { split, device, latency, capacity, size, policies, order } = form.elements;
    const best = explorer.querySelector(".best");
    const even = explorer.querySelector(".even");
    const clock = () => [device.selectedIndex, latency ? latency.selectedIndex : 0];
    const table = explorer.querySelector("table");
    const caption = explorer.querySelector(".caption");

    const orders = [
      ["Hit rate", (policy) => -policy.hit],
      ["Fewest bytes", (policy) => policy.mib],
    ];
    if (device) {
      const ms = (policy) => policy.ms[device.selectedIndex][latency ? latency.selectedIndex : 0];
      orders.unshift(["Tokens per second", (policy) => ms(policy) ?? Infinity]);
    }
    const chosenRows = (state) => {
      const group = data.groups[policies.selectedIndex][0];
      const by = orders[order.selectedIndex][1];
      // sorting is stable, and the rows come with the best hit rate first
      return state.rows.filter((policy) => group === "all" || policy.in.includes(group)).sort((a, b) => by(a) - by(b));
    };

    const cell = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

    function row(policy) {
      const line = document.createElement("tr");
      const name = cell("th", policy.cells[0]);
      name.scope = "row";
      line.append(name);
      const hit = cell("td", "");
      const meter = Object.assign(document.createElement("span"), { className: "meter", ariaHidden: "true" });
      const bar = Object.assign(document.createElement("span"), { className: "bar" });
      bar.style.width = `${100 * policy.hit}%`;
      bar.style.background = policy.colour === "ink" ? "var(--ink)" : `var(--${policy.colour})`;
      meter.append(bar);
      hit.append(meter, policy.cells[1]);
      const times = device ? policy.times[clock()[0]][clock()[1]] : [];
      const cells = (texts) => texts.map((text) => cell("td", text));
      line.append(...cells(times.slice(0, data.leading)), hit);
      line.append(...cells(policy.cells.slice(2)), ...cells(times.slice(data.leading)));
      return line;
    }

    function show() {
      const chosen = data.splits[split.selectedIndex];
      const state = chosen.states[Number(capacity.value)];
      size.textContent = state.label;
      capacity.setAttribute("aria-valuetext", state.label);
      const words = [`${chosen.label} at ${state.label}`];
      if (device) words.push(data.devices[device.selectedIndex]);
      if (latency) words.push(`predictor ${data.latencies[latency.selectedIndex]}`);
      const rows = chosenRows(state);
      words.push(rows.length < state.rows.length ? `${rows.length} of ${state.rows.length} policies` : `${rows.length} policies`);
      const name = words.join("; ");
      caption.textContent = name;
      table.setAttribute("aria-label", name);
      table.tHead.rows[0].replaceChildren(
        ...data.columns.map((text) => Object.assign(cell("th", text), { scope: "col" })),
      );
      table.tBodies[0].replaceChildren(...rows.map(row));
      if (device) {
        const [which, latencyIndex] = clock();
        best.textContent = state.best[which][latencyIndex];
        even.textContent = state.even[which];
      }
    }

    function enterSplit() {
      const chosen = data.splits[split.selectedIndex];
      capacity.max = chosen.states.length - 1;
      if (Number(capacity.value) > chosen.states.length - 1) capacity.value = chosen.start;
      show();
    }

    data.groups.forEach(([, words]) => policies.add(new Option(words)));
    orders.forEach(([words]) => order.add(new Option(words)));
    data.splits.forEach((entry) => split.add(new Option(entry.label, entry.id)));
    if (device) data.devices.forEach((name) => device.add(new Option(name)));
    if (latency) {
      data.latencies.forEach((name) => latency.add(new Option(name)));
      latency.selectedIndex = data.latency;
    }
    split.selectedIndex = data.splits.length - 1;
    const opening = data.splits[split.selectedIndex];
    capacity.max = opening.states.length - 1;
    capacity.value = opening.start;
    form.hidden = false;
    split.addEventListener("change", enterSplit);
    if (device) device.addEventListener("change", show);
    if (latency) latency.addEventListener("change", show);
    capacity.addEventListener("input", show);
    policies.addEventListener("change", show);
    order.addEventListener("change", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  }

  // ---- steps ---------------------------------------------------------------------------------------------------
  for (const stepper of document.querySelectorAll(".stepper")) {
    const { labels, tables } = JSON.parse(stepper.querySelector("script").textContent);
    const form = stepper.querySelector("form");
    const { step } = form.elements;
    const table = stepper.querySelector("table");
    const show = () => {
      const place = Number(step.value);
      stepper.querySelector("output").textContent = labels[place];
      stepper.querySelector(".caption").textContent = labels[place];
      step.setAttribute("aria-valuetext", labels[place]);
      table.setAttribute("aria-label", labels[place]);
      table.tBodies[0].replaceChildren(
        ...tables[place].map((cells) => {
          const line = document.createElement("tr");
          line.append(...cells.map((text, column) => Object.assign(document.createElement(column ? "td" : "th"), { textContent: text })));
          line.cells[0].scope = "row";
          return line;
        }),
      );
    };
    form.hidden = false;
    step.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  }
})();
