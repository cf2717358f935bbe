// Filters as chips. The text of the condition has them all: chips are drawn from it, and write it.
(() => {
  const where = document.getElementById("where");
  const column = document.getElementById("filter-column");
  const operator = document.getElementById("filter-operator");
  const value = document.getElementById("filter-value");
  const NUMBER_OPERATORS = { "=": "equal to", "<>": "other than", ">": "more than", ">=": "at least", "<": "less than", "<=": "at most" };
  const TEXT_OPERATORS = { "=": "equal to", "<>": "other than", contains: "containing", starts_with: "beginning with" };
  const WORD = /^[A-Za-z_]\w*$/;

  const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

  // the conditions that AND joins; the whole if OR joins some of them
  function clauses(sql) {
    const found = [];
    let depth = 0;
    let betweens = 0;
    let start = 0;
    for (const match of sql.matchAll(/'(?:[^']|'')*'|[()]|\b(?:AND|OR|BETWEEN)\b/gi)) {
      const word = match[0].toUpperCase();
      if (word === "(") depth += 1;
      else if (word === ")") depth -= 1;
      else if (depth > 0) continue;
      else if (word === "BETWEEN") betweens += 1;
      else if (word === "OR") return [sql.trim()];
      else if (word === "AND" && betweens > 0) betweens -= 1;
      else if (word === "AND") {
        found.push(sql.slice(start, match.index).trim());
        start = match.index + match[0].length;
      }
    }
    found.push(sql.slice(start).trim());
    return found.filter((clause) => clause !== "");
  }

  function newClause() {
    const text = value.value.trim();
    const isNumber = "number" in column.selectedOptions[0].dataset;
    if (text === "" || (isNumber && !Number.isFinite(Number(text)))) return null;
    if (WORD.test(operator.value)) return `${operator.value}(${column.value}, ${quoted(text)})`;
    return `${column.value} ${operator.value} ${isNumber ? Number(text) : quoted(text)}`;
  }

  function add() {
    const clause = newClause();
    value.setCustomValidity(clause === null ? "Enter a value; this column may need a number." : "");
    if (!value.reportValidity()) return;
    const joined = clauses(where.value);
    // a condition with OR needs brackets before another one can be added
    const before = joined.length === 1 && /\bOR\b/i.test(joined[0]) ? `(${joined[0]})` : joined.join(" AND ");
    where.value = before === "" ? clause : `${before} AND ${clause}`;
    value.value = "";
    draw();
    value.focus();
  }

  function chip(text, label, remove) {
    const button = lorif.element("button", { type: "button", "aria-label": `Remove ${label}`, onclick: remove }, "×");
    return lorif.element("span", { className: "chip" }, text, button);
  }

  function draw() {
    const all = clauses(where.value);
    const state = lorif.readForm();
    for (const list of document.querySelectorAll(".chips")) {
      const isFolded = list.closest("#folded") !== null;
      const askAgain = () => { if (isFolded) lorif.submit(); };
      const chips = all.map((clause, i) => chip(clause, `the filter ${clause}`, () => {
        where.value = all.filter((_, other) => other !== i).join(" AND ");
        draw();
        askAgain();
      }));
      if (state.span !== null) {
        const part = lorif.partOf(state.answer, state.span);
        chips.unshift(chip(`only “${part}”`, "the limit to a part of the answer", () => {
          lorif.setSpan(null);
          askAgain();
        }));
      }
      list.replaceChildren(...chips);
      list.hidden = chips.length === 0;
    }
  }

  function listOperators() {
    const isNumber = "number" in column.selectedOptions[0].dataset;
    const operators = Object.entries(isNumber ? NUMBER_OPERATORS : TEXT_OPERATORS);
    operator.replaceChildren(...operators.map(([sql, words]) => new Option(words, sql)));
  }

  lorif.addFilter = (clause) => {
    where.value = [...clauses(where.value).map((one) => (/\bOR\b/i.test(one) ? `(${one})` : one)), clause].join(" AND ");
    draw();
  };
  lorif.quoted = quoted;

  for (const option of [...column.options]) {
    if (!WORD.test(option.value)) option.remove(); // such a name cannot be written in a condition
  }
  column.addEventListener("change", listOperators);
  document.getElementById("add-filter").addEventListener("click", add);
  value.addEventListener("input", () => value.setCustomValidity(""));
  value.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    add();
  });
  where.addEventListener("input", draw);
  document.addEventListener("question", draw);
  listOperators();
})();
