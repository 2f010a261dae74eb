// Talks to the service. Every call returns parsed JSON or throws an Error made for people.

const KEY = "vae-anomaly-token";

export function setToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

export async function ask(path, body, signal) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) throw new Error("This service asks for a token: enter it above.");
  throw new Error([answer.detail ?? answer.title ?? `The service answered ${response.status}`, answer.hint].filter(Boolean).join("; "));
}

/** One request of the Open Inference Protocol; tensors by name, in and out. */
export async function infer(model, inputs, signal) {
  const answer = await ask(`v2/models/${encodeURIComponent(model)}/infer`, { inputs }, signal);
  return Object.fromEntries(answer.outputs.map((output) => [output.name, output]));
}

export function tensor(name, datatype, shape, data) {
  return { name, datatype, shape, data: Array.from(data) };
}

/** Wraps a task so that only its latest call matters: an older one still under way is abandoned. */
export function latest(task, onError) {
  let controller = new AbortController();
  return async (...given) => {
    controller.abort();
    controller = new AbortController();
    try {
      await task(controller.signal, ...given);
      onError(null);
    } catch (error) {
      if (error.name !== "AbortError") onError(error);
    }
  };
}
