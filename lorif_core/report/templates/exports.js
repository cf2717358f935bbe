// Takes an answer elsewhere: a link, tables, a page of its own, and code that asks the same question.
(() => {
  const dialog = document.getElementById("code");
  const codeText = document.getElementById("code-text");
  const copied = document.getElementById("copied");
  const name = document.getElementById("home").textContent.replace(/^LoRIF: /, "");
  const MEDIA_TYPES = { csv: "text/csv", parquet: "application/vnd.apache.parquet", report: "text/html" };
  const FILES = { csv: "answer.csv", parquet: "answer.parquet", report: "report.html" };

  const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

  lorif.download = (blob, file) => {
    const address = URL.createObjectURL(blob);
    lorif.element("a", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  // the options that the answer on the page has
  const extras = (state) => ({
    explain: (state.explain && state.normalise === "none") || null,
    totals: state.totals ? "uri" : null,
  });

  async function save(format) {
    const state = lorif.currentState();
    const progress = document.getElementById("progress");
    const extra = format === "report" ? extras(state) : {};
    try {
      progress.textContent = `Preparing ${FILES[format]} …`;
      const body = lorif.toRequest(state, { ...extra, format });
      const response = await lorif.request("answers", { accept: MEDIA_TYPES[format], body });
      lorif.download(await response.blob(), FILES[format]);
      progress.textContent = `Saved ${FILES[format]}.`;
    } catch (failure) {
      progress.textContent = "";
      lorif.showError(failure.message);
    }
  }

  function curl(state) {
    const token = document.getElementById("token") ? ' \\\n  -H "Authorization: Bearer $LORIF_SERVE_TOKEN"' : "";
    const body = shellQuoted(JSON.stringify(lorif.toRequest(state, extras(state))));
    return `curl -s ${shellQuoted(new URL("answers", location.href).href)} -H 'Content-Type: application/json'${token} \\\n  -d ${body}\n`;
  }

  // JSON is Python here, since the values are strings, numbers, lists and objects
  function python(state) {
    const options = [`k=${Number(state.top_k)}`];
    if (state.where) options.push(`where=${JSON.stringify(state.where)}`);
    if (state.normalise !== "none") options.push(`normalise="${state.normalise}"`);
    return [
      "import lorif_core as lc", "",
      `index = lc.open_index(${JSON.stringify(name)})  # the path of the index`,
      `query = ${JSON.stringify(lorif.queryOf(state))}`,
      `(top,) = index.top_k([query], ${options.join(", ")})`,
      "for hit in top.proponents:", '    print(f"{hit.score:+.3g}  {hit.example_id}")', "",
    ].join("\n");
  }

  function command(state) {
    const { messages, prompt, answer, other, span } = state;
    const where = state.where ? ` --where ${shellQuoted(state.where)}` : "";
    const normalise = state.normalise === "none" ? "" : ` --normalise ${state.normalise}`;
    const options = `--top-k ${Number(state.top_k)}${where}${normalise}`;
    if (messages !== null || other !== "" || span !== null) {
      const line = JSON.stringify({ id: "question", ...lorif.queryOf(state) });
      const write = `printf '%s\\n' ${shellQuoted(line)} > queries.jsonl`; // some echoes would read the backslashes
      return `${write}\nlorif attribute -c config.yaml --queries queries.jsonl --out answer ${options}\n`;
    }
    // joined by =, since a text that begins with a hyphen would be an option
    const text = prompt === "" ? `--text=${shellQuoted(answer)}` : `--text=${shellQuoted(prompt)} --completion=${shellQuoted(answer)}`;
    return `lorif query ${shellQuoted(name)} ${text} ${options}\n`;
  }

  const languages = { curl: ["Ask with curl", curl], python: ["Ask in Python", python], command: ["Ask on the command line", command] };

  function showCode(language) {
    const [title, write] = languages[language];
    openCode(title, write(lorif.currentState()));
  }

  function openCode(title, text) {
    document.getElementById("code-title").textContent = title;
    codeText.value = text;
    copied.textContent = "";
    dialog.showModal();
    document.getElementById("copy-code").focus();
  }

  // without https the clipboard is closed to scripts, except on this machine; then the text is selected
  async function copy() {
    try {
      await navigator.clipboard.writeText(codeText.value);
      copied.textContent = "Copied.";
    } catch {
      codeText.select();
      copied.textContent = "Press Ctrl+C to copy.";
    }
  }

  document.getElementById("export").addEventListener("click", (event) => {
    const { format, code } = event.target.dataset;
    if (!format && !code) return;
    document.getElementById("export").open = false;
    if (format) save(format);
    else showCode(code);
  });
  document.getElementById("copy-link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      document.getElementById("progress").textContent = "The link is on the clipboard; it shows this answer, from this generation.";
    } catch {
      openCode("Link to this answer", location.href);
    }
  });
  document.getElementById("copy-code").addEventListener("click", copy);
  document.getElementById("close-code").addEventListener("click", () => dialog.close());
})();
