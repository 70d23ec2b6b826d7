"use strict";

const test = require("node:test");
const assert = require("node:assert/strict");
const { begin, step, parse, pauseMs, backCommand } = require("./decide");
const { UNKNOWN_AFTER_MS, POLL_MS, PAUSE_MS_MAX, PAUSE_MS_TOLD } = require("./decide");

const GPU = {
  state: "gpu",
  message: "You are on the GPU machine.",
  is_watched: true,
  is_whole: true,
  rtt_ms: 12.34,
  label: "dumont-d1-i7-3-0123abcd",
};
const MOVED = { state: "provisional", message: "The GPU machine has gone silent. Go on.", label: GPU.label };
const STANDBY = { state: "standby", message: "You are on the standby: your files are here." };
const READY = { state: "standby", message: "A GPU machine is ready: you move to it in 60 s." };

/** The steps for these statuses, a quarter of a second apart; null = nobody answers. */
function follow(...statuses) {
  let memory = begin(0);
  return statuses.map((status, i) => {
    const text = typeof status === "string" ? status : JSON.stringify(status);
    const shown = step(memory, status === null ? { error: "ECONNREFUSED" } : { text }, i * 250);
    memory = shown.memory;
    return shown;
  });
}

const lastOf = (...statuses) => follow(...statuses).at(-1);

test("a mirrored GPU is said quietly, with the way to it, and is no news", () => {
  const { bar, toast } = lastOf(GPU);
  assert.equal(bar.text, "$(shield) Dumont: mirrored");
  assert.equal(bar.tone, "quiet");
  assert.match(bar.tooltip, /12\.3 ms/);
  assert.equal(toast, null);
});

test("a copy that is not whole is never shown as mirrored", () => {
  const { bar, toast } = lastOf(GPU, { ...GPU, is_whole: false });
  assert.match(bar.text, /not in sync/);
  assert.equal(bar.tone, "warning");
  assert.equal(toast, null);
  assert.match(lastOf({ state: "gpu" }).bar.text, /not in sync/, "what is not said does not hold");
});

test("a GPU that nobody watches is unprotected", () => {
  const { bar } = lastOf({ ...GPU, is_watched: false });
  assert.match(bar.text, /unprotected/);
  assert.equal(bar.tone, "warning");
});

test("a move is told once, as a warning, in the words of the terminals", () => {
  const shown = follow(GPU, MOVED, MOVED, { ...MOVED, rtt_ms: 3 });
  assert.deepEqual(shown.map(({ toast }) => toast), [null, { kind: "warning", message: MOVED.message }, null, null]);
  assert.match(shown[1].bar.text, /on the standby/);
});

test("the record's word after the move is told too, for its sentence is another", () => {
  assert.deepEqual(lastOf(GPU, MOVED, STANDBY).toast, { kind: "warning", message: STANDBY.message });
});

test("the way back is told when it is near, with the time in the status bar", () => {
  const at = new Date(2031, 0, 2, 3, 4, 5);
  const { bar, toast } = lastOf(STANDBY, { ...READY, hand_back_at: at.toISOString() });
  assert.equal(bar.text, "$(history) Dumont: back to a GPU at 03:04:05");
  assert.equal(toast.kind, "warning");
});

test("back on a GPU is told as information", () => {
  assert.deepEqual(lastOf(STANDBY, GPU).toast, { kind: "information", message: GPU.message });
  assert.equal(lastOf(GPU, { ...GPU, message: "You are on a GPU." }).toast, null, "who was there is not back");
});

test("a window that opens on the standby says so at once", () => {
  assert.deepEqual(lastOf(STANDBY).toast, { kind: "warning", message: STANDBY.message });
});

test("a lost GPU with half a copy, and no machine at all, are errors", () => {
  for (const state of ["incomplete", "none"]) {
    const { bar, toast } = lastOf(GPU, { state, message: "" });
    assert.equal(bar.tone, "error");
    assert.equal(toast.kind, "warning");
    assert.notEqual(toast.message, "", "without words of the standby's there are our own");
  }
});

