// The empty page: its examples, which come from the index.
(() => {
  const section = document.getElementById("start");
  const fields = document.getElementById("question").elements;
  let areListed = false;

  const empty = () => ({ ...lorif.readForm(), prompt: "", answer: "", other: "", where: "", span: null, generation: null });

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

  function item({ prompt, completion }) {
    const button = lorif.element("button", { type: "button", onclick: () => {
      lorif.fillForm({ ...empty(), prompt, answer: completion });
      lorif.submit();
    } }, prompt, lorif.element("span", { className: "continuation" }, completion));
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
    fields.prompt.focus();
    listExamples();
  };

  fields.token?.addEventListener("change", listExamples);
  document.addEventListener("answered", updateVisibility);
  document.addEventListener("ready", listExamples);
})();
