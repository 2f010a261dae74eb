// Reads the model card, then builds the page that fits it.

import { ask, setToken } from "./api.js";
import { imagePage } from "./image.js";
import { tablePage } from "./table.js";

const at = (id) => document.getElementById(id);

function report(error) {
  at("problem").hidden = !error;
  at("problem").textContent = error ? error.message : "";
}

async function start() {
  const model = await ask("v1/model");
  at("name").textContent = model.name;
  document.title = `${model.name} · vae-anomaly`;
  const digest = model.digest.slice(0, 12);
  const version = model.version === digest ? "" : `version ${model.version} · `;
  at("about").textContent = `${version}bundle ${digest} · runs on ${model.provider.replace("ExecutionProvider", "")}`;
  const image = model.schema.kind === "image";
  at("work").replaceChildren(at(image ? "image-page" : "table-page").content.cloneNode(true));
  (image ? imagePage : tablePage)(model, report);
  report(null);
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(at("token").value.trim());
  location.reload();
});

start().catch(report);
