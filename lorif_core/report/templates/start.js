// The empty page: its examples, which come from the index.
(() => {
  const section = document.getElementById("start");
  const fields = document.getElementById("question").elements;
  const MAX_SHOWN_CHARS = 160; // of what is said in a conversation
  let areListed = false;

  const short = (text) => (text.length > MAX_SHOWN_CHARS ? `${text.slice(0, MAX_SHOWN_CHARS)} …` : text);

  const empty = () => ({ ...lorif.readForm(), messages: lorif.emptyMessages(), prompt: "", answer: "", other: "", where: "", span: null, generation: null });

  async function listExamples() {
    if (areListed || lorif.needsToken()) return;
    try {
      const { suggestions } = await (await lorif.request("suggestions")).json();
      areListed = suggestions.length > 0;
      section.querySelector("ol").replaceChildren(...suggestions.map(item));
    } catch {
      areListed = false; // the page works without examples; the first question will show what is wrong
    }
    updateVisibility();
  }

  function item({ messages, prompt, completion }) {
    const state = messages === null ? { ...empty(), messages, prompt, answer: completion } : { ...empty(), messages };
    const shown = messages === null ? [prompt, completion] : ["user", "assistant"].map((role) => short(lorif.lastOf(messages, role)));
    const between = messages === null ? [] : [document.createElement("br")];
    const button = lorif.element("button", { type: "button", onclick: () => {
      lorif.fillForm(state);
      lorif.submit();
    } }, shown[0], ...between, lorif.element("span", { className: "continuation" }, shown[1]));
    return lorif.element("li", { dir: "auto" }, button);
  }

  function updateVisibility() {
    section.hidden = !areListed || document.querySelector("#answer-container .query") !== null;
  }

  lorif.needsToken = () => fields.token !== undefined && fields.token.value === "";
  lorif.beginAgain = () => {
    lorif.fillForm(empty());
    lorif.clearAnswer();
    lorif.unfold();
    lorif.focusQuestion(true);
    listExamples();
  };

  fields.token?.addEventListener("change", listExamples);
  document.addEventListener("answered", updateVisibility);
  document.addEventListener("ready", listExamples);
})();
