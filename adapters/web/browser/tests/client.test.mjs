/** The client over databases in memory, a network that the test commands, and time that it makes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { Busy, Client, Code, LastmileError, Reject } from "../client.mjs";
import { Peer } from "./peer.mjs";
import { Network, World } from "./world.mjs";

/** A world with a peer and a network, and pages with clients of one user in it. */
function setUp(peerOptions = {}, seed = 1) {
  const world = new World(seed), accepted = [];
  const peer = new Peer(world, { onAccept: (user, message) => accepted.push({ user, ...message }), ...peerOptions });
  const network = new Network(world, peer);
  /** Opens a page with a client. `handle` replaces the handler that writes to `history`. */
  const open = (options = {}, { locks, connect = true, handle } = {}) => {
    const page = world.page({ locks }), states = [], errors = [];
    const client = new Client({
      name: "alice", url: "http://server/lastmile", user: "alice", credentials: () => "secret", stores: { history: { keyPath: "id" } },
      transports: network.transports(page), platform: page.platform, ...options,
    });
    client.watch("state", (state) => states.push(state));
    client.watch("error", (error) => errors.push(error));
    client.on("*", handle ?? ((message, writes) => writes.update("history", message.id, (row) => ({ id: message.id, payload: message.payload, times: (row?.times ?? 0) + 1 }))));
    if (connect) client.connect();
    return { page, client, states, errors };
  };
  /** What a promise gives, while time passes. */
  const settle = async (promise, ms = 60_000) => {
    let done;
    promise.then((value) => { done = { value }; }, (error) => { done = { error }; });
    await world.pass(ms, () => done !== undefined);
    assert.ok(done, "it is not settled");
    if (done.error) throw done.error;
    return done.value;
  };
  const send = (client, payload, fields = {}) => settle(client.send({ to: "bob", event: "chat.message", payload, ...fields }));
  const payloads = () => accepted.map(({ payload }) => payload);
  return { world, peer, network, accepted, open, settle, send, payloads };
}

const online = ({ client }) => () => client.state.name === "online";

test("a message is kept when send resolves, and accepted once when there is a connection", async () => {
  const { world, open, send, settle, payloads, peer } = setUp();
  const tab = open({}, { connect: false });
  const sent = await send(tab.client, "one");
  assert.match(sent.id, /^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$/, "a version 7 UUID");
  assert.deepEqual(tab.client.outbox().map(({ id, status, offered }) => [id, status, offered]), [[sent.id, "queued", false]]);
  tab.client.connect();
  assert.equal((await settle(sent.settled)).status, "accepted");
  await world.pass(1000);
  assert.deepEqual([payloads(), tab.client.outbox(), peer.violations], [["one"], [], []]);
});

test("messages that were never sent go out once after a reload, in their order", async () => {
  const { world, open, send, payloads, peer } = setUp();
  const first = open({}, { connect: false });
  for (const payload of ["1", "2", "3"]) await send(first.client, payload);
  first.page.kill();
  const second = open();
  await world.pass(1000);
  assert.deepEqual([payloads(), second.client.outbox(), peer.violations], [["1", "2", "3"], [], []]);
});

/** The page dies with its first publish on its way: nobody tells it what became of that. */
async function killedWhilePublishing({ world, peer }, tab, draft) {
  let killed = false;
  peer.options.onPublish = () => {
    if (!killed) tab.page.kill();
    killed = true;
  };
  tab.client.send(draft);
  await world.pass(1000, () => killed);
}

test("a message whose receipt was lost with the page is sent again under a new number, and accepted once", async () => {
  const { world, open, send, settle, payloads, peer } = setUp();
  const first = open();
  await world.pass(1000, online(first));
  await send(first.client, "before");
  await world.pass(1000);
  await killedWhilePublishing({ world, peer }, first, { to: "bob", event: "chat.message", payload: "one", ttl: 600_000 });
  assert.deepEqual(payloads(), ["before", "one"]);
  await world.pass(5000);
  const second = open();
  await world.pass(1000, online(second));
  const [{ id, offered }] = second.client.outbox();
  assert.equal(offered, true);
  assert.equal((await settle(second.client.sent(id).settled)).status, "accepted");
  assert.deepEqual([payloads(), peer.violations], [["before", "one"], []]);
});

test("what may have been accepted longer ago than ids are remembered is not repeated, and said to be unknown", async () => {
  const { world, open, settle, payloads, peer } = setUp();
  const first = open();
  await world.pass(1000, online(first));
  await killedWhilePublishing({ world, peer }, first, { to: "bob", event: "chat.message", payload: "one" });
  await world.pass(3_600_001);
  const second = open();
  await world.pass(1000);
  const [outgoing] = second.client.outbox();
  assert.deepEqual([outgoing.status, outgoing.failure.kind, payloads()], ["failed", "unknown-outcome", ["one"]]);
  assert.equal(await settle(second.client.cancel(outgoing.id)), true);
  assert.deepEqual([second.client.outbox(), peer.violations], [[], []]);
});

test("when the clock was set back, what may have been accepted is not repeated, and lives no longer than it should", async () => {
  const { world, open, send, settle, accepted, peer } = setUp();
  const first = open();
  await world.pass(1000, online(first));
  await killedWhilePublishing({ world, peer }, first, { to: "bob", event: "chat.message", payload: "one" });
  const third = open({}, { connect: false });
  await send(third.client, "two", { to: "carol", ttl: 60_000 });
  third.page.kill();
  await world.pass(100);
  world.time -= 7_200_000;
  const second = open();
  await world.pass(1000);
  const [outgoing] = second.client.outbox();
  assert.deepEqual([outgoing.payload, outgoing.status, outgoing.failure?.kind], ["one", "failed", "unknown-outcome"]);
  assert.deepEqual(accepted.map(({ payload, ttl_ms: ttl }) => [payload, ttl]), [["one", undefined], ["two", 60_000]]);
  await settle(second.client.close());
});

test("a lost connection is resumed, and neither end repeats what the other has", async () => {
  const { world, open, send, network, payloads, peer, settle } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  const sent = [];
  for (let round = 0; round < 5; round += 1) {
    sent.push(await send(tab.client, `out ${round}`));
    peer.post("alice", { payload: `in ${round}` });
    network.cut();
    await world.pass(5000);
  }
  for (const each of sent) assert.equal((await settle(each.settled)).status, "accepted");
  const rows = await settle(tab.client.rows("history"));
  assert.deepEqual(rows.map(({ payload, times }) => [payload, times]), [0, 1, 2, 3, 4].map((round) => [`in ${round}`, 1]));
  assert.deepEqual([payloads(), peer.violations], [[0, 1, 2, 3, 4].map((round) => `out ${round}`), []]);
});

test("what took effect before a crash is acknowledged after it without taking effect again", async () => {
  const { world, open, network, peer, settle } = setUp();
  let handled = 0;
  const handle = (message, writes) => {
    handled += 1;
    writes.update("history", message.id, (row) => ({ id: message.id, times: (row?.times ?? 0) + 1 }));
  };
  const first = open({}, { handle });
  await world.pass(1000, online(first));
  first.client.watch("stored", () => first.page.kill());
  const id = peer.post("alice", { payload: "one" });
  await world.pass(1000);
  assert.equal(peer.log.filter(({ ended }) => ended).length, 0, "the ack is lost");
  network.cut();
  const second = open({}, { handle });
  await world.pass(60_000, () => peer.log.some(({ ended }) => ended === id));
  const rows = await settle(second.client.rows("history"));
  assert.deepEqual([rows, handled, peer.violations], [[{ id, times: 1 }], 1, []]);
});

test("an ack says that it is on disk, and a crash before that means that it comes again", async () => {
  for (let seed = 1; seed <= 12; seed += 1) {
    const { world, open, peer, settle } = setUp({}, seed);
    const first = open({}, {
      handle: (message, writes) => {
        writes.put("history", { id: message.id });
        queueMicrotask(() => setImmediate(() => first.page.kill()));
      },
    });
    await world.pass(1000, online(first));
    const id = peer.post("alice", {});
    await world.pass(1000);
    const acked = peer.log.some(({ ended }) => ended === id);
    const second = open({}, { connect: false });
    const rows = await settle(second.client.rows("history"));
    if (acked) assert.deepEqual(rows, [{ id }]);
    second.client.connect();
    await world.pass(120_000, () => peer.log.some(({ ended }) => ended === id));
    assert.equal((await settle(second.client.rows("history"))).length, 1, `seed ${seed}`);
  }
});

test("when a handler fails nothing is written, the message comes again, and those behind it wait for it", async () => {
  const { world, open, peer, settle } = setUp();
  const order = [];
  let failures = 2;
  const tab = open({}, {
    handle: (message, writes) => {
      writes.put("history", { id: message.id });
      if (message.payload === "1" && failures-- > 0) throw failures === 1 ? new Error("no") : new Busy(300);
      order.push(message.payload);
    },
  });
  await world.pass(1000, online(tab));
  const ids = ["1", "2", "3"].map((payload) => peer.post("alice", { payload, ordering_key: "a" }));
  peer.post("alice", { payload: "other", ordering_key: "b" });
  await world.pass(10);
  assert.equal((await settle(tab.client.rows("history"))).some(({ id }) => ids.includes(id)), false);
  await world.pass(5000);
  assert.deepEqual(order, ["other", "1", "2", "3"]);
  assert.deepEqual(peer.log.filter(({ nacked }) => nacked === ids[0]).map(({ code }) => code), [Code.Failed, Code.Busy]);
  assert.deepEqual([tab.errors.map(({ message }) => message), peer.violations], [["no"], []]);
});

