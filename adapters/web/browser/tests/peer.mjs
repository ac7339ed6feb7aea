/**
 * The other end of a session, in memory: what docs/PROTOCOL.md asks of an acceptor, with an engine behind it that keeps
 * messages until they are acknowledged. Its disk outlives `restart`; its sessions do not.
 *
 * It is written from the document alone and knows nothing of the client. It is stricter than a server has to be: whatever
 * the client does wrong is noted in `violations`, also where a server would only close the connection.
 */
import { decode, encode } from "../client.mjs";

const LANES = ["critical", "high", "normal", "low"];
const WINDOW = { messages: 64, bytes: 1 << 20, reserve: 8 };
const MAX_PUBLISHES = 64;

let drawn = 0;
const id = () => (drawn += 1).toString(16).padStart(32, "0");
const keyOf = (message) => `${message.priority} ${message.ordering_key ?? ""}`;

export class Peer {
  /**
   * @param {object} world `now()`, `setTimeout(run, ms)`
   * @param {object} [options] `window`, `heartbeat`, `timeout`, `expiresIn`; hooks: `authenticate(hello)` → user, or a code,
   *   `onPublish(user, message)` → undefined to accept, `{code, text, retry_after_ms}` to refuse, or a promise of either
   */
  constructor(world, options = {}) {
    this.world = world;
    this.options = { window: WINDOW, heartbeat: 25_000, timeout: 10_000, ...options };
    this.stream = id();
    /** The disk: outboxes by user, ids that were accepted, publish marks by device. */
    this.outboxes = new Map();
    this.accepted = new Map();
    this.marks = new Map();
    this.numbers = new Map();
    this.seq = 1n << 40n;
    this.sessions = new Map();
    this.violations = [];
    this.log = [];
  }

  /** Its memory is gone: all connections break, all sessions are forgotten. */
  restart() {
    for (const session of this.sessions.values()) session.drop();
    this.sessions.clear();
    for (const outbox of this.outboxes.values()) for (const entry of outbox) entry.flying = false;
    this.seq = ((this.seq >> 40n) + 1n) << 40n;
  }

  /** Puts a message into a user's outbox. */
  /** Says that a message is no longer wanted that is on its way. */
  withdraw(user, id) {
    const session = this.sessions.get(user), sent = [...session.slots].filter(([, { entry }]) => entry?.message.id === id);
    for (const [number] of sent) session.link.send({ frame: "withdraw", from: number, to: number });
  }

  post(user, fields, pump = true) {
    const message = {
      id: id(), to: user, event: "test.event", priority: "normal", durability: "synced", headers: [], payload: "", ...fields,
    };
    const volatile = message.durability === "volatile";
    this.seq += 1n + BigInt(drawn % 3);
    const entry = { message, seq: String(volatile ? BigInt(drawn) : this.seq), at: this.world.now(), attempts: 0, flying: false, readyAt: 0, offered: false };
    if (!this.outboxes.has(user)) this.outboxes.set(user, []);
    if (!volatile || this.sessions.get(user)?.link) this.outboxes.get(user).push(entry);
    if (pump) this.sessions.get(user)?.pump();
    return message.id;
  }

  /** A connection has come. `send(text)` and `close()` go to the connector; call `receive` and `closed` of what is returned. */
  connect({ send, close }) {
    const link = { open: true, session: undefined, send: (frame) => link.open && send(encode(frame)), close: () => { link.open = false; close(); } };
    const hello = (frame) => {
      const user = frame.frame === "hello" ? this.options.authenticate?.(frame) ?? frame.user ?? "alice" : 4304;
      if (typeof user === "number") {
        link.send({ frame: "reject", code: user, text: "no" });
        return link.close();
      }
      let session = this.sessions.get(user);
      if (session && session.device !== frame.device) {
        session.end(4307);
        session = undefined;
      }
      if (!session) {
        session = new Session(this, user, frame.device);
        this.sessions.set(user, session);
      }
      link.session = session;
      session.admit(link, frame);
    };
    return {
      receive: (text) => {
        if (!link.open) return;
        const frame = decode(text);
        if (!link.session) hello(frame);
        else if (link.session.link === link) link.session.take(frame);
      },
      closed: () => {
        link.open = false;
        if (link.session?.link === link) link.session.lost();
      },
    };
  }

  violation(what) {
    this.violations.push(what);
  }
}

class Session {
  constructor(peer, user, device) {
    Object.assign(this, { peer, user, device, link: undefined, life: undefined });
    this.forget(0);
  }

  get outbox() {
    if (!this.peer.outboxes.has(this.user)) this.peer.outboxes.set(this.user, []);
    return this.peer.outboxes.get(this.user);
  }

  forget(published) {
    for (const slot of this.slots?.values() ?? []) if (slot.entry) this.unconfirmed(slot.entry);
    /** By number: `{ entry }`, `{ missing, reason }`, or `{ done: true }`. */
    this.slots = new Map();
    this.base = this.cursor = this.next = 1;
    this.heard = 0;
    this.decided = new Set();
    this.recalled = [];
    this.publishes = { seen: published, fresh: true, undecided: new Set(), outcomes: new Map() };
  }

