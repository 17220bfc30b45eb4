"use strict";
/* Only where a server answers (scripts/report.py --serve): a form that sends an image and opens its prediction. */

Report.offerUpload = async function (place) {
  if (!window.location.protocol.startsWith("http")) return;
  const answer = await fetch("/checkpoints").catch(() => null);
  const names = answer && answer.ok ? await answer.json() : [];
  if (!names.length) return;
  const make = Report.make;
  const file = make("input", { type: "file", id: "upload-file", accept: "image/*,.dcm,.tif,.tiff", required: true });
  const choice = make("select", { id: "upload-checkpoint" }, ...names.map((name) => make("option", {}, name)));
  const said = make("p", { role: "status", className: "note" });
  const button = make("button", { textContent: "Predict" });
  const form = make("form", { className: "row" },
    make("label", { htmlFor: file.id, textContent: "New image" }), file,
    make("label", { htmlFor: choice.id, textContent: "by" }), choice, button);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    said.textContent = "Predicting …";
    const query = new URLSearchParams({ checkpoint: choice.value, name: file.files[0].name });
    try {
      const response = await fetch(`/predict?${query}`, { method: "POST", body: file.files[0] });
      const result = await response.json();
      if (result.page) window.location.assign(result.page);
      else said.textContent = result.error;
    } catch (error) {
      said.textContent = `The server does not answer (${error.message}).`;
    }
    button.disabled = false;
  });
  place.replaceChildren(form, said);
};

Report.offerUpload(document.getElementById("upload"));
