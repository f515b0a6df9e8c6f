/* Charts over steps, by uPlot: raw values faint, their moving average on top, all of them with one cursor and one zoom.
   A chart is drawn once it comes near the screen, and again where its data, the width or the colours change. */

const MIN_POINTS_TO_SMOOTH = 16;
const CHART_HEIGHT = 190;
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const charts = new Set();
let syncing = false;

const nearScreen = new IntersectionObserver(
  entries => {
    for (const entry of entries) {
      const chart = entry.target.chart;
      chart.isNear = entry.isIntersecting;
      if (chart.isNear) chart.draw();
    }
  },
  { rootMargin: "300px" },
);

const widths = new ResizeObserver(entries => {
  for (const entry of entries) {
    const chart = entry.target.chart,
      width = Math.floor(entry.contentRect.width);
    if (chart.plot && width && width !== chart.plot.width) chart.plot.setSize({ width, height: CHART_HEIGHT });
  }
});

/* `lines()` gives [{label, color, dash, steps, values, isStepped}], anew at each drawing; `marks()` [[step, word]].
   Options: isLog, isStacked, isShare (values are fractions), note. */
class Chart {
  constructor(title, lines, options = {}) {
    Object.assign(this, { title, lines, options, plot: null, isNear: false, isStale: true });
    this.output = el("output", { class: "value" });
    this.legend = el("div", { class: "legend" });
    this.place = el("div", {
      class: "plot",
      tabIndex: 0,
      role: "img",
      on: { keydown: event => this.step(event), focus: () => this.read(null), blur: () => this.leave() },
    });
    this.place.chart = this;
    this.node = el(
      "figure",
      { class: "chart" },
      el("figcaption", {}, el("span", { class: "name" }, ...breakable(title)), this.output),
      this.place,
      this.legend,
      options.note ? el("p", { class: "fine" }, options.note) : null,
    );
    this.node.dataset.name = title;
    charts.add(this);
    nearScreen.observe(this.place);
    widths.observe(this.place);
    this.describe();
  }

  describe() {
    const lines = this.lines().filter(line => line.values.length),
      last = lines[0];
    const value = last ? short(last.values.at(-1)) : "–";
    this.rest = lines.length === 1 ? value : "";
    this.output.textContent = this.rest;
    const words = lines
      .slice(0, 6)
      .map(line => `${line.label || this.title} ${short(line.values.at(-1))} at step ${short(line.steps.at(-1))}`);
    this.place.setAttribute(
      "aria-label",
      `Chart of ${this.title}: ${words.join(", ")}. Left and right arrow keys read it.`,
    );
    this.node.hidden = lines.length === 0;
    this.shown = lines;
    this.legend.replaceChildren(...(lines.length > 1 ? lines.map(line => this.legendOf(line)) : []));
  }

  changed() {
    this.isStale = true;
    this.describe();
    if (this.isNear) this.draw();
  }

  drop() {
    charts.delete(this);
    nearScreen.unobserve(this.place);
    widths.unobserve(this.place);
    if (this.plot) this.plot.destroy();
    this.plot = null;
  }

  draw() {
    const width = Math.floor(this.place.clientWidth);
    if (!this.isStale || !width) return;
    this.isStale = false;
    const shown = this.shown;
    if (this.plot) this.plot.destroy();
    this.plot = null;
    this.place.replaceChildren();
    if (!shown.length) return;
    const { data, series, bands } = this.options.isStacked ? stack(shown) : overlay(shown);
    this.values = data;
    const marks = this.options.marks ? this.options.marks() : [];
    this.plot = new uPlot(
      {
        width,
        height: CHART_HEIGHT,
        series,
        bands,
        legend: { show: false },
        padding: [12, 12, 0, 0],
        scales: {
          x: { time: false, range: () => app.zoom || extent() },
          y: this.options.isLog && positive(shown) ? { distr: 3 } : { range: range(this.options) },
        },
        axes: axes(this.options),
        cursor: {
          y: false,
          points: { size: 7 },
          drag: { x: true, y: false, setScale: false },
          sync: { key: "steps", scales: ["x", null] },
          bind: {
            dblclick: () => () => {
              zoomTo(null);
            },
          },
        },
        hooks: {
          setCursor: [plot => this.read(plot.cursor.idx)],
          setSelect: [
            plot => {
              if (plot.select.width > 4)
                zoomTo([
                  plot.posToVal(plot.select.left, "x"),
                  plot.posToVal(plot.select.left + plot.select.width, "x"),
                ]);
            },
          ],
          draw: [plot => drawMarks(plot, marks)],
        },
      },
      data,
      this.place,
    );
  }

