// Opens a page in a headless browser and prints what a person would see in it of Dumont, as it changes, a line of JSON
// each: {"ms", "bar", "toasts": [...]}. `ms` is the moment of the change, of this machine's clock. Ends with its input.
//
// node watch.js BROWSER URL      with playwright-core in NODE_PATH
"use strict";

const { chromium } = require("playwright-core");

const OPENED_WITHIN_MS = 90000;

async function main(browserPath, url) {
  // As root there is no sandbox; what is opened is on loopback.
  const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--no-proxy-server"] });
  process.stdin.resume().on("end", () => browser.close().finally(() => process.exit(0)));
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.exposeFunction("seen", (line) => process.stdout.write(`${line}\n`));
  await page.addInitScript(observe);
  await page.goto(url, { timeout: OPENED_WITHIN_MS, waitUntil: "domcontentloaded" });
}

/** Runs in the page. */
function observe() {
  const isShown = (node) => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const isSeen = (node) => isShown(node) && node.getBoundingClientRect().height > 0;
  const seenOf = (selector) => [...document.querySelectorAll(selector)].filter(isSeen);
  const wordsOf = (selector) => seenOf(selector).map((node) => node.textContent.trim());
  let before = "";
  const look = () => {
    const bar = wordsOf(".statusbar-item").find((words) => words.startsWith("Dumont")) ?? null;
    const shown = { bar, toasts: wordsOf(".notifications-toasts .notification-list-item-message") };
    if (JSON.stringify(shown) === before) return;
    before = JSON.stringify(shown);
    window.seen(JSON.stringify({ ms: Date.now(), ...shown }));
  };
  const all = { subtree: true, childList: true, attributes: true, characterData: true };
  new MutationObserver(look).observe(document, all);
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
