/**
 * The chat's server, as far as its page needs one, in memory and without the engine: for tests of the transports, and to work
 * on the page. `node fake-server.mjs [port]` serves it. The real one is `cargo run --release --example chat`.
 *
 * Blocks for tests: `GET /test/block?what=ws,sse-buffer,sse` refuses WebSockets, withholds what event streams say, refuses them.
 */
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { Peer } from "./peer.mjs";

const repository = new URL("../../../../", import.meta.url);
const FILES = {
  "/": ["examples/chat/page/index.html", "text/html; charset=utf-8"], "/chat.mjs": ["examples/chat/page/chat.mjs", "text/javascript"],
  "/chat.css": ["examples/chat/page/chat.css", "text/css"], "/client.mjs": ["adapters/web/browser/client.mjs", "text/javascript"],
};

/** Starts it. @returns what stops it, and what it keeps */
export async function start(port = 0) {
  const world = { now: Date.now, setTimeout: (run, ms) => setTimeout(run, ms).unref() };
  const blocked = new Set(), lines = new Map(), sockets = new Set(), statuses = new Map();
  const users = new Set(), watchers = new Set();
  const tokens = (token) => (token?.startsWith("token-of-") ? token.slice(9) : undefined);
  const tell = (to, status, id, sender) => {
    statuses.set(`${sender} ${to} ${id}`, status);
    peer.post(sender, { event: "chat.status", priority: "normal", payload: { id, to, status } });
  };
  const peer = new Peer(world, {
    heartbeat: 5000, timeout: 3000, expiresIn: 600_000,
    authenticate: ({ credentials }) => tokens(credentials) ?? 4201,
    onPublish: (user, message) => (message.event.startsWith("chat.") || message.event.startsWith("call.") ? undefined : { code: 4452, text: "not here" }),
    onAccept: (user, message) => {
      const { id, to, event, priority, durability, ordering_key, payload, ttl_ms } = message;
      if (event === "chat.read") {
        for (const key of statuses.keys()) {
          const [sender, recipient, known] = key.split(" ");
          if (sender === to && recipient === user && known <= payload.up_to && statuses.get(key) === "delivered") tell(user, "read", known, sender);
        }
      }
      if (event === "chat.message") statuses.set(`${user} ${to} ${id}`, "accepted");
      peer.post(to, { id, from: user, event, priority, durability, ordering_key, payload, ttl_ms });
    },
  });
  const log = peer.log.push.bind(peer.log);
  peer.log.push = (entry) => {
    if (entry.how === "ack") for (const [key, status] of statuses) if (key.endsWith(` ${entry.ended}`) && status === "accepted") {
      const [sender, to] = key.split(" ");
      tell(to, "delivered", entry.ended, sender);
    }
    return log(entry);
  };

  const json = (response, value, status = 200) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  };
  const body = async (request) => {
    let text = "";
    for await (const chunk of request) text += chunk;
    return text;
  };
  /** A connection of single requests. */
  const makeLine = () => {
    const line = { id: randomUUID(), waiting: [], wake: undefined, ups: 0, polls: 0, answer: "", over: false };
    const wake = () => { line.wake?.(); line.wake = undefined; };
    line.end = peer.connect({ send: (text) => { line.waiting.push(text); wake(); }, close: () => { line.over = true; wake(); } });
    line.wait = () => (line.waiting.length > 0 || line.over ? Promise.resolve() : new Promise((resolve) => { line.wake = resolve; setTimeout(resolve, 25_000).unref(); }));
    lines.set(line.id, line);
    return line;
  };
  const session = async (url, request, response) => {
    const line = lines.get(url.searchParams.get("c")), n = Number(url.searchParams.get("n"));
    const path = url.pathname.slice("/lastmile/".length);
    if (path === "open") return json(response, { connection: makeLine().id });
    if (path === "sse" && blocked.has("sse")) return json(response, {}, 403);
    if (!line || (line.over && line.waiting.length === 0)) return json(response, {}, 410);
    if (path === "up") {
      const text = await body(request);
      if (n > line.ups) for (const each of text.split("\n")) if (each) line.end.receive(each);
      line.ups = Math.max(line.ups, n);
      return json(response, {});
    }
    if (path === "poll") {
      if (n > line.polls) {
        await line.wait();
        line.answer = line.waiting.splice(0).join("\n");
        line.polls = n;
      }
      return response.end(line.answer);
    }
    if (path === "close") {
      line.over = true;
      line.end.closed();
      return json(response, {});
    }
    if (path !== "sse") return json(response, {}, 404);
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.flushHeaders();
    const say = (text) => blocked.has("sse-buffer") || response.write(text);
    say("event: open\ndata:\n\n");
    request.socket.on("close", () => { line.over = true; line.end.closed(); line.wake?.(); });
    for (;;) {
      await line.wait();
      for (const text of line.waiting.splice(0)) say(`data: ${text}\n\n`);
      if (line.over) return response.end();
    }
  };
  const api = async (url, request, response) => {
    const user = tokens(request.headers.authorization?.replace("Bearer ", ""));
    const input = request.method === "POST" ? JSON.parse((await body(request)) || "{}") : {};
    switch (url.pathname) {
      case "/api/token":
        users.add(input.name);
        return json(response, { token: `token-of-${input.name}`, user: input.name, expires_in_ms: 600_000 });
      case "/api/people":
        return json(response, { people: [...users].map((name) => ({ name, online: Boolean(peer.sessions.get(name)?.link) })) });
      case "/api/status":
        return json(response, { statuses: input.ids.map(({ to, id }) => ({ to, id, status: statuses.get(`${user} ${to} ${id}`) ?? "unknown" })) });
      case "/api/cancel":
        return json(response, { cancelled: false });
      case "/api/flood":
        for (let at = 0; at < input.count; at += 1) peer.post(input.to, { from: user, event: "flood.item", priority: "low", payload: { n: at, of: input.count } }, at === input.count - 1);
        return json(response, { accepted: input.count });
      case "/api/engine": {
        response.writeHead(200, { "content-type": "text/event-stream" });
        const say = () => response.write(`data: ${JSON.stringify(snapshot())}\n\n`);
        say();
        const timer = setInterval(say, 1000);
        watchers.add(timer);
        request.socket.on("close", () => clearInterval(timer));
        return undefined;
      }
      default:
        return json(response, {}, 404);
    }
  };
  const snapshot = () => {
    const waiting = { critical: 0, high: 0, normal: 0, low: 0 }, oldest = { ...waiting };
    for (const { message, at } of [...peer.outboxes.values()].flat()) {
      waiting[message.priority] += 1;
      oldest[message.priority] = Math.max(oldest[message.priority], Date.now() - at);
    }
    const connections = [...peer.sessions].filter(([, each]) => each.link).map(([user]) => ({ user, transport: "websocket", quality: "good", rtt_ms: 20 }));
    return { waiting, oldest_ms: oldest, connections, dedup_hits: 0, commit_ms: { p50: 0.4, p99: 1.2 } };
  };
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (url.pathname.startsWith("/test/")) {
      blocked.clear();
      (url.searchParams.get("what") ?? "").split(",").forEach((what) => blocked.add(what));
      if (blocked.has("ws")) for (const socket of sockets) socket.destroy();
      return json(response, {});
    }
    if (url.pathname.startsWith("/lastmile/")) return session(url, request, response).catch(() => response.destroy());
    if (url.pathname.startsWith("/api/")) return api(url, request, response).catch(() => response.destroy());
    const file = FILES[url.pathname];
    if (!file) return json(response, {}, 404);
    response.writeHead(200, { "content-type": file[1], "cache-control": "no-store", "content-security-policy": "default-src 'self'; img-src 'self' data:" });
    return response.end(readFileSync(fileURLToPath(new URL(file[0], repository))));
  });
  server.on("upgrade", (request, socket) => {
    if (blocked.has("ws") || !request.url.startsWith("/lastmile/ws")) return socket.end("HTTP/1.1 403 Forbidden\r\n\r\n");
    sockets.add(socket);
    const accept = createHash("sha1").update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: lastmile.v1\r\n\r\n`);
    return webSocket(socket, peer);
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(undefined)));
  return {
    peer, blocked, sockets, url: `http://127.0.0.1:${server.address().port}`,
    close: () => {
      watchers.forEach(clearInterval);
      sockets.forEach((socket) => socket.destroy());
      server.close();
      server.closeAllConnections();
    },
  };
}