  legendOf(line) {
    line.output = el("span", { class: "value" }, short(line.values.at(-1)));
    const key = svg(
      "svg",
      { class: "line-key", viewBox: "0 0 18 6", "aria-hidden": "true" },
      svg("line", {
        x1: 0,
        x2: 18,
        y1: 3,
        y2: 3,
        stroke: line.color,
        "stroke-width": this.options.isStacked ? 6 : 2.5,
        "stroke-dasharray": (line.dash || []).join(" "),
      }),
    );
    return el("span", {}, key, line.label, " ", line.output);
  }

  zoom() {
    const [min, max] = app.zoom || extent();
    this.plot.setScale("x", { min, max });
  }

  /* Say the values at a place of the joined steps; null for the last ones. */
  read(index) {
    if (!this.plot) return;
    const known = index !== null && index !== undefined;
    for (const line of this.shown || []) {
      const at = known ? nearest(line.steps, this.values[0][index]) : line.steps.length - 1;
      const text = short(line.values[at]);
      if (line.output) line.output.textContent = text;
      if (this.shown.length === 1)
        this.output.textContent = known ? `step ${short(line.steps[at])} · ${text}` : this.rest;
    }
    if (this.shown && this.shown.length > 1)
      this.output.textContent = known ? `step ${short(this.values[0][index])}` : "";
  }

  leave() {
    if (this.plot) this.plot.setCursor({ left: -10, top: -10 });
    this.read(null);
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      zoomTo(null);
      return;
    }
    if (!by || !this.plot) return;
    event.preventDefault();
    const steps = this.values[0],
      last = steps.length - 1;
    const from = this.plot.cursor.idx ?? (by > 0 ? -1 : last + 1);
    const index = Math.min(last, Math.max(0, from + by * (event.shiftKey ? 10 : 1)));
    this.plot.setCursor({ left: this.plot.valToPos(steps[index], "x"), top: CHART_HEIGHT / 3 });
    this.output.setAttribute("aria-live", "polite");
  }
}

/* Lines over one another, on the union of their steps. */
function overlay(lines) {
  const tables = [],
    series = [{}];
  for (const line of lines) {
    const isSmooth = !line.isStepped && line.values.length >= MIN_POINTS_TO_SMOOTH && app.smoothing > 0;
    const columns = [line.steps, line.values];
    const common = { stroke: line.color, spanGaps: true, dash: line.dash };
    series.push({
      ...common,
      width: isSmooth ? 1 : 2,
      alpha: isSmooth ? 0.3 : 1,
      points: { show: line.values.length < MIN_POINTS_TO_SMOOTH && !line.isStepped, size: 5, fill: line.color },
      paths: line.isStepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
    });
    if (isSmooth) {
      columns.push(smoothed(line.values, Math.max(3, (app.smoothing / 100) * line.values.length)));
      series.push({ ...common, width: 2, points: { show: false } });
    }
    tables.push(columns);
  }
  return { data: tables.length > 1 ? uPlot.join(tables) : tables[0], series, bands: [] };
}

/* Lines on top of one another; the topmost is drawn first, so that each covers what lies under it. */
function stack(lines) {
  const steps = lines[0].steps,
    series = [{}],
    columns = [];
  const sums = steps.map(() => 0);
  for (const line of lines) {
    const at = new Map(line.steps.map((step, index) => [step, line.values[index]]));
    steps.forEach((step, index) => {
      sums[index] += at.get(step) || 0;
    });
    columns.unshift([...sums]);
  }
  for (const line of [...lines].reverse())
    series.push({ stroke: line.color, fill: line.color, width: 0, points: { show: false }, spanGaps: true });
  return { data: [steps, ...columns], series, bands: [] };
}

