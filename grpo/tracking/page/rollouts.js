/* Rollouts: find some, page through them, read one with its tokens coloured.
   A source answers `find(wanted, page)` and `read(key)`: of what is embedded, or of all on disk, by the server. */

const PAGE = 25;
const ORDERS = [
  ["newest", "newest first"],
  ["oldest", "oldest first"],
  ["best", "highest reward"],
  ["worst", "lowest reward"],
  ["longest", "longest"],
  ["shortest", "shortest"],
];
const ORDER_VALUES = {
  newest: [row => row.step, -1],
  oldest: [row => row.step, 1],
  best: [row => row.reward, -1],
  worst: [row => row.reward, 1],
  longest: [row => row.num_tokens, -1],
  shortest: [row => row.num_tokens, 1],
};

class EmbeddedRollouts {
  constructor(of) {
    this.of = of;
    this.rows = of.rollouts.rows.map(row => ({ ...row, prompt: of.rollouts.prompts[row.prompt] }));
    for (const row of this.rows) {
      row.text = [row.prompt, row.completion, row.answer, row.detail, row.problem_id].join("\n").toLowerCase();
      row.excerpt = String(row.completion ?? "").slice(0, 160);
    }
  }
  async find(wanted, page) {
    const between = (value, low, high) =>
      (low === "" && high === "") ||
      (isNumber(value) && (low === "" || value >= Number(low)) && (high === "" || value <= Number(high)));
    const found = this.rows.filter(
      row =>
        ["step", "stage", "tier", "status"].every(key => !wanted[key] || String(row[key]) === wanted[key]) &&
        between(row.reward, wanted.least, wanted.most) &&
        between(row.num_tokens, wanted.shortest, wanted.longest) &&
        (!wanted.text || row.text.includes(wanted.text.toLowerCase())),
    );
    const [value, sign] = ORDER_VALUES[wanted.order] || ORDER_VALUES.newest;
    const key = row => (isNumber(value(row)) ? sign * value(row) : Infinity);
    found.sort((a, b) => key(a) - key(b) || 0);
    return {
      rows: found.slice(page * PAGE, (page + 1) * PAGE),
      found: found.length,
      total: this.rows.length,
      unread: 0,
    };
  }
  async read(key) {
    return { row: this.rows.find(row => row.key === key), vocabulary: this.of.rollouts.vocabulary };
  }
  get choices() {
    return this.of.rollouts.choices;
  }
  get lead() {
    const { shown, total, num_files } = this.of.rollouts;
    return shown < total
      ? `${short(shown)} of the ${short(total)} rollouts on disk are in this page, spread evenly over ${short(
          num_files,
        )} steps.`
      : `All ${short(total)} rollouts on disk are in this page.`;
  }
}

class ServedRollouts {
  constructor(of) {
    this.of = of;
    this.choices = { step: [], stage: [], tier: [], status: [] };
  }
  async find(wanted, page) {
    const found = await ask("/api/rollouts", { id: this.of.id, page, ...wanted });
    this.choices = found.choices;
    return found;
  }
  read(key) {
    return ask("/api/rollout", { id: this.of.id, key });
  }
  get lead() {
    return `All rollouts on disk, of the newest tracking.rollout_files steps; a page of ${PAGE} is read at a time.`;
  }
}

function rollouts() {
  const of = run();
  if (!of.rollouts || !of.rollouts.total)
    return section(
      "rollouts",
      "Rollouts",
      null,
      absent("What the policy wrote, and what it got for it.", "rollouts/*.jsonl"),
    );
  /* A page that is made anew keeps what somebody looked for and reads. */
  if (!app.browser || app.browser.source.of.id !== of.id)
    app.browser = new RolloutBrowser(app.isLive ? new ServedRollouts(of) : new EmbeddedRollouts(of));
  return app.browser.node;
}

