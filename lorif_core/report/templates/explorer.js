// Asks the server what is in the form, and shows the answer or what is wrong.
"use strict";
(() => {
  const form = document.getElementById("question");
  const fields = form.elements;
  const place = document.getElementById("answer-place");
  const progress = document.getElementById("progress");
  const error = document.getElementById("error");
  const recent = document.getElementById("recent");
  const generation = document.getElementById("generation").textContent;
  const TOKEN = "lorif-token";
  const REMEMBERED = 20;
  const history = [];
  let asking = null;

  function chooseKind() {
    for (const part of form.querySelectorAll("[data-kind]")) {
      part.hidden = part.dataset.kind !== fields.kind.value;
      part.querySelector("textarea").required = !part.hidden;
    }
  }

  // contributions are parts of scores that are not normalised
  function allowExplaining() {
    fields.explain.disabled = fields.normalise.value !== "none";
  }

  function question() {
    const said = fields.kind.value === "text"
      ? { text: fields.text.value }
      : { prompt: fields.prompt.value, completion: fields.completion.value };
    return {
      ...said,
      top_k: Number(fields.top_k.value),
      where: fields.where.value.trim() || null,
      normalise: fields.normalise.value,
      explain: fields.explain.checked && !fields.explain.disabled,
      totals: fields.totals.checked ? "uri" : null,
    };
  }

  function fillIn(asked) {
    fields.kind.value = "text" in asked ? "text" : "pair";
    for (const name of ["text", "prompt", "completion", "top_k", "where", "normalise"]) fields[name].value = asked[name] ?? "";
    fields.explain.checked = asked.explain;
    fields.totals.checked = asked.totals !== null;
    chooseKind();
    allowExplaining();
  }

  async function ask(asked, signal) {
    const headers = { "Content-Type": "application/json", Accept: "text/html" };
    if (fields.token) {
      sessionStorage.setItem(TOKEN, fields.token.value);
      headers.Authorization = `Bearer ${fields.token.value}`;
    }
    const reply = await fetch("answers", { method: "POST", headers, body: JSON.stringify(asked), signal });
    notice(reply.headers.get("X-Lorif-Generation"));
    if (reply.ok) return { html: await reply.text(), generation: reply.headers.get("X-Lorif-Generation") };
    throw new Error(await complaint(reply));
  }

  async function complaint(reply) {
    let message = `The server answered ${reply.status} ${reply.statusText}`;
    try {
      message = (await reply.json()).error.message;
    } catch {
      // a proxy in between may answer with something else than our JSON
    }
    const after = reply.headers.get("Retry-After");
    if (reply.status === 401) fields.token?.focus();
    return after ? `${message} (try again in ${after} s)` : message;
  }

  function notice(now) {
    if (now === null || now === generation) return;
    document.getElementById("newer").textContent =
      `Generation ${now} is there by now, and answers come from it; load the page again for its facts.`;
  }

  async function submit() {
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    const asked = question();
    const started = performance.now();
    error.textContent = "";
    busy(true);
    try {
      const answer = await ask(asked, mine.signal);
      remember(asked, answer);
      show(answer);
      progress.textContent = `Answered in ${((performance.now() - started) / 1000).toFixed(1)} s.`;
    } catch (problem) {
      if (asking !== mine) return;
      progress.textContent = "";
      if (problem.name === "AbortError") progress.textContent = "Cancelled.";
      else error.textContent = problem instanceof TypeError ? "The server can't be reached; is it still running?" : problem.message;
    } finally {
      if (asking === mine) busy(false);
    }
  }

  function busy(is) {
    if (is) progress.textContent = "Asking …";
    else asking = null;
    document.getElementById("cancel").hidden = !is;
    document.getElementById("answers").setAttribute("aria-busy", String(is));
  }

  function show(answer) {
    place.innerHTML = answer.html; // the server's own fragment, with all text escaped; the policy runs no script in it
    document.dispatchEvent(new Event("answered"));
  }

  function remember(asked, answer) {
    const same = history.findIndex((entry) => JSON.stringify(entry.asked) === JSON.stringify(asked));
    if (same >= 0) history.splice(same, 1);
    history.unshift({ asked, answer });
    history.length = Math.min(history.length, REMEMBERED);
    recent.hidden = history.length < 2;
    recent.querySelector("ol").replaceChildren(...history.map(listed));
  }

  function listed(entry) {
    const { asked, answer } = entry;
    const item = document.createElement("li");
    const button = document.createElement("button");
    const said = asked.text ?? `${asked.prompt}${asked.completion}`;
    button.type = "button";
    button.textContent = said.length > 90 ? `${said.slice(0, 90)} …` : said;
    button.addEventListener("click", () => {
      fillIn(asked);
      show(answer);
      progress.textContent = "This is the answer from before.";
      error.textContent = "";
      document.getElementById("answers").focus();
    });
    const terms = [asked.where && `where ${asked.where}`, asked.normalise !== "none" && asked.normalise,
      answer.generation !== generation && `generation ${answer.generation}`].filter(Boolean);
    item.append(button, terms.length ? ` ${terms.join(", ")}` : "");
    return item;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("change", () => {
    chooseKind();
    allowExplaining();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  document.getElementById("cancel").addEventListener("click", () => asking?.abort());
  if (fields.token) fields.token.value = sessionStorage.getItem(TOKEN) ?? "";
  chooseKind();
  allowExplaining();
})();