test("when what a handler wrote does not go through, those behind it do not take effect before it", async () => {
  const { world, open, peer, settle } = setUp();
  let failures = 2;
  const tab = open({}, {
    handle: ({ payload }, writes) => writes.update("history", "all", (row) => {
      if (payload === "1" && failures-- > 0) throw new Error("no");
      return { id: "all", order: [...(row?.order ?? []), payload] };
    }),
  });
  await world.pass(1000, online(tab));
  for (const payload of ["1", "2", "3"]) peer.post("alice", { payload, ordering_key: "a" });
  await world.pass(30_000);
  assert.deepEqual([await settle(tab.client.rows("history")), failures, peer.violations], [[{ id: "all", order: ["1", "2", "3"] }], -1, []]);
});

test("changes of one row that share a transaction see each other, in their order", async () => {
  const { world, open, peer, settle } = setUp();
  const tab = open({}, {
    handle: ({ payload }, writes) => {
      for (const half of ["a", "b"]) writes.update("history", "all", (row) => ({ id: "all", order: [...(row?.order ?? []), payload + half] }));
      if (payload === "3") writes.put("history", { id: "all", order: ["put"] });
    },
  });
  await world.pass(1000, online(tab));
  for (let n = 1; n <= 6; n += 1) peer.post("alice", { payload: String(n) });
  await world.pass(1000);
  assert.deepEqual(await settle(tab.client.rows("history")), [{ id: "all", order: ["put", "4a", "4b", "5a", "5b", "6a", "6b"] }]);
});

test("a message that comes again while its handler is at work is handled once, and acknowledged under its new number", async () => {
  const { world, open, peer } = setUp();
  const releases = [];
  const tab = open({}, { handle: () => new Promise((resolve) => releases.push(resolve)) });
  await world.pass(1000, online(tab));
  const id = peer.post("alice", { ordering_key: "a" });
  await world.pass(100, () => releases.length === 1);
  peer.restart();
  peer.post("alice", { ordering_key: "b" });
  await world.pass(5000, () => releases.length === 2);
  releases[0]();
  await world.pass(1000);
  assert.deepEqual([releases.length, peer.log.map(({ ended }) => ended), tab.errors, peer.violations], [2, [id], [], []]);
});

test("a handler may refuse a message for good", async () => {
  const { world, open, peer } = setUp();
  const tab = open({}, { handle: () => { throw new Reject("spam"); } });
  await world.pass(1000, online(tab));
  const id = peer.post("alice", {});
  await world.pass(1000);
  assert.deepEqual(peer.log.filter(({ nacked }) => nacked), [{ nacked: id, code: Code.Rejected }]);
  assert.deepEqual(peer.outboxes.get("alice"), []);
});

test("what is no longer wanted is not begun with, and whoever rings is told to stop", async () => {
  const { world, open, peer } = setUp(), rung = [], stopped = [];
  const handle = (message, _, signal) => new Promise((resolve, reject) => {
    rung.push(message.id);
    signal.addEventListener("abort", () => {
      stopped.push(message.id);
      if (message.payload === "answered") resolve();
      else reject(new Error("answered elsewhere"));
    });
  });
  const tab = open({}, { handle });
  await world.pass(1000, online(tab));
  const first = peer.post("alice", { ordering_key: "a" }), second = peer.post("alice", { ordering_key: "a" });
  const answered = peer.post("alice", { ordering_key: "b", payload: "answered" });
  await world.pass(100, () => rung.length === 2);
  for (const id of [second, first, answered]) peer.withdraw("alice", id);
  await world.pass(1000);
  assert.deepEqual([rung, stopped], [[first, answered], [first, answered]]);
  assert.deepEqual(peer.log.filter(({ nacked }) => nacked), [second, first].map((nacked) => ({ nacked, code: Code.Withdrawn })));
  assert.deepEqual(peer.log.filter(({ ended }) => ended).map(({ ended }) => ended), [answered], "an answer counts all the same");
  assert.deepEqual([tab.errors, peer.violations], [[], []]);
});

test("a handler that never returns is given up after its time, and the server hears that it works until then", async () => {
  const { world, open, peer } = setUp();
  const told = [];
  const tab = open({ handlerTimeout: 25_000 }, { handle: (message, _, signal) => {
    if (message.payload !== "slow") return undefined;
    signal.addEventListener("abort", () => told.push(signal.aborted));
    return new Promise(() => {});
  } });
  await world.pass(1000, online(tab));
  const id = peer.post("alice", { payload: "slow", ordering_key: "a" });
  peer.post("alice", { payload: "fast", ordering_key: "b" });
  await world.pass(24_000);
  assert.deepEqual(peer.log.map(({ how }) => how), ["ack"], "others are not held up");
  await world.pass(1500);
  assert.deepEqual(peer.log.filter(({ nacked }) => nacked === id).map(({ code }) => code), [Code.Failed]);
  assert.deepEqual(told, [true], "and hears so");
});

test("a request is answered with what its handler returns, and with the same again", async () => {
  const { world, open, peer, network } = setUp();
  let handled = 0;
  const first = open({}, { handle: () => ({ answer: (handled += 1) }) });
  await world.pass(1000, online(first));
  first.client.watch("stored", () => {});
  const id = peer.post("alice", { reply_within_ms: 5000 });
  await world.pass(1000);
  assert.deepEqual(peer.log, [{ ended: id, how: { answer: 1 } }]);
  // The reply is lost with the page: it is on disk, and said again.
  const request = peer.post("alice", { reply_within_ms: 5000 });
  await world.pass(1000, () => handled === 2);
  await world.idle();
  network.links.forEach((link) => { link.silent = true; });
  await world.idle();
  first.page.kill();
  const second = open({}, { handle: () => ({ answer: (handled += 1) }) });
  await world.pass(60_000, () => peer.log.some(({ ended }) => ended === request));
  assert.ok(peer.log.some(({ ended, how }) => ended === request && how.answer === handled));
  assert.equal(second.client.state.name, "online");
});

test("a volatile message has no place: another one under the same sequence number is another one", async () => {
  const { world, open, peer } = setUp();
  const heard = [];
  const tab = open({}, { handle: (message) => heard.push(message.payload) });
  await world.pass(1000, online(tab));
  peer.post("alice", { payload: "1", durability: "volatile" });
  peer.post("alice", { payload: "2", durability: "volatile" });
  for (const entry of peer.outboxes.get("alice")) entry.seq = "1";
  peer.restart();
  await world.pass(100);
  await world.pass(5000, online(tab));
  for (const payload of ["3", "4"]) {
    peer.post("alice", { payload, durability: "volatile" });
    await world.pass(100);
  }
  assert.deepEqual(heard.slice(-2), ["3", "4"]);
});

test("places are forgotten when their floor has passed, and not before", async () => {
  const { world, open, peer, settle } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  for (let round = 0; round < 20; round += 1) peer.post("alice", { payload: String(round) });
  await world.pass(5000);
  const db = await settle(new Promise((resolve) => {
    const request = world.indexedDB.open("lastmile.alice");
    request.onsuccess = () => resolve(request.result);
  }));
  const count = () => settle(new Promise((resolve) => {
    const request = db.transaction("lastmile.inbox").objectStore("lastmile.inbox").count();
    request.onsuccess = () => resolve(request.result);
  }));
  assert.equal(await count(), 0);
  peer.post("alice", { payload: "held", ordering_key: "z" });
  const floor = Object.getPrototypeOf(peer.sessions.get("alice")).floor;
  peer.sessions.get("alice").floor = () => {};
  for (let round = 0; round < 7; round += 1) peer.post("alice", { payload: String(round) });
  await world.pass(5000);
  assert.ok((await count()) >= 7, "without a floor they are kept");
  floor.call(peer.sessions.get("alice"), "normal");
  await world.pass(5000);
  assert.equal(await count(), 0);
  db.close();
});

test("calls overtake what waits, and one recipient's backlog holds nobody else up", async () => {
  const { world, open, send, accepted } = setUp();
  const tab = open({}, { connect: false });
  for (let n = 0; n < 5; n += 1) await send(tab.client, `low ${n}`, { priority: "low" });
  await send(tab.client, "to carol", { to: "carol", priority: "low" });
  await send(tab.client, "call", { event: "call.ring", priority: "critical" });
  tab.client.connect();
  await world.pass(1000);
  const order = accepted.map(({ payload }) => payload);
  assert.equal(order[0], "call");
  assert.ok(order.indexOf("to carol") <= 2, String(order));
  assert.deepEqual(order.filter((payload) => payload.startsWith("low")), [0, 1, 2, 3, 4].map((n) => `low ${n}`));
});

test("a message that is refused for now is sent again later, and those behind it wait for it", async () => {
  let full = 2;
  const { world, open, send, payloads, peer, settle } = setUp({
    onPublish: (user, { payload }) => (payload === "1" && full-- > 0 ? { code: 4402, retry_after_ms: 2000, text: "full" } : undefined),
  });
  const tab = open();
  await world.pass(1000, online(tab));
  const sent = await Promise.all(["1", "2", "3"].map((payload) => send(tab.client, payload)));
  await world.pass(3000);
  assert.deepEqual(payloads(), []);
  for (const each of sent) assert.equal((await settle(each.settled)).status, "accepted");
  assert.deepEqual([payloads(), peer.violations], [["1", "2", "3"], []]);
});

test("a message that is refused for good fails with the server's code, and can be sent again or taken back", async () => {
  let refuse = true;
  const { world, open, send, payloads, settle } = setUp({ onPublish: () => (refuse ? { code: 4452, text: "blocked" } : undefined) });
  const tab = open();
  await world.pass(1000, online(tab));
  const [one, two] = [await send(tab.client, "1"), await send(tab.client, "2")];
  const { status, failure } = await settle(one.settled);
  assert.deepEqual([status, failure], ["failed", { kind: "rejected", code: 4452, text: "blocked" }]);
  await settle(two.settled);
  tab.page.kill();
  refuse = false;
  const again = open();
  await world.pass(1000, online(again));
  assert.deepEqual(again.client.outbox().map(({ status }) => status), ["failed", "failed"], "it is still there after a reload, and was not sent again");
  await settle(again.client.retry(one.id));
  assert.equal(await settle(again.client.cancel(two.id)), true);
  await world.pass(1000);
  assert.deepEqual([payloads(), again.client.outbox()], [["1"], []]);
});