/* From zero where zero is near, up to one where a share is near one, and never empty. */
const range = options => (plot, low, high) => {
  if (!isNumber(low) || !isNumber(high)) return [0, 1];
  if (options.isStacked || (low > 0 && low < 0.4 * high)) low = 0;
  if (low === high) {
    const air = Math.abs(high) * 0.1 || 1;
    return [low === 0 ? 0 : low - air, high + air];
  }
  const air = (high - low) * 0.06;
  return [low === 0 ? 0 : low - air, high + (options.isStacked ? 0 : air)];
};

/* The first and the last step of all runs that are drawn: the axis that charts beside one another share. */
function extent() {
  const ends = drawn()
    .filter(of => of.metrics.steps.length)
    .flatMap(of => [of.metrics.steps[0], of.metrics.steps.at(-1)]);
  const min = Math.min(...ends),
    max = Math.max(...ends);
  return [min, max > min ? max : min + 1];
}

const positive = lines => lines.every(line => line.values.every(value => value > 0));

function axes(options) {
  const common = {
    stroke: css("--soft"),
    font: "11px system-ui, sans-serif",
    ticks: { show: false },
    grid: { stroke: css("--line"), width: 1 },
  };
  return [
    {
      ...common,
      grid: { show: false },
      size: 26,
      space: 46,
      values: (plot, ticks) => ticks.map(tick => (Number.isInteger(tick) ? short(tick) : "")),
    },
    {
      ...common,
      size: 52,
      space: options.isLog ? 24 : 36,
      values: (plot, ticks) => ticks.map(tick => (tick === null ? "" : short(tick))),
    },
  ];
}

function drawMarks(plot, marks) {
  const { ctx, bbox } = plot,
    ratio = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = css("--rest");
  ctx.lineWidth = ratio;
  ctx.fillStyle = css("--soft");
  ctx.font = `${10 * ratio}px system-ui, sans-serif`;
  for (const [step, word] of marks) {
    if (step < plot.scales.x.min || step > plot.scales.x.max) continue;
    const x = Math.round(plot.valToPos(step, "x", true)),
      isLeft = x < bbox.left + bbox.width * 0.6;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top - 4 * ratio);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.textAlign = isLeft ? "left" : "right";
    ctx.fillText(String(word).slice(0, 24), x + (isLeft ? 4 : -4) * ratio, bbox.top + 6 * ratio);
  }
  ctx.restore();
}

function zoomTo(range) {
  if (syncing) return;
  syncing = true;
  app.zoom = range;
  for (const chart of charts)
    if (chart.plot) {
      chart.zoom();
      chart.plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    }
  syncing = false;
}

function nearest(steps, step) {
  let low = 0,
    high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

/* A metric's name that may be broken behind each of its underscores and slashes. */
const breakable = name => name.split(/(?<=[_/])/).flatMap((part, index) => (index ? [el("wbr"), part] : [part]));

/* A small line without axes; `values` are thinned to means of stretches. */
function sparkline(values, color) {
  const limit = 90,
    width = 120,
    height = 30;
  const points =
    values.length <= limit
      ? values
      : Array.from({ length: limit }, (_, index) =>
          mean(
            values.slice(
              Math.floor((index * values.length) / limit),
              Math.floor(((index + 1) * values.length) / limit),
            ),
          ),
        );
  const low = Math.min(...points),
    high = Math.max(...points),
    extent = high - low || 1;
  const place = (value, index) =>
    `${(points.length < 2 ? 0 : (index / (points.length - 1)) * width).toFixed(1)} ${(
      height -
      3 -
      ((value - low) / extent) * (height - 6)
    ).toFixed(1)}`;
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", {
      d: `M${points.map(place).join("L")}`,
      fill: "none",
      stroke: color,
      "stroke-width": 1.6,
      "vector-effect": "non-scaling-stroke",
    }),
  );
}