/** The frames of RFC 6455, as far as browsers send them. */
function webSocket(socket, peer) {
  const frame = (opcode, payload) => {
    const { length } = payload, head = length < 126 ? [length] : length < 65_536 ? [126, length >> 8, length & 255] : [127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((bits) => (length >> bits) & 255)];
    if (!socket.destroyed) socket.write(Buffer.concat([Buffer.from([0x80 | opcode, ...head]), payload]));
  };
  const end = peer.connect({ send: (text) => frame(1, Buffer.from(text)), close: () => { frame(8, Buffer.from([15, 160])); socket.end(); } });
  let rest = Buffer.alloc(0), parts = [];
  socket.on("error", () => {});
  socket.on("close", () => end.closed());
  socket.on("data", (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    for (;;) {
      if (rest.length < 2) return;
      let [length, at] = [rest[1] & 127, 2];
      if (length === 126) [length, at] = [rest.length >= 4 ? rest.readUInt16BE(2) : Infinity, 4];
      else if (length === 127) [length, at] = [rest.length >= 10 ? Number(rest.readBigUInt64BE(2)) : Infinity, 10];
      if (rest.length < at + 4 + length) return;
      const mask = rest.subarray(at, at + 4), payload = Buffer.from(rest.subarray(at + 4, at + 4 + length)).map((byte, index) => byte ^ mask[index % 4]);
      const [final, opcode] = [rest[0] & 128, rest[0] & 15];
      rest = rest.subarray(at + 4 + length);
      if (opcode === 8) return socket.end();
      if (opcode === 9) frame(10, payload);
      if (opcode > 2) continue;
      parts.push(payload);
      if (!final) continue;
      end.receive(Buffer.concat(parts.splice(0)).toString());
    }
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await start(Number(process.argv[2] ?? 3000));
  console.log(url);
}
