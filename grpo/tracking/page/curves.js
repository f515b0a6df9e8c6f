/* Which metrics are drawn where, and in which chart together. */

const PANELS = [
  [
    "learning",
    "Learning",
    "What practice brings: rewards of every rollout that was sampled, and evaluations on the way.",
    [
      [["reward/mean"]],
      [["reward/pass_rate"]],
      [["reward/std"]],
      ["eval/"],
      [["group/zero_std_fraction", "group/solved_all", "group/solved_none"], "Groups without variance"],
      ["reward/"],
    ],
  ],
  [
    "policy",
    "Length and entropy",
    "How the policy writes: how long, how sure, and how far an update moves it.",
    [
      [["policy/entropy"]],
      [["completion/length_mean", "completion/length_max"], "Completion length"],
      [["completion/truncated_fraction"]],
      [["policy/clip_fraction_low", "policy/clip_fraction_high"], "Clipped tokens"],
      [["optim/grad_norm"]],
      [["optim/lr"]],
    ],
  ],
  [
    "gap",
    "Sampler gap",
    "Sampler and trainer hold the same weights: anything but rounding between them is a fault.",
    [
      [["policy/sampler_logprob_gap_max"], null, { isLog: true }],
      [["policy/sampler_kl"], null, { isLog: true }],
      [["policy/ratio_max"]],
      [["policy/correction_mean"]],
    ],
  ],
  [
    "time",
    "Time",
    "Seconds of a step by phase, and tokens a second.",
    [["phases"], [["throughput/sampled_tokens_per_second", "throughput/trained_tokens_per_second"], "Tokens a second"]],
  ],
  [
    "persona",
    "Persona",
    "What each trait's vector says of the rollouts, beside its control along random directions (docs/metrics.md).",
    [["persona/"]],
  ],
];
const DECIDED = ["sampling/temperature", "curriculum/stage", "optim/lr"];
const PHASES = [
  "time/sampling",
  "time/reward",
  "time/train",
  "time/evaluation",
  "time/reprofile",
  "time/temperature",
  "time/sync",
];
const CONTROLLED = [
  ["projection", "projection_random"],
  ["drift", "drift_random", "drift_random_max"],
  ["cosine", "cosine_to_first"],
];
const TIERS = ["trivial", "moderate", "extreme", "unsolved"];

const namesIn = prefix =>
  [...new Set(drawn().flatMap(of => Object.keys(of.metrics.columns)))].filter(name => name.startsWith(prefix));

/* A chart of one or several metrics, of all runs that are compared: a colour a run, or a metric where there is one
   run. */
function metricChart(names, title = null, options = {}) {
  const lines = () => {
    const runs = drawn();
    return runs.flatMap(of =>
      names.map((name, index) => ({
        ...curve(of, name),
        isStepped: DECIDED.includes(name),
        label: [runs.length > 1 ? of.name : null, names.length > 1 ? name.split("/").slice(1).join("/") : null]
          .filter(Boolean)
          .join(" "),
        color: runs.length > 1 ? runColor(of.id) : colorOf(names.length > 1 ? index : runPlace(of.id)),
        dash: runs.length > 1 ? DASHES[index % DASHES.length] : [],
      })),
    );
  };
  const lost = drawn().reduce(
    (sum, of) => sum + names.reduce((n, name) => n + (of.metrics.not_finite[name] || 0), 0),
    0,
  );
  const chart = new Chart(title || names[0], lines, {
    marks: () => (drawn().length === 1 ? drawn()[0].stages : []),
    note: lost ? `${lost} value(s) are not finite numbers and are not drawn.` : null,
    ...options,
  });
  chart.names = names;
  return chart.node;
}

function panels() {
  const taken = new Set();
  const nodes = PANELS.map(([id, title, lead, entries]) => {
    const nodes = entries.flatMap(([what, name, options]) => chartsOf(what, name, options, taken));
    if (!nodes.length) {
      if (id === "persona" || (id !== "learning" && run().metrics.steps.length)) return null;
      return section(id, title, null, absent(lead, "metrics.jsonl"));
    }
    return section(id, title, lead, el("div", { class: "charts" }, nodes), id === "time" ? phaseTable() : null);
  });
  return { nodes: nodes.filter(Boolean), taken };
}

function chartsOf(what, title, options, taken) {
  const known = name => namesIn(name).includes(name);
  if (what === "phases") return phases(taken);
  if (what === "persona/") return persona(taken);
  const groups =
    typeof what === "string"
      ? namesIn(what)
          .filter(name => !taken.has(name))
          .map(name => [name])
      : drawn().length > 1
        ? what.filter(known).map(name => [name])
        : [what.filter(known)];
  return groups
    .filter(names => names.length)
    .map(names => {
      names.forEach(name => taken.add(name));
      return metricChart(names, names.length > 1 ? title : null, options || {});
    });
}

