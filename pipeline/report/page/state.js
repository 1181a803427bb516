// What is shown, which lies in the address's fragment, so that a view can be sent.

const CONTENT = JSON.parse(document.getElementById("content").textContent);

const DEFAULTS = {
  run: 0,
  group: 0,
  kind: "displacements",
  axis: "index",
  scale: "own",
  i: -1,
  j: -1,
  a: -1,
  b: -1,
  show: "maps",
  columns: "all",
  indicator: "relative_mds",
  against: "",
  lines: "",
  order: "depth",
  minus: 0,
  sort: "",
  reload: 0,
};
const CHOICES = {
  kind: ["weights", "displacements", "increments"],
  axis: ["index", "step", "log"],
  scale: ["own", "common"],
  show: ["maps", "numbers"],
  columns: ["all", "qkv"],
  order: ["depth", "saturation_step", "remaining", "settled_step", "predictability_1", "effective_rank", "rank_95"],
};

const QUIET_MS = 150; // browsers allow some 200 changes of the address in ten seconds, and a pointer makes more
let writing = 0;

const listeners = [];
let state = fromFragment();

/** Call with the names that changed, now and whenever something has. */
function onChange(listener) {
  listeners.push(listener);
}

/** Show something else. */
function change(changes) {
  const next = checked({ ...state, ...changes });
  const names = Object.keys(next).filter((name) => next[name] !== state[name]);
  if (!names.length) return;
  state = next;
  clearTimeout(writing);
  writing = setTimeout(writeFragment, QUIET_MS);
  tell(new Set(names));
}

function writeFragment() {
  const given = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  history.replaceState(null, "", `#${new URLSearchParams(given)}`);
}

function tell(names) {
  for (const listener of listeners) listener(names);
}

function fromFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  const wanted = { ...DEFAULTS };
  for (const [name, usual] of Object.entries(DEFAULTS))
    if (given.has(name)) wanted[name] = typeof usual === "number" ? Number(given.get(name)) : given.get(name);
  return checked(wanted);
}

/** What can be shown of it: a fragment may say anything. */
function checked(wanted) {
  const within = (value, count) => (Number.isInteger(value) && value >= 0 && value < count ? value : 0);
  const result = { ...wanted };
  result.run = within(wanted.run, CONTENT.runs.length);
  const run = CONTENT.runs[result.run];
  result.group = within(wanted.group, run.groups.length);
  const group = run.groups[result.group];
  for (const [name, allowed] of Object.entries(CHOICES))
    if (!allowed.includes(wanted[name])) result[name] = DEFAULTS[name];
  if (group && !group.maps[result.kind]) result.kind = "displacements";
  if (!hasTimes(run)) result.axis = "index";
  const count = run.checkpoint.name.length;
  for (const name of ["i", "j", "a", "b"])
    result[name] = Number.isInteger(wanted[name]) && wanted[name] < count ? Math.max(-1, wanted[name]) : -1;
  if (!CONTENT.indicators.includes(wanted.indicator)) result.indicator = DEFAULTS.indicator;
  return result;
}

window.addEventListener("hashchange", () => {
  const before = state;
  state = fromFragment();
  tell(new Set(Object.keys(state).filter((name) => state[name] !== before[name])));
});

const shownRun = () => CONTENT.runs[state.run];
const shownGroup = () => shownRun().groups[state.group];

/** When each checkpoint was made, in steps; null where the run does not know. */
function times({ checkpoint: { elapsed, step } }) {
  return elapsed.includes(null) ? step : elapsed;
}

/** Whether the checkpoints can be placed by time: all times are known, and rise. */
function hasTimes(run) {
  return times(run).every((time, k, all) => time !== null && (k === 0 || time >= all[k - 1]));
}

/** What a checkpoint is called: its step, or its name where that is not known; of several sources, which. */
function called(run, k) {
  const step = run.checkpoint.step[k];
  const name = step === null ? run.checkpoint.name[k] : `step ${step.toLocaleString("en")}`;
  return borders(run).length ? `${run.checkpoint.source[k].split("/").at(-1)} ${name}` : name;
}

/** Numbers k at which checkpoints of another source begin. */
function borders(run) {
  return run.checkpoint.source.flatMap((source, k, all) => (k && source !== all[k - 1] ? [k] : []));
}

const ROLE_ORDER = [
  "embed",
  "position",
  "attn_q",
  "attn_k",
  "attn_v",
  "attn_qkv",
  "attn_out",
  "cross_q",
  "cross_k",
  "cross_v",
  "cross_out",
  "mlp_gate",
  "mlp_up",
  "mlp_down",
  "router",
  "norm",
  "conv",
  "other",
  "unembed",
];

/** What a group is called. */
function groupName(group) {
  const parts = [];
  if (group.stack !== undefined) parts.push(group.stack);
  if (group.scope === "model") parts.push("whole model");
  if (group.scope === "body") parts.push("body (without embeddings and head)");
  if (group.scope === "component") parts.push(`${group.component}, all layers`);
  if (group.scope === "layer") parts.push(`layer ${group.layer}`);
  if (group.scope === "layer_component") parts.push(`layer ${group.layer}, ${group.component}`);
  if (group.scope === "tensor" || group.scope === "head") parts.push(group.tensor);
  if (group.head !== undefined) parts.push(`head ${group.head}`);
  return parts.join(", ");
}

/** The value of an indicator of a group; null where it has none. */
const indicatorValue = (group, indicator) => (group.value ?? [])[CONTENT.indicators.indexOf(indicator)] ?? null;
const nullValueOf = (group, indicator) =>
  (group.null_value ?? [])[CONTENT.indicators.indexOf(indicator)] ?? null;
