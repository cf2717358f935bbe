// Sends a question to the server, and shows its ranks at once and its colours when they come.
(() => {
  const fields = document.getElementById("question").elements;
  const container = document.getElementById("answer-container");
  const answers = document.getElementById("answers");
  const progress = document.getElementById("progress");
  const error = document.getElementById("error");
  const cancel = document.getElementById("cancel");
  const TOKEN = "lorif-token";
  const LOST_GENERATION = ["generation_gone", "other_checkpoint"]; // a link names a generation that cannot be asked
  let currentRequest = null;

  // a request with the token; throws an error whose message is the server's
  lorif.request = async (path, { accept = "application/json", body = null, signal = null } = {}) => {
    const headers = { Accept: accept };
    if (body !== null) headers["Content-Type"] = "application/json";
    if (fields.token) {
      sessionStorage.setItem(TOKEN, fields.token.value);
      headers.Authorization = `Bearer ${fields.token.value}`;
    }
    let response;
    try {
      response = await fetch(path, { method: body === null ? "GET" : "POST", headers, body: body && JSON.stringify(body), signal });
    } catch (failure) {
      if (failure.name === "AbortError") throw failure;
      throw new Error("The server can't be reached; is it still running?");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  };

  async function errorOf(response) {
    let message = `The server answered ${response.status} ${response.statusText}`;
    let code = "";
    try {
      ({ message, code } = (await response.json()).error);
    } catch {
      // the answer of a proxy need not be JSON
    }
    const seconds = response.headers.get("Retry-After");
    return Object.assign(new Error(seconds ? `${message} (try again in ${seconds} s)` : message), { code, status: response.status });
  }

  lorif.showError = (message, code = "") => {
    error.textContent = message;
    if (LOST_GENERATION.includes(code)) {
      error.append(" ", lorif.element("button", { type: "button", onclick: lorif.askNewest }, "Ask the newest generation"));
    }
    answers.classList.toggle("stale", message !== "" && container.hasChildNodes());
  };

  // asks, and shows the answer; `remember` gets the state with the generation that answered
  lorif.ask = async (state, remember) => {
    currentRequest?.abort();
    const request = new AbortController();
    currentRequest = request;
    const started = performance.now();
    const seconds = () => ((performance.now() - started) / 1000).toFixed(1);
    lorif.showError("");
    setBusy(true);
    try {
      const first = await fragment(lorif.toRequest(state), request.signal);
      const pinned = { ...state, generation: first.generation };
      answers.setAttribute("aria-busy", "false");
      show(first.html, false);
      remember(pinned, first.html);
      progress.textContent = `Ranked in ${seconds()} s.`;
      const extra = { explain: (state.explain && state.normalise === "none") || null, totals: state.totals ? "uri" : null };
      if (extra.explain || extra.totals) {
        progress.textContent += " Finding the words that carry the scores …";
        const second = await fragment(lorif.toRequest(pinned, extra), request.signal);
        show(second.html, true);
        remember(pinned, second.html);
        progress.textContent = `Answered in ${seconds()} s.`;
      }
    } catch (failure) {
      if (currentRequest !== request) return;
      progress.textContent = failure.name === "AbortError" ? "Cancelled." : "";
      if (failure.name === "AbortError") return;
      lorif.showError(failure.message, failure.code);
      if (failure.status !== 401) return;
      lorif.unfold();
      fields.token?.focus();
    } finally {
      if (currentRequest === request) setBusy(false);
    }
  };

  async function fragment(body, signal) {
    const response = await lorif.request("answers", { accept: "text/html", body, signal });
    return { html: await response.text(), generation: Number(response.headers.get("X-Lorif-Generation")) };
  }

  function setBusy(isBusy) {
    if (isBusy) progress.textContent = "Searching …";
    else currentRequest = null;
    cancel.hidden = !isBusy;
    answers.setAttribute("aria-busy", String(isBusy));
  }

  // the coloured answer replaces the ranks without moving what is being read
  function show(html, isSame) {
    const before = isSame ? readPlace() : null;
    container.innerHTML = html; // safe: the server escapes all text, and the content policy blocks inline scripts
    document.dispatchEvent(new Event("answered"));
    if (before === null) lorif.goToAnswer();
    else restorePlace(before);
  }

  function readPlace() {
    const focused = document.activeElement.closest("#answer-container [id]");
    const id = focused?.id;
    const anchor = focused ?? lorif.allHits().find((hit) => lorif.isVisible(hit) && hit.getBoundingClientRect().bottom > 0);
    const open = [...container.querySelectorAll("details[open]")].map((details) => [details.className, details.closest("[id]").id]);
    const place = anchor && { id: anchor.id, top: anchor.getBoundingClientRect().top };
    return { id, open, side: container.querySelector(".sides")?.dataset.tab, place };
  }

  function restorePlace({ id, open, side, place }) {
    for (const [name, owner] of open) {
      const details = document.getElementById(owner)?.querySelector(`details.${name}`);
      if (details) details.open = true;
    }
    if (side) lorif.selectTab(container.querySelector(".query"), side);
    const element = id && document.getElementById(id);
    if (element) (element.matches(".hit") ? element.querySelector(".rank") : element).focus({ preventScroll: true });
    const moved = place && document.getElementById(place.id);
    if (moved) scrollBy({ top: moved.getBoundingClientRect().top - place.top, behavior: "instant" });
  }

  // the earlier answer to a question, without a request
  lorif.showAgain = (html) => {
    currentRequest?.abort();
    lorif.showError("");
    progress.textContent = "This is the earlier answer; the server was not asked again.";
    show(html, false);
  };
  lorif.clearAnswer = () => {
    currentRequest?.abort();
    lorif.showError("");
    progress.textContent = "";
    container.replaceChildren();
    document.dispatchEvent(new Event("answered"));
  };
  lorif.goToAnswer = () => {
    lorif.fold();
    document.getElementById("folded").scrollIntoView({ block: "start", behavior: "instant" });
    container.querySelector(".query-text")?.focus({ preventScroll: true });
  };
  lorif.isBusy = () => currentRequest !== null;
  lorif.cancel = () => currentRequest?.abort();

  cancel.addEventListener("click", lorif.cancel);
  if (fields.token) fields.token.value = sessionStorage.getItem(TOKEN) ?? "";
})();
