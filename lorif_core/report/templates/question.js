// The question: as the form has it, as the fragment of the address, and as the body of a request.
(() => {
  const form = document.getElementById("question");
  const fields = form.elements;
  const TEXTS = ["prompt", "answer", "other", "where"];
  const MAX_LINE_CHARS = 120;
  const NUMBER = /^\d+$/;
  const defaults = { top_k: fields.top_k.value, normalise: "none", explain: true, totals: false };
  let span = null;

  lorif.readForm = () => {
    const messages = lorif.readMessages();
    const other = document.getElementById("other-row").hidden ? "" : fields.other.value;
    return {
      messages,
      prompt: messages ? "" : fields.prompt.value,
      answer: messages ? "" : fields.answer.value,
      other,
      where: fields.where.value.trim(),
      top_k: fields.top_k.value,
      normalise: fields.normalise.value,
      explain: fields.explain.checked,
      totals: fields.totals.checked,
      span: messages || other !== "" ? null : span,
      generation: null,
    };
  };

  lorif.fillForm = (state) => {
    lorif.stopGenerating();
    for (const name of [...TEXTS, "top_k", "normalise"]) fields[name].value = state[name];
    lorif.fillMessages(state.messages);
    fields.explain.checked = state.explain;
    fields.totals.checked = state.totals;
    span = state.span;
    lorif.showCompare(state.other !== "");
    updateExplainOption();
    document.dispatchEvent(new Event("question"));
  };

  lorif.setSpan = (chosen) => {
    span = chosen;
    document.dispatchEvent(new Event("question"));
  };

  lorif.showCompare = (isShown) => {
    document.getElementById("other-row").hidden = !isShown;
    fields.other.required = isShown;
    document.getElementById("compare").setAttribute("aria-expanded", String(isShown));
  };

  // what has its default value is left out, so that links stay short
  lorif.toHash = (state) => {
    const pairs = Object.entries(state).filter(([name, value]) => {
      if (name in defaults) return value !== defaults[name];
      return value !== null && value !== "";
    });
    const text = (name, value) => {
      if (name === "messages") return JSON.stringify(value);
      return name === "span" ? `${value.start}-${value.end}` : String(value);
    };
    return `#${new URLSearchParams(pairs.map(([name, value]) => [name, text(name, value)]))}`;
  };

  // null if the fragment has no question
  lorif.fromHash = (hash) => {
    const given = new URLSearchParams(hash.slice(1));
    const messages = lorif.parseMessages(given.get("messages"));
    if (messages === null && !given.get("answer")) return null;
    const knows = (name) => [...fields.normalise.options].some((option) => option.value === name);
    const bounds = /^(\d+)-(\d+)$/.exec(given.get("span") ?? "");
    return {
      messages,
      ...Object.fromEntries(TEXTS.map((name) => [name, given.get(name) ?? ""])),
      top_k: NUMBER.test(given.get("top_k")) ? given.get("top_k") : defaults.top_k,
      normalise: knows(given.get("normalise")) ? given.get("normalise") : defaults.normalise,
      explain: given.get("explain") !== "false",
      totals: given.get("totals") === "true",
      span: bounds && { start: Number(bounds[1]), end: Number(bounds[2]) },
      generation: NUMBER.test(given.get("generation")) ? Number(given.get("generation")) : null,
    };
  };

  const single = (prompt, answer) => (prompt === "" ? { text: answer } : { prompt, completion: answer });

  lorif.queryOf = ({ messages, prompt, answer, other, span: part }) => {
    if (messages !== null) return other === "" ? { messages } : { contrast: [{ messages }, { messages: lorif.withAnswer(messages, other) }] };
    if (other !== "") return { contrast: [single(prompt, answer), single(prompt, other)] };
    return part === null ? single(prompt, answer) : { ...single(prompt, answer), span: part };
  };

  // the body of a request; what is null is left out
  lorif.toRequest = (state, extra = {}) => {
    const options = {
      top_k: Number(state.top_k),
      where: state.where || null,
      normalise: state.normalise === "none" ? null : state.normalise,
      generation: state.generation,
      ...extra,
    };
    return { ...lorif.queryOf(state), ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== null)) };
  };

  lorif.lineOf = ({ messages, other, ...texts }) => {
    const { prompt, answer } = messages === null ? texts : { prompt: lorif.lastOf(messages, "user"), answer: lorif.lastOf(messages, "assistant") };
    const line = `${prompt === "" ? "" : `${prompt.trim()} → `}${answer.trim()}${other === "" ? "" : ` ⇄ ${other.trim()}`}`;
    return line.length > MAX_LINE_CHARS ? `${line.slice(0, MAX_LINE_CHARS)} …` : line;
  };

  // a part of the answer in characters, from offsets in UTF-16
  lorif.spanOf = (text, start, end) => ({ start: [...text.slice(0, start)].length, end: [...text.slice(0, end)].length });
  lorif.partOf = (text, { start, end }) => [...text].slice(start, end).join("");

  // the parts of scores add up to plain scores only
  function updateExplainOption() {
    fields.explain.disabled = fields.normalise.value !== "none";
  }

  fields.normalise.addEventListener("change", updateExplainOption);
  fields.answer.addEventListener("input", () => {
    if (span !== null) lorif.setSpan(null);
  });
  fields.other.addEventListener("input", () => document.dispatchEvent(new Event("question")));
  document.getElementById("compare").addEventListener("click", () => {
    const isShown = document.getElementById("other-row").hidden;
    lorif.showCompare(isShown);
    document.dispatchEvent(new Event("question"));
    if (isShown) fields.other.focus();
  });
  document.getElementById("show-options").addEventListener("click", (event) => {
    const options = document.getElementById("options");
    options.hidden = !options.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!options.hidden));
  });
  updateExplainOption();
})();
