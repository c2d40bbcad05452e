// The page of `imprag serve`: asks the server's chat API and shows the answer with its passages.
// Text of the server and of passages is inserted as text, never as HTML.

const RETRIEVAL_HELP = {
  implicit: "The model’s own layers find the passages.",
  hybrid: "The model’s layers and the question’s words find the passages.",
  lexical: "The question’s words find the passages.",
};
const KEY = "imprag-api-key";
const BROKEN_OFF = "The connection ended before the answer was complete.";
const EXAMPLES_OF = "default"; // the corpus that answers the examples
const LONG_ANSWER = 160; // characters, from which an answer is set in smaller type
const LONG_PASSAGE = 900; // characters, from which a passage is cut with a button to show all

const byId = (id) => document.getElementById(id);
const askForm = byId("ask-form");
const questionBox = byId("question");
const keyForm = byId("key-form");

let model = null; // the id of the loaded model, once it is known
let running = null; // the AbortController of the answer that is being written
let unanswered = null; // the question to ask again once there is a key
let shown = 0; // the number of passages so far
let latest = null; // the turn that is shown in full

// --- The server ---------------------------------------------------------------------------------

class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The server's response to a request with the API key, if there is one. */
async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch(
    unlessStopped("The server cannot be reached. Is it still running?"),
  );
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}.`;
  throw new ServerError(message, response.status);
}

/** What to do when the network fails: say so, unless the visitor stopped the request. */
function unlessStopped(message) {
  return (error) => {
    throw error.name === "AbortError" ? error : new ServerError(message);
  };
}

/** The chunks of a streamed chat completion. */
async function* completion(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    yield chunk;
  }
  throw new ServerError(BROKEN_OFF);
}

/** The data of server-sent events; each has one line of it. */
async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(unlessStopped(BROKEN_OFF));
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice("data:".length).trim();
    }
  }
}

// --- What was read ------------------------------------------------------------------------------

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });
const FUNCTION_WORDS = new Set(
  (
    "a about also an and are as at be been but by can did do does for from had has have he her " +
    "his i if in into is it its of on or our she so some such than that the their them then " +
    "there these they this to was we were what when where which who will with would you"
  ).split(" "),
);
const BETWEEN_WORDS = /^[\s\p{Pd}'’]*$/u;

/** The words of a text as {word, start, end}, without case and accents. */
function wordsOf(text) {
  return [...segmenter.segment(text)]
    .filter((part) => part.isWordLike)
    .map(({ segment, index }) => ({
      word: segment.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase(),
      start: index,
      end: index + segment.length,
    }));
}

/** The parts of a passage to highlight, as sorted [start, end]: the words of the answer. */
function partsRead(passage, answer) {
  const words = new Set(wordsOf(answer).map(({ word }) => word));
  const parts = [];
  for (const { word, start, end } of wordsOf(passage)) {
    if (!words.has(word) || FUNCTION_WORDS.has(word)) continue;
    const last = parts.at(-1);
    if (last && BETWEEN_WORDS.test(passage.slice(last[1], start))) last[1] = end;
    else parts.push([start, end]);
  }
  return parts;
}

/** Marks parts of a text inside the element that shows it. */
function highlight(element, text, parts) {
  const nodes = [];
  let done = 0;
  for (const [start, end] of parts) {
    nodes.push(text.slice(done, start), made("mark", text.slice(start, end)));
    done = end;
  }
  element.replaceChildren(...nodes, text.slice(done));
}

// --- Making elements ----------------------------------------------------------------------------

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  Object.assign(element, attributes);
  return element;
}

const copyOf = (template) => byId(template).content.firstElementChild.cloneNode(true);

function fill(list, facts) {
  const pairs = facts.filter(([, value]) => value !== undefined && value !== null);
  list.replaceChildren(
    ...pairs.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(made("dt", name), made("dd", value));
      return pair;
    }),
  );
  list.hidden = pairs.length === 0;
}

function show(element, message) {
  element.textContent = message;
  element.hidden = !message;
}

/** Tells screen readers what happens; the answer itself would be read out token by token. */
const announce = (message) => show(byId("status"), message);

const isWebAddress = (url) => /^https?:\/\//i.test(url ?? "");

function duration(seconds) {
  if (seconds === undefined) return undefined;
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// --- One question with its answer ---------------------------------------------------------------

class Turn {
  constructor(question, settings) {
    this.question = question;
    this.settings = settings;
    this.text = "";
    this.passages = [];
    this.timings = {};
    this.element = copyOf("turn");
    this.element.setAttribute("aria-busy", "true");
    this.part("question").textContent = question;
    show(this.part("note"), "Searching and reading …");
  }

  part(name) {
    return this.element.querySelector(`.${name}`);
  }

  /** Takes in one chunk of the stream. */
  take(chunk) {
    const { passages, retrievals, timings, attributions, confidences } = chunk.imprag ?? {};
    if (passages) this.showPassages(passages, "best first");
    if (retrievals?.length) this.showLater(retrievals);
    if (confidences?.length) [this.confidence] = confidences;
    if (attributions?.length) this.showShares(attributions[0]); // one for each answer
    if (timings?.length) [this.timings] = timings; // one for each prompt
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices ?? [];
    if (choice?.delta?.content) this.write(choice.delta.content);
    if (choice?.finish_reason) this.reason = choice.finish_reason;
  }

  write(text) {
    this.text += text;
    this.part("answer").append(text);
    this.part("answer").classList.toggle("long", this.text.length > LONG_ANSWER);
    show(this.part("note"), "");
  }

  showPassages(passages, order) {
    this.passages = passages;
    const scores = passages.map(({ score }) => score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const share = (score) => (high > low ? 0.04 + (0.96 * (score - low)) / (high - low) : 1);
    const items = passages.map((one, n) => passageItem(one, n + 1, share(one.score)));
    this.part("passages").querySelector("h3").textContent =
      `${counted(passages.length, "passage")} read, ${order}`;
    this.part("passages").querySelector("ol").replaceChildren(...items);
    this.part("passages").hidden = passages.length === 0;
  }

  /** Adds what later tokens found; a passage that was found again keeps its place. */
  showLater(retrievals) {
    const found = retrievals.flatMap(({ passages }) => passages);
    const read = new Map([...this.passages, ...found].map((one) => [one.id, one]));
    this.showPassages([...read.values()], `found in ${retrievals.length + 1} searches`);
  }

  /** Shows how much of the answer's attention each passage got, and names those that carried it. */
  showShares({ shares, carried_by }) {
    const items = [...this.element.querySelectorAll(".passages li")];
    items.forEach((item, n) => show(item.querySelector(".read"), `Read: ${percent(shares[n])}`));
    const links = carried_by.map((n) => {
      const title = this.passages[n].title || this.passages[n].id;
      const link = made("a", `[${n + 1}] ${title}, ${percent(shares[n])}`, { href: `#${items[n].id}` });
      return [" ", link];
    });
    const cited = this.part("cited");
    cited.replaceChildren("Carried by", ...links.flat());
    cited.hidden = links.length === 0;
  }

  /** Ends the turn with a note on how it went. */
  end(note) {
    this.element.setAttribute("aria-busy", "false");
    show(this.part("note"), note);
    this.part("passages")
      .querySelectorAll(".text")
      .forEach((element, n) => {
        const { text } = this.passages[n];
        highlight(element, text, partsRead(text, this.text));
      });
    fill(this.part("facts"), [
      ["Search", duration(this.timings.search)],
      ["First token", duration(this.timings.first_token)],
      ["Total", duration(this.timings.total)],
      ["Tokens", this.usage?.completion_tokens],
      ["Confidence", this.confidence && percent(this.confidence.confidence)],
      ["Retrieval", this.passages.length ? this.settings.retrieval : undefined],
    ]);
  }

  complete() {
    if (!this.text.trim()) this.end("The model wrote no answer.");
    else if (this.reason === "length") this.end("Cut off at the limit of length or time.");
    else this.end("");
    announce(`Answer: ${this.text || "none"}. ${counted(this.passages.length, "passage")} read.`);
  }

  stopped() {
    this.end("Stopped.");
    announce("Stopped.");
  }

  failed(error) {
    this.end("");
    show(this.element.querySelector(".error"), error.message);
  }

  /** The turn as an entry of the history. */
  folded() {
    const entry = document.createElement("details");
    const summary = made("summary", this.question);
    const gist = this.text.trim() || this.element.querySelector(".error").textContent || "Stopped.";
    summary.append(made("span", gist, { className: "gist" }));
    entry.append(summary, this.element);
    return entry;
  }
}

