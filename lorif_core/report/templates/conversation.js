// The turns of a conversation, where the index has conversations: what the assistant says is attributed.
(() => {
  const fields = document.getElementById("question").elements;
  const conversation = document.getElementById("conversation"); // null for an index of plain texts
  const turns = document.getElementById("turns");
  const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

  const isChat = () => conversation !== null && fields.kind.value === "chat";
  const roleOf = (turn) => turn.querySelector("select").value;
  const textOf = (turn) => turn.querySelector("textarea");

  function newTurn({ role, content }) {
    const roles = role in ROLES ? ROLES : { ...ROLES, [role]: role };
    const select = lorif.element("select", { onchange: update }, ...Object.entries(roles).map(([value, name]) => new Option(name, value)));
    select.value = role;
    const remove = lorif.element("button", { type: "button", onclick: () => removeTurn(turn) }, "Remove");
    const head = lorif.element("div", { className: "turn-head" }, select, remove);
    const turn = lorif.element("li", {}, head, lorif.element("textarea", { rows: 2, required: true, value: content }));
    return turn;
  }

  // names the fields of each turn, and says what is missing
  function update() {
    const all = [...turns.children];
    const hasAnswer = all.some((turn) => roleOf(turn) === "assistant");
    all.forEach((turn, i) => {
      const [select, remove] = turn.querySelectorAll("select, button");
      turn.dataset.role = roleOf(turn);
      select.setAttribute("aria-label", `Who speaks in turn ${i + 1}`);
      select.setCustomValidity(hasAnswer ? "" : "The assistant must say something; that is attributed.");
      remove.setAttribute("aria-label", `Remove turn ${i + 1}`);
      remove.hidden = all.length === 1;
      textOf(turn).setAttribute("aria-label", `What the ${roleOf(turn)} says in turn ${i + 1}`);
    });
    document.getElementById("add-system").hidden = all.length > 0 && roleOf(all[0]) === "system";
  }

  function removeTurn(turn) {
    const next = turn.nextElementSibling ?? turn.previousElementSibling;
    turn.remove();
    update();
    textOf(next).focus();
  }

  function addTurn(role, place) {
    const turn = newTurn({ role, content: "" });
    turns[place](turn);
    update();
    textOf(turn).focus();
  }

  function updateKind() {
    for (const id of ["prompt-row", "answer-row"]) document.getElementById(id).hidden = isChat();
    fields.answer.required = !isChat();
    conversation.hidden = !isChat();
    conversation.disabled = !isChat(); // what is hidden need not be filled in
  }

  lorif.readMessages = () => (isChat() ? [...turns.children].map((turn) => ({ role: roleOf(turn), content: textOf(turn).value })) : null);
  lorif.fillMessages = (messages) => {
    if (conversation === null) return;
    fields.kind.value = messages === null ? "text" : "chat";
    if (messages !== null) turns.replaceChildren(...messages.map(newTurn));
    update();
    updateKind();
  };
  lorif.emptyMessages = () => (conversation === null ? null : [{ role: "user", content: "" }, { role: "assistant", content: "" }]);

  // messages of a link; null if there are none that this page can show
  lorif.parseMessages = (text) => {
    try {
      const messages = JSON.parse(text);
      const areComplete = messages.every(({ role, content }) => typeof role === "string" && typeof content === "string");
      return conversation !== null && areComplete && messages.length > 0 ? messages.map(({ role, content }) => ({ role, content })) : null;
    } catch {
      return null;
    }
  };

  // the messages of an example, without what only the template has; null if they are no question
  lorif.messagesOf = (text, turns) => {
    const messages = turns.filter(({ role }) => role !== "template").map(({ role, ...place }) => ({ role, content: lorif.partOf(text, place) }));
    return conversation !== null && messages.some(({ role }) => role === "assistant") ? messages : null;
  };

  // what someone says last; empty if never
  lorif.lastOf = (messages, role) => messages.findLast((message) => message.role === role)?.content ?? "";

  // the conversation with another last answer
  lorif.withAnswer = (messages, answer) => {
    const last = messages.findLastIndex(({ role }) => role === "assistant");
    return messages.map((message, i) => (i === last ? { ...message, content: answer } : message));
  };

  // what the model answers, the field for its words, and one that must be filled in before; null for a plain text
  lorif.openAnswer = () => {
    if (!isChat()) return null;
    if (roleOf(turns.lastElementChild) !== "assistant") addTurn("assistant", "append");
    const fields = [...turns.children].map(textOf);
    const field = fields.pop();
    const missing = fields.find(({ value }) => value.trim() === "") ?? (fields.length === 0 ? field : null);
    return { body: { messages: lorif.readMessages().slice(0, -1) }, field, missing };
  };

  // the field to begin with, or the one that is edited most
  lorif.focusQuestion = (isNew) => {
    if (!isChat()) {
      (isNew ? fields.prompt : fields.answer).focus();
      return;
    }
    const all = [...turns.children];
    textOf(isNew ? all[0] : all.findLast((turn) => roleOf(turn) === "assistant") ?? all.at(-1)).focus();
  };

  if (conversation === null) return;
  for (const choice of fields.kind) {
    choice.addEventListener("change", () => {
      updateKind();
      document.dispatchEvent(new Event("question"));
    });
  }
  document.getElementById("add-system").addEventListener("click", () => addTurn("system", "prepend"));
  document.getElementById("add-turn").addEventListener("click", () => {
    const last = turns.lastElementChild;
    addTurn(last !== null && roleOf(last) !== "assistant" && roleOf(last) !== "system" ? "assistant" : "user", "append");
  });
  lorif.fillMessages(lorif.emptyMessages());
})();
