/* The first screen: is the run healthy, is it learning, what is it doing now. */

const RECENT = 20;
const VITALS = [
  ["Reward", "reward/mean", short, ""],
  ["Pass rate", "reward/pass_rate", percent, ""],
  ["Entropy", "policy/entropy", short, "nats"],
  ["Length", "completion/length_mean", short, "tokens"],
  ["Truncated", "completion/truncated_fraction", percent, ""],
  ["Groups without variance", "group/zero_std_fraction", percent, ""],
  ["Sampler gap, largest", "policy/sampler_logprob_gap_max", short, "nats"],
  ["Gradient norm", "optim/grad_norm", short, ""],
  ["Sampled a second", "throughput/sampled_tokens_per_second", short, "tokens"],
  ["Seconds a step", "time/step", short, ""],
];

function overview() {
  const of = run();
  return section(
    "overview",
    "Overview",
    null,
    of.notes.length
      ? el(
          "div",
          { class: "notes", role: "note" },
          of.notes.map(note => el("p", {}, note)),
        )
      : null,
    el("p", { class: "now" }, nowLine(of)),
    verdict(of),
    of.headline.length
      ? el(
          "dl",
          { class: "headline" },
          of.headline.map(cell =>
            el(
              "div",
              {},
              el("dt", {}, cell.label),
              el("dd", { class: `big${cell.key ? " key" : ""}` }, cell.value),
              el("dd", { class: "under" }, cell.under),
            ),
          ),
        )
      : el(
          "p",
          { class: "absent" },
          "No result yet: this run's folder has neither ",
          el("code", {}, "metrics.jsonl"),
          " nor ",
          el("code", {}, "evals/"),
          " nor a gate in ",
          el("code", {}, "events.jsonl"),
          ".",
        ),
    vitals(of),
  );
}

function nowLine(of) {
  const { word, step, planned, stage, temperature, left, is_over } = of.state;
  const words = [word[0].toUpperCase() + word.slice(1)];
  if (step !== null) words.push(`step ${short(step)}${planned ? ` of ${short(planned)}` : ""}`);
  if (stage !== null) words.push(`stage ${stage}`);
  if (temperature !== null) words.push(`temperature ${short(temperature)}`);
  if (left !== null && !is_over) words.push(`about ${left} left`);
  return words.join(" · ");
}

function verdict(of) {
  const bad = of.alarms.some(alarm => alarm.level === "bad");
  if (!of.alarms.length) {
    const text = of.metrics.steps.length ? `No alarm in the last ${RECENT} steps` : "No step yet, so no alarm";
    return el(
      "div",
      { class: "verdict good" },
      el("span", { class: "sign", "aria-hidden": "true" }, "✓"),
      el("strong", {}, text),
    );
  }
  return el(
    "div",
    { class: `verdict ${bad ? "bad" : "warn"}` },
    el("span", { class: "sign", "aria-hidden": "true" }, "!"),
    el(
      "div",
      {},
      el("strong", {}, of.alarms.length + (of.alarms.length === 1 ? " alarm" : " alarms")),
      el(
        "ul",
        {},
        of.alarms.map(alarm =>
          el(
            "li",
            { class: alarm.level },
            el("span", { class: "level" }, alarm.level === "bad" ? "fault" : "warning"),
            " ",
            alarm.text,
            alarm.remedy ? el("span", { class: "remedy" }, ` — ${alarm.remedy}`) : null,
            alarm.metric && of.metrics.columns[alarm.metric]
              ? el(
                  "span",
                  {},
                  " ",
                  el(
                    "button",
                    { type: "button", class: "link", on: { click: () => goToChart(alarm.metric) } },
                    `see ${alarm.metric}`,
                  ),
                )
              : null,
          ),
        ),
      ),
    ),
  );
}

function vitals(of) {
  const cards = VITALS.map(([label, name, write, unit]) => {
    const { values } = curve(of, name);
    if (!values.length) return null;
    const recent = mean(values.slice(-RECENT)),
      early = values.length > RECENT ? mean(values.slice(0, RECENT)) : null;
    const sign = early === null ? "" : recent > early * 1.02 ? "↑ " : recent < early * 0.98 ? "↓ " : "→ ";
    return el(
      "button",
      { type: "button", class: "vital", title: name, on: { click: () => goToChart(name) } },
      el("span", { class: "label" }, label),
      el("span", { class: "amount" }, write(recent), unit ? el("span", { class: "unit" }, ` ${unit}`) : null),
      values.length > 1 ? sparkline(values, runColor(of.id)) : null,
      el("span", { class: "under" }, early === null ? `mean of ${values.length} steps` : `${sign}from ${write(early)}`),
    );
  }).filter(Boolean);
  return cards.length
    ? el(
        "div",
        {
          class: "vitals",
          role: "group",
          "aria-label": `Means of the last ${RECENT} steps, against the first ${RECENT}`,
        },
        cards,
      )
    : null;
}

function goToChart(name) {
  const chart = [...charts].find(chart => chart.names && chart.names.includes(name) && !chart.node.hidden);
  if (!chart) return;
  const details = chart.node.closest("details");
  if (details) details.open = true;
  chart.place.focus({ preventScroll: true });
  chart.node.scrollIntoView({
    block: "center",
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
  });
}