function passageItem({ id, title, text, url, score }, number, share) {
  const item = copyOf("passage");
  item.id = `passage-${++shown}`;
  item.tabIndex = -1; // links to it move the focus
  const find = (name) => item.querySelector(name);
  find("h4").append(made("span", number, { className: "rank" }), title || id);
  find(".number").textContent = score.toFixed(2);
  find(".bar").style.setProperty("--share", share);
  find(".text").textContent = text;
  if (text.length > LONG_PASSAGE) cut(find(".text"), find(".more"));
  if (isWebAddress(url)) {
    find(".source").append(made("a", url, { href: url, target: "_blank", rel: "noreferrer" }));
  } else {
    find(".source").textContent = id;
  }
  return item;
}

function cut(text, button) {
  text.classList.add("cut");
  button.hidden = false;
  button.addEventListener("click", () => {
    const isCut = text.classList.toggle("cut");
    button.textContent = isCut ? "Show all" : "Show less";
    button.setAttribute("aria-expanded", String(!isCut));
  });
}

// --- Asking -------------------------------------------------------------------------------------

function settings() {
  const retrieval = askForm.elements.retrieval.value;
  const k = byId("k").value;
  return { retrieval, ...(k && { k: Number(k) }) };
}

async function ask(question) {
  if (running || !question.trim() || !askForm.reportValidity()) return;
  if (!(model || (await load(question))) || running) return;
  const turn = start(question.trim());
  const body = {
    model,
    messages: [{ role: "user", content: turn.question }],
    stream: true,
    stream_options: { include_usage: true },
    imprag: { ...turn.settings, attribution: true },
  };
  try {
    for await (const chunk of completion(body, running.signal)) turn.take(chunk);
    turn.complete();
  } catch (error) {
    if (error.name === "AbortError") turn.stopped();
    else turn.failed(error);
    if (error.status === 401) askForKey(turn.question);
  } finally {
    setRunning(null);
  }
}

