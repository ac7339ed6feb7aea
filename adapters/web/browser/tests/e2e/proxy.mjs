/**
 * A proxy on loopback as bad networks have them: it refuses or swallows WebSockets, holds event streams back, and cuts
 * connections. What it passes, it passes unchanged, the header `Host` too.
 */
import { createServer, request as ask } from "node:http";
import { connect } from "node:net";

export class Proxy {
  /** What is done with WebSockets, and with event streams of sessions: "pass", "refuse", "swallow" (or "hold" for streams). */
  websocket = "pass";
  stream = "pass";
  #sockets = new Set();
  #server = createServer((request, response) => this.#forward(request, response));

  constructor(port) {
    this.port = port;
    this.#server.on("connection", (socket) => this.#keep(socket));
    this.#server.on("upgrade", (request, socket, head) => this.#upgrade(request, socket, head));
  }

  async start() {
    await new Promise((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.#server.address().port}`;
    return this;
  }

  /** Breaks every connection. */
  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  close() {
    this.cut();
    this.#server.close();
  }

  #keep(socket) {
    this.#sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => this.#sockets.delete(socket));
  }

  #forward(request, response) {
    const stream = request.url.includes("/lastmile/sse");
    if (stream && this.stream === "refuse") return response.writeHead(403).end();
    const { method, url: path, headers } = request;
    const out = ask({ port: this.port, host: "127.0.0.1", method, path, headers, setHost: false }, (answer) => {
      if (stream && this.stream === "hold") {
        // All of it, when it is complete: never.
        answer.resume();
        return;
      }
      response.writeHead(answer.statusCode, answer.headers);
      response.flushHeaders();
      answer.pipe(response);
      answer.on("error", () => response.destroy());
    });
    out.on("error", () => response.destroy());
    response.on("close", () => out.destroy());
    request.pipe(out);
  }

  #upgrade(request, socket, head) {
    this.#keep(socket);
    if (this.websocket === "refuse") return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    if (this.websocket === "swallow") return;
    const out = connect(this.port, "127.0.0.1", () => {
      const lines = [`${request.method} ${request.url} HTTP/1.1`];
      for (let at = 0; at < request.rawHeaders.length; at += 2) lines.push(`${request.rawHeaders[at]}: ${request.rawHeaders[at + 1]}`);
      out.write(`${lines.join("\r\n")}\r\n\r\n`);
      out.write(head);
      out.pipe(socket).pipe(out);
    });
    this.#keep(out);
    out.on("close", () => socket.destroy());
    socket.on("close", () => out.destroy());
  }
}