/* The phases of the run in detail on top of one another; what the step took beside them is the rest. */
function phases(taken) {
  const names = PHASES.filter(name => run().metrics.columns[name]);
  names.forEach(name => taken.add(name));
  const steps = metricChart(["time/step"]);
  taken.add("time/step");
  if (!names.length) return namesIn("time/step").length ? [steps] : [];
  const chart = new Chart(
    "Seconds a step, by phase",
    () => {
      const of = run(),
        whole = curve(of, "time/step");
      const parts = names.map((name, index) => ({
        ...whole,
        values: at(of, name, whole.steps),
        label: name.split("/")[1],
        color: colorOf(index),
      }));
      const rest = whole.values.map((value, index) =>
        Math.max(0, value - parts.reduce((sum, part) => sum + part.values[index], 0)),
      );
      return [...parts, { steps: whole.steps, values: rest, label: "rest", color: css("--rest") }];
    },
    { isStacked: true, note: drawn().length > 1 ? `Of ${run().name}.` : null },
  );
  chart.names = names;
  return drawn().length > 1 ? [chart.node, steps] : [chart.node];
}

/* What each phase took in all, of the run in detail. */
function phaseTable() {
  const of = run(),
    total = curve(of, "time/step").values.reduce((sum, value) => sum + value, 0);
  const rows = PHASES.map(name => [
    name.split("/")[1],
    curve(of, name).values.reduce((sum, value) => sum + value, 0),
  ]).filter(([, seconds]) => seconds > 0);
  if (!total || !rows.length) return null;
  const rest = total - rows.reduce((sum, [, seconds]) => sum + seconds, 0);
  const write = ([name, seconds]) => [name, short(seconds), `${((100 * seconds) / total).toFixed(1)} %`];
  return [
    el("h3", {}, "All steps together"),
    table(
      [["Phase"], ["Seconds", "n"], ["Share", "n"]],
      [...rows, ["rest", Math.max(0, rest)], ["all", total]].map(write),
      "narrow",
      "Time by phase",
    ),
  ];
}

const at = (of, name, steps) => {
  const { steps: known, values } = curve(of, name),
    by = new Map(known.map((step, index) => [step, values[index]]));
  return steps.map(step => by.get(step) || 0);
};

/* What is measured of a trait in one chart with its control, along random directions; the rest beside it. */
function persona(taken) {
  const names = namesIn("persona/");
  names.forEach(name => taken.add(name));
  const traits = [...new Set(names.map(name => name.split("/").slice(0, -1).join("/")))];
  return traits.flatMap(trait => {
    const of = names.filter(name => name.slice(0, name.lastIndexOf("/")) === trait);
    const groups = CONTROLLED.map(ends => ends.map(end => `${trait}/${end}`).filter(name => of.includes(name)));
    const others = of.filter(name => !groups.flat().includes(name)).map(name => [name]);
    return [...groups.filter(group => group.length), ...others].map(group =>
      metricChart(group, group.length > 1 ? group[0] : null),
    );
  });
}

/* The tiers' sizes while training; a step that lacks one of them is not drawn. */
function tierSizes() {
  const of = run(),
    prefix = "curriculum/tier_";
  const names = Object.keys(of.metrics.columns)
    .filter(name => name.startsWith(prefix))
    .sort((a, b) => tierPlace(a.slice(prefix.length)) - tierPlace(b.slice(prefix.length)));
  if (!names.length || of.metrics.steps.length < 2) return null;
  const chart = new Chart(
    "Problems by tier, as the curriculum sees them",
    () =>
      names.map(name => ({
        ...curve(run(), name),
        label: name.slice(prefix.length),
        color: tierColor(name.slice(prefix.length)),
      })),
    { isStacked: true, marks: () => run().stages },
  );
  chart.names = names;
  return chart.node;
}

const tierPlace = tier => {
  const place = TIERS.indexOf(tier);
  return place < 0 ? TIERS.length : place;
};
const tierColor = tier => css(`--tier-${Math.min(tierPlace(tier), 3)}`);

/* Everything that no panel has, by prefix. */
function otherMetrics(taken) {
  const names = namesIn("").filter(
    name => !taken.has(name) && !name.startsWith("curriculum/tier_") && name !== "sampling/temperature",
  );
  if (!names.length) return null;
  const by = new Map();
  for (const name of names) by.set(name.split("/")[0], [...(by.get(name.split("/")[0]) || []), name]);
  return section(
    "metrics",
    "All other metrics",
    "What the panels above leave out; docs/metrics.md says what each is.",
    [...by].map(([prefix, of]) =>
      el(
        "details",
        { class: "metrics" },
        el("summary", {}, prefix, el("span", { class: "fine" }, ` ${of.length}`)),
        el(
          "div",
          { class: "charts" },
          of.map(name => metricChart([name])),
        ),
      ),
    ),
  );
}
