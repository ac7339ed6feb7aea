/** Backoff, quality, ladder, recovery, event streams; and that the types are right and current. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Backoff, Code, Ladder, Quality, readEvents, recovery, steadyClock } from "../client.mjs";
import { npm } from "./tools.mjs";
import { randomOf } from "./world.mjs";

test("the clock goes on when the wall's is set back, follows it over a sleep, and is no faster than either", () => {
  let [wall, steady] = [1_767_225_600_000, 50];
  const now = steadyClock(() => Math.floor(wall), () => steady), start = now(), random = randomOf(5);
  const shown = [];
  for (let n = 0; n < 10_000; n += 1) {
    // The wall's is slewed a little, forth and back, as it is when it is kept right.
    steady += 0.3;
    wall += 0.3 + (random() - 0.5) * 0.01;
    shown.push(now());
  }
  assert.ok(Math.abs(now() - start - 3000) <= 60, `${now() - start} ms in 3,000`);
  wall -= 3_600_000;
  const before = now();
  shown.push(before);
  assert.ok(Math.abs(before - start - 3000) <= 60, "set back an hour");
  steady += 500;
  wall += 500;
  assert.ok(Math.abs(now() - before - 500) <= 2);
  wall += 600_000;
  shown.push(now());
  assert.ok(now() - before >= 600_000, "it slept for ten minutes");
  assert.ok(shown.every((each, at) => Number.isInteger(each) && (at === 0 || each >= shown[at - 1])));
});

test("delays stay between floor and cap, use the whole range, and start over after a success", () => {
  const backoff = new Backoff({ floor: 500, cap: 20_000 }, randomOf(7));
  const delays = Array.from({ length: 1000 }, () => backoff.next());
  assert.ok(delays.every((delay) => delay >= 500 && delay <= 20_000) && delays[0] <= 1000);
  assert.ok(delays.slice(10).some((delay) => delay < 2000) && delays.slice(10).some((delay) => delay > 18_000));
  assert.ok(backoff.next(undefined, true) <= 1000, "something else is tried at once");
  backoff.reset();
  assert.ok(backoff.next() <= 1000);
});

// Found by a review: of a crowd that a proxy had told the same time, all came within half a second.
test("what the server asked for is obeyed, and not all at once", () => {
  for (const [asked, failures, spread] of [[60_000, 1, 7500], [1000, 1, 500], [0, 3, 3500], [60_000, 10, 19_500]]) {
    const backoff = new Backoff({ floor: 500, cap: 20_000 }, randomOf(3));
    const delays = Array.from({ length: 1000 }, () => {
      backoff.failures = failures - 1;
      return backoff.next(asked);
    });
    assert.ok(delays.every((delay) => delay >= asked && delay <= asked + spread), `${asked}`);
    assert.ok(Math.max(...delays) - Math.min(...delays) > 0.95 * spread, "the whole range is used");
  }
});

test("round trips are what the server says of them, losses cost, and a grade does not flap", () => {
  const quality = new Quality();
  quality.told(100);
  assert.deepEqual([quality.rtt, quality.variation], [100, 50]);
  quality.told(180);
  assert.deepEqual([quality.rtt, quality.variation], [180, 57.5]);
  for (let n = 0; n < 40; n += 1) quality.lost();
  assert.deepEqual([quality.grade, quality.score <= 56], ["fair", true]);
  for (let n = 0; n < 60; n += 1) quality.told(20);
  assert.deepEqual(quality.report, { grade: "good", score: 100, rtt: 20 });
  for (let n = 0; n < 200; n += 1) quality.told(1700);
  let [changes, before] = [0, quality.grade];
  for (let n = 0; n < 400; n += 1) {
    quality.told(n % 2 ? 1500 : 1700);
    if (quality.grade !== before) changes += 1;
    before = quality.grade;
  }
  assert.ok(changes <= 1, `${changes} changes`);
});

const config = { failures: 2, coolDown: 20_000, maxCoolDown: 1_800_000, stable: 8000, openTimeout: 2500, lastOpenTimeout: 10_000 };
const second = (n) => 1_000_000 + n * 1000;

test("a transport that does not work is left, and tried again when it has rested, for twice as long each time", () => {
  const ladder = new Ladder(config, 3, []);
  assert.equal(ladder.failed(second(0), 0), false);
  assert.equal(ladder.current, 0);
  assert.equal(ladder.failed(second(1), 0), true, "there is another one to try");
  assert.equal(ladder.current, 1);
  ladder.connected(second(2), 1);
  assert.equal(ladder.timeout, second(21));
  assert.equal(ladder.better(second(20), "good"), undefined);
  assert.equal(ladder.better(second(21), "good"), 0);
  ladder.failed(second(21), 0);
  ladder.failed(second(22), 0);
  assert.equal(ladder.current, 1, "the connection that is there goes on");
  assert.equal(ladder.better(second(61), "good"), undefined);
  assert.equal(ladder.better(second(62), "good"), 0);
  ladder.connected(second(63), 0);
  ladder.better(second(72), "good");
  assert.deepEqual(ladder.memory, [0, 1]);
});

test("a transport that does not even answer is left at once", () => {
  const ladder = new Ladder(config, 3, []);
  ladder.failed(second(0), 0, true);
  ladder.failed(second(3), 1, true);
  assert.equal(ladder.current, 2);
});

test("a connection that stood and broke does not count against its transport", () => {
  const ladder = new Ladder(config, 3, []);
  for (let round = 0; round < 10; round += 1) {
    ladder.connected(second(round * 100), 0);
    ladder.failed(second(round * 100 + 50), 0);
    assert.equal(ladder.current, 0);
  }
});

test("when no transport works for long, the best is not held to blame when the network is back", () => {
  const ladder = new Ladder(config, 3, []), tried = [0, 0, 0];
  for (let n = 0; n < 600; n += 1) {
    tried[ladder.current] += 1;
    ladder.failed(second(n), ladder.current);
  }
  assert.ok(tried.every((count) => count > 100), String(tried));
  assert.ok(ladder.rungs.every((rung) => rung.restsUntil <= second(640)), "an outage of ten minutes costs no long rest");
});

test("a poor connection is left for another, without flapping", () => {
  const ladder = new Ladder(config, 3, []);
  let switches = 0;
  ladder.connected(second(0), 0);
  for (let n = 0; n < 3600; n += 1) {
    const other = ladder.better(second(n), ladder.current === 0 ? "poor" : "good");
    if (other === undefined) continue;
    switches += 1;
    ladder.connected(second(n), other);
  }
  assert.ok(switches >= 2 && switches <= 400, `${switches} switches in an hour`);
  const alone = new Ladder(config, 1, []);
  alone.connected(second(0), 0);
  assert.equal(alone.better(second(100), "poor"), undefined);
});

test("what worked is remembered, and what is better is tried from there", () => {
  const ladder = new Ladder(config, 3, [2]);
  assert.equal(ladder.current, 2);
  ladder.connected(second(0), 2);
  assert.equal(ladder.better(second(8), "fair"), 0);
});

test("the recovery table says what the ranges of the document say", () => {
  const doc = readFileSync(new URL("../../../../docs/PROTOCOL.md", import.meta.url), "utf8");
  const codes = [...doc.matchAll(/^\| (4[0-3]\d\d) \| `\w+` \|/gm)].map(([, code]) => Number(code));
  assert.ok(codes.length >= 24);
  for (const code of codes) {
    const expected = code === Code.Malformed ? "blame" : code < 4200 ? (code >= 4001 && code <= 4003 ? "blame" : "back-off") : code < 4300 ? "credentials" : "close";
    assert.equal(recovery(code), expected, String(code));
  }
  assert.equal(recovery(Code.Malformed, 3), "close");
  assert.equal(recovery(4299), "credentials");
});

test("event streams are read however their bytes are cut", async () => {
  const text = 'event: open\ndata:\n\n: a comment\ndata: {"a":1}\r\n\r\ndata: two\ndata:lines\n\nevent: other\ndata: x\n\n';
  for (let size = 1; size < text.length; size += 1) {
    const chunks = Array.from({ length: Math.ceil(text.length / size) }, (_, at) => text.slice(at * size, (at + 1) * size)), heard = [];
    await readEvents({ read: async () => (chunks.length > 0 ? { done: false, value: chunks.shift() } : { done: true }) }, (name, data) => heard.push([name, data]));
    assert.deepEqual(heard, [["open", ""], ["message", '{"a":1}'], ["message", "two\nlines"], ["other", "x"]], `in pieces of ${size}`);
  }
});

test("an event that does not end is not kept for ever", async () => {
  for (const piece of ["x".repeat(1 << 16), `data: ${"x".repeat(1 << 16)}\n`]) {
    let read = 0;
    const reading = readEvents({ read: async () => ({ done: (read += 1) > 1000, value: piece }) }, () => {});
    await assert.rejects(reading, { code: Code.FrameTooLarge });
    assert.ok(read < 40, `${read} pieces`);
  }
});

test("the chat's page is right by these types", () => {
  const project = fileURLToPath(new URL("page.tsconfig.json", import.meta.url));
  const { status, stdout } = spawnSync(process.execPath, [join(npm, "node_modules/typescript/bin/tsc"), "-p", project], { encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("the types are right, and client.d.mts is what they say", () => {
  const out = mkdtempSync(join(tmpdir(), "lastmile-types-")), home = fileURLToPath(new URL("..", import.meta.url));
  try {
    const { status, stdout } = spawnSync(process.execPath, [join(npm, "node_modules/typescript/bin/tsc"), "-p", home, "--outDir", out], { encoding: "utf8" });
    assert.equal(status, 0, stdout);
    assert.equal(readFileSync(join(home, "client.d.mts"), "utf8"), readFileSync(join(out, "client.d.mts"), "utf8"), "make it again: see README.md");
  } finally {
    rmSync(out, { recursive: true });
  }
});
