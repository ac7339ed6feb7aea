/** Servers to kill, browsers to look into, people in them. */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { load } from "../tools.mjs";

const { chromium } = load("playwright-core");
const BINARY = process.env.LASTMILE_CHAT ?? "target/release/examples/chat";
const ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Longer than anything takes that works, on a machine fifty times slower than ours. */
export const LONG = 900_000;

if (!existsSync(BINARY)) throw new Error(`${BINARY} is not there: cargo build --release --example chat, or name it in LASTMILE_CHAT`);

/** The chat's server, on a directory that outlives it. */
export class Server {
  dir = mkdtempSync(join(tmpdir(), "lastmile-chat-"));
  port = 0;

  async start() {
    // When it starts again, something may have its port for a moment: one that connects takes any that is free.
    while (!(await this.#try())) await new Promise((resolve) => setTimeout(resolve, 100));
    return this;
  }

  async #try() {
    this.child = spawn(BINARY, ["--port", String(this.port), "--dir", this.dir], { stdio: ["ignore", "pipe", "inherit"] });
    this.ended = new Promise((resolve) => this.child.on("exit", resolve));
    for await (const line of createInterface({ input: this.child.stdout })) {
      const found = line.match(/http:\/\/127\.0\.0\.1:(\d+)/);
      if (!found) continue;
      this.port = Number(found[1]);
      this.url = `http://127.0.0.1:${this.port}`;
      this.child.stdout.resume();
      return true;
    }
    if (this.port === 0) throw new Error("the server did not start");
    await this.ended;
    return false;
  }

  /** SIGKILL: nothing is said and nothing is closed. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.ended;
  }

  async close() {
    await this.kill();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Somebody's terminal. */
export class Terminal {
  lines = [];
  #waiting = [];

  constructor(name, server) {
    this.dir = mkdtempSync(join(tmpdir(), "lastmile-terminal-"));
    this.child = spawn(BINARY, ["--connect", name, "--url", server.url, "--dir", this.dir], { stdio: ["pipe", "pipe", "inherit"] });
    createInterface({ input: this.child.stdout }).on("line", (line) => {
      this.lines.push(line);
      this.#waiting = this.#waiting.filter((look) => !look());
    });
  }

  type(line) {
    this.child.stdin.write(`${line}\n`);
  }

  /** Waits for a line that has all of these in it. */
  sees(...parts) {
    return new Promise((resolve) => {
      const look = () => {
        const line = this.lines.find((each) => parts.every((part) => each.includes(part)));
        if (line !== undefined) resolve(line);
        return line !== undefined;
      };
      if (!look()) this.#waiting.push(look);
    });
  }

  async close() {
    const ended = new Promise((resolve) => this.child.on("exit", resolve));
    this.type("/quit");
    await ended;
    rmSync(this.dir, { recursive: true, force: true });
  }
}

export const launch = () => chromium.launch({ executablePath: process.env.LASTMILE_CHROMIUM ?? "/usr/bin/chromium", args: ARGS, timeout: LONG });

/** Somebody in a browser window of their own. */
export class Person {
  /** What the console said that it should not have. While `isBroken()`, the browser may say that the network is. */
  complaints = [];

  static async enter(browser, name, url, { isBroken = () => false, clock = false, ...options } = {}) {
    const person = new Person();
    person.name = name;
    person.context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    person.context.setDefaultTimeout(LONG);
    // One that goes as clocks do, and can be put forward.
    if (clock) await person.context.clock.install();
    person.page = await person.context.newPage();
    person.page.on("pageerror", (error) => person.complaints.push(String(error.stack)));
    person.page.on("console", (message) => {
      const network = /net::ERR_|WebSocket connection to|Failed to load resource/.test(message.text());
      if (["error", "warning"].includes(message.type()) && !(network && isBroken())) person.complaints.push(message.text());
    });
    await person.page.goto(url);
    await person.page.fill("#name", name);
    await person.page.click("#sign-in button");
    await person.is("online");
    return person;
  }

  /** Waits for what the client is doing. */
  is(state, { transport } = {}) {
    return this.page.waitForSelector(`#state[data-is="${state}"]${transport ? `[data-transport="${transport}"]` : ""}`, { state: "attached" });
  }

  async talkTo(name) {
    await this.page.fill("#whom", name);
    await this.page.press("#whom", "Enter");
    await this.page.waitForFunction((peer) => document.querySelector("#peer")?.textContent === peer, name);
  }

  async write(...texts) {
    for (const text of texts) {
      await this.page.fill("#text", text);
      await this.page.press("#text", "Enter");
      await this.page.waitForFunction((each) => [...document.querySelectorAll(".message.mine .text")].some((found) => found.textContent === each), text);
    }
  }

  /** Waits until the conversation shows as many messages, `mine` or not, and says which: more than were asked for are seen, too. */
  async shows(texts, { mine = false } = {}) {
    const selector = `.message.${mine ? "mine" : "theirs"} .text`;
    await this.page.waitForFunction(([query, count]) => document.querySelectorAll(query).length >= count, [selector, texts.length]);
    return this.page.$$eval(selector, (found) => found.map((each) => each.textContent));
  }

  /** Waits until all of this person's messages in the conversation have one of these statuses. */
  all(...statuses) {
    return this.page.waitForFunction((good) => {
      const mine = [...document.querySelectorAll(".message.mine")];
      return mine.length > 0 && mine.every((each) => good.includes(each.dataset.status));
    }, statuses);
  }

  statuses() {
    return this.page.$$eval(".message.mine", (found) => found.map((each) => each.dataset.status));
  }

  switch() {
    return this.page.click(".switch");
  }
}