test("what waits can be seen and taken back without a connection, in one tab at a time", async () => {
  const { open, send, settle, network } = setUp();
  const first = open({}, { connect: false });
  const { id } = await send(first.client, "1");
  first.page.kill();
  const second = open({}, { connect: false }), third = open({}, { connect: false });
  assert.deepEqual([await settle(second.client.claim()), await settle(third.client.claim())], [true, false]);
  assert.deepEqual([second.client.outbox().map((each) => each.id), second.client.state.name], [[id], "offline"]);
  await assert.rejects(settle(third.client.cancel(id)), (error) => error.kind === "another-tab");
  assert.equal(await settle(second.client.cancel(id)), true);
  assert.deepEqual([second.client.outbox(), network.connections], [[], []]);
});

test("a message can be taken back until it is on the wire, and not after", async () => {
  const { world, open, send, settle, payloads } = setUp({ onPublish: () => new Promise(() => {}) });
  const tab = open({}, { connect: false });
  const [one, two] = [await send(tab.client, "1"), await send(tab.client, "2")];
  tab.client.connect();
  await world.pass(1000);
  assert.deepEqual([await settle(one.cancel()), await settle(two.cancel())], [false, true], "the first one is on the wire");
  assert.equal((await settle(two.settled)).status, "cancelled");
  assert.deepEqual(payloads(), []);
});