test("a state of a later version is shown by its name, and not as well", () => {
  const { bar, toast } = lastOf(GPU, { state: "levitating", message: "Hold on." });
  assert.equal(bar.text, "$(question) Dumont: levitating");
  assert.equal(bar.tone, "warning");
  assert.equal(toast.message, "Hold on.");
});

test("silence shows what was known for a while, and then that nothing is known", () => {
  const silent = follow(GPU, ...Array(30).fill(null));
  const texts = silent.map(({ bar }) => bar.text);
  assert.equal(texts.indexOf("$(question) Dumont: status unknown"), UNKNOWN_AFTER_MS / 250);
  assert.equal(texts[UNKNOWN_AFTER_MS / 250 - 1], "$(shield) Dumont: mirrored");
  assert.match(silent.at(-1).bar.tooltip, /ECONNREFUSED.*Last known: mirrored/);
  assert.ok(silent.every(({ toast }) => toast === null), "silence alone is no news");
});

test("a move that happened during silence is told when somebody answers again", () => {
  assert.equal(lastOf(GPU, ...Array(30).fill(null), STANDBY).toast.message, STANDBY.message);
  assert.equal(lastOf(GPU, ...Array(30).fill(null), GPU).toast, null);
});

test("what is no status is silence, whatever it is", () => {
  for (const text of ["", "{", "null", "7", "[]", "{}", '"gpu"', '{"state":7}', '{"state":""}', "<html>"]) {
    assert.equal(parse(text), null, text);
    const { toast, memory } = lastOf(GPU, text);
    assert.equal(toast, null);
    assert.equal(memory.failures, 1);
  }
});

test("fields of wrong kinds are as if they were not there", () => {
  const wrong = { message: 7, since: "soon", hand_back_at: {}, label: [], is_watched: "yes", is_whole: 1 };
  assert.match(lastOf({ state: "gpu", rtt_ms: "fast", ...wrong }).bar.text, /not in sync/);
  assert.equal(parse('{"state":"standby","since":"2026-13-45"}').since, null);
});

test("words of another machine are shown as words: no link, no second line, no end without", () => {
  const { message } = parse(JSON.stringify({ state: "standby", message: `[click](command:rm)\n${"x".repeat(5000)}` }));
  assert.ok(!/[\[\]\n]/.test(message));
  assert.ok(message.length <= 300);
});

test("the pace is the user's within bounds, and slower while nobody answers", () => {
  assert.equal(pauseMs(250, 0, false), 250);
  for (const nonsense of [undefined, null, "fast", NaN, {}]) assert.equal(pauseMs(nonsense, 0, false), POLL_MS.usual);
  for (const tooFast of [0, -1, 1]) assert.equal(pauseMs(tooFast, 0, false), POLL_MS.min);
  assert.equal(pauseMs(1e12, 0, false), POLL_MS.max);
  assert.equal(pauseMs(250, 1, false), 500);
  assert.equal(pauseMs(250, 1e9, false), PAUSE_MS_MAX);
  assert.equal(pauseMs(30000, 5, false), 30000, "never faster than was asked for");
});

test("after a toast the next question waits: four of them never come within 800 ms", () => {
  for (const setting of [POLL_MS.min, POLL_MS.usual]) assert.equal(pauseMs(setting, 0, true), PAUSE_MS_TOLD);
  assert.ok(3 * PAUSE_MS_TOLD > 800);
  assert.equal(pauseMs(30000, 0, true), 30000);
});

test("the command to go back names the instance that was last seen on a GPU", () => {
  assert.equal(backCommand(lastOf(GPU, MOVED, STANDBY).memory), "dumont failover back i7");
  for (const label of [undefined, "dumont-d1-pool-3-0123abcd", "dumont-d1-i7;rm-3-0123abcd", "i7"])
    assert.equal(backCommand(lastOf({ ...STANDBY, label }).memory), "dumont failover back INSTANCE");
});
