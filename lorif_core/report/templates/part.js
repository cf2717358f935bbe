// Asks about a part of the answer: one selected in its field (also by keys), or dragged over the shown answer.
(() => {
  const field = document.getElementById("answer");
  const askField = document.getElementById("ask-part");
  const askShown = document.getElementById("ask-selection");
  const container = document.getElementById("answer-container");
  const GAP = 6;
  let shownSpan = null;

  const selectedInField = () => {
    const { selectionStart: start, selectionEnd: end, value } = field;
    return value.slice(start, end).trim() !== "" && end - start < value.length ? lorif.spanOf(value, start, end) : null;
  };

  function updateField() {
    askField.hidden = selectedInField() === null || lorif.readForm().other !== "";
  }

  // the part of the question's answer that is selected in the shown answer
  function selectedInAnswer() {
    const selection = getSelection();
    const state = lorif.currentState();
    if (selection.isCollapsed || selection.rangeCount === 0 || state === null || state.messages !== null || state.other !== "") return null;
    const range = selection.getRangeAt(0);
    const text = container.querySelector(".completion, .whole");
    if (text === null || !text.contains(range.startContainer) || !text.contains(range.endContainer)) return null;
    const before = new Range();
    before.selectNodeContents(text);
    before.setEnd(range.startContainer, range.startOffset);
    // the page leaves out line breaks around the answer, and may show a space or a special token before it
    const core = state.answer.replace(/^\n+|\n+$/g, "");
    const moved = state.answer.indexOf(core) - text.textContent.indexOf(core);
    const chosen = range.toString();
    const end = moved + before.toString().length + chosen.length;
    if (!text.textContent.includes(core) || chosen.trim() === "" || end <= 0) return null;
    return { span: lorif.spanOf(state.answer, Math.max(0, end - chosen.length), end), range };
  }

  function updateShown() {
    const selected = selectedInAnswer();
    askShown.hidden = selected === null;
    shownSpan = selected?.span ?? null;
    if (selected === null) return;
    const box = selected.range.getBoundingClientRect();
    askShown.style.left = `${Math.max(GAP, Math.min(box.left, innerWidth - askShown.offsetWidth - GAP)) + scrollX}px`;
    askShown.style.top = `${box.bottom + GAP + scrollY}px`;
  }

  for (const event of ["select", "keyup", "pointerup", "input"]) field.addEventListener(event, updateField);
  document.addEventListener("selectionchange", () => {
    if (document.activeElement === field) updateField();
    else if (document.activeElement !== askShown) updateShown();
  });
  document.addEventListener("question", updateField);
  askField.addEventListener("click", () => {
    lorif.setSpan(selectedInField());
    lorif.submit();
  });
  askShown.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the selection
  askShown.addEventListener("click", () => {
    lorif.fillForm({ ...lorif.currentState(), span: shownSpan });
    getSelection().removeAllRanges();
    askShown.hidden = true;
    lorif.submit();
  });
})();
