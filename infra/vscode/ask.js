// One question to the standby. It always ends, and never throws.
"use strict";

const http = require("node:http");
const https = require("node:https");

const ANSWER_MS_MAX = 2000;
const BODY_BYTES_MAX = 65536;

/** Resolves to {text} = the body of a 200, or {error} = why there is none, in words that end a sentence. */
function ask(address, withinMs = ANSWER_MS_MAX) {
  return new Promise((resolve) => {
    const url = URL.canParse(address) ? new URL(address) : null;
    const way = { "http:": http, "https:": https }[url?.protocol];
    if (way === undefined) return resolve({ error: `${JSON.stringify(address)} is no http address` });
    const request = way.get(url, { agent: false }, (response) => read(response, end));
    // Of the whole answer, not of a pause in it: a body that trickles in ends too.
    const alarm = setTimeout(() => end({ error: `no answer within ${withinMs / 1000} s` }), withinMs);
    function end(answer) {
      clearTimeout(alarm);
      request.destroy();
      resolve(answer);
    }
    request.on("error", (error) => end({ error: error.code ?? error.message }));
  }).catch((error) => ({ error: error.message })); // an address that is refused only when it is asked
}

function read(response, end) {
  if (response.statusCode !== 200) return end({ error: `it answers ${response.statusCode}` });
  const pieces = [];
  let bytes = 0;
  response.on("data", (piece) => {
    bytes += piece.length;
    if (bytes > BODY_BYTES_MAX) return end({ error: "its answer is too long" });
    pieces.push(piece);
  });
  response.on("end", () => end({ text: Buffer.concat(pieces).toString("utf8") }));
  response.on("error", (error) => end({ error: error.code ?? error.message }));
  response.on("aborted", () => end({ error: "its answer broke off" }));
}

module.exports = { ask, ANSWER_MS_MAX, BODY_BYTES_MAX };
