/**
 * Whatever the network, the pages and the server do: nothing that was kept is lost, nothing is accepted or takes effect
 * twice, order holds, and what a page was told of a message is so. One seed is one life; LASTMILE_SEEDS and LASTMILE_FROM choose others.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Busy, Client } from "../client.mjs";
import { Peer } from "./peer.mjs";
import { Network, World } from "./world.mjs";

const SEEDS = Number(process.env.LASTMILE_SEEDS ?? 40), FROM = Number(process.env.LASTMILE_FROM ?? 1);
const LANES = ["critical", "high", "normal", "low"];

async function live(seed) {
  const world = new World(seed), { random } = world, chance = (p) => random() < p, pick = (list) => list[Math.floor(random() * list.length)];
  const accepted = [];
  let calm = false;
  const peer = new Peer(world, {
    onAccept: (user, message) => accepted.push(message),
    onPublish: () => {
      if (!calm && chance(0.05)) return { code: 4402, text: "full", ...(chance(0.5) && { retry_after_ms: Math.floor(random() * 3000) }) };
      return chance(0.5) ? undefined : new Promise((resolve) => world.setTimeout(() => resolve(undefined), random() * 50));
    },
  });
  const network = new Network(world, peer, { delay: () => random() * (calm ? 10 : 60) });
  const kept = new Map(), applied = [], tabs = [];
  /** What pages were told: messages that were not kept, handles by id, messages that were taken back, perhaps taken back, and settled. */
  const rejected = new Set(), handles = new Map(), cancelled = new Set(), cancelling = new Set(), settled = new Map(), volatile = new Set();
  const errors = [];
  const open = () => {
    const page = world.page(), client = new Client({
      name: "alice", url: "http://server/", user: "alice", credentials: () => "x", stores: { history: { keyPath: "id" } },
      transports: network.transports(page), platform: page.platform,
      // So that transports are left and climbed to as often as anything else happens.
      ladder: { stable: 50, coolDown: 50, maxCoolDown: 500 },
    });
    client.watch("error", (error) => page.alive && String(error).includes("TypeError") && errors.push(error));
    client.on("*", async (message, writes) => {
      if (!calm && chance(0.1)) await new Promise((resolve) => world.setTimeout(resolve, random() * 200));
      writes.update("history", message.id, (row) => ({ id: message.id, times: (row?.times ?? 0) + 1 }));
      if (!calm && chance(0.05)) throw chance(0.5) ? new Error("no") : new Busy(Math.floor(random() * 500));
    });
    // The order in which things took effect, as the database has it.
    client.watch("stored", (changes) => applied.push(...changes.map(({ value }) => value.id)));
    client.connect({ steal: tabs.length > 0 && chance(0.5) });
    tabs.push({ page, client });
  };
  open();
  let n = 0;
  const posted = [];
  const steps = [
    [6, () => {
      const tab = pick(tabs), priority = pick(LANES), orderingKey = pick([undefined, "a", "b"]), to = pick(["bob", "carol"]);
      const payload = { n: (n += 1), tab: tabs.indexOf(tab) }, id = n.toString(16).padStart(32, "0");
      tab.client.send({ id, to, event: "x.y", payload, priority, orderingKey }).then(
        (sent) => {
          kept.set(sent.id, { n: payload.n, tab: tab.page, key: `${to} ${priority} ${orderingKey}` });
          handles.set(sent.id, { sent, tab });
          sent.settled.then((outgoing) => settled.set(sent.id, outgoing));
        }, () => rejected.add(id),
      );
    }],
    [1, () => {
      const { client } = pick(tabs);
      client.send({ to: "bob", event: "x.y", durability: "volatile" }).then((sent) => {
        volatile.add(sent.id);
        sent.settled.then((outgoing) => settled.set(sent.id, outgoing));
      }, () => {});
    }],
    [1, () => {
      const { sent, tab } = pick([...handles.values()].slice(-8)) ?? {};
      if (!sent || !tab.page.alive) return;
      cancelling.add(sent.id);
      sent.cancel().then((done) => {
        if (!tab.page.alive) return;
        cancelling.delete(sent.id);
        if (done) cancelled.add(sent.id);
      }, () => {});
    }],
    [6, () => {
      const priority = pick(LANES), key = pick([undefined, "a", "b"]), volatile = chance(0.1);
      const id = peer.post("alice", { priority, ordering_key: key, payload: { n }, durability: volatile ? "volatile" : "synced" });
      if (!volatile) posted.push({ id, key: `${priority} ${key}` });
    }],
    [1, () => network.cut()],
    [0.3, () => network.links.forEach((link) => { link.silent = true; })],
    [0.5, () => peer.restart()],
    [0.5, () => { network.up = chance(0.7); }],
    [0.5, () => {
      network.blocked = new Set(["websocket", "sse"].filter(() => chance(0.4)));
      network.links.forEach((link) => network.blocked.has(link.name) && link.cut());
    }],
    [0.3, () => { network.refused = new Map(chance(0.3) ? [["websocket", { code: 4101, retryAfter: Math.floor(random() * 1000) }]] : []); }],
    [0.5, () => {
      const tab = pick(tabs);
      tab.page.kill();
      tabs.splice(tabs.indexOf(tab), 1);
      if (tabs.length === 0) open();
    }],
    [0.3, () => tabs.length < 3 && open()],
    [0.2, () => {
      const tab = pick(tabs);
      if (tabs.length < 2) return;
      tabs.splice(tabs.indexOf(tab), 1);
      tab.client.close();
    }],
    [0.3, () => pick(tabs).client.connect({ steal: true })],
    [0.3, () => pick(tabs).page.wakes.forEach((wake) => wake())],
    [0.2, () => peer.sessions.get("alice")?.close(pick([4000, 4003, 4050, 4103]), { retry_after_ms: 500 })],
  ];
  const total = steps.reduce((sum, [weight]) => sum + weight, 0);
  for (let step = 0; step < 150; step += 1) {
    let draw = random() * total;
    steps.find(([weight]) => (draw -= weight) < 0)[1]();
    // The next one may come while this one is at work, or being written.
    if (chance(0.3)) for (let turns = random() * 6; turns > 1; turns -= 1) await new Promise((resolve) => setImmediate(resolve));
    else await world.pass(chance(0.1) ? random() * 5000 : random() * 60);
  }
  // Calm: everything must come through.
  calm = true;
  network.up = true;
  network.blocked.clear();
  network.refused.clear();
  while (tabs.length > 1) tabs.pop().page.kill();
  network.links.forEach((link) => link.silent && link.cut());
  const [{ client }] = tabs;
  if (client.state.name === "closed") client.connect();
  const done = () => client.outbox().length === 0 && !peer.outboxes.get("alice")?.length && client.state.name === "online";
  await world.pass(400_000, done);
  assert.deepEqual(peer.violations, [], "the protocol");
  assert.deepEqual(client.outbox().map(({ id, status, failure }) => [id, status, failure]), [], `nothing waits: ${JSON.stringify(client.state)}`);
  assert.deepEqual(peer.outboxes.get("alice") ?? [], [], "nothing waits at the server");
  const ids = accepted.map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length, "accepted once");
  for (const id of rejected) assert.ok(!ids.includes(id), `${id} was said not to be kept, and accepted`);
  for (const id of kept.keys()) {
    if (cancelled.has(id)) assert.ok(!ids.includes(id), `${id} was taken back and accepted`);
    else if (!cancelling.has(id)) assert.ok(ids.includes(id), `${id} was kept and lost`);
  }
  for (const [id, { status, failure }] of settled) {
    if (status === "accepted") assert.ok(ids.includes(id), `${id} was not accepted`);
    else if (status === "cancelled") assert.ok(!ids.includes(id), `${id} was not taken back`);
    else assert.deepEqual([volatile.has(id), failure.kind], [true, "unconfirmed"], `${id} has failed`);
  }
  let rows;
  client.rows("history").then((found) => { rows = found; });
  await world.pass(1000, () => rows !== undefined);
  for (const { id } of posted) assert.equal(rows.find((row) => row.id === id)?.times, 1, `the effect of ${id}`);
  // Order: of each page and key as sent, of each lane and key as posted.
  const inOrder = (list, what) => list.forEach((value, at) => assert.ok(at === 0 || list[at - 1] <= value, `${what}: ${list}`));
  for (const page of new Set([...kept.values()].map(({ tab }) => tab))) {
    for (const key of new Set([...kept.values()].map((each) => each.key))) {
      const of = ids.map((id) => kept.get(id)).filter((each) => each?.tab === page && each.key === key);
      inOrder(of.map((each) => each.n), `accepted of ${key}`);
    }
  }
  for (const key of new Set(posted.map((each) => each.key))) {
    const order = new Map(posted.filter((each) => each.key === key).map(({ id }, at) => [id, at]));
    inOrder([...new Set(applied)].map((id) => order.get(id)).filter((at) => at !== undefined), `applied of ${key}`);
  }
  assert.deepEqual(errors, []);
  return { accepted: ids.length, applied: posted.length, climbs: network.climbs };
}

test(`${SEEDS} lives over a network that cuts, goes silent and delivers late, with crashes of either end`, async (t) => {
  const sum = { accepted: 0, applied: 0, climbs: 0 };
  for (let seed = FROM; seed < FROM + SEEDS; seed += 1) {
    try {
      const life = await live(seed);
      sum.accepted += life.accepted;
      sum.applied += life.applied;
      sum.climbs += life.climbs;
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
  }
  t.diagnostic(`${sum.accepted} accepted, ${sum.applied} applied, ${sum.climbs} climbs`);
});
