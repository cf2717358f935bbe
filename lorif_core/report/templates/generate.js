// Lets the model answer the prompt; its words appear as it says them, and can then be edited.
(() => {
  const fields = document.getElementById("question").elements;
  const button = document.getElementById("generate");
  const progress = document.getElementById("progress");
  const MAX_NEW_TOKENS = 48; // two or three sentences
  const label = button.textContent;
  let running = null;

  // what the model is asked, the field for its words, and a field that must be filled in before
  const plainText = () => ({
    body: { prompt: fields.prompt.value }, field: fields.answer, missing: fields.prompt.value.trim() === "" ? fields.prompt : null,
  });

  async function generate() {
    const { body, field, missing } = lorif.openAnswer() ?? plainText();
    if (missing !== null) {
      lorif.showError("Write a prompt first; the model continues it.");
      missing.focus();
      return;
    }
    running = new AbortController();
    button.textContent = "Stop";
    field.value = "";
    lorif.setSpan(null);
    lorif.showError("");
    progress.textContent = "The model answers …";
    try {
      const response = await lorif.request("generations", {
        accept: "text/event-stream", body: { ...body, max_new_tokens: MAX_NEW_TOKENS }, signal: running.signal,
      });
      await read(response.body.pipeThrough(new TextDecoderStream()).getReader(), field);
      progress.textContent = field.value === "" ? "The model has nothing to add." : "This is what the model says. Edit it, or ask.";
    } catch (failure) {
      if (!lorif.isBusy()) progress.textContent = failure.name === "AbortError" ? "Stopped." : "";
      if (failure.name !== "AbortError") lorif.showError(failure.message);
    } finally {
      running = null;
      button.textContent = label;
    }
  }

  // server-sent events, each with the whole text so far
  async function read(reader, field) {
    let unread = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (unread + value).split("\n\n");
      unread = events.pop();
      for (const event of events) step(event, field);
    }
  }

  function step(event, field) {
    const data = JSON.parse(event.slice(event.indexOf("data: ") + "data: ".length));
    if (event.startsWith("event: error")) throw new Error(data.error.message);
    field.value = data.text;
    field.scrollTop = field.scrollHeight;
  }

  lorif.isGenerating = () => running !== null;
  lorif.stopGenerating = () => running?.abort();
  button.addEventListener("click", () => {
    if (running === null) generate();
    else running.abort();
  });
})();