  /** Nobody knows any more what became of it. */
  unconfirmed(entry) {
    entry.flying = false;
    if (entry.message.durability === "volatile") this.remove(entry);
  }

  remove(entry) {
    const at = this.outbox.indexOf(entry);
    if (at >= 0) this.outbox.splice(at, 1);
  }

  admit(link, hello) {
    const { peer } = this, { options } = peer;
    if (!hello.codecs.some(({ codec }) => codec === "json") || hello.oldest > 1) peer.violation("hello");
    const resumed = this.life && hello.token === this.life.token && hello.epoch === this.life.epoch
      && hello.seen >= this.base - 1 && hello.seen < this.next && hello.base === 1;
    if (this.link) this.close(hello.token ? 4005 : 4307);
    if (!resumed) {
      this.life = { token: id(), epoch: String(BigInt(`0x${id()}`) & 0xffffffffn) };
      this.forget(peer.marks.get(this.device) ?? 0);
    }
    this.link = link;
    link.send({
      frame: "welcome", version: 1, codec: "json", user: this.user, stream: peer.stream, ...this.life, seen: 0, base: this.base,
      resumed: Boolean(resumed), capabilities: "15", window: WINDOW, heartbeat_ms: options.heartbeat, timeout_ms: options.timeout,
      max_frame: 1 << 20, expires_in_ms: options.expiresIn, published: peer.marks.get(this.device) ?? 0,
    });
    this.beat();
    if (resumed) this.resume(hello.seen);
    for (const lane of LANES) this.floor(lane);
    this.pump();
  }

  /** Sends again what the connector has not seen, but no volatile ones, and nothing behind what was not taken. */
  resume(seen) {
    this.cursor = Math.max(seen + 1, this.base);
    for (let number = this.cursor; number < this.next; number += 1) {
      const { entry } = this.slots.get(number);
      if (!entry) continue;
      const key = keyOf(entry.message);
      if (entry.message.durability === "volatile") {
        this.slots.set(number, { missing: 1, reason: "volatile" });
        this.remove(entry);
      } else if (this.recalled.some((recall) => recall.key === key && number < recall.below)) {
        this.slots.set(number, { missing: 0, reason: "withdrawn" });
        entry.flying = false;
      }
    }
  }

  floor(lane) {
    const waiting = this.outbox.filter(({ message }) => message.priority === lane && message.durability !== "volatile").map(({ seq }) => BigInt(seq));
    const floor = waiting.reduce((min, seq) => (seq < min ? seq : min), this.peer.seq + 1n) - 1n;
    this.link?.send({ frame: "floor", lane, seq: String(floor) });
  }

  pump() {
    if (!this.link) return;
    const now = this.peer.world.now();
    for (; this.cursor < this.next; this.cursor += 1) this.put(this.cursor);
    const held = new Set(this.outbox.filter((entry) => entry.flying === "nacked").map(({ message }) => keyOf(message)));
    const flying = this.outbox.filter((entry) => entry.flying === true);
    // After a nack nothing with that key goes out until all that was sent of it has a verdict.
    const stopped = new Set(this.recalled.map(({ key }) => key).filter((key) => flying.some(({ message }) => keyOf(message) === key)));
    for (const lane of LANES) {
      for (const entry of this.outbox) {
        const { message } = entry, key = keyOf(message);
        if (message.priority !== lane || entry.flying === true) continue;
        if (stopped.has(key) || held.has(key)) continue;
        if (entry.readyAt > now) {
          held.add(key);
          continue;
        }
        const open = this.outbox.filter(({ flying }) => flying === true).length;
        const room = this.peer.options.window.messages + (lane === "critical" ? this.peer.options.window.reserve : 0);
        if (open >= room || this.next - this.base >= 4 * (WINDOW.messages + WINDOW.reserve)) break;
        this.recalled = this.recalled.filter((recall) => recall.key !== key);
        entry.flying = true;
        this.slots.set(this.next, { entry });
        this.next += 1;
        this.put(this.cursor);
        this.cursor += 1;
      }
    }
    this.wait();
  }

  wait() {
    const at = Math.min(...this.outbox.filter(({ flying }) => flying !== true).map(({ readyAt }) => readyAt));
    const now = this.peer.world.now();
    if (at > now && at < Infinity) this.peer.world.setTimeout(() => this.pump(), at - now);
  }

  put(number) {
    const { entry, missing = 0, reason = "withdrawn" } = this.slots.get(number), { base, heard } = this;
    if (!entry) return this.link.send({ frame: "gap", from: number, to: number, base, heard, missing, reason });
    const { message, seq, at, attempts, offered } = entry;
    entry.offered = true;
    this.link.send({ frame: "deliver", first: number, base, heard, items: [{ seq, accepted_at: at, attempts, redelivered: offered, reply_within_ms: entry.message.reply_within_ms, ...message }] });
  }

