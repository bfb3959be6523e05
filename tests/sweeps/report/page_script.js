"use strict";
// Run a report's scripts without a browser: `node page_script.js` with a request on stdin.
//   {vega: [folder of Vega's files], specs: [Vega-Lite]} -> [{warnings: [text], svg: text}]
//   {script: text, elements: {id: text content}, clicks: [id]} -> {id: [{to, name, base64}]}
const fs = require("fs");
const Module = require("module");
const path = require("path");
const request = JSON.parse(fs.readFileSync(0, "utf8"));

const draw = async (folder, spec) => {
  const vega = require(path.join(folder, "vega.min.js"));
  const load = Module._load;
  Module._load = (name, ...rest) => (name === "vega" ? vega : load(name, ...rest));
  const lite = require(path.join(folder, "vega-lite.min.js"));
  const warnings = [];
  const keep = (...parts) => { warnings.push(parts.join(" ")); return logger; };
  const drop = () => logger;
  const logger = { level: drop, error: keep, warn: keep, info: drop, debug: drop };
  const parsed = vega.parse(lite.compile({ ...spec, width: 600 }, { logger }).spec, null, { ast: true });
  const svg = await new vega.View(parsed, { renderer: "none", logger }).toSVG();
  return { warnings, svg };
};

const click = async ({ script, elements, clicks }) => {
  const pressed = {}, copied = [], saved = {};
  let blob = null;
  const element = (id) => {
    const about = { textContent: elements[id] };
    about.addEventListener = (event, act) => { if (event === "click") pressed[id] = act; };
    return about;
  };
  const known = {};
  globalThis.document = {
    documentElement: {},
    querySelectorAll: () => [],
    getElementById: (id) => (id in elements ? (known[id] ??= element(id)) : null),
    createElement: () => ({ click() { copied.push({ to: "file", name: this.download, blob }); } }),
  };
  Object.defineProperty(globalThis, "navigator", { value: { clipboard: {
    writeText: async (text) => copied.push({ to: "clipboard", blob: new Blob([text]) }) } } });
  URL.createObjectURL = (made) => { blob = made; return "blob:made"; };
  URL.revokeObjectURL = () => {};
  globalThis.addEventListener = () => {};
  globalThis.setTimeout = () => {};
  (0, eval)(script);
  for (const id of clicks) {
    copied.length = 0;
    await pressed[id]();
    saved[id] = await Promise.all(copied.map(async ({ to, name, blob: held }) => (
      { to, name, base64: Buffer.from(await held.arrayBuffer()).toString("base64") })));
  }
  return saved;
};

(async () => {
  const answer = request.specs
    ? await Promise.all(request.specs.map((spec) => draw(request.vega, spec)))
    : await click(request);
  process.stdout.write(JSON.stringify(answer));
})();