test("whenever it is asked for, a message that is said to be taken back is not accepted", async () => {
  const seen = new Set();
  for (let turns = 0; turns < 40; turns += 1) {
    const { world, open, payloads } = setUp();
    const tab = open();
    await world.pass(1000, online(tab));
    let cancelled;
    tab.client.send({ to: "bob", event: "chat.message", payload: "1" }).then(async (sent) => {
      for (let turn = 0; turn < turns % 10; turn += 1) await null;
      for (let turn = 0; turn < turns / 10 - 1; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      cancelled = await sent.cancel();
    });
    await world.pass(1000);
    seen.add(cancelled);
    assert.deepEqual(payloads(), cancelled ? [] : ["1"], `after ${turns} turns`);
  }
  assert.ok(seen.has(false), "some came too late");
});

test("what is of no use any more is not sent, and says so, also while there is no connection", async () => {
  const { world, open, send, settle, accepted, network } = setUp();
  network.up = false;
  const tab = open();
  await world.pass(100);
  const ring = await send(tab.client, "ring", { ttl: 30_000, priority: "critical" });
  await world.pass(30_000);
  const { status, failure } = await settle(ring.settled);
  assert.deepEqual([status, failure.kind], ["failed", "expired"]);
  const call = await send(tab.client, "again", { ttl: 60_000, priority: "critical" });
  await world.pass(10_000);
  network.up = true;
  await settle(call.settled);
  assert.equal(accepted.length, 1);
  assert.ok(accepted[0].ttl_ms <= 50_000 && accepted[0].ttl_ms > 20_000, "the time that it waited here is taken off");
});

test("a volatile message goes out now or fails, and is never stored", async () => {
  const { world, open, send, settle, payloads, network, peer } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  const sent = [];
  for (let n = 0; n < 200; n += 1) sent.push(await send(tab.client, `typing ${n}`, { durability: "volatile", priority: "low" }));
  for (const each of sent) assert.equal((await settle(each.settled)).status, "accepted");
  network.up = false;
  network.cut();
  await world.pass(100);
  const { status, failure } = await settle((await send(tab.client, "typing", { durability: "volatile" })).settled);
  assert.deepEqual([status, failure.kind], ["failed", "unconfirmed"]);
  await send(tab.client, "kept");
  tab.page.kill();
  network.up = true;
  open();
  await world.pass(5000);
  assert.deepEqual([payloads().length, payloads().at(-1), peer.violations], [201, "kept", []]);
});

test("the outbox is bounded, and what does not fit is refused with the reason", async () => {
  const { open, send } = setUp();
  const tab = open({ maxOutbox: 3, maxOutboxBytes: 1000 }, { connect: false });
  await assert.rejects(send(tab.client, "x".repeat(2000)), (error) => error instanceof LastmileError && error.kind === "outbox-full" && error.retryable);
  for (const payload of ["1", "2", "3"]) await send(tab.client, payload);
  await assert.rejects(send(tab.client, "4"), (error) => error.kind === "outbox-full");
  assert.equal(tab.client.outbox().length, 3);
});

test("what is no message is refused before anything is kept", async () => {
  const { open, settle } = setUp();
  const tab = open({}, { connect: false }), good = { to: "bob", event: "a.b" };
  const bad = [
    { to: "" }, { to: "x".repeat(256) }, { event: "A" }, { event: "a..b" }, { event: "1a" }, { payload: 7 }, { payload: null }, { priority: "urgent" },
    { durability: "forever" }, { ttl: -1 }, { ttl: 1.5 }, { notBefore: NaN }, { id: "7" }, { version: "x" }, { orderingKey: "" }, { headers: { a: "x".repeat(2048) } },
    // No server reads what these would be in a frame.
    { payload: new Date(0) }, { payload: new ArrayBuffer(1) }, { payload: new Uint16Array(1) }, { payload: { n: 1n } }, { payload: Object("text") },
    { headers: { a: 5 } }, { version: "99999999999999999999", collapseKey: "a" }, { version: 5, collapseKey: "a" }, { version: "5" },
    { durability: "volatile", notBefore: 5 }, { to: "\ud800" }, { id: ["0".repeat(32)] },
  ];
  for (const fields of bad) await assert.rejects(settle(tab.client.send({ ...good, ...fields })), (error) => error.kind === "invalid", inspect(fields));
  await settle(tab.client.send({ ...good, id: "0".repeat(32) }));
  await assert.rejects(settle(tab.client.send({ ...good, id: "0".repeat(32) })), (error) => error.kind === "invalid");
});

// What went out was another body than what was kept: the server took the repeat for a conflict.
test("what is sent is what it was when it was sent, whatever its page does with it later", async () => {
  const { world, open, settle, payloads } = setUp();
  const tab = open({}, { connect: false }), object = { text: "as it was", list: [1] }, bytes = new Uint8Array([1, 2]);
  await settle(tab.client.send({ to: "bob", event: "a.b", payload: object }));
  await settle(tab.client.send({ to: "bob", event: "a.b", payload: bytes }));
  object.text = "changed";
  object.list.push(2);
  bytes.fill(7);
  tab.client.connect();
  await world.pass(1000);
  assert.deepEqual(payloads(), [{ text: "as it was", list: [1] }, new Uint8Array([1, 2])]);
});

test("whatever a handler answers or asks for, the server can read it", async () => {
  const { world, open, peer } = setUp(), circle = {};
  circle.self = circle;
  const answers = { date: new Date(0), number: 7, nothing: undefined, view: new Uint16Array(2), circle, call: () => {}, bytes: new Uint8Array([1]) };
  const delays = { nan: NaN, less: -5, half: 1.5, ever: Infinity, none: undefined };
  const tab = open({}, { handle: ({ payload }) => {
    if (payload in delays) throw new Busy(delays[payload]);
    return answers[payload];
  } });
  await world.pass(1000, online(tab));
  const ids = new Map([...Object.keys(answers), ...Object.keys(delays)].map((name) => [peer.post("alice", { payload: name, reply_within_ms: 5000, ordering_key: name }), name]));
  await world.pass(100);
  const ended = Object.fromEntries(peer.log.filter(({ ended }) => ended).map(({ ended, how }) => [ids.get(ended), how]));
  assert.deepEqual(ended, { date: '"1970-01-01T00:00:00.000Z"', number: "7", nothing: "ack", bytes: new Uint8Array([1]) });
  const nacked = new Set(peer.log.filter(({ nacked }) => nacked).map(({ nacked }) => ids.get(nacked)));
  assert.deepEqual(nacked, new Set(["view", "circle", "call", ...Object.keys(delays)]));
  assert.deepEqual([tab.client.state.name, peer.violations], ["online", []]);
});

test("what a library takes for a promise is one, of credentials and of handlers", async () => {
  const later = (world, value) => ({ then: (resolve) => world.setTimeout(() => resolve(value), 100) });
  const { world, open, peer } = setUp();
  const tab = open({ credentials: () => later(world, "secret"), handlerTimeout: 50 }, { handle: () => later(world, undefined) });
  assert.ok(await world.pass(1000, online(tab)));
  const id = peer.post("alice", {});
  await world.pass(90);
  assert.deepEqual(peer.log.filter(({ nacked }) => nacked), [{ nacked: id, code: Code.Failed }], "its time is bounded as well");
});

test("a host that never gives credentials is given up, and asked again", async () => {
  let asked = 0;
  const { world, open } = setUp();
  const tab = open({ credentials: () => (asked += 1) < 3 ? new Promise(() => {}) : Promise.resolve("secret") });
  await world.pass(29_000);
  assert.deepEqual([asked, tab.client.state.name], [1, "connecting"]);
  await world.pass(2000);
  assert.deepEqual([asked, tab.client.state.name], [2, "connecting"]);
  assert.ok(await world.pass(60_000, online(tab)));
});

test("a host that has no credentials for a better transport is not asked for them as fast as time goes", async () => {
  const { world, open, network } = setUp();
  let asked = 0, gone = false;
  network.blocked = new Set(["websocket"]);
  const tab = open({ credentials: () => { asked += 1; return gone ? undefined : "secret"; } });
  assert.ok(await world.pass(5000, online(tab)));
  [gone, asked] = [true, 0];
  await world.pass(600_000);
  assert.ok(asked > 1 && asked < 80, `${asked} times in ten minutes`);
  assert.equal(tab.client.state.name, "online");
});

test("a server that lets in and sends away at once is asked less and less often", async () => {
  const { world, open, network, peer } = setUp();
  const connect = peer.connect.bind(peer);
  peer.connect = (wire) => {
    const end = connect(wire);
    return { ...end, receive: (text) => {
      end.receive(text);
      for (const session of peer.sessions.values()) if (session.link) session.close(4000);
    } };
  };
  const tab = open();
  await world.pass(120_000);
  assert.ok(network.connections.length < 25, `${network.connections.length} connections in two minutes`);
  assert.equal(tab.client.state.name, "offline");
});

test("a transport that opens and lets nobody in is left for a while after one attempt beside a connection", async () => {
  const { world, open, network } = setUp();
  network.blocked = new Set(["websocket"]);
  const page = { alive: true }, tried = [];
  const deaf = { name: "websocket", open: async (opening) => {
    tried.push(world.now());
    if (network.blocked.size > 0) return network.open(page, "websocket", opening);
    return { send: () => {}, close: () => {} };
  } };
  const tab = open({ transports: [deaf, { name: "sse", open: (opening) => network.open(page, "sse", opening) }] });
  assert.ok(await world.pass(5000, online(tab)));
  network.blocked.clear();
  const before = tried.length;
  assert.ok(await world.pass(60_000, () => tried.length > before));
  await world.pass(5000);
  assert.deepEqual(tab.client.state, { name: "connecting", transport: "websocket" }, "it is not online where nobody has let it in");
  await world.pass(60_000);
  assert.equal(tried.length, before + 2, "it rests for twice as long each time");
  assert.equal(tab.client.state.transport, "sse");
});

test("credentials that no hello can hold are told as an error, and break no connection", async () => {
  for (const bad of ["x".repeat(8193), 7, {}]) {
    const { world, open, network } = setUp();
    let given = bad;
    const tab = open({ credentials: () => given });
    await world.pass(1000);
    assert.deepEqual([tab.client.state.name, network.tries], ["offline", []]);
    assert.match(tab.client.state.why, /credentials/);
    given = null;
    await world.pass(30_000, () => tab.client.state.name === "needs-credentials");
    assert.equal(tab.client.state.name, "needs-credentials");
  }
});

test("what the server would not read for its size fails, and breaks no connection", async () => {
  const { world, open, send, settle, network } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  const sent = await send(tab.client, "x".repeat(2 << 20));
  assert.equal((await settle(sent.settled)).failure.kind, "too-large");
  assert.deepEqual([network.connections, tab.client.state.name], [["websocket"], "online"]);
});

test("trackers write in the transaction of the status that they hear of", async () => {
  const { world, open, send, settle } = setUp({ onPublish: (user, { payload }) => (payload === "bad" ? { code: 4450, text: "no" } : undefined) });
  const track = (client) => client.track("chat.*", ({ id, status }, writes) => writes.update("history", id, (row) => ({ id, statuses: [...(row?.statuses ?? []), status] })));
  const first = open({}, { connect: false });
  track(first.client);
  const ids = [(await send(first.client, "good")).id, (await send(first.client, "bad")).id, (await send(first.client, "late")).id];
  first.page.kill();
  const second = open({}, { connect: false });
  const off = track(second.client);
  second.client.connect();
  await world.pass(1000);
  const statuses = async () => Object.fromEntries((await settle(second.client.rows("history"))).map((row) => [row.id, row.statuses]));
  assert.deepEqual(await statuses(), { [ids[0]]: ["queued", "accepted"], [ids[1]]: ["queued", "failed"], [ids[2]]: ["queued", "accepted"] });
  off();
  await send(second.client, "untracked");
  await world.pass(1000);
  assert.equal(Object.keys(await statuses()).length, 3);
});

test("a tracker that throws keeps its message out of the outbox, and no other", async () => {
  const { open, send } = setUp();
  const tab = open({}, { connect: false });
  tab.client.track("chat.message", ({ payload }) => { if (payload === "bad") throw new Error("no"); });
  const results = await Promise.allSettled(["1", "bad", "2"].map((payload) => send(tab.client, payload)));
  assert.deepEqual(results.map(({ status }) => status), ["fulfilled", "rejected", "fulfilled"]);
  assert.deepEqual(tab.client.outbox().map(({ payload }) => payload), ["1", "2"]);
});

test("handlers are found by event, then by the longest prefix, and go when they are told to", async () => {
  const { world, open, peer } = setUp();
  const heard = [];
  const tab = open({}, { connect: false, handle: () => heard.push("*") });
  const off = tab.client.on("chat.message", () => heard.push("exact"));
  tab.client.on("chat.*", () => heard.push("chat.*"));
  tab.client.on("chat.room.*", () => heard.push("chat.room.*"));
  assert.throws(() => tab.client.on("chat.*", () => {}), (error) => error.kind === "invalid");
  tab.client.connect();
  const events = ["chat.message", "chat.typing", "chat.room.x.y", "chat", "other.x"];
  for (const event of events) peer.post("alice", { event });
  await world.pass(1000);
  assert.deepEqual(heard, ["exact", "chat.*", "chat.room.*", "*", "*"]);
  off();
  peer.post("alice", { event: "chat.message" });
  await world.pass(1000);
  assert.equal(heard.at(-1), "chat.*");
});

test("two tabs: one holds the connection and sends for both, and the other takes over when the first one goes", async () => {
  const { world, open, send, payloads, peer } = setUp();
  const first = open();
  await world.pass(1000, online(first));
  const second = open();
  await world.pass(1000);
  assert.deepEqual([second.client.state.name, second.client.state.why], ["offline", "another-tab"]);
  await send(second.client, "from the second");
  await world.pass(100);
  assert.deepEqual([second.client.state.why, payloads()], ["another-tab", ["from the second"]]);
  first.page.kill();
  await send(second.client, "again");
  await world.pass(60_000);
  assert.deepEqual([second.client.state.name, payloads(), peer.violations], ["online", ["from the second", "again"], []]);
});

// It was told to nobody but the tab with the connection: whoever had sent it waited for ever.
test("a tab without the connection hears what became of what it sent", async () => {
  const { world, open, send, settle } = setUp({ onPublish: (user, { payload }) => (payload === "bad" ? { code: 4452, text: "blocked" } : undefined) });
  const first = open();
  await world.pass(1000, online(first));
  const second = open(), told = [];
  await world.pass(1000);
  const good = await send(second.client, "good");
  second.client.watch("outbox", ({ id, status }) => told.push([id, status]));
  assert.equal((await settle(good.settled)).status, "accepted");
  const bad = await send(second.client, "bad"), outgoing = await settle(bad.settled);
  assert.deepEqual([outgoing.status, outgoing.failure.code, outgoing.payload], ["failed", 4452, "bad"]);
  assert.deepEqual(told, [[good.id, "accepted"], [bad.id, "queued"], [bad.id, "failed"]]);
});

test("who asks about a message that has failed hears so at once", async () => {
  const { world, open, send, settle } = setUp({ onPublish: () => ({ code: 4452, text: "blocked" }) });
  const tab = open();
  await world.pass(1000, online(tab));
  const { id } = await send(tab.client, "1");
  await world.pass(1000);
  assert.deepEqual((await settle(tab.client.sent(id).settled)).failure, { kind: "rejected", code: 4452, text: "blocked" });
});

test("what was only in a tab's memory has failed when the tab loses the outbox, its connection or its client", async () => {
  for (const way of ["steal", "cut", "close"]) {
    const { world, open, settle, network } = setUp({ onPublish: () => new Promise(() => {}) });
    const tab = open(), other = open({}, { connect: false });
    await world.pass(1000, online(tab));
    const draft = { to: "bob", event: "chat.typing", durability: "volatile" };
    // One is on the wire, the other one waits for it.
    const sent = [await settle(tab.client.send(draft)), await settle(tab.client.send(draft))];
    await world.pass(100);
    if (way === "steal") other.client.connect({ steal: true });
    else if (way === "close") tab.client.close();
    else network.cut();
    for (const each of way === "cut" ? sent.slice(1) : sent) {
      const { status, failure } = await settle(each.settled, 100);
      assert.deepEqual([status, failure.kind], ["failed", "unconfirmed"], way);
    }
    assert.equal(tab.client.outbox().length, way === "cut" ? 1 : 0, way);
  }
});

// What the other tab had handled, and forgotten as its floor had passed, took effect once more.
test("a handler that outlasts two changes of owner applies nothing", async () => {
  const { world, open, settle, peer } = setUp();
  let release, aborted = false;
  const apply = (message, writes) => writes.update("history", message.id, (row) => ({ id: message.id, times: (row?.times ?? 0) + 1 }));
  const first = open({}, { handle: async (message, writes, signal) => {
    signal.addEventListener("abort", () => { aborted = true; });
    await new Promise((resolve) => { release = resolve; });
    apply(message, writes);
  } });
  await world.pass(1000, online(first));
  const id = peer.post("alice", {});
  await world.pass(100, () => release !== undefined);
  const second = open({}, { connect: false, handle: apply });
  second.client.connect({ steal: true });
  await world.pass(5000, () => peer.log.some(({ ended }) => ended === id));
  await world.pass(5000);
  await settle(second.client.close());
  assert.ok(await world.pass(5000, online(first)));
  release();
  await world.pass(5000);
  const rows = await settle(first.client.rows("history"));
  assert.deepEqual([rows, aborted, peer.violations], [[{ id, times: 1 }], true, []]);
});

// It lay there until somebody sent something else.
test("what another tab sends while this one is taking the outbox over is sent", async () => {
  const { world, open, settle, payloads } = setUp();
  world.post = (run) => run();
  const [first, second, third] = [open(), open({}, { connect: false }), open({}, { connect: false })];
  await world.pass(1000, online(first));
  await settle(third.client.rows("history"));
  let sent;
  const { getAll } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.getAll = function read(...args) {
    // The outbox has been read by now.
    if (this.name === "lastmile.inbox") sent ??= third.client.send({ to: "bob", event: "a.b", payload: "late" });
    return getAll.apply(this, args);
  };
  try {
    second.client.connect({ steal: true });
    await world.pass(1000, online(second));
  } finally {
    IDBObjectStore.prototype.getAll = getAll;
  }
  assert.ok(sent);
  await world.pass(5000);
  assert.deepEqual(payloads(), ["late"]);
});

test("where locks are refused the fence has to do", async () => {
  let asked = 0;
  const { world, open, send, payloads } = setUp();
  const locks = { of: () => ({ request: async () => { if ((asked += 1) < 100) throw new DOMException("not here", "SecurityError"); return new Promise(() => {}); } }) };
  const tab = open({}, { locks });
  assert.ok(await world.pass(1000, online(tab)));
  await send(tab.client, "1");
  await world.pass(1000);
  assert.deepEqual([payloads(), asked], [["1"], 1]);
});

test("a message that could not be taken back keeps its place among those behind it", async () => {
  const { world, open, send, settle, payloads } = setUp();
  const tab = open({}, { connect: false });
  tab.client.track("chat.*", ({ status }) => { if (status === "cancelled") throw new Error("no"); });
  const [one] = [await send(tab.client, "1"), await send(tab.client, "2")];
  await assert.rejects(settle(one.cancel()), { message: "no" });
  tab.client.connect();
  await world.pass(5000);
  assert.deepEqual(payloads(), ["1", "2"]);
});

test("a failed message that is sent again and taken back at once is not both", async () => {
  let refuse = true;
  const { world, open, send, settle, payloads } = setUp({ onPublish: () => (refuse ? { code: 4452, text: "blocked" } : undefined) });
  const tab = open();
  await world.pass(1000, online(tab));
  const [one, two] = [await send(tab.client, "1"), await send(tab.client, "2")];
  await settle(one.settled);
  await settle(two.settled);
  refuse = false;
  const [, cancelled] = [tab.client.retry(one.id), tab.client.cancel(one.id)];
  const [again, retried] = [tab.client.cancel(two.id), tab.client.retry(two.id)];
  retried.catch(() => {});
  assert.deepEqual([await settle(cancelled), await settle(again)], [false, true]);
  await assert.rejects(settle(retried), (error) => error.kind === "not-found");
  await world.pass(5000);
  assert.deepEqual([payloads(), tab.client.outbox()], [["1"], []]);
});

test("tabs without the connection are bound by the same bytes", async () => {
  const { world, open, send, network } = setUp();
  network.up = false;
  const options = { maxOutboxBytes: 1000 };
  open(options);
  const second = open(options);
  await world.pass(1000);
  await send(second.client, "x".repeat(500));
  await assert.rejects(send(second.client, "x".repeat(500)), (error) => error.kind === "outbox-full");
});

test("a tab may take over from another, which waits and gets it back", async () => {
  const { world, open, settle, send, payloads, peer } = setUp();
  const first = open(), second = open({}, { connect: false });
  await world.pass(1000, online(first));
  second.client.connect({ steal: true });
  await world.pass(1000);
  assert.deepEqual([first.client.state.why, second.client.state.name], ["another-tab", "online"]);
  await assert.rejects(settle(first.client.cancel("0")), (error) => error.kind === "another-tab");
  await send(second.client, "1");
  await world.pass(100);
  await settle(second.client.close());
  await world.pass(5000);
  assert.equal(first.client.state.name, "online");
  await send(first.client, "2");
  await world.pass(1000);
  assert.deepEqual([payloads(), peer.violations], [["1", "2"], []]);
});

test("without Web Locks the fence alone keeps a tab that was overtaken from writing", async () => {
  const { world, open, send, payloads, peer, settle } = setUp({ authenticate: () => "alice" });
  const first = open({}, { locks: null });
  await world.pass(1000, online(first));
  const second = open({}, { locks: null });
  await world.pass(1000, online(second));
  await send(second.client, "second");
  peer.sessions.get("alice").close(4000);
  await world.pass(30_000);
  const states = [first.client.state, second.client.state];
  assert.ok(states.some(({ name }) => name === "online"), JSON.stringify(states));
  for (let n = 0; n < 5; n += 1) {
    await send(first.client, `first ${n}`).catch(() => {});
    await send(second.client, `second ${n}`).catch(() => {});
    peer.post("alice", { payload: `in ${n}` });
    await world.pass(1000);
  }
  await world.pass(30_000);
  first.client.disconnect();
  second.client.connect();
  await world.pass(30_000);
  const rows = await settle(second.client.rows("history"));
  assert.ok(rows.every(({ times }) => times === 1));
  assert.equal(new Set(payloads()).size, payloads().length, "nothing is accepted twice");
  assert.deepEqual(peer.violations, []);
});

test("a tab that was overtaken without hearing of it takes nothing back and applies nothing", async () => {
  const { world, open, send, settle, network } = setUp();
  network.up = false;
  const first = open({}, { locks: null });
  const { id } = await send(first.client, "1");
  const second = open({}, { locks: null });
  await settle(second.client.claim());
  await assert.rejects(settle(first.client.cancel(id)), (error) => error.kind === "another-tab");
  assert.deepEqual([first.client.state.why, second.client.outbox().map((each) => each.id)], ["another-tab", [id]]);
  await world.pass(1000);
});

test("what the server asked for is obeyed whoever wakes it; what it chose itself ends when the network is back", async () => {
  const { world, open, network, peer } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  peer.sessions.get("alice").close(4103, { retry_after_ms: 30_000 });
  await world.pass(100);
  assert.equal(tab.client.state.name, "offline");
  tab.page.wakes.forEach((wake) => wake());
  await world.pass(29_000);
  assert.equal(tab.client.state.name, "offline");
  await world.pass(5_000);
  assert.equal(tab.client.state.name, "online");
  network.up = false;
  network.cut();
  await world.pass(120_000);
  assert.equal(tab.client.state.name, "offline");
  network.up = true;
  tab.page.wakes.forEach((wake) => wake());
  await world.pass(100);
  assert.equal(tab.client.state.name, "online");
});

test("a server that goes away is left when all is quiet, and found again when it said", async () => {
  const { world, open, peer, send, settle } = setUp();
  let release;
  const tab = open({}, { handle: () => new Promise((resolve) => { release = resolve; }) });
  await world.pass(1000, online(tab));
  const id = peer.post("alice", {});
  await world.pass(100);
  peer.sessions.get("alice").link.send({ frame: "go-away", code: 4103, retry_after_ms: 20_000, text: "deploying" });
  await world.pass(100);
  const sent = await send(tab.client, "later");
  await world.pass(1000);
  assert.equal(tab.client.state.name, "online", "it ends what is under way");
  release();
  await world.pass(200);
  assert.ok(peer.log.some(({ ended }) => ended === id));
  assert.equal(tab.client.state.name, "offline");
  assert.deepEqual(peer.log.filter(({ close }) => close).map(({ close }) => close), [Code.Done]);
  await world.pass(18_000);
  assert.equal(tab.client.state.name, "offline");
  await world.pass(4_500);
  assert.equal(tab.client.state.name, "online");
  assert.equal((await settle(sent.settled)).status, "accepted");
});

// Found by a review: a failed disk at the server leaves it open what became of a publish, and it was taken for refused.
test("what failed on its way may have been accepted: it is not cancelled, and not repeated beyond the horizon", async () => {
  let failing = true;
  const { world, open, send, settle, payloads } = setUp({ onPublish: () => (failing ? { code: 4400, text: "failed", retry_after_ms: 1000 } : undefined) });
  const tab = open();
  await world.pass(1000, online(tab));
  const sent = await send(tab.client, "one");
  await world.pass(500);
  assert.equal(tab.client.outbox()[0].offered, true);
  assert.equal(await settle(tab.client.cancel(sent.id)), false);
  failing = false;
  assert.equal((await settle(sent.settled)).status, "accepted");
  failing = true;
  const late = await send(tab.client, "two");
  await world.pass(3_605_000);
  const { status, failure } = tab.client.outbox().find(({ id }) => id === late.id);
  assert.deepEqual([status, failure?.kind, payloads()], ["failed", "unknown-outcome", ["one"]]);
});

// Found by a review: everybody came back at once when a server that had asked them not to was gone before they had left.
test("a server that goes away is not asked again before its time when the connection breaks", async () => {
  const { world, open, peer, network } = setUp();
  const tab = open({}, { handle: () => new Promise(() => {}) });
  await world.pass(1000, online(tab));
  peer.post("alice", {});
  await world.pass(100);
  peer.sessions.get("alice").link.send({ frame: "go-away", code: 4103, retry_after_ms: 20_000, text: "deploying" });
  await world.pass(100);
  network.cut();
  network.up = true;
  await world.pass(1000);
  tab.page.wakes.forEach((wake) => wake());
  await world.pass(17_000);
  assert.equal(tab.client.state.name, "offline");
  await world.pass(5_500);
  assert.equal(tab.client.state.name, "online");
});

// Found by a review: what an attempt at a better transport was told was forgotten when the connection beside it broke.
test("a refused climb's time holds when the connection that stood breaks, whoever asks", async () => {
  const { world, open, network } = setUp();
  network.blocked = new Set(["websocket"]);
  const tab = open();
  assert.ok(await world.pass(5000, online(tab)));
  network.refused.set("websocket", { code: Code.RateLimited, retryAfter: 60_000 });
  const before = network.tries.length;
  assert.ok(await world.pass(60_000, () => network.tries.length > before), "it climbs");
  await world.pass(100);
  const asked = world.now(), tries = network.tries.length;
  network.blocked = new Set();
  network.refused.clear();
  network.cut();
  await world.pass(1000);
  assert.equal(tab.client.state.name, "offline");
  tab.page.wakes.forEach((wake) => wake());
  tab.client.connect();
  await world.pass(1000);
  assert.equal(tab.client.state.name, "offline");
  assert.ok(tab.client.state.retryIn > 55_000, `it says when: ${tab.client.state.retryIn}`);
  tab.client.disconnect();
  tab.client.connect();
  await world.pass(asked + 59_000 - world.now());
  assert.deepEqual([tab.client.state.name, network.tries.length], ["offline", tries], "nothing is tried before");
  await world.pass(9_000);
  assert.equal(tab.client.state.name, "online", "and then it comes by itself");
});

test("what a server asks for in its close is obeyed by whoever says connect, and no later farewell shortens it", async () => {
  const { world, open, network, peer } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  peer.sessions.get("alice").link.send({ frame: "go-away", code: 4103, retry_after_ms: 60_000, text: "deploying" });
  peer.sessions.get("alice").close(4103, { retry_after_ms: 1000 });
  await world.pass(100);
  for (let n = 0; n < 58; n += 1) {
    tab.client.connect();
    tab.page.wakes.forEach((wake) => wake());
    await world.pass(1000);
    assert.deepEqual([tab.client.state.name, network.tries.length], ["offline", 1]);
  }
  await world.pass(10_000);
  assert.equal(tab.client.state.name, "online");
});

test("a device that is closed for good with a time to come back at, comes then when its host says so", async () => {
  const { world, open, network, peer } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  peer.sessions.get("alice").close(4309, { retry_after_ms: 30_000 });
  await world.pass(100);
  assert.equal(tab.client.state.name, "closed");
  tab.client.connect();
  await world.pass(29_000);
  assert.deepEqual([tab.client.state.name, network.tries.length], ["offline", 1]);
  await world.pass(5000);
  assert.equal(tab.client.state.name, "online");
});

test("whoever is asked to go away does not come over another transport meanwhile", async () => {
  const { world, open, network, peer } = setUp(), page = { alive: true };
  network.blocked = new Set(["websocket"]);
  let gate = async () => {}, release = () => {}, climbing = false;
  const slow = { name: "websocket", open: async (opening) => {
    await gate();
    return network.open(page, "websocket", opening);
  } };
  const tab = open({ transports: [slow, { name: "sse", open: (opening) => network.open(page, "sse", opening) }] }, { handle: () => new Promise(() => {}) });
  assert.ok(await world.pass(5000, online(tab)));
  peer.post("alice", {});
  await world.pass(100);
  network.blocked = new Set();
  gate = () => new Promise((resolve) => {
    [climbing, release] = [true, () => resolve(undefined)];
  });
  assert.ok(await world.pass(60_000, () => climbing), "it climbs");
  peer.sessions.get("alice").link.send({ frame: "go-away", code: 4103, retry_after_ms: 20_000, text: "deploying" });
  await world.pass(100);
  release();
  await world.pass(19_000);
  assert.deepEqual([network.connections, tab.client.state.name], [["sse"], "offline"], "nothing connects before");
  await world.pass(3000);
  assert.equal(tab.client.state.name, "online");
});

// A new connection whose end came with its beginning was waited for until the handshake's time was up.
test("a connection that breaks as it opens has failed at once", async () => {
  const { world, open, network } = setUp();
  let broken = 0;
  const broke = { name: "brittle", open: async ({ closed }) => {
    broken += 1;
    closed({ code: Code.TransportLost, text: "over" });
    return { send: () => {}, close: () => {} };
  } };
  const tab = open({ transports: [broke, { name: "sound", open: (opening) => network.open({ alive: true }, "sound", opening) }] });
  assert.ok(await world.pass(5000, online(tab)), `${broken} tries`);
  assert.equal(broken, 2);
});

// Found by a review: what was never handled was acknowledged, and its sender said that it was delivered.
test("what comes after its sender has ended it is not handled and not said to have been", async () => {
  const { world, open, peer } = setUp();
  const heard = [], tab = open({}, { handle: ({ payload }) => { heard.push(payload); } });
  await world.pass(1000, online(tab));
  peer.sessions.get("alice").link.send({ frame: "floor", lane: "normal", seq: String(peer.seq + 5n) });
  await world.pass(100);
  const id = peer.post("alice", { payload: "late" });
  await world.pass(1000);
  assert.deepEqual([heard, peer.log.filter(({ ended }) => ended === id)], [[], []]);
  assert.equal(peer.sessions.get("alice").outbox.length, 0, "it was refused for good");
});

test("credentials that are refused are asked for again, and nothing is tried with the same", async () => {
  const asked = [];
  let token = "old";
  const { world, open, network } = setUp({ authenticate: ({ credentials }) => (credentials === "new" ? "alice" : 4201) });
  const tab = open({ credentials: (refused) => { asked.push(refused); return token; } });
  await world.pass(60_000);
  assert.deepEqual([tab.client.state.name, tab.client.state.code, asked, network.connections.length], ["needs-credentials", 4201, [undefined, 4201], 1]);
  token = "new";
  tab.client.connect();
  await world.pass(1000);
  assert.equal(tab.client.state.name, "online");
});

test("credentials that cannot be got for now are asked for again", async () => {
  let down = true;
  const { world, open, network } = setUp();
  const tab = open({ credentials: () => { if (down) throw new Error("no network"); return "secret"; } });
  await world.pass(30_000);
  assert.deepEqual([tab.client.state.name, network.connections], ["offline", []]);
  down = false;
  await world.pass(25_000);
  assert.equal(tab.client.state.name, "online");
});

test("a client without credentials says so, and goes on when it is given some", async () => {
  const { world, open } = setUp({ expiresIn: 8000 });
  const tab = open({ credentials: () => undefined });
  await world.pass(1000);
  assert.equal(tab.client.state.name, "needs-credentials");
  tab.client.connect({ credentials: "new" });
  await world.pass(1000);
  assert.equal(tab.client.state.name, "online");
});

test("credentials are renewed on the open session", async () => {
  const { world, open, peer } = setUp({ expiresIn: 8000 });
  let n = 0;
  const tab = open({ credentials: () => `token ${(n += 1)}` });
  await world.pass(13_000);
  assert.deepEqual(peer.log, [{ renew: "token 2" }, { renew: "token 3" }]);
  assert.equal(tab.client.state.name, "online");
});

test("a device that was taken over does not fight", async () => {
  const { world, open, peer, network } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  peer.sessions.get("alice").close(4307);
  await world.pass(5000);
  assert.equal(tab.client.state.name, "online", "it may have been an earlier tab's hello that came late");
  peer.sessions.get("alice").close(4307);
  await world.pass(600_000);
  assert.deepEqual([tab.client.state.name, tab.client.state.code, network.connections.length], ["closed", 4307, 2]);
  tab.client.connect();
  await world.pass(1000);
  assert.equal(tab.client.state.name, "online", "until its host says so");
});

test("a half-open connection is found within the heartbeat and its time-out", async () => {
  const { world, open, network } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  network.links.forEach((link) => { link.silent = true; });
  await world.pass(34_000);
  assert.equal(network.connections.length, 1);
  await world.pass(5_000);
  assert.deepEqual([network.connections.length, tab.client.state.name], [2, "online"]);
});

test("whatever the draws, another transport stands within five seconds of a cut where the first one is blocked or swallows", async () => {
  for (let seed = 1; seed <= 40; seed += 1) {
    const way = seed % 2 ? "blocked" : "swallowed", stands = seed % 4 < 2 ? 1000 : 20_000;
    const { world, open, network } = setUp({}, seed);
    const tab = open();
    await world.pass(1000, online(tab));
    await world.pass(stands);
    network[way] = new Set(["websocket"]);
    network.cut();
    await world.idle();
    assert.ok(await world.pass(5000, online(tab)), `seed ${seed}, ${way}`);
    assert.equal(tab.client.state.transport, "sse");
  }
});

test("a blocked transport is left within five seconds, also if it only swallows; the better one is climbed to when it works", async () => {
  for (const way of ["blocked", "swallowed"]) {
    const { world, open, network, send, payloads, peer } = setUp();
    network[way] = new Set(["websocket"]);
    const tab = open();
    assert.ok(await world.pass(5000, online(tab)), `online within 5 s, ${way}`);
    assert.equal(tab.client.state.transport, "sse");
    await send(tab.client, "1");
    await world.pass(60_000);
    assert.equal(tab.client.state.transport, "sse");
    network[way] = new Set();
    assert.ok(await world.pass(300_000, () => tab.client.state.transport === "websocket"), "it climbs");
    assert.equal(tab.states.filter(({ name }) => name === "offline").length, way === "blocked" ? 3 : 2, "without being offline on the way");
    await send(tab.client, "2");
    peer.post("alice", { payload: "in" });
    await world.pass(1000);
    assert.deepEqual([payloads(), peer.violations, peer.outboxes.get("alice")], [["1", "2"], [], []]);
  }
});

test("the next page starts with what worked here", async () => {
  const { world, open, network } = setUp();
  network.blocked = new Set(["websocket", "sse"]);
  const first = open();
  await world.pass(30_000, online(first));
  await world.pass(1000);
  first.page.kill();
  network.connections.length = 0;
  const second = open();
  assert.ok(await world.pass(500, online(second)));
  assert.deepEqual(network.connections, ["long-poll"]);
});

test("the offline switch keeps what is sent, and the database is let go when the client is closed", async () => {
  const { world, open, send, payloads, settle } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  tab.client.disconnect();
  assert.deepEqual([tab.client.state.name, tab.client.state.why], ["offline", "disconnected"]);
  await send(tab.client, "1");
  await world.pass(600_000);
  assert.deepEqual(payloads(), []);
  tab.client.connect();
  await world.pass(1000);
  assert.deepEqual(payloads(), ["1"]);
  await settle(tab.client.close());
  assert.equal(tab.client.state.name, "closed");
  await assert.rejects(settle(tab.client.send({ to: "bob", event: "a.b" })), (error) => error.kind === "closed");
  assert.throws(() => tab.client.connect(), (error) => error.kind === "closed");
  assert.equal(tab.page.wakes.size, 0, "no listener is left");
  await world.pass(600_000);
  assert.equal([...world.timers.values()].length <= 2, true, "no timer of the client is left");
});

/** Runs with some calls of object stores changed. */
async function withStores(changes, run) {
  const { prototype } = IDBObjectStore, before = Object.fromEntries(Object.keys(changes).map((name) => [name, prototype[name]]));
  for (const [name, change] of Object.entries(changes)) {
    prototype[name] = function changed(...args) {
      return change.call(this, before[name].bind(this), args);
    };
  }
  try {
    await run();
  } finally {
    Object.assign(prototype, before);
  }
}

test("while the disk is full what comes is put off without spending an attempt, and what was accepted says so when it can", async () => {
  const { world, open, send, settle, peer, payloads } = setUp();
  let full = false;
  const abort = (store, table) => {
    if (full && store.name === table) store.transaction._abort("QuotaExceededError");
  };
  await withStores({
    add(add, args) {
      const request = add(...args);
      abort(this, "lastmile.inbox");
      return request;
    },
    delete(remove, args) {
      const request = remove(...args);
      abort(this, "lastmile.outbox");
      return request;
    },
  }, async () => {
    const tab = open();
    await world.pass(1000, online(tab));
    const sent = await send(tab.client, "1");
    full = true;
    const id = peer.post("alice", {});
    await world.pass(60_000);
    assert.deepEqual([payloads(), peer.log.filter(({ nacked }) => nacked).every(({ code }) => code === Code.Busy)], [["1"], true]);
    const nacks = peer.log.filter(({ nacked }) => nacked).length;
    assert.ok(nacks >= 3 && nacks < 15, `${nacks} nacks`);
    assert.ok(tab.errors.every((error) => error instanceof LastmileError && error.kind === "storage"), String(tab.errors));
    full = false;
    assert.equal((await settle(sent.settled)).status, "accepted");
    await world.pass(10_000);
    assert.deepEqual(await settle(tab.client.rows("history")), [{ id, payload: "", times: 1 }]);
    assert.deepEqual(peer.violations, []);
  });
});

// Found by a review: the channel to other tabs was closed by then, and threw. What was kept was sent again, under a new id.
test("what is written while its client or its database ends is said to be written, and another tab hears of it", async () => {
  const ways = {
    close: ({ client }) => client.close(),
    upgrade: ({ page }) => page.databases.forEach((db) => db.onversionchange()),
    gone: ({ page }) => page.databases.forEach((db) => db.onclose()),
  };
  for (const [way, end] of Object.entries(ways)) {
    const { world, open, settle, payloads } = setUp();
    const first = open();
    await world.pass(1000, online(first));
    const second = open();
    await world.pass(1000);
    let ending;
    // While a row of the outbox is being written.
    const endOf = ({ name }) => {
      if (name !== "lastmile.outbox" || !ending) return;
      end(ending);
      ending = undefined;
    };
    await withStores({
      add(add, args) {
        endOf(this);
        return add(...args);
      },
      delete(remove, args) {
        endOf(this);
        return remove(...args);
      },
    }, async () => {
      ending = second;
      await settle(second.client.send({ to: "bob", event: "a.b", payload: "1" }));
      assert.equal(ending, undefined, way);
      await world.pass(5000);
      assert.deepEqual(payloads(), ["1"], way);
      first.client.disconnect();
      const sent = await settle(first.client.send({ to: "bob", event: "a.b", payload: "2" }));
      ending = first;
      assert.equal(await settle(sent.cancel()), true, way);
      assert.equal(ending, undefined, way);
    });
    const third = open();
    await world.pass(60_000);
    third.client.connect({ steal: true });
    await world.pass(60_000, online(third));
    assert.deepEqual([payloads(), third.client.outbox()], [["1"], []], way);
    for (const { client } of [first, second, third]) await settle(client.close());
    assert.equal(world.channels.size, 0, way);
  }
});

// Found by a review: each failure put the next try off, whoever was to blame, and nothing else was sent.
test("what a handler writes and the database never takes holds up nothing that is sent", async () => {
  const { world, open, payloads, peer } = setUp();
  const tab = open({}, { handle: (_, writes) => writes.put("history", { key: "none" }) });
  await world.pass(1000, online(tab));
  for (let n = 0; n < 12; n += 1) {
    peer.post("alice", { ordering_key: String(n) });
    await world.pass(300);
    if (n === 2) tab.client.send({ to: "bob", event: "a.b", payload: "out" });
  }
  assert.ok(tab.errors.length >= 12, `${tab.errors.length} writes failed`);
  assert.deepEqual([payloads(), peer.violations], [["out"], []]);
});

test("however often the disk fails, the next try is not put off by it", async () => {
  const { world, open, payloads, peer } = setUp();
  await withStores({
    add(add, args) {
      const request = add(...args);
      if (this.name === "lastmile.inbox") this.transaction._abort("QuotaExceededError");
      return request;
    },
  }, async () => {
    const tab = open();
    await world.pass(1000, online(tab));
    for (let n = 0; n < 12; n += 1) {
      peer.post("alice", { ordering_key: String(n) });
      await world.pass(300);
      if (n === 2) tab.client.send({ to: "bob", event: "a.b", payload: "out" });
    }
    assert.ok(tab.errors.length >= 12, `${tab.errors.length} writes failed`);
    assert.deepEqual([payloads(), peer.violations], [["out"], []]);
  });
});

/** Runs while the disk takes no failed row of the outbox, as long as `disk.full`. */
const withFullDisk = (run) => {
  const disk = { full: true };
  return withStores({
    put(put, args) {
      const request = put(...args);
      if (disk.full && this.name === "lastmile.outbox" && args[0].failure) this.transaction._abort("QuotaExceededError");
      return request;
    },
  }, () => run(disk));
};

// Found by a review: it was said before the disk had it, and a page that came then knew nothing of it.
test("a message is said to have failed when that is on disk, and not before", async () => {
  const { world, open, send, settle } = setUp({ onPublish: () => ({ code: 4452, text: "blocked" }) });
  await withFullDisk(async (disk) => {
    const tab = open();
    await world.pass(1000, online(tab));
    const sent = await send(tab.client, "1"), told = [];
    await world.pass(5000);
    tab.client.sent(sent.id).settled.then(({ status }) => told.push(status));
    await world.pass(100);
    assert.deepEqual([tab.client.outbox().map(({ status, failure }) => [status, failure]), told], [[["queued", undefined]], []]);
    disk.full = false;
    await settle(sent.settled);
    assert.deepEqual([tab.client.outbox().map(({ status, failure }) => [status, failure.code]), told], [[["failed", 4452]], ["failed"]]);
  });
});

// Found by a review: what the disk had not taken of its failure was written over what had become of it since.
test("a failed message that was sent again does not fail once more when the disk takes writes again", async () => {
  let refuse = true;
  const { world, open, send, settle, payloads, network } = setUp({ onPublish: () => (refuse ? { code: 4452, text: "blocked" } : undefined) });
  const tab = open();
  await withFullDisk(async (disk) => {
    await world.pass(1000, online(tab));
    const { id } = await send(tab.client, "1");
    await world.pass(100);
    network.up = refuse = disk.full = false;
    network.cut();
    await settle(tab.client.retry(id));
    await world.pass(5000);
    assert.deepEqual(tab.client.outbox().map(({ status }) => status), ["queued"]);
  });
  tab.page.kill();
  network.up = true;
  const again = open();
  await world.pass(5000);
  assert.deepEqual([payloads(), again.client.outbox()], [["1"], []]);
});

test("a failed message that is taken back does not come back when the disk takes writes again", async () => {
  const { world, open, send, settle } = setUp({ onPublish: () => ({ code: 4452, text: "blocked" }) });
  const tab = open(), told = [];
  await withFullDisk(async (disk) => {
    await world.pass(1000, online(tab));
    const { id } = await send(tab.client, "1");
    await world.pass(100);
    disk.full = false;
    tab.client.watch("outbox", ({ status }) => told.push(status));
    await withStores({
      delete(remove, args) {
        // The next try comes while it is being taken back.
        if (this.name === "lastmile.outbox") {
          world.time += 1000;
          tab.page.wakes.forEach((wake) => wake());
        }
        return remove(...args);
      },
    }, async () => assert.equal(await settle(tab.client.cancel(id)), true));
    await world.pass(5000);
    assert.deepEqual([tab.client.outbox(), told], [[], ["cancelled"]]);
  });
  tab.page.kill();
  const again = open();
  await world.pass(5000);
  assert.deepEqual(again.client.outbox(), []);
});

// Found by a review: the second one's end was the end of whoever waited for the first.
test("an id that is sent twice leaves the first message's outcome to be heard, also in a tab without the outbox", async () => {
  const { world, open, settle, network } = setUp(), draft = { id: "7".repeat(32), to: "bob", event: "a.b" };
  network.up = false;
  const first = open();
  await world.pass(1000);
  const second = open();
  await world.pass(1000);
  const sent = await settle(second.client.send(draft));
  await assert.rejects(settle(second.client.send(draft)), (error) => error.kind === "invalid");
  network.up = true;
  first.page.wakes.forEach((wake) => wake());
  assert.equal((await settle(sent.settled)).status, "accepted");
});

// Found by a review: the fence was raised over that of the tab that had the outbox by then.
test("a tab whose database opens after it has lost the outbox, or was closed, leaves it to whoever has it", async () => {
  for (const way of ["steal", "close"]) {
    const { world, open, send, settle, payloads } = setUp();
    const second = open({}, { connect: false });
    await settle(second.client.rows("history"));
    const first = open({}, { connect: false }), { indexedDB } = first.page.platform, { open: openNow } = indexedDB;
    let release = () => {};
    indexedDB.open = (...args) => {
      const late = /** @type {any} */ ({});
      release = () => openNow(...args).addEventListener("success", ({ target }) => {
        late.result = target.result;
        late.onsuccess();
      });
      return late;
    };
    first.client.connect();
    await world.pass(100);
    if (way === "close") first.client.close();
    second.client.connect({ steal: true });
    assert.ok(await world.pass(1000, online(second)), way);
    const states = second.states.length;
    indexedDB.open = openNow;
    release();
    await world.pass(1000);
    await send(second.client, "1");
    await world.pass(1000);
    assert.deepEqual([payloads(), second.states.slice(states).filter(({ name }) => name !== "online")], [["1"], []], way);
  }
});

// Found by a review: a go-away that names no time let it climb while it waited to leave.
test("whoever is asked to go away, without a time, begins no climb while it ends what is under way", async () => {
  const { world, open, network, peer } = setUp();
  network.blocked = new Set(["websocket"]);
  const often = { backoff: { floor: 50, cap: 50 }, ladder: { stable: 50, coolDown: 50, maxCoolDown: 50 } };
  const tab = open(often, { handle: () => new Promise(() => {}) });
  assert.ok(await world.pass(5000, online(tab)));
  peer.post("alice", {});
  const tries = network.tries.length;
  assert.ok(await world.pass(4000, () => network.tries.length > tries + 1), "it climbs that often");
  peer.sessions.get("alice").link.send({ frame: "go-away", code: 4103, text: "deploying" });
  await world.pass(100);
  const before = network.tries.length;
  await world.pass(4000);
  assert.deepEqual([network.tries.length, tab.client.state.name], [before, "online"]);
  assert.ok(await world.pass(10_000, () => tab.client.state.name === "offline"), "it leaves");
});

// Found by a review: it stayed in the list of a tab that could not send it, and was gone from nobody's.
test("a message that is sent again as its tab loses the outbox is the other tab's alone", async () => {
  let refuse = true;
  const { world, open, send, settle, payloads } = setUp({ onPublish: () => (refuse ? { code: 4452, text: "blocked" } : undefined) });
  const first = open();
  await world.pass(1000, online(first));
  const sent = await send(first.client, "1");
  await settle(sent.settled);
  const second = open();
  await world.pass(1000);
  refuse = false;
  let stolen = false;
  await withStores({
    put(put, args) {
      if (this.name === "lastmile.outbox" && !stolen) {
        stolen = true;
        second.client.connect({ steal: true });
      }
      return put(...args);
    },
  }, () => settle(first.client.retry(sent.id)));
  await world.pass(5000, online(second));
  await world.pass(1000);
  assert.deepEqual([stolen, first.client.state.why, first.client.outbox(), payloads()], [true, "another-tab", [], ["1"]]);
});

test("a database that the browser closed is opened again, and nothing is lost or taken twice", async () => {
  for (const says of [true, false]) {
    const { world, open, send, settle, peer, payloads } = setUp();
    const tab = open();
    await world.pass(1000, online(tab));
    const before = peer.post("alice", { payload: "before" });
    await world.pass(1000);
    for (const db of tab.page.databases) {
      db.close();
      if (says) db.onclose();
    }
    if (says) assert.deepEqual([tab.client.state.name, tab.client.state.why], ["offline", "starting"]);
    const after = peer.post("alice", { payload: "after" });
    await world.pass(60_000);
    assert.equal(tab.client.state.name, "online");
    await send(tab.client, "1");
    await world.pass(1000);
    assert.deepEqual((await settle(tab.client.rows("history"))).map(({ id, times }) => [id, times]), [[before, 1], [after, 1]]);
    assert.deepEqual([payloads(), peer.violations], [["1"], []]);
  }
});

test("a database that does not open now is tried again; one of a newer version is not", async () => {
  const { world, open, send, settle, payloads } = setUp();
  const { indexedDB } = world;
  let failing = true;
  world.indexedDB = { open: (...args) => {
    if (failing) throw new DOMException("not now", "UnknownError");
    return indexedDB.open(...args);
  } };
  const tab = open();
  await world.pass(30_000);
  assert.equal(tab.client.state.name, "offline");
  assert.ok(tab.client.state.retryIn > 0 && tab.errors.length > 2 && tab.errors.length < 30);
  failing = false;
  assert.ok(await world.pass(30_000, online(tab)));
  await send(tab.client, "1");
  await world.pass(100);
  assert.deepEqual(payloads(), ["1"]);
  // Another page has newer tables: this one is told, and lets go.
  const newer = open({ version: 2 });
  assert.deepEqual(await settle(newer.client.rows("history")), []);
  assert.ok(await world.pass(5000, online(newer)));
  assert.deepEqual([tab.client.state.name, tab.client.state.why], ["closed", "another tab has a newer version of the database"]);
  const older = open();
  await world.pass(30_000);
  assert.equal(older.client.state.name, "offline", "it waits for the lock");
  newer.page.kill();
  await world.pass(30_000);
  assert.equal(older.client.state.name, "closed");
  assert.match(older.client.state.why, /version/i);
});

test("an upgrade that another tab holds up says so, and the client can be closed meanwhile", async () => {
  const { world, open, settle } = setUp();
  const first = open();
  await world.pass(1000, online(first));
  for (const db of first.page.databases) db.onversionchange = null;
  const second = open({ version: 2 }, { locks: null });
  await world.pass(1000);
  assert.deepEqual([second.client.state.name, second.client.state.why], ["offline", "another tab holds an older version of the database"]);
  await settle(second.client.close(), 1000);
  first.page.kill();
  await world.pass(1000);
  const third = open({ version: 2 });
  assert.ok(await world.pass(10_000, online(third)), "it was let go when it opened");
});

// The places of a log whose name was not written were forgotten at the next start, and their messages took effect again.
test("what took effect is known again also when the disk did not take the name of its log", async () => {
  const { world, open, settle, peer, network } = setUp();
  await withStores({
    put(put, args) {
      if (args[1] === "streams" && args[0].length > 0) throw new DOMException("full", "QuotaExceededError");
      return put(...args);
    },
  }, async () => {
    const first = open();
    await world.pass(1000, online(first));
    first.client.watch("stored", () => first.page.kill());
    peer.post("alice", {});
    await world.pass(1000);
    assert.equal(first.page.alive, false);
    network.cut();
  });
  const second = open();
  await world.pass(60_000, () => peer.log.some(({ ended }) => ended));
  assert.deepEqual((await settle(second.client.rows("history"))).map(({ times }) => times), [1]);
});

test("places of the latest eight logs are kept, and of no more", async () => {
  const { world, open, settle, peer } = setUp();
  const tab = open();
  await world.pass(1000, online(tab));
  const prototype = Object.getPrototypeOf(peer.sessions.get("alice")), { floor } = prototype;
  prototype.floor = () => {};
  try {
    for (let log = 0; log < 12; log += 1) {
      peer.stream = log.toString(16).padStart(32, "f");
      peer.restart();
      assert.ok(await world.pass(60_000, () => peer.sessions.get("alice")?.link));
      peer.post("alice", { payload: String(log) });
      await world.pass(1000);
    }
  } finally {
    prototype.floor = floor;
  }
  const db = await settle(new Promise((resolve) => {
    const request = world.indexedDB.open("lastmile.alice");
    request.onsuccess = () => resolve(request.result);
  }));
  const keys = await settle(new Promise((resolve) => {
    const request = db.transaction("lastmile.inbox").objectStore("lastmile.inbox").getAllKeys();
    request.onsuccess = () => resolve(request.result);
  }));
  db.close();
  assert.deepEqual(keys.map(([stream]) => parseInt(stream.replace(/^f+/, ""), 16)).sort((a, b) => a - b), [4, 5, 6, 7, 8, 9, 10, 11]);
});

test("a thousand connections of a page that ended leave no timer, no connection and no listener, and it goes on", async () => {
  const { world, network, open, send, payloads } = setUp();
  const tab = open({}, { connect: false });
  await send(tab.client, "first");
  const left = () => ({ links: network.links.size, wakes: tab.page.wakes.size, channels: world.channels.size, held: world.locks.held.size });
  let before;
  for (let life = 0; life <= 1000; life += 1) {
    const undo = [tab.client.on("chat.message", () => {}), tab.client.track("chat.*", () => {}), tab.client.watch("outbox", () => {})];
    tab.client.connect();
    // Some are given up before they stand.
    if (life % 3 === 0) await world.pass(life % 7);
    else assert.ok(await world.pass(60_000, online(tab)));
    tab.client.disconnect();
    undo.forEach((run) => run());
    await world.idle();
    assert.equal(tab.page.timers.size, 0, "as soon as it has ended");
    if (life % 100 > 0) continue;
    // What was under way at the other end ends, too.
    await world.pass(1000);
    before ??= left();
    assert.deepEqual(left(), before);
  }
  tab.client.connect();
  await send(tab.client, "last");
  await world.pass(1000);
  assert.deepEqual(payloads(), ["first", "last"]);
});

test("pages that came and went leave no timer, no listener, no lock, no channel and no open database", async () => {
  const { world, network, open, settle } = setUp();
  const databases = new Set();
  const left = async () => {
    await world.pass(1000);
    return { links: network.links.size, channels: world.channels.size, held: world.locks.held.size, databases: databases.size };
  };
  for (let life = 0; life <= 100; life += 1) {
    const tab = open();
    if (life % 4 === 0) await world.pass(life % 7);
    else assert.ok(await world.pass(60_000, online(tab)));
    for (const db of tab.page.databases) {
      databases.add(db);
      const { close } = db;
      db.close = () => { databases.delete(db); close.call(db); };
    }
    await settle(tab.client.close());
    assert.deepEqual([tab.page.wakes.size, tab.page.timers.size], [0, 0]);
  }
  assert.deepEqual(await left(), { links: 0, channels: 0, held: 0, databases: 0 });
});
