// What is shown for which status. Pure: no editor, no network, no clock.
"use strict";

/** Nobody has answered for this long: what was known is no longer shown as if it were true. */
const UNKNOWN_AFTER_MS = 5000;
const POLL_MS = { usual: 250, min: 100, max: 60000 };
/** Between two questions while nobody answers. */
const PAUSE_MS_MAX = 2000;
/**
 * After a toast. VS Code shows three within 800 ms and swallows the fourth without a word (`SPAM_PROTECTION` in its
 * notificationsToasts.ts), so ours come further apart; nobody would have read one that was gone sooner.
 */
const PAUSE_MS_TOLD = 500;
const MESSAGE_CHARS_MAX = 300;

/** Nothing heard yet. `answeredMs` is when somebody last answered, or when the watch began. */
const begin = (nowMs) => ({ status: null, instance: null, answeredMs: nowMs, failures: 0, why: "" });

/**
 * One question later.
 * @param memory what `begin` or the last step returned
 * @param answer {text} = the body, or {error} = why there is none
 * @returns {memory, bar, toast}; bar = {text, tooltip, tone}, toast = {kind, message} or null
 */
function step(memory, answer, nowMs) {
  const read = answer.error === undefined ? parse(answer.text) : null;
  if (read === null) {
    const why = answer.error ?? "what answers there is not a standby";
    const next = { ...memory, failures: memory.failures + 1, why };
    return { memory: next, bar: barOf(next, nowMs), toast: null };
  }
  // The standby names a GPU only while there is one; the way back is asked for when there is none.
  const instance = instanceOf(read.label) ?? memory.instance;
  const next = { status: read, instance, answeredMs: nowMs, failures: 0, why: "" };
  return { memory: next, bar: barOf(next, nowMs), toast: toastOf(memory.status, read) };
}

/** The status in a body; null when it is none. Its words come from another machine and are shown: links are cut out. */
function parse(text) {
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    return null;
  }
  if (said === null || typeof said !== "object" || typeof said.state !== "string" || said.state === "") return null;
  return {
    state: said.state,
    message: typeof said.message === "string" ? plain(said.message) : "",
    since: momentOf(said.since),
    handBackAt: momentOf(said.hand_back_at),
    label: typeof said.label === "string" ? said.label : null,
    isWatched: said.is_watched === true,
    isWhole: said.is_whole === true,
    rttMs: Number.isFinite(said.rtt_ms) ? said.rtt_ms : null,
  };
}

// An opening bracket would begin a link, in a toast; control and format characters its line.
const plain = (words) => words.replace(/[\[\]\p{Cc}\p{Cf}]/gu, " ").trim().slice(0, MESSAGE_CHARS_MAX);

function momentOf(words) {
  const moment = typeof words === "string" ? new Date(words) : null;
  return moment === null || Number.isNaN(moment.getTime()) ? null : moment;
}

/** A move is told once, in the words of the terminals. What the window opens with is news too, unless all is well. */
function toastOf(before, after) {
  if (before === null) return after.state === "gpu" ? null : warning(after);
  if (before.state === after.state && before.message === after.message) return null;
  if (after.state !== "gpu") return warning(after);
  if (before.state === "gpu") return null;
  return { kind: "information", message: after.message || "You are on the GPU machine." };
}

const warning = (status) => ({ kind: "warning", message: status.message || `Dumont: ${summaryOf(status).words}.` });

function barOf(memory, nowMs) {
  const { status } = memory;
  if (memory.failures > 0 && nowMs - memory.answeredMs >= UNKNOWN_AFTER_MS) {
    const last = status === null ? "" : ` Last known: ${summaryOf(status).words}.`;
    const tooltip = `The standby does not answer: ${memory.why}.${last}`;
    return { text: "$(question) Dumont: status unknown", tooltip, tone: "quiet" };
  }
  if (status === null) return { text: "$(ellipsis) Dumont", tooltip: "The standby is asked.", tone: "quiet" };
  const { icon, words, tone, detail } = summaryOf(status);
  const lines = [status.message, detail, status.since && `Since ${clock(status.since)}.`, rtt(status)];
  return { text: `$(${icon}) Dumont: ${words}`, tooltip: lines.filter(Boolean).join("\n"), tone };
}

const ON_STANDBY = { icon: "vm", words: "on the standby", tone: "warning", detail: "" };

/** The state in a few words. A state that this version does not know is shown by its name, and never as well. */
function summaryOf(status) {
  switch (status.state) {
    case "gpu":
      return onGpu(status);
    case "provisional":
      return { ...ON_STANDBY, detail: "The control plane has not answered yet." };
    case "standby":
      if (status.handBackAt === null) return ON_STANDBY;
      return { icon: "history", words: `back to a GPU at ${clock(status.handBackAt)}`, tone: "warning", detail: "" };
    case "incomplete":
      return { icon: "error", words: "GPU lost, copy not complete", tone: "error", detail: "" };
    case "none":
      return { icon: "circle-slash", words: "unprotected", tone: "error", detail: "" };
    default:
      return { icon: "question", words: plain(status.state), tone: "warning", detail: "" };
  }
}

function onGpu({ isWhole, isWatched }) {
  if (!isWhole) {
    const detail = "The standby does not have everything yet.";
    return { icon: "sync", words: "not in sync", tone: "warning", detail };
  }
  if (!isWatched) {
    const detail = "The standby does not hear the GPU machine: you would not be moved if it died.";
    return { icon: "circle-slash", words: "unprotected", tone: "warning", detail };
  }
  return { icon: "shield", words: "mirrored", tone: "quiet", detail: "Your work is mirrored on the standby." };
}

const rtt = ({ state, rttMs }) =>
  state === "gpu" && rttMs !== null && `From the standby to the GPU and back: ${rttMs.toFixed(1)} ms.`;

/** hh:mm:ss where the user is. */
function clock(moment) {
  const parts = [moment.getHours(), moment.getMinutes(), moment.getSeconds()];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/**
 * Milliseconds to the next question. Nonsense in the settings is the usual pace; silence doubles it up to a bound.
 * @param isTold whether the last answer was told in a toast
 */
function pauseMs(setting, failures, isTold) {
  const asked = Number.isFinite(setting) ? Math.min(Math.max(setting, POLL_MS.min), POLL_MS.max) : POLL_MS.usual;
  const slowed = Math.min(asked * 2 ** Math.min(failures, 10), PAUSE_MS_MAX);
  return Math.max(asked, slowed, isTold ? PAUSE_MS_TOLD : 0);
}

/** A label names its instance, dumont-<deployment>-<instance>-<n>-<tag>, unless it was rented for the warm pool. */
function instanceOf(label) {
  const [, owner] = /^dumont-[a-z0-9]+-([a-z0-9]+)-[0-9]+-[0-9a-f]{8}$/.exec(label ?? "") ?? [];
  return owner === undefined || owner === "pool" ? null : owner;
}

/** The line that agrees to go back. */
const backCommand = ({ instance }) => `dumont failover back ${instance ?? "INSTANCE"}`;

const BOUNDS = { UNKNOWN_AFTER_MS, POLL_MS, PAUSE_MS_MAX, PAUSE_MS_TOLD };
module.exports = { begin, step, parse, barOf, pauseMs, backCommand, ...BOUNDS };