class RolloutBrowser {
  constructor(source) {
    this.source = source;
    this.page = 0;
    this.body = el("tbody");
    this.count = el("span", { role: "status" });
    this.back = el("button", { type: "button", id: "rollout-back", on: { click: () => this.turn(-1) } }, "Previous");
    this.next = el("button", { type: "button", id: "rollout-next", on: { click: () => this.turn(1) } }, "Next");
    this.form = this.makeForm();
    const heading = (text, name = "") => el("th", { scope: "col", class: name }, text);
    this.node = section(
      "rollouts",
      "Rollouts",
      `${source.lead} Open a row to read it.`,
      this.form,
      el(
        "table",
        { class: "rollouts" },
        el(
          "colgroup",
          {},
          ["step", "wide problem", "wide attempt", "wide tier", "status", "reward", "wide tokens", ""].map(name =>
            el("col", { class: name }),
          ),
        ),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            heading("Step", "n"),
            heading("Problem", "wide"),
            heading("Attempt", "wide n"),
            heading("Tier", "wide"),
            heading("Status"),
            heading("Reward", "n"),
            heading("Tokens", "wide n"),
            heading("Completion"),
          ),
        ),
        this.body,
      ),
      el("div", { class: "pager" }, this.back, this.next, this.count),
    );
    this.show();
  }

  makeForm() {
    const select = (name, label) => el("label", {}, label, el("select", { name }, el("option", { value: "" }, "all")));
    const number = (name, label) => el("label", {}, label, el("input", { type: "number", step: "any", name }));
    const form = el(
      "form",
      { id: "rollout-filter", on: { submit: event => event.preventDefault() } },
      select("step", "Step"),
      select("stage", "Stage"),
      select("tier", "Tier"),
      select("status", "Status"),
      number("least", "Reward from"),
      number("most", "to"),
      number("shortest", "Tokens from"),
      number("longest", "to"),
      el(
        "label",
        { class: "search" },
        "Text",
        el("input", {
          type: "search",
          name: "text",
          placeholder: "prompt, completion, answer, problem",
          autocomplete: "off",
        }),
      ),
      el(
        "label",
        {},
        "Order",
        el(
          "select",
          { name: "order" },
          ORDERS.map(([value, label]) => el("option", { value }, label)),
        ),
      ),
      el("button", { type: "reset" }, "Clear"),
    );
    let waiting = null;
    const changed = () => {
      clearTimeout(waiting);
      waiting = setTimeout(
        () => {
          this.page = 0;
          this.show();
        },
        app.isLive ? 250 : 0,
      );
    };
    form.addEventListener("input", changed);
    form.addEventListener("reset", () => setTimeout(changed));
    return form;
  }

  get wanted() {
    return Object.fromEntries(new FormData(this.form));
  }
  get isReading() {
    return this.body.querySelector(".reading") !== null;
  }

  turn(by) {
    this.page += by;
    this.show().then(() => this.form.scrollIntoView({ block: "start" }));
  }

  async show() {
    const asked = (this.asked = {});
    const found = await this.source.find(this.wanted, this.page);
    if (asked !== this.asked) return; // another question was asked meanwhile
    for (const [name, values] of Object.entries(this.source.choices)) this.offer(this.form.elements[name], values);
    this.body.replaceChildren(...found.rows.map(row => this.line(row)));
    const first = found.found ? this.page * PAGE + 1 : 0,
      last = Math.min((this.page + 1) * PAGE, found.found);
    const unread = found.unread ? ` The text of ${short(found.unread)} older ones was not searched.` : "";
    this.count.textContent =
      (found.found ? `${first}–${last} of ${found.found.toLocaleString("en-US")}` : "No rollout matches.") + unread;
    this.back.disabled = this.page === 0;
    this.next.disabled = last >= found.found;
  }

  offer(select, values) {
    const known = new Set([...select.options].map(option => option.value));
    for (const value of values)
      if (!known.has(String(value))) select.append(el("option", { value: String(value) }, String(value)));
  }

  line(row) {
    const button = el(
      "button",
      {
        type: "button",
        "aria-expanded": "false",
        "aria-label": `Read the rollout of step ${short(row.step)}, problem ${row.problem_id}, attempt ${short(
          row.attempt,
        )}`,
      },
      short(row.step),
    );
    const line = el(
      "tr",
      { class: "rollout" },
      el("td", { class: "n" }, button),
      el("td", { class: "wide id" }, String(row.problem_id ?? "–")),
      el("td", { class: "wide n" }, short(row.attempt)),
      el("td", { class: "wide" }, String(row.tier ?? "–")),
      el("td", { class: `status-${row.status === "scored" ? "scored" : "lost"}` }, String(row.status ?? "–")),
      el("td", { class: "n" }, short(row.reward)),
      el("td", { class: "wide n" }, short(row.num_tokens)),
      el("td", { class: "excerpt" }, row.excerpt),
    );
    let open = null;
    line.addEventListener("click", async () => {
      if (open) {
        open.remove();
        open = null;
      } else {
        open = el("tr", {}, el("td", { class: "reading", colspan: this.numColumns }, "Reading…"));
        line.after(open);
        const cell = open.firstChild;
        try {
          const { row: whole, vocabulary } = await this.source.read(row.key);
          cell.replaceChildren(...this.reading(whole, vocabulary));
        } catch (error) {
          cell.textContent = String(error.message);
        }
      }
      button.setAttribute("aria-expanded", String(Boolean(open)));
      line.classList.toggle("open", Boolean(open));
    });
    return line;
  }

  get numColumns() {
    return [...this.node.querySelectorAll("thead th")].filter(heading => heading.offsetParent).length || 8;
  }

  reading(row, vocabulary) {
    const parts =
      row.parts && typeof row.parts === "object" ? Object.entries(row.parts) : row.parts ? [["parts", row.parts]] : [];
    const facts = [
      ["problem", row.problem_id],
      ["attempt", row.attempt],
      ["stage", row.stage],
      ["tier", row.tier],
      ["status", row.status],
      ["reward", row.reward],
      ...parts.map(([name, value]) => [`part ${name}`, value]),
      ["advantage", row.advantage ?? "not trained on"],
      ["tokens", row.num_tokens],
      ["stop reason", row.stop_reason],
      ["temperature", row.temperature],
      ["policy of step", row.policy_step],
      ["drawn by the profile", row.reused ? "yes" : null],
    ]
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, short(value))));
    const text = (name, value) =>
      value === null || value === undefined || value === "" ? [] : [el("h3", {}, name), el("pre", {}, String(value))];
    return [
      el("dl", {}, facts),
      el(
        "button",
        { type: "button", class: "small", on: { click: () => this.group(row) } },
        "All rollouts of this group",
      ),
      ...text("Prompt", row.prompt),
      ...completion(row, vocabulary),
      ...text("Answer", row.answer),
      ...text("Detail", row.detail),
    ];
  }

  group(row) {
    this.form.reset();
    this.offer(this.form.elements.step, [row.step]);
    this.form.elements.step.value = String(row.step);
    this.form.elements.text.value = String(row.problem_id);
    this.page = 0;
    this.show().then(() => this.form.scrollIntoView({ block: "start" }));
  }
}
