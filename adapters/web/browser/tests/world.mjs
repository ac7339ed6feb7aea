/**
 * A world for tests: time that passes when nothing else happens, databases in memory, and a network that the test
 * commands. The same seed gives the same draws.
 */
import { ConnectError } from "../client.mjs";
import { load } from "./tools.mjs";

const { IDBFactory, IDBKeyRange, IDBDatabase, IDBObjectStore } = load("fake-indexeddb");
Object.assign(globalThis, { IDBKeyRange, IDBObjectStore });

/** Transactions that are open: time waits for them. */
const transactions = new Set();
const { transaction } = IDBDatabase.prototype;
IDBDatabase.prototype.transaction = function open(...args) {
  const txn = transaction.apply(this, args);
  transactions.add(txn);
  for (const end of ["complete", "abort"]) txn.addEventListener(end, () => transactions.delete(txn));
  return txn;
};

/** Small and good enough: mulberry32. */
export function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class World {
  constructor(seed = 1) {
    this.time = 1_767_225_600_000;
    this.random = randomOf(seed);
    this.timers = new Map();
    this.nextTimer = 1;
    this.indexedDB = new IDBFactory();
    this.locks = new Locks();
    this.channels = new Set();
    /** When what one page posts is heard by another. */
    this.post = (run) => this.setTimeout(run, 1);
  }

  now = () => this.time;

  setTimeout = (run, ms) => {
    const timer = this.nextTimer;
    this.nextTimer += 1;
    this.timers.set(timer, { at: this.time + Math.max(0, Math.round(ms)), run });
    return timer;
  };

  clearTimeout = (timer) => {
    this.timers.delete(timer);
  };

  /** Until all that can happen now has happened. */
  async idle() {
    for (let quiet = 0; quiet < 4; quiet += 1) {
      await new Promise((resolve) => setImmediate(resolve));
      if (transactions.size > 0) quiet = 0;
    }
  }

  /** Lets time pass: so many milliseconds, or until `done` says so. */
  async pass(ms, done = () => false) {
    const end = this.time + Math.round(ms);
    for (;;) {
      await this.idle();
      if (done()) return true;
      const [timer, next] = [...this.timers].reduce((best, each) => (best === undefined || each[1].at < best[1].at ? each : best), undefined) ?? [0, { at: Infinity }];
      if (next.at > end) {
        this.time = end;
        return done();
      }
      this.timers.delete(timer);
      this.time = Math.max(this.time, next.at);
      next.run();
    }
  }

  /** A page: what a client needs of it. `kill` ends it at once, as a crash does. */
  page({ locks = this.locks } = {}) {
    const page = { alive: true, wakes: new Set(), databases: new Set(), timers: new Set() };
    const factory = {
      open: (...args) => {
        const request = this.indexedDB.open(...args);
        request.addEventListener("success", () => page.databases.add(request.result));
        return request;
      },
    };
    const own = locks?.of(page);
    page.platform = {
      now: this.now, random: this.random, indexedDB: factory, locks: own,
      randomBytes: (bytes) => bytes.map(() => Math.floor(this.random() * 256)),
      setTimeout: (run, ms) => {
        const timer = this.setTimeout(() => {
          page.timers.delete(timer);
          if (page.alive) run();
        }, ms);
        page.timers.add(timer);
        return timer;
      },
      clearTimeout: (timer) => {
        page.timers.delete(timer);
        this.clearTimeout(timer);
      },
      channel: (name, heard) => {
        const entry = { name, heard: (what) => page.alive && heard(structuredClone(what)) };
        this.channels.add(entry);
        const post = (what) => {
          if (!this.channels.has(entry)) throw new DOMException("the channel is closed", "InvalidStateError");
          [...this.channels].filter((each) => each !== entry && each.name === name).forEach((each) => this.post(() => each.heard(what)));
        };
        return { post, close: () => this.channels.delete(entry) };
      },
      onWake: (wake) => {
        page.wakes.add(wake);
        return () => page.wakes.delete(wake);
      },
    };
    page.kill = () => {
      page.alive = false;
      for (const db of page.databases) {
        for (const txn of transactions) {
          // A crash may come before or after the disk has it.
          if (txn.db === db && this.random() < 0.5) {
            try {
              txn.abort();
            } catch {
              // It was over.
            }
          }
        }
        db.close();
      }
      own?.drop();
    };
    return page;
  }
}

/** Web Locks, as far as a client uses them. */
class Locks {
  constructor() {
    this.held = new Map();
    this.queues = new Map();
  }

