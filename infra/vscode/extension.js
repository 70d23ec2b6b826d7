// Asks the standby how things are, and shows it: a status-bar item, and a toast when the user was moved.
"use strict";

const vscode = require("vscode");
const { ask } = require("./ask");
const { begin, step, barOf, pauseMs, backCommand } = require("./decide");

const COLORS = { warning: "statusBarItem.warningBackground", error: "statusBarItem.errorBackground" };
const SHOW = "Show status";
const COPY = "Copy";

let last = begin(0);
let openToasts = 0;

function activate(context) {
  const item = vscode.window.createStatusBarItem("dumont.status", vscode.StatusBarAlignment.Left, 100);
  item.name = "Dumont";
  item.command = "dumont.showStatus";
  const watch = { isOver: false, timer: undefined, address: undefined };
  context.subscriptions.push(
    item,
    vscode.commands.registerCommand("dumont.showStatus", showStatus),
    vscode.commands.registerCommand("dumont.goBack", goBack),
    { dispose: () => end(watch) },
  );
  item.show();
  void look(watch, item);
}

/** One question at a time; the next is asked when this one is answered or given up. */
async function look(watch, item) {
  const settings = vscode.workspace.getConfiguration("dumont");
  const address = settings.get("statusUrl");
  if (address !== watch.address) [last, watch.address] = [begin(Date.now()), address];
  const answer = await ask(address);
  if (watch.isOver) return;
  const shown = step(last, answer, Date.now());
  last = shown.memory;
  show(item, shown.bar);
  if (shown.toast) tell(shown.toast).catch(() => {}); // the window is being closed
  const pause = pauseMs(settings.get("pollMs"), last.failures, shown.toast !== null);
  watch.timer = setTimeout(look, pause, watch, item);
}

function end(watch) {
  watch.isOver = true;
  clearTimeout(watch.timer);
}

function show(item, { text, tooltip, tone }) {
  // Each property that is set is sent to the window, changed or not.
  if (item.text === text && item.tooltip === tooltip) return;
  const color = COLORS[tone];
  [item.text, item.tooltip, item.backgroundColor] = [text, tooltip, color && new vscode.ThemeColor(color)];
}

/** What an open toast of ours says is over when the next one comes: it leaves for the bell, and one is seen at a time. */
async function tell({ kind, message }) {
  // An editor without that command stacks up to three.
  if (openToasts > 0) await vscode.commands.executeCommand("notifications.hideToasts").then(undefined, () => {});
  openToasts += 1;
  try {
    if (kind === "information") await vscode.window.showInformationMessage(message);
    else if ((await vscode.window.showWarningMessage(message, SHOW)) === SHOW) showStatus();
  } finally {
    openToasts -= 1;
  }
}

function showStatus() {
  const { tooltip } = barOf(last, Date.now());
  void vscode.window.showInformationMessage(tooltip.replaceAll("\n", " "));
}

async function goBack() {
  const line = backCommand(last);
  const chosen = await vscode.window.showInformationMessage(`Agree to go back to a GPU, in a terminal: ${line}`, COPY);
  if (chosen === COPY) await vscode.env.clipboard.writeText(line);
}

module.exports = { activate };
