// The whole record of an example and its neighbours in the file, in a panel at the side.
(() => {
  const panel = document.getElementById("panel");
  const content = document.getElementById("panel-content");
  const MAX_QUESTION_CHARS = 20_000;

  let newest = null; // what was opened last; an earlier record that comes later is not shown

  lorif.openPanel = async (id) => {
    const opened = {};
    newest = opened;
    document.getElementById("panel-title").textContent = id;
    content.replaceChildren("Reading …");
    if (!panel.open) panel.showModal();
    try {
      const record = await (await lorif.request(`examples?${new URLSearchParams({ id })}`)).json();
      if (newest !== opened) return;
      content.replaceChildren(...draw(record));
    } catch (failure) {
      if (newest !== opened) return;
      content.replaceChildren(lorif.element("p", { className: "error" }, failure.message));
    }
    panel.scrollTop = 0;
    document.getElementById("panel-title").focus();
  };

  function draw(record) {
    const { text, turns, uri, row, tokens, loss, checkpoint, columns, neighbours } = record;
    const facts = { file: uri, row, ...columns, tokens, "loss when indexed": `${Number(loss.toPrecision(4))} nats`, checkpoint };
    const list = Object.entries(facts).filter(([, value]) => value !== null).flatMap(([name, value]) => [
      lorif.element("dt", {}, name), lorif.element("dd", {}, String(value)),
    ]);
    const passage = turns === null ? lorif.element("p", { className: "text", dir: "auto" }, text ?? "The index does not store texts.") : drawTurns(text, turns);
    const ask = lorif.element("button", { type: "button", className: "primary", onclick: () => askAbout(text, turns) }, "Ask about this passage");
    return [
      passage, ...(text ? [ask] : []), lorif.element("dl", {}, ...list),
      lorif.element("h3", {}, "Neighbours in the file"),
      ...neighbours.map(drawNeighbour), ...(neighbours.length === 0 ? [lorif.element("p", {}, "None.")] : []),
    ];
  }

  function drawTurns(text, turns) {
    return lorif.element("div", { className: "text" }, ...turns.map(({ role, ...place }) => {
      const said = lorif.element("span", { className: "said", dir: "auto" }, lorif.partOf(text, place));
      const speaker = lorif.element("span", { className: "role" }, role);
      return lorif.element("span", { className: `turn turn-${role === "assistant" ? "assistant" : "context"}` }, speaker, said);
    }));
  }

  function drawNeighbour({ example_id: id, row, beginning }) {
    const button = lorif.element("button", { type: "button", onclick: () => lorif.openPanel(id) }, `row ${row}: ${id}`);
    return lorif.element("div", { className: "neighbour" }, button, lorif.element("p", { className: "text excerpt", dir: "auto" }, beginning ?? ""));
  }

  function askAbout(text, turns) {
    panel.close();
    const messages = turns && lorif.messagesOf(text, turns);
    const answer = messages === null ? text.slice(0, MAX_QUESTION_CHARS) : "";
    lorif.fillForm({ ...lorif.readForm(), messages, prompt: "", answer, other: "", span: null });
    lorif.submit();
  }

  document.getElementById("close-panel").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => {
    if (event.target === panel && event.clientX < panel.getBoundingClientRect().left) panel.close();
  });
})();