  of(page) {
    const mine = new Set();
    return {
      request: (name, { steal = false, ifAvailable = false, signal } = {}, run) => new Promise((resolve, reject) => {
        // Nobody asks any more.
        if (!page.alive) return;
        if (ifAvailable && (this.held.has(name) || this.queues.get(name)?.length > 0)) return resolve(run(null));
        const entry = { page, run, resolve, reject, name };
        mine.add(entry);
        const queue = this.queues.get(name) ?? [];
        this.queues.set(name, queue);
        if (steal) {
          const holder = this.held.get(name);
          this.held.delete(name);
          holder?.reject(new DOMException("stolen", "AbortError"));
          queue.unshift(entry);
        } else {
          queue.push(entry);
        }
        signal?.addEventListener("abort", () => {
          const at = queue.indexOf(entry);
          if (at < 0) return;
          queue.splice(at, 1);
          reject(new DOMException("aborted", "AbortError"));
        });
        queueMicrotask(() => this.grant(name));
      }),
      drop: () => {
        for (const entry of mine) {
          const queue = this.queues.get(entry.name);
          if (queue.includes(entry)) queue.splice(queue.indexOf(entry), 1);
          if (this.held.get(entry.name) === entry) this.held.delete(entry.name);
          this.grant(entry.name);
        }
      },
    };
  }

  grant(name) {
    const entry = this.held.has(name) ? undefined : this.queues.get(name)?.shift();
    if (!entry) return;
    this.held.set(name, entry);
    const over = (end) => (value) => {
      if (this.held.get(name) === entry) this.held.delete(name);
      end(value);
      this.grant(name);
    };
    Promise.resolve(entry.run({ name })).then(over(entry.resolve), over(entry.reject));
  }
}

/**
 * A network between pages and a peer. Frames of one connection come whole and in order, or not at all; what is under way
 * on one connection may come after what came later on another.
 */
export class Network {
  constructor(world, peer, { delay = () => 5 } = {}) {
    Object.assign(this, { world, peer, delay, links: new Set(), up: true, blocked: new Set(), refused: new Map() });
    /** By what connections were made, and by what they were tried. */
    this.connections = [];
    this.tries = [];
    /** How many were made beside one that stood. */
    this.climbs = 0;
  }

  /** Transports by name for a page. */
  transports(page, names = ["websocket", "sse", "long-poll"]) {
    return names.map((name) => ({ name, open: (opening) => this.open(page, name, opening) }));
  }

  open(page, name, { signal, frame, closed }) {
    return new Promise((resolve, reject) => {
      this.tries.push(name);
      if (this.swallowed?.has(name)) return;
      this.world.setTimeout(() => {
        const said = this.refused.get(name);
        if (said && page.alive) return reject(new ConnectError("refused by the server", said.code, said.retryAfter));
        if (!this.up || this.blocked.has(name) || signal.aborted || !page.alive) return reject(new ConnectError("refused"));
        const link = { name, page, down: false, silent: false, lanes: { up: this.world.now(), down: this.world.now() } };
        const later = (lane, run) => {
          const at = Math.max(link.lanes[lane], this.world.now() + this.delay());
          link.lanes[lane] = at;
          this.world.setTimeout(run, at - this.world.now());
        };
        const end = this.peer.connect({
          send: (text) => later("down", () => !link.down && !link.silent && page.alive && frame(text)),
          close: () => later("down", () => {
            if (link.down || link.silent || !page.alive) return;
            link.cut();
          }),
        });
        link.cut = (code = 4003) => {
          if (link.down) return;
          link.down = true;
          this.links.delete(link);
          // The other end hears of it later, and of what was under way perhaps before.
          this.world.setTimeout(() => end.closed(), this.delay() * 3);
          if (page.alive) closed({ code, text: "cut" });
        };
        if ([...this.links].some((each) => each.page === page && !each.closing)) this.climbs += 1;
        this.links.add(link);
        this.connections.push(name);
        signal.addEventListener("abort", () => link.closing || link.cut(4000));
        resolve({
          send: (text) => {
            if (link.down || link.silent || !page.alive) return;
            later("up", () => {
              // Of what was under way when it broke, some of the first may still come.
              if (link.silent || (link.down && this.world.random() < 0.5)) link.deaf = true;
              if (!link.deaf) end.receive(text);
            });
          },
          // What was said before is still sent; nothing is heard any more.
          close: () => {
            link.closing = true;
            later("up", () => link.cut(4000));
          },
        });
      }, this.delay());
    });
  }

  cut() {
    for (const link of [...this.links]) link.cut();
  }
}
