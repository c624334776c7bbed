"use strict";
// Outputs of models are untrusted: this script writes them with textContent alone, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE_SIZE = 20;

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ---- figures -------------------------------------------------------------------------------------------------

  const drawn = new Map();
  const NARROW = 620;  // pixels; below, a figure's own layout for phones is taken, if it has one

  const themed = (figure, isNarrow) => {
    const axis = { gridcolor: colour("line"), zerolinecolor: colour("soft"), linecolor: colour("line") };
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 70, r: 20, t: 30, b: 60 },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") } },
      legend: { orientation: "h", yanchor: "bottom", y: 1.0, x: 0 },
      ...figure.layout,
      ...(isNarrow ? figure.narrow : {}),
    };
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = { ...axis, ...layout[name] };
      if (layout[name].title) layout[name].title = { ...layout[name].title, font: { size: 13, color: colour("soft") } };
    }
    const traces = figure.data.map((trace) => {
      if (trace.type !== "heatmap") return trace;
      const scale = [[0, colour("panel")], [1, colour("heat")]];
      return { ...trace, colorscale: scale, textfont: { color: colour("ink") } };
    });
    return [traces, layout];
  };

  const draw = (host, figure) => {
    drawn.set(host, figure);
    const [traces, layout] = themed(figure, host.clientWidth < NARROW);
    Plotly.react(host, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  // Papers are white, whatever theme the page is in.
  const download = (host, section, format) => {
    const figure = drawn.get(host);
    const root = document.documentElement;
    const chosen = root.dataset.theme;
    root.dataset.theme = "light";
    const [data, layout] = themed(figure, false);
    if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
    const name = `${section} ${figure.title}`.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/-$/, "");
    const size = { width: 900, height: layout.height, scale: format === "png" ? 3 : 1 };
    const page = { ...layout, paper_bgcolor: "#ffffff", width: size.width };
    return Plotly.downloadImage({ data, layout: page }, { format, filename: name, ...size });
  };

  const button = (text, act, title) => {
    const node = element("button", "", text);
    node.type = "button";
    if (title) node.title = title;
    node.addEventListener("click", act);
    return node;
  };

  const plotHost = (box, section) => {
    const host = element("div", "host");
    const row = element("div", "take");
    for (const format of ["svg", "png"]) {
      const save = () => download(host, section, format);
      row.append(button(format.toUpperCase(), save, `Save this figure as ${format.toUpperCase()}`));
    }
    box.append(row, host);
    return host;
  };

  const openPlot = (box, found) => {
    const section = box.dataset.section;
    if ("all" in box.dataset) {
      for (const figure of found) {
        const panel = element("figure", "panel");
        panel.append(element("figcaption", "", figure.title));
        box.append(panel);
        draw(plotHost(panel, section), figure);
      }
      return;
    }
    const choice = element("div", "plot-choice");
    if (found.length > 1) box.append(choice);
    const host = plotHost(box, section);
    found.forEach((figure, index) => {
      const tab = button(figure.title, () => {
        for (const other of choice.children) other.setAttribute("aria-pressed", String(other === tab));
        draw(host, figure);
      });
      tab.setAttribute("aria-pressed", String(index === 0));
      choice.append(tab);
    });
    draw(host, found[0]);
  };

  // ---- browser of outputs --------------------------------------------------------------------------------------

  const normalised = (word) =>
    word.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

  const goldWords = (example) => {
    const words = [example.answer, ...example.aliases].join(" ").split(/\s+/).map(normalised);
    return new Set(words.filter((word) => word && !["a", "an", "the"].includes(word)));
  };

  const appendMarked = (parent, text, gold) => {
    for (const part of text.split(/(\s+)/)) {
      const isGold = gold.has(normalised(part));
      parent.append(isGold ? element("span", "hit", part) : document.createTextNode(part));
    }
  };

  const facts = (output) => {
    const scores = Object.entries(output.scores).map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`);
    const parameters = Object.entries(output.parameters).map(([name, value]) => `${name}=${value}`);
    return [scores.join(" · "), parameters.join(" · ")].filter(Boolean).join("  |  ");
  };

  const side = (name, output, gold) => {
    const node = element("div", "side");
    const title = element("div", "name", name);
    if (output && output.degenerate) title.append(element("span", "tag degenerate", "degenerate"));
    node.append(title);
    const text = element("div", "text");
    if (output) appendMarked(text, output.text, gold);
    else text.textContent = "no output";
    node.append(text);
    if (output) node.append(element("div", "facts", facts(output)));
    return node;
  };

  class Browser {
    constructor(root, page) {
      this.page = page;
      this.part = (name) => root.querySelector(`[data-${name}]`);
      this.fill(this.part("left"), page.entries.map((entry) => entry.name), page.baseline);
      this.fill(this.part("right"), page.entries.map((entry) => entry.name), this.firstMethod());
      this.fill(this.part("metric"), Object.keys(page.metrics), page.primary);
      for (const name of ["left", "right", "metric", "filter", "search"]) {
        this.part(name).addEventListener("input", () => this.restart());
      }
      this.part("more").addEventListener("click", () => this.show());
      this.restart();
    }

    firstMethod() {
      const methods = this.page.entries.filter((entry) => !entry.control && entry.name !== this.page.baseline);
      return (methods[methods.length - 1] || this.page.entries[0]).name;
    }

    fill(select, names, chosen) {
      for (const name of names) {
        const known = this.page.entries.find((entry) => entry.name === name);
        const option = element("option", "", known && known.oracle ? `${name} (oracle)` : name);
        option.value = name;
        option.selected = name === chosen;
        select.append(option);
      }
    }

    entry(name) {
      return this.page.entries.find((entry) => entry.name === this.part(name).value);
    }

    change(left, right) {
      const metric = this.part("metric").value;
      if (!left || !right || !(metric in left.scores) || !(metric in right.scores)) return 0;
      const gap = right.scores[metric] - left.scores[metric];
      return Math.sign(this.page.metrics[metric] ? gap : -gap);
    }

    restart() {
      const [left, right] = [this.entry("left"), this.entry("right")];
      const filter = this.part("filter").value;
      const wanted = this.part("search").value.trim().toLowerCase();
      const keeps = {
        all: () => true,
        gained: (row) => row.change > 0,
        lost: (row) => row.change < 0,
        changed: (row) => (row.left && row.left.text) !== (row.right && row.right.text),
        degenerate: (row) => Boolean(row.right && row.right.degenerate),
      };
      this.rows = this.page.examples
        .map((example, index) => ({ example, left: left.outputs[index], right: right.outputs[index] }))
        .map((row) => ({ ...row, change: this.change(row.left, row.right) }))
        .filter(keeps[filter])
        .filter((row) => !wanted || this.haystack(row).includes(wanted));
      this.shown = 0;
      this.part("list").replaceChildren();
      const of = `${this.rows.length} of ${this.page.examples.length} examples.`;
      this.part("count").textContent = of;
      this.show();
    }

    haystack({ example, left, right }) {
      const texts = [example.id, example.question, example.answer, ...example.aliases, ...example.tags];
      for (const output of [left, right]) if (output) texts.push(output.text);
      return texts.join("\n").toLowerCase();
    }

    show() {
      const next = this.rows.slice(this.shown, this.shown + PAGE_SIZE);
      this.part("list").append(...next.map((row) => this.card(row)));
      this.shown += next.length;
      this.part("more").hidden = this.shown >= this.rows.length;
    }

    card({ example, left, right, change }) {
      const card = element("article", "card");
      const header = element("header");
      const question = element("div", "question", example.question);
      if (change) question.append(element("span", `tag ${change > 0 ? "gained" : "lost"}`, change > 0 ? "gained" : "lost"));
      const aliases = example.aliases.length ? ` (also ${example.aliases.join(", ")})` : "";
      const meta = [example.id, ...example.tags, `gold: ${example.answer}${aliases}`].join(" · ");
      header.append(question, element("div", "meta", meta));
      const sides = element("div", "sides");
      const gold = goldWords(example);
      sides.append(side(this.part("left").value, left, gold), side(this.part("right").value, right, gold));
      card.append(header, sides);
      return card;
    }
  }

  // ---- pages, theme --------------------------------------------------------------------------------------------

  const opened = new Set();

  const openPage = (index) => {
    document.querySelectorAll(".page").forEach((page) => { page.hidden = Number(page.dataset.page) !== index; });
    document.querySelectorAll("[data-tab]").forEach((tab) => {
      tab.setAttribute("aria-selected", String(Number(tab.dataset.tab) === index));
    });
    if (opened.has(index)) return;
    opened.add(index);
    const root = document.querySelector(`.page[data-page="${index}"]`);
    root.querySelectorAll("[data-section]").forEach((box) => {
      const found = data[index].figures[box.dataset.section];
      if (found) openPlot(box, found);
    });
    const browser = root.querySelector("[data-browser]");
    if (browser) new Browser(browser, data[index]);
  };

  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  const redraw = () => drawn.forEach((figure, host) => draw(host, figure));

  // Plotly fits a figure's width by itself; only the border between the two layouts needs a new drawing.
  matchMedia(`(max-width: ${NARROW}px)`).addEventListener("change", redraw);

  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.querySelectorAll("[data-tab]").forEach((tab) => {
    tab.addEventListener("click", () => openPage(Number(tab.dataset.tab)));
  });
  if (data.length) openPage(0);
})();