/** Shows a new turn in place of the last one, which goes to the history. */
function start(question) {
  setRunning(new AbortController());
  if (latest) byId("earlier-title").after(latest.folded());
  byId("earlier").hidden = !latest;
  latest = new Turn(question, settings());
  byId("current").replaceChildren(latest.element);
  byId("examples").hidden = true;
  announce("Searching and reading.");
  return latest;
}

function setRunning(controller) {
  const focusMoves = [byId("ask"), byId("stop")].includes(document.activeElement);
  running = controller;
  byId("ask").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  if (focusMoves) (controller ? byId("stop") : questionBox).focus();
}

// --- The key, and what is loaded ----------------------------------------------------------------

function askForKey(question) {
  const refused = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  unanswered = question;
  keyForm.hidden = false;
  refuseKey(refused ? "The server refused this key." : "");
  byId("key").focus();
}

function refuseKey(message) {
  byId("key-error").textContent = message;
  byId("key").setAttribute("aria-invalid", String(Boolean(message)));
}

async function useKey() {
  const key = byId("key").value.trim();
  if (!/^[!-~]+$/.test(key)) {
    refuseKey("A key has letters, digits and signs of ASCII, without spaces.");
    return;
  }
  sessionStorage.setItem(KEY, key);
  if (!(await load(unanswered))) return;
  keyForm.reset();
  keyForm.hidden = true;
  questionBox.focus();
  if (unanswered) ask(unanswered);
}

/** Shows what is loaded; false if the server refuses, and the question, if any, waits for a key. */
async function load(question = null) {
  try {
    const models = await (await request("v1/models")).json();
    showLoaded(models.data[0]);
    show(byId("unreachable"), "");
    return true;
  } catch (error) {
    if (error.status === 401) askForKey(question);
    else show(byId("unreachable"), error.message);
    return false;
  }
}

function showLoaded({ id, imprag: { k, retrieval, corpus } }) {
  if (!model && retrieval) chooseRetrieval(retrieval);
  model = id;
  fill(byId("loaded"), [
    ["Model", id],
    ["Corpus", corpus ? `${corpus.id}, ${counted(corpus.passages, "passage")}` : "none"],
  ]);
  byId("k").placeholder = corpus ? Math.min(k, corpus.passages) : 0;
  byId("examples").hidden = corpus?.id !== EXAMPLES_OF || latest !== null;
  const origin = [corpus?.source, corpus?.credit].filter(Boolean).join(". ");
  show(byId("credit"), origin && `Passages: ${origin}`);
}

/** Chooses the server's own retriever, which may be one that the page does not know. */
function chooseRetrieval(name) {
  const choices = byId("retrieval");
  if (!choices.querySelector(`[value="${CSS.escape(name)}"]`)) {
    const choice = choices.lastElementChild.cloneNode(true);
    choice.lastChild.textContent = name;
    choice.firstChild.value = name;
    choices.append(choice);
  }
  askForm.elements.retrieval.value = name;
  explainRetrieval();
}

function explainRetrieval() {
  const name = askForm.elements.retrieval.value;
  byId("retrieval-help").textContent =
    RETRIEVAL_HELP[name] ?? `The server’s retriever ${name} finds the passages.`;
}

// --- Events -------------------------------------------------------------------------------------

askForm.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(questionBox.value);
});
askForm.addEventListener("change", explainRetrieval);
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  useKey();
});
questionBox.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask(questionBox.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("examples").addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  questionBox.value = target.textContent;
  questionBox.focus();
  ask(questionBox.value);
});

load();
