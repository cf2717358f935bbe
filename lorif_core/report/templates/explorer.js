// Sends the question in the form to the server, and shows the answer or the error message.
"use strict";
(() => {
  const form = document.getElementById("question");
  const fields = form.elements;
  const container = document.getElementById("answer-container");
  const progress = document.getElementById("progress");
  const error = document.getElementById("error");
  const recent = document.getElementById("recent");
  const generation = document.getElementById("generation").textContent;
  const TOKEN = "lorif-token";
  const MAX_HISTORY = 20;
  const MAX_TITLE_CHARS = 90;
  const history = [];
  let currentRequest = null;

  function showFieldsOfKind() {
    for (const part of form.querySelectorAll("[data-kind]")) {
      part.hidden = part.dataset.kind !== fields.kind.value;
      part.querySelector("textarea").required = !part.hidden;
    }
  }

  // token contributions add up to scores that are not normalised
  function updateExplainOption() {
    fields.explain.disabled = fields.normalise.value !== "none";
  }

  function readQuestion() {
    const query = fields.kind.value === "text"
      ? { text: fields.text.value }
      : { prompt: fields.prompt.value, completion: fields.completion.value };
    return {
      ...query,
      top_k: Number(fields.top_k.value),
      where: fields.where.value.trim() || null,
      normalise: fields.normalise.value,
      explain: fields.explain.checked && !fields.explain.disabled,
      totals: fields.totals.checked ? "uri" : null,
    };
  }

  function fillForm(question) {
    fields.kind.value = "text" in question ? "text" : "pair";
    for (const name of ["text", "prompt", "completion", "top_k", "where", "normalise"]) {
      fields[name].value = question[name] ?? "";
    }
    fields.explain.checked = question.explain;
    fields.totals.checked = question.totals !== null;
    showFieldsOfKind();
    updateExplainOption();
  }

  async function ask(question, signal) {
    const headers = { "Content-Type": "application/json", Accept: "text/html" };
    if (fields.token) {
      sessionStorage.setItem(TOKEN, fields.token.value);
      headers.Authorization = `Bearer ${fields.token.value}`;
    }
    const response = await fetch("answers", { method: "POST", headers, body: JSON.stringify(question), signal });
    const answered = response.headers.get("X-Lorif-Generation");
    noteGeneration(answered);
    if (response.ok) return { html: await response.text(), generation: answered };
    throw new Error(await errorMessage(response));
  }

  async function errorMessage(response) {
    let message = `The server answered ${response.status} ${response.statusText}`;
    try {
      message = (await response.json()).error.message;
    } catch {
      // the answer of a proxy need not be JSON
    }
    const seconds = response.headers.get("Retry-After");
    if (response.status === 401) fields.token?.focus();
    return seconds ? `${message} (try again in ${seconds} s)` : message;
  }

  function noteGeneration(answered) {
    if (answered === null || answered === generation) return;
    document.getElementById("newer").textContent =
      `Answers now come from generation ${answered}; reload the page to see the facts about it.`;
  }

  async function submit() {
    currentRequest?.abort();
    const request = new AbortController();
    currentRequest = request;
    const question = readQuestion();
    const started = performance.now();
    error.textContent = "";
    setBusy(true);
    try {
      const answer = await ask(question, request.signal);
      remember(question, answer);
      show(answer);
      progress.textContent = `Answered in ${((performance.now() - started) / 1000).toFixed(1)} s.`;
    } catch (failure) {
      if (currentRequest !== request) return;
      progress.textContent = "";
      if (failure.name === "AbortError") progress.textContent = "Cancelled.";
      else error.textContent = failure instanceof TypeError ? "The server can't be reached; is it still running?" : failure.message;
    } finally {
      if (currentRequest === request) setBusy(false);
    }
  }

  function setBusy(isBusy) {
    if (isBusy) progress.textContent = "Searching …";
    else currentRequest = null;
    document.getElementById("cancel").hidden = !isBusy;
    document.getElementById("answers").setAttribute("aria-busy", String(isBusy));
  }

  function show(answer) {
    container.innerHTML = answer.html; // safe: the server escapes all text, and the content policy blocks inline scripts
    document.dispatchEvent(new Event("answered"));
  }

  function remember(question, answer) {
    const key = JSON.stringify(question);
    const index = history.findIndex((entry) => JSON.stringify(entry.question) === key);
    if (index >= 0) history.splice(index, 1);
    history.unshift({ question, answer });
    history.length = Math.min(history.length, MAX_HISTORY);
    recent.hidden = history.length < 2;
    recent.querySelector("ol").replaceChildren(...history.map(historyItem));
  }

  function historyItem({ question, answer }) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const title = question.text ?? `${question.prompt}${question.completion}`;
    button.type = "button";
    button.textContent = title.length > MAX_TITLE_CHARS ? `${title.slice(0, MAX_TITLE_CHARS)} …` : title;
    button.addEventListener("click", () => {
      fillForm(question);
      show(answer);
      progress.textContent = "This is the earlier answer; the server was not asked again.";
      error.textContent = "";
      document.getElementById("answers").focus();
    });
    const options = [question.where && `where ${question.where}`, question.normalise !== "none" && question.normalise,
      answer.generation !== generation && `generation ${answer.generation}`].filter(Boolean);
    item.append(button, options.length ? ` ${options.join(", ")}` : "");
    return item;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("change", () => {
    showFieldsOfKind();
    updateExplainOption();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  document.getElementById("cancel").addEventListener("click", () => currentRequest?.abort());
  if (fields.token) fields.token.value = sessionStorage.getItem(TOKEN) ?? "";
  showFieldsOfKind();
  updateExplainOption();
})();
