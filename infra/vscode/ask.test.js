"use strict";

const test = require("node:test");
const assert = require("node:assert/strict");
const http = require("node:http");
const net = require("node:net");
const { ask, BODY_BYTES_MAX } = require("./ask");

/** A server on loopback for one test; its address. */
async function serve(t, server) {
  const open = new Set();
  server.on("connection", (socket) => open.add(socket.on("close", () => open.delete(socket))));
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  t.after(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  return `http://127.0.0.1:${server.address().port}/status`;
}

test("the body of a 200", async (t) => {
  const url = await serve(t, http.createServer((_, response) => response.end('{"state":"gpu"}')));
  assert.deepEqual(await ask(url), { text: '{"state":"gpu"}' });
});

test("any other code is no answer", async (t) => {
  const url = await serve(t, http.createServer((_, response) => response.writeHead(404).end("{}")));
  assert.match((await ask(url)).error, /404/);
});

test("nobody there", async (t) => {
  const server = net.createServer();
  const url = await serve(t, server);
  await new Promise((closed) => server.close(closed));
  assert.equal((await ask(url)).error, "ECONNREFUSED");
});

test("who accepts and says nothing is given up", async (t) => {
  const url = await serve(t, net.createServer(() => {}));
  assert.match((await ask(url, 50)).error, /no answer within/);
});

test("who trickles is given up at the same bound", async (t) => {
  const drip = http.createServer((_, response) => {
    const timer = setInterval(() => response.write("x"), 10);
    response.on("close", () => clearInterval(timer));
  });
  assert.match((await ask(await serve(t, drip), 100)).error, /no answer within/);
});

test("an answer without end is cut", async (t) => {
  const url = await serve(t, http.createServer((_, response) => response.end("x".repeat(BODY_BYTES_MAX + 1))));
  assert.match((await ask(url)).error, /too long/);
});

test("an answer that breaks off", async (t) => {
  const cut = net.createServer((socket) => socket.end("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"));
  assert.ok((await ask(await serve(t, cut))).error);
});

test("what is no HTTP", async (t) => {
  const url = await serve(t, net.createServer((socket) => socket.end("SSH-2.0-OpenSSH_9.2\r\n")));
  assert.ok((await ask(url)).error);
});

test("an address that is none is said so, and nothing is asked", async () => {
  for (const address of ["", "status", "file:///etc/passwd", "constructor:x", undefined, 7, {}]) {
    assert.match((await ask(address)).error, /no http address/);
  }
});

test("an address that is refused only when it is asked", async () => {
  assert.ok((await ask("http://%zz@127.0.0.1/")).error);
});