  take(frame) {
    this.risen = new Set();
    this.heardAt = this.peer.world.now();
    switch (frame.frame) {
      case "ack":
        for (const { from, to } of frame.ranges) for (let number = from; number <= to; number += 1) this.ended(number, "ack");
        break;
      case "reply":
        this.ended(frame.number, frame.payload);
        break;
      case "nack":
        this.nacked(frame);
        break;
      case "progress":
        if (frame.to >= this.cursor) this.peer.violation("progress of what was never sent");
        break;
      case "publish":
        this.publish(frame);
        break;
      case "pong":
        break;
      case "renew":
        this.peer.log.push({ renew: frame.credentials });
        this.link.send({ frame: "renewed", expires_in_ms: this.peer.options.expiresIn });
        break;
      case "close":
        this.peer.log.push({ close: frame.code, text: frame.text });
        this.link.close();
        this.lost();
        break;
      default:
        this.peer.violation(`a ${frame.frame} came`);
    }
    while (this.base < this.cursor && this.slots.get(this.base)?.done) {
      this.slots.delete(this.base);
      this.base += 1;
    }
    for (const lane of this.risen) this.floor(lane);
    this.pump();
  }

  ended(number, how) {
    if (number >= this.cursor || number < 1) return this.peer.violation(`${how} of ${number}, which was never sent`);
    const slot = this.slots.get(number);
    if (!slot || slot.done) return;
    this.slots.set(number, { done: true });
    if (!slot.entry) return;
    this.remove(slot.entry);
    this.peer.log.push({ ended: slot.entry.message.id, how });
    if (slot.entry.message.durability !== "volatile") this.risen.add(slot.entry.message.priority);
  }

  nacked({ count, number, code, delay_ms: delay = 0 }) {
    if (number >= this.cursor) return this.peer.violation(`a nack of ${number}, which was never sent`);
    if (count > this.heard + 1) return this.peer.violation(`nack ${count} after ${this.heard}`);
    if (count <= this.heard) return;
    this.heard = count;
    const slot = this.slots.get(number);
    this.slots.set(number, { done: true });
    if (!slot?.entry) return;
    const { entry } = slot, key = keyOf(entry.message);
    this.peer.log.push({ nacked: entry.message.id, code });
    entry.flying = false;
    if (code >= 4450) return this.remove(entry);
    if (code !== 4401) entry.attempts += 1;
    entry.readyAt = this.peer.world.now() + delay;
    this.recalled = this.recalled.filter((recall) => recall.key !== key).concat({ key, below: this.next });
  }

  publish({ frame: _, number, ...message }) {
    const { publishes, peer } = this, known = `${this.device} ${number}`;
    if ((peer.numbers.get(known) ?? message.id) !== message.id) peer.violation(`the number ${number} stands for two messages`);
    peer.numbers.set(known, message.id);
    if (number <= publishes.seen) {
      const outcome = publishes.outcomes.get(number);
      if (outcome) this.link.send({ frame: "receipt", number, ...outcome });
      return;
    }
    if (number !== publishes.seen + 1 && !publishes.fresh) {
      peer.violation(`publish ${number} after ${publishes.seen}`);
      return this.close(4050);
    }
    if (publishes.undecided.size >= MAX_PUBLISHES) peer.violation("more publishes than allowed");
    Object.assign(publishes, { fresh: false, seen: number });
    publishes.undecided.add(number);
    const { life } = this, decision = peer.options.onPublish?.(this.user, message);
    const decide = (refused = {}) => {
      if (refused.code === undefined) peer.accept(this.user, message);
      if (this.life !== life || !publishes.undecided.delete(number)) return;
      publishes.outcomes.set(number, refused);
      const mark = Math.min(publishes.seen + 1, ...publishes.undecided) - 1;
      peer.marks.set(this.device, Math.max(mark, peer.marks.get(this.device) ?? 0));
      this.link?.send({ frame: "receipt", number, ...refused });
    };
    if (decision instanceof Promise) decision.then(decide);
    else decide(decision);
  }

  beat() {
    const { link, peer } = this, { heartbeat, timeout } = peer.options;
    this.heardAt = peer.world.now();
    const ping = () => {
      if (this.link !== link) return;
      if (peer.world.now() - this.heardAt > heartbeat + timeout) return this.lost();
      link.send({ frame: "ping", nonce: (drawn += 1), rtt_ms: 20 });
      peer.world.setTimeout(ping, heartbeat);
    };
    peer.world.setTimeout(ping, heartbeat);
  }

  close(code, extra = {}) {
    this.link?.send({ frame: "close", code, text: "", ...extra });
    this.link?.close();
    this.lost();
  }

  end(code) {
    this.close(code);
    this.forget(0);
  }

  drop() {
    this.link?.close();
    this.link = undefined;
    this.life = undefined;
  }

  lost() {
    this.link = undefined;
  }
}

/** Accepts a publish: once for each sender, recipient and id. */
Peer.prototype.accept = function accept(user, message) {
  const key = `${user} ${message.to} ${message.id}`, known = this.accepted.get(key), body = JSON.stringify([message.event, message.payload, message.ttl_ms]);
  if (known !== undefined) {
    if (known !== body) this.violation(`the id ${message.id} with another body`);
    return;
  }
  this.accepted.set(key, body);
  this.options.onAccept?.(user, message);
};
