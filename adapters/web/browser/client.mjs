// @ts-check
/**
 * lastmile in a browser: one module, no build step, no dependencies.
 *
 * A {@link Client} is one device of one user. It keeps an outbox and an inbox in IndexedDB and a session with a server,
 * as docs/PROTOCOL.md describes it, over the best transport that works: WebSocket, Server-Sent Events with POST, long-poll.
 *
 * ```js
 * const client = new Client({ name: "alice", url: "/lastmile", credentials: fetchToken, stores: { history: { keyPath: "id" } } });
 * client.on("chat.message", (message, writes) => writes.put("history", { id: message.id, text: message.payload.text }));
 * client.connect();
 * const sent = await client.send({ to: "bob", event: "chat.message", payload: { text: "hi" } });   // it is kept now
 * await sent.settled;                                                                             // the server has it
 * ```
 *
 * What it promises, and how:
 * - A message that `send` resolved for survives a reload, and is accepted by the server once: it has its id from when it
 *   is made, and its publish number is on disk before it is on the wire. What can no longer be known is said to be unknown.
 * - Messages of one recipient, priority and ordering key are accepted in the order in which they were sent: one of them
 *   is on its way at a time, so that a refused one is not overtaken by the next.
 * - A message from the server takes effect once: what its handler writes and its place in the server's log are one
 *   transaction, and the acknowledgement comes after it. The handler itself runs at least once.
 * - Two tabs do not disturb each other: one holds the connection, by a Web Lock; the others wait (`offline`, `another-tab`)
 *   or take over when they are asked to. What they send, the one with the connection sends, and tells them what became of it. A
 *   fence in the database, which each owner raises, keeps a late one from writing, also where there are no Web Locks.
 * - What a server asks for with `retry_after` is obeyed, whoever says {@link Client.connect}.
 * - Everything is bounded: outbox, window, places, timers. Each `on`, `watch` and `track` returns a function that undoes it.
 *
 * Parts, in this order: words and limits · frames · backoff, quality, ladder · transports · store · session · client.
 * The session and what is above it know no clock, no socket and no database but what the {@link Platform} gives them.
 *
 * @module
 */

// ------------------------------------------------------------------------------------------------- words and limits

/** @typedef {"critical" | "high" | "normal" | "low"} Priority */
/** @typedef {"synced" | "buffered" | "volatile"} Durability  What the server promises when it accepts; volatile is never stored, here neither. */
/** @typedef {string | Uint8Array | Record<string, any> | any[]} Payload  Text, bytes, or what JSON can say of an object or array. */
/** @typedef {"queued" | "accepted" | "failed" | "cancelled"} Status */

/**
 * A message to be sent.
 * @typedef {object} Draft
 * @property {string} to  The recipient, 1 to 255 bytes.
 * @property {string} event  What it is: segments of `a`–`z`, `0`–`9`, `_`, `-`, joined by dots; at most 128 bytes.
 * @property {Payload} [payload]  Default: empty text.
 * @property {string} [id]  32 hexadecimal digits; made if there is none. The same id is accepted once.
 * @property {Priority} [priority]  Default: normal.
 * @property {Durability} [durability]  Default: synced.
 * @property {string} [orderingKey]  Messages with the same key keep their order; so do those without one.
 * @property {number} [ttl]  Milliseconds from now after which it is of no use any more.
 * @property {number} [notBefore]  Milliseconds since 1970 before which it must not be delivered.
 * @property {string} [collapseKey]  A newer message with the same key replaces one that still waits.
 * @property {string} [version]  A decimal number of 64 bits; older versions of the same collapse key are refused.
 * @property {Record<string, string>} [headers]  At most 32, together 2,048 bytes.
 */

/**
 * A message that came.
 * @typedef {object} Message
 * @property {string} id
 * @property {string} to
 * @property {string | undefined} from
 * @property {string} event
 * @property {any} payload  A string, a `Uint8Array`, or what the JSON said.
 * @property {string | undefined} orderingKey
 * @property {Priority} priority
 * @property {Durability} durability
 * @property {Record<string, string>} headers
 * @property {number} acceptedAt  Milliseconds since 1970 by the server's clock.
 * @property {boolean} redelivered  Whether it may have been here before.
 * @property {number | undefined} replyWithin  If it is a request: what the handler returns is its answer.
 */

/**
 * Why a message failed.
 * @typedef {object} Failure
 * @property {"rejected" | "expired" | "too-large" | "unknown-outcome" | "unconfirmed"} kind  `unknown-outcome`: it may have been
 *   accepted, and it is too late to repeat it safely. `unconfirmed`: volatile, and nobody heard what became of it.
 * @property {number | undefined} code  The server's code, if it said one.
 * @property {string} text
 */

/**
 * What became of a message so far.
 * @typedef {object} Outgoing
 * @property {string} id
 * @property {string} to
 * @property {string} event
 * @property {any} payload
 * @property {Priority} priority
 * @property {string | undefined} orderingKey
 * @property {number} createdAt  Milliseconds since 1970.
 * @property {Status} status
 * @property {boolean} offered  Whether it was ever put on the wire: then it cannot be cancelled here any more.
 * @property {Failure | undefined} failure
 */

/** @typedef {{ grade: "good" | "fair" | "poor", score: number, rtt: number | undefined }} QualityReport */

/**
 * What a client is doing.
 * @typedef {{ name: "offline", retryIn: number | undefined, why: string, code: number | undefined }
 *   | { name: "connecting", transport: string }
 *   | { name: "online", transport: string, quality: QualityReport }
 *   | { name: "needs-credentials", code: number | undefined }
 *   | { name: "closed", code: number | undefined, why: string }} State
 */

/**
 * @typedef {{ missing: number, reason: string, lane?: string, first?: string, last?: string }} GapReport  Messages that will not
 *   come. If they had places, the priority they had, and no place of theirs lies before `first` or after `last`.
 */
/** @typedef {{ store: string, key: IDBValidKey | undefined, value: any }} Change  A row of the host's that was written; without a value it was removed. */

/**
 * A table of the host's own, in the client's database.
 * @typedef {object} Table
 * @property {string | string[]} keyPath
 * @property {Record<string, string | string[]>} [indexes]
 */

/** @typedef {{ state: State, outbox: Outgoing, stored: Change[], gap: GapReport, error: unknown }} Watched  What {@link Client.watch} tells. */

/** @typedef {Record<string, any>} Frame */
/** @typedef {Record<string, any>} Wire  A message as it stands in a frame. */

/**
 * What the client needs of the world. Default: the browser's.
 * @typedef {object} Platform
 * @property {() => number} now  Milliseconds since 1970, which never go back: see {@link steadyClock}.
 * @property {() => number} random  0 to 1.
 * @property {(bytes: Uint8Array) => Uint8Array} randomBytes  Fills it with what nobody can guess.
 * @property {(run: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 * @property {IDBFactory} indexedDB
 * @property {LockManager | undefined} locks
 * @property {(wake: () => void) => () => void} onWake  Calls when the network or the page comes back; returns what undoes it.
 * @property {(name: string, heard: (what: any) => void) => { post(what: any): void, close(): void }} channel  Calls `heard` when another tab posts.
 */

/**
 * An open connection. `send` keeps frames whole and in order.
 * @typedef {{ send(text: string): void, close(code: number, text: string): void }} Connection
 */

/**
 * What a transport is given.
 * @typedef {object} Opening
 * @property {URL} url  Where the server's session endpoints are.
 * @property {AbortSignal} signal  Aborted when the connection is no longer wanted; it must then end.
 * @property {Platform} platform
 * @property {(text: string) => void} frame  Says that a frame came.
 * @property {(end: { code: number, retryAfter?: number, text: string }) => void} closed  Says that an open connection ended.
 */

/**
 * A rung of the ladder.
 * @typedef {object} Transport
 * @property {string} name
 * @property {(opening: Opening) => Promise<Connection>} open  Rejects with a {@link ConnectError}.
 */

/**
 * @typedef {object} Options
 * @property {string} name  Names the database: one for each user who signs in here.
 * @property {string | URL} url  Where the server's session endpoints are, such as `/lastmile`.
 * @property {(refused: number | undefined) => string | undefined | Promise<string | undefined>} credentials  Asked before each
 *   connection, and before what it gave expires; with a code after a refusal. `undefined`: there are none, see {@link Client.connect}.
 *   If it throws, it is asked again later, as if the server could not be reached.
 * @property {string} [user]  Who the hello says that this is; the credentials decide.
 * @property {Record<string, Table>} [stores]  Tables for the host's own data, written together with what was received.
 * @property {number} [version]  Of those tables: raise it when they change. Default: 1.
 * @property {Transport[]} [transports]  The best first. Default: {@link webSocket}, {@link serverSentEvents}, {@link longPoll}.
 * @property {number} [maxOutbox]  Messages that may wait or have failed. Default: 1,000.
 * @property {number} [maxOutboxBytes]  Their bytes. Default: 16 MiB.
 * @property {number} [horizon]  For how long after it was first sent a message may be repeated by itself, in milliseconds; must
 *   not be longer than the server remembers ids. Default: one hour.
 * @property {number} [handlerTimeout]  How long a handler may take, in milliseconds. Default: 60,000.
 * @property {Partial<typeof LADDER>} [ladder]
 * @property {Partial<typeof BACKOFF>} [backoff]
 * @property {Partial<Platform>} [platform]  For tests.
 */

/** The codes of docs/PROTOCOL.md that this end says or treats by name. */
export const Code = Object.freeze({
  Done: 4000, HeartbeatTimeout: 4001, HandshakeTimeout: 4002, TransportLost: 4003, TransportSwitched: 4005,
  OutOfOrder: 4050, AckOfUnsent: 4051, WindowExceeded: 4052,
  Overloaded: 4100, RateLimited: 4101,
  CredentialsNeeded: 4200, CredentialsRefused: 4201,
  UnsupportedVersion: 4300, FrameTooLarge: 4302, Malformed: 4303, UnexpectedFrame: 4304, TakenOver: 4307,
  Failed: 4400, Busy: 4401, Rejected: 4450, Invalid: 4453, Withdrawn: 4455,
});

/** Policies of the ladder: failures in a row after which a rung is left; rests and how long a connection must stand, in milliseconds. */
const LADDER = { failures: 2, coolDown: 20_000, maxCoolDown: 1_800_000, stable: 8_000, openTimeout: 2_500, lastOpenTimeout: 10_000 };
/** Delays between attempts, in milliseconds. */
const BACKOFF = { floor: 500, cap: 20_000 };

const VERSION = 1;
const LANES = /** @type {const} */ (["critical", "high", "normal", "low"]);
/** What the server may have in flight towards this end. */
const WINDOW = { messages: 64, bytes: 1 << 20, reserve: 8 };
/** How far apart the oldest number without an acknowledgement and the newest may be. */
const SPAN = 4 * (WINDOW.messages + WINDOW.reserve) + 8;
const MAX_FRAME = 1 << 20;
const MAX_RANGES = 256;
const MAX_REPLY_BYTES = 64 << 10;
const HANDSHAKE_MS = 10_000;
const HEARTBEAT_MS = 25_000;
const ACK_DELAY_MS = 20;
const ACK_EVERY = 16;
/** Publishes without a receipt; the last ones are for critical messages. */
const MAX_PUBLISHES = 64;
const PUBLISH_RESERVE = 8;
/** Numbers that are taken from the disk at once, for publishes that are not stored. */
const NUMBER_BLOCK = 64;
const PROGRESS_MS = 10_000;
const FLOOR_DELAY_MS = 1_000;
const GO_AWAY_MS = 5_000;
/** A device that is taken over twice within this time does not come back by itself. */
const TAKEN_OVER_MS = 60_000;
const MAX_MALFORMED = 3;
/** How long a message may be put off by a handler that is busy. */
const MAX_DELAY_MS = 2 ** 31 - 1;
/** For how long a message is put off that the disk does not take. */
const STORAGE_DELAY_MS = 5_000;
const MAX_CREDENTIALS_BYTES = 8192;
/** How long the host may take to give some. */
const CREDENTIALS_MS = 30_000;
/** Between two questions for credentials, and the longest while the host has none. */
const RENEW_APART_MS = 1_000, MAX_RENEW_APART_MS = 60_000;
/** How far clocks are corrected without anybody's doing. */
const CLOCK_SLACK_MS = 60_000;
/** How far a clock is set back at least, if it is not only slewed. */
const CLOCK_JUMP_MS = 1_000;
/** Bytes that go up in one request, unless a single frame has more: less than any server takes. */
const MAX_UP_BYTES = 128 << 10;
/** Bytes that browsers still send when the page that says them goes. */
const MAX_KEEPALIVE_BYTES = 48 << 10;
/** How long what was said before a connection was closed may take to go out. */
const CLOSING_MS = 10_000;
/** An answer to a poll that comes sooner and says nothing is none of the server's. */
const EMPTY_POLL_MS = 1_000;
/** Logs of other servers whose places are remembered. */
const MAX_STREAMS = 8;
/** The longest wait that an answer to a request can cost, as for the Rust client. */
const MAX_WAIT_MS = 3_600_000;

/** Something that a call cannot do; nothing was changed. */
export class LastmileError extends Error {
  /**
   * @param {"invalid" | "outbox-full" | "closed" | "another-tab" | "storage" | "not-found"} kind
   * @param {string} text
   * @param {unknown} [cause]
   */
  constructor(kind, text, cause) {
    super(text, { cause });
    this.name = "LastmileError";
    /** What kind of error; the same few words for ever. */
    this.kind = kind;
  }

  /** Whether the same call may succeed later. */
  get retryable() {
    return this.kind === "outbox-full" || this.kind === "another-tab" || this.kind === "storage";
  }
}

/** Thrown by a handler: the message is refused for good, and its sender hears so. */
export class Reject extends Error {}

/** Thrown by a handler: not now. The server offers the message again after `delay` milliseconds; no attempt is spent. */
export class Busy extends Error {
  /** @param {number} delay */
  constructor(delay) {
    super("busy");
    this.delay = delay;
  }
}

/** Why a transport could not connect. */
export class ConnectError extends Error {
  /**
   * @param {string} text
   * @param {number} [code]
   * @param {number} [retryAfter]  Milliseconds.
   */
  constructor(text, code = Code.TransportLost, retryAfter = undefined) {
    super(text);
    this.code = code;
    this.retryAfter = retryAfter;
    /** Whether the same request may get another answer. */
    this.passing = false;
  }
}

// ------------------------------------------------------------------------------------------------------------ frames

/** @typedef {string | readonly string[] | { list: Shape, max: number } | { object: Shape } | { option: Shape }} Field  A `?` marks an option; `option` a group, present if its first field is. */
/** @typedef {{ [name: string]: Field }} Shape */

/** @type {Shape} */
const REFUSED = { code: "code", retry_after_ms: "number?", text: "text" };
/** @type {Shape} */
const WINDOW_SHAPE = { messages: "number", bytes: "number", reserve: "number" };
/** @type {Shape} */
const MESSAGE = {
  id: "id", to: "bytes", event: "text", from: "bytes?", ordering_key: "bytes?", priority: LANES,
  durability: ["synced", "buffered", "volatile"], ttl_ms: "number?", not_before: "number?", collapse_key: "bytes?",
  version: "wide?", traceparent: "text?", headers: { list: { name: "text", value: "bytes" }, max: 32 }, payload: "payload",
};
/** @type {Shape} */
const ITEM = {
  seq: "wide", accepted_at: "number", attempts: "number", redelivered: "flag", reply_within_ms: "number?", ...MESSAGE,
};
/** @type {{ [kind: string]: Shape }} */
const FRAMES = {
  hello: {
    oldest: "number", newest: "number", codecs: { list: { codec: ["binary", "json"] }, max: 8 }, user: "bytes?", device: "bytes",
    credentials: "bytes", stream: "id", resume: { option: { token: "id", epoch: "wide", seen: "number", base: "number" } },
    capabilities: "wide", horizon_ms: "number", window: { object: WINDOW_SHAPE }, heartbeat_ms: "number", max_frame: "number",
  },
  welcome: {
    version: "number", codec: ["binary", "json"], user: "bytes", stream: "id", token: "id", epoch: "wide", seen: "number",
    base: "number", resumed: "flag", capabilities: "wide", window: { object: WINDOW_SHAPE }, heartbeat_ms: "number",
    timeout_ms: "number", max_frame: "number", expires_in_ms: "number?", published: "number",
  },
  reject: REFUSED,
  deliver: { first: "number", base: "number", heard: "number", items: { list: ITEM, max: 256 } },
  ack: { ranges: { list: { from: "number", to: "number" }, max: MAX_RANGES }, window: { option: { window: { object: WINDOW_SHAPE } } } },
  nack: { count: "number", number: "number", code: "code", delay_ms: "number?", text: "text" },
  progress: { from: "number", to: "number" },
  publish: { number: "number", ...MESSAGE },
  receipt: { number: "number", refused: { option: REFUSED } },
  reply: { number: "number", payload: "payload" },
  floor: { lane: LANES, seq: "wide" },
  ping: { nonce: "number", rtt_ms: "number?" },
  pong: { nonce: "number" },
  gap: {
    from: "number", to: "number", base: "number", heard: "number", missing: "number",
    reason: "text", places: { option: { lane: LANES, first: "wide", last: "wide" } },
  },
  "go-away": REFUSED,
  close: REFUSED,
  renew: { credentials: "bytes" },
  renewed: { expires_in_ms: "number?" },
  withdraw: { from: "number", to: "number" },
};

/** Bytes that are no frame. */
export class DecodeError extends Error {
  /**
   * @param {string} text
   * @param {number} [code]
   */
  constructor(text, code = Code.Malformed) {
    super(text);
    this.code = code;
  }
}

/**
 * Reads a frame. Unknown fields are dropped; bytes are strings, or `Uint8Array`s where they are no text; payloads are
 * strings, `Uint8Array`s, or what their JSON says.
 * @param {string} text
 * @param {number} [maxFrame]
 * @returns {Frame}
 */
export function decode(text, maxFrame = MAX_FRAME) {
  if (text.length > maxFrame) throw new DecodeError(`a frame of ${text.length} characters`, Code.FrameTooLarge);
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new DecodeError(String(error));
  }
  const kind = value?.frame, shape = typeof kind === "string" && Object.hasOwn(FRAMES, kind) ? FRAMES[kind] : undefined;
  if (!shape) throw new DecodeError("no such frame");
  return { frame: kind, ...takeObject(value, shape) };
}

/**
 * Writes a frame. Fields that are `undefined` are left out.
 * @param {Frame} frame
 * @returns {string}
 */
export function encode(frame) {
  const text = JSON.stringify({ frame: frame.frame, ...putObject(frame, FRAMES[frame.frame] ?? {}) });
  // Half of a surrogate pair is no text, and would break the connection at the other end. JSON.stringify escapes those alone.
  return text.replace(/\\(?:\\|u(d[89a-f][0-9a-f]{2}))/g, (found, half) => (half ? "\\ufffd" : found));
}

/** @param {any} value @param {Shape} shape */
function takeObject(value, shape) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new DecodeError("no object");
  /** @type {Record<string, any>} */
  const out = {};
  for (const [name, field] of Object.entries(shape)) {
    if (typeof field === "object" && "option" in field) {
      if (value[Object.keys(field.option)[0]] !== undefined) Object.assign(out, takeObject(value, field.option));
      continue;
    }
    const optional = typeof field === "string" && field.endsWith("?");
    if (value[name] === undefined && optional) continue;
    out[name] = takeField(name, value[name], optional ? field.slice(0, -1) : field);
  }
  return out;
}

/** @param {string} name @param {any} value @param {Exclude<Field, { option: Shape }>} field @returns {any} */
function takeField(name, value, field) {
  const bad = () => new DecodeError(`the field ${name}`);
  if (typeof field === "object" && "list" in field) {
    if (!Array.isArray(value) || value.length > field.max) throw bad();
    return value.map((element) => takeObject(element, field.list));
  }
  if (typeof field === "object" && "object" in field) return takeObject(value, field.object);
  if (typeof field === "object") {
    if (!field.includes(value)) throw bad();
    return value;
  }
  switch (field) {
    case "number":
      if (!Number.isSafeInteger(value) || value < 0) throw bad();
      return value;
    case "code":
      if (!Number.isSafeInteger(value) || value < 4000 || value > 4499) throw bad();
      return value;
    case "wide":
      if (!isWide(value)) throw bad();
      return value;
    case "id":
      if (typeof value !== "string" || !/^[0-9a-f]{32}$/i.test(value)) throw bad();
      return value.toLowerCase();
    case "flag":
      if (typeof value !== "boolean") throw bad();
      return value;
    case "text":
      if (typeof value !== "string") throw bad();
      return value;
    default: // bytes, payload
      if (typeof value === "string") return value;
      if (typeof value?.base64 === "string") return fromBase64(value.base64, bad);
      if (field === "payload" && typeof value?.json === "object" && value.json !== null) return value.json;
      throw bad();
  }
}

/** @param {Record<string, any>} value @param {Shape} shape */
function putObject(value, shape) {
  /** @type {Record<string, any>} */
  const out = {};
  for (const [name, field] of Object.entries(shape)) {
    if (typeof field === "object" && "option" in field) {
      if (value[Object.keys(field.option)[0]] !== undefined) Object.assign(out, putObject(value, field.option));
    } else if (value[name] !== undefined) {
      out[name] = putField(value[name], field);
    }
  }
  return out;
}

/** @param {any} value @param {Exclude<Field, { option: Shape }>} field @returns {any} */
function putField(value, field) {
  if (typeof field === "object" && "list" in field) return value.map((/** @type {any} */ element) => putObject(element, field.list));
  if (typeof field === "object" && "object" in field) return putObject(value, field.object);
  if (value instanceof Uint8Array) return { base64: toBase64(value) };
  return field === "payload" && typeof value === "object" ? { json: value } : value;
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** @param {string} text @param {() => Error} bad */
function fromBase64(text, bad) {
  try {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  } catch {
    throw bad();
  }
}

const utf8 = new TextEncoder();
/** @param {string} text */
const bytesOf = (text) => utf8.encode(text).length;
/** @param {Uint8Array} bytes */
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
/** What keeps its order among its like. @param {Wire} message */
const orderOf = (message) => `${message.priority} ${message.ordering_key === undefined ? "" : `=${message.ordering_key}`}`;
/** Whether it is a number of 64 bits, as frames say it. @param {unknown} value */
const isWide = (value) => typeof value === "string" && /^(0|[1-9]\d{0,19})$/.test(value) && BigInt(value) >> 64n === 0n;
/** A place, so that text compares as numbers do. @param {string} wide */
const sortable = (wide) => BigInt(wide).toString(16).padStart(16, "0");

/**
 * What a host gave as a payload, as its frame says it: a copy, which nobody changes when it has been kept.
 * @param {any} value @returns {Payload | undefined}  Not if it is none.
 */
function payloadOf(value) {
  if (typeof value === "string") return value;
  if (value instanceof Uint8Array) return new Uint8Array(value);
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return undefined;
  const json = JSON.stringify(value);
  // A date, say, is an object, and its JSON is none.
  return json?.[0] === "{" || json?.[0] === "[" ? JSON.parse(json) : undefined;
}

/**
 * A message of the host's, checked and as it stands in a frame. A server would take a frame that it cannot read for a broken
 * connection, again and again: so whatever no frame can say is refused here.
 * @param {Draft} draft @param {() => string} newId @returns {Wire}
 */
function toWire(draft, newId) {
  /** @param {boolean} good @param {string} text */
  const check = (good, text) => {
    if (!good) throw new LastmileError("invalid", text);
  };
  /** @param {string} name @param {unknown} value */
  const short = (name, value) =>
    check(typeof value === "string" && value.length > 0 && bytesOf(value) <= 255 && !/[\ud800-\udfff]/u.test(value), `${name}: a text of 1 to 255 bytes`);
  /** @param {string} name @param {unknown} value */
  const whole = (name, value) => check(Number.isSafeInteger(value) && Number(value) >= 0, `${name}: a whole number of milliseconds`);
  const { to, event, payload: given = "", priority = "normal", durability = "synced", headers = {} } = draft;
  short("to", to);
  check(typeof event === "string" && /^[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*$/.test(event) && event.length <= 128, "event: segments of a-z, 0-9, _ and -, joined by dots");
  if (draft.orderingKey !== undefined) short("orderingKey", draft.orderingKey);
  if (draft.collapseKey !== undefined) short("collapseKey", draft.collapseKey);
  check(LANES.includes(priority), "priority: critical, high, normal or low");
  check(["synced", "buffered", "volatile"].includes(durability), "durability: synced, buffered or volatile");
  if (draft.ttl !== undefined) whole("ttl", draft.ttl);
  if (draft.notBefore !== undefined) whole("notBefore", draft.notBefore);
  check(durability !== "volatile" || draft.notBefore === undefined, "notBefore: what is volatile goes out now");
  check(draft.version === undefined || isWide(draft.version), "version: a decimal number of 64 bits");
  check(draft.version === undefined || draft.collapseKey !== undefined, "version: it is one of a collapseKey");
  check(draft.id === undefined || (typeof draft.id === "string" && /^[0-9a-f]{32}$/.test(draft.id)), "id: 32 hexadecimal digits");
  /** @type {Payload | undefined} */
  let payload;
  try {
    payload = payloadOf(given);
  } catch (error) {
    throw new LastmileError("invalid", "payload: JSON cannot say it", error);
  }
  check(payload !== undefined, "payload: text, bytes, an object or an array");
  check(Object.values(headers).every((value) => typeof value === "string"), "headers: texts");
  const list = Object.entries(headers).map(([name, value]) => ({ name, value }));
  const size = list.reduce((sum, { name, value }) => sum + bytesOf(name) + bytesOf(value), 0);
  check(list.length <= 32 && size <= 2048, "headers: at most 32, together 2,048 bytes");
  return {
    id: draft.id ?? newId(), to, event, ordering_key: draft.orderingKey, priority, durability, ttl_ms: draft.ttl,
    not_before: draft.notBefore, collapse_key: draft.collapseKey, version: draft.version, headers: list, payload,
  };
}

/** @param {Wire} item @returns {Message} */
function fromWire(item) {
  return {
    id: item.id, to: item.to, from: item.from, event: item.event, payload: item.payload, orderingKey: item.ordering_key,
    priority: item.priority, durability: item.durability,
    headers: Object.fromEntries(item.headers.map((/** @type {any} */ { name, value }) => [name, value])),
    acceptedAt: item.accepted_at, redelivered: item.redelivered, replyWithin: item.reply_within_ms,
  };
}

/**
 * A clock that does not go back when the wall's is set back: it goes on from where it was, by the other one. When the wall's
 * jumps forward it follows, as that is what it also does when the machine slept, which the other one need not count.
 * @param {() => number} wall  Milliseconds since 1970. @param {() => number} steady  Milliseconds since any time.
 */
export function steadyClock(wall, steady) {
  let last = wall(), behind = 0, ahead = last - steady();
  return () => {
    const least = steady() + ahead, shown = wall() + behind;
    // Clocks are slewed as well: by so little it waits for the wall's.
    if (shown < least - CLOCK_JUMP_MS) behind += Math.round(least - shown);
    else if (shown > least) ahead += shown - least;
    last = Math.max(last, wall() + behind);
    return last;
  };
}

// ------------------------------------------------------------------------------------------ backoff, quality, ladder

/** How long to wait before connecting again: exponential with full jitter, and no less than the server asked for. */
export class Backoff {
  /** @param {typeof BACKOFF} config @param {() => number} random */
  constructor(config, random) {
    this.config = config;
    this.random = random;
    this.failures = 0;
  }

  /** @param {number} [retryAfter] @param {boolean} [other]  Whether something else is tried next, which did not fail yet. */
  next(retryAfter, other = false) {
    const { floor } = this.config;
    this.failures += 1;
    if (other && retryAfter === undefined) return floor + Math.floor(this.random() * (floor + 1));
    if (retryAfter !== undefined) return this.behind(retryAfter);
    return floor + Math.floor(this.random() * (this.#ceiling(this.failures) - floor + 1));
  }

  /** When to come for whoever was asked to come no earlier. It counts no failure. @param {number} retryAfter */
  behind(retryAfter) {
    // A server's slot is jittered already, but a proxy gives everybody the same time. As wide as the Rust client's.
    const spread = Math.max(this.#ceiling(Math.max(this.failures, 1)) - this.config.floor, Math.floor(retryAfter / 8));
    return retryAfter + Math.floor(this.random() * (spread + 1));
  }

  /** The longest delay of its own. @param {number} failures */
  #ceiling(failures) {
    const { floor, cap } = this.config;
    return Math.max(floor, Math.min(cap, floor * 2 ** Math.min(failures, 30)));
  }

  reset() {
    this.failures = 0;
  }
}

/**
 * How good a connection is: the round-trip time that the server has measured, its variation, losses; a score from 0 to 100 and a grade
 * that does not flap. The weights are those of the Rust end's `session::Quality`.
 */
export class Quality {
  constructor() {
    /** @type {number | undefined} Milliseconds. */
    this.rtt = undefined;
    this.variation = 0;
    this.loss = 0;
    /** @type {"good" | "fair" | "poor"} */
    this.grade = "good";
  }

  /** The server, which measures round trips, says how long they take: smoothed already. @param {number} ms */
  told(ms) {
    this.variation = this.rtt === undefined ? ms / 2 : (this.variation * 3 + Math.abs(this.rtt - ms)) / 4;
    this.rtt = ms;
    this.#settle(0);
  }

  /** A connection broke, or nobody answered. */
  lost() {
    this.#settle(1);
  }

  get score() {
    /** @param {number} value @param {number} from @param {number} to @param {number} most */
    const share = (value, from, to, most) => (Math.min(Math.max(value - from, 0), to - from) * most) / (to - from);
    const cost = share(this.rtt ?? 0, 100, 2000, 40) + share(this.variation, 0, 1000, 15) + share(this.loss, 0, 1, 45);
    return Math.round(Math.max(0, 100 - cost));
  }

  /** @returns {QualityReport} */
  get report() {
    return { grade: this.grade, score: this.score, rtt: this.rtt === undefined ? undefined : Math.round(this.rtt) };
  }

  /** @param {number} lost */
  #settle(lost) {
    this.loss = (this.loss * 7 + lost) / 8;
    const grades = /** @type {const} */ (["poor", "fair", "good"]), score = this.score;
    /** @param {number} value */
    const of = (value) => (value < 40 ? 0 : value < 70 ? 1 : 2);
    // It moves only if it would also move with the score somewhat nearer to where it was.
    const now = grades.indexOf(this.grade);
    this.grade = grades[Math.min(Math.max(now, of(score - 8)), of(score + 8))];
  }
}

/** @typedef {{ failures: number, left: number, restsUntil: number, worked: boolean }} Rung */

/**
 * Which transport to use: the best that works here. A rung that fails twice in a row, or once without any answer, rests, for
 * twice as long each time; the next one down is used. While a lower one holds, better ones are tried when they have rested.
 * When every rung has failed since one worked, it was not the rungs' fault: all start anew.
 */
export class Ladder {
  /** @param {typeof LADDER} config @param {number} rungs @param {number[]} worked  What worked here before. */
  constructor(config, rungs, worked) {
    this.config = config;
    /** @type {Rung[]} */
    this.rungs = Array.from({ length: rungs }, (_, index) => ({ failures: 0, left: 0, restsUntil: 0, worked: worked.includes(index) }));
    /** The rung that is connected, or is to be tried. */
    this.current = Math.max(0, this.rungs.findIndex((rung) => rung.worked));
    /** @type {number | undefined} Since when the connection stands. */
    this.since = undefined;
    /** @type {Set<number>} Rungs that came to rest since one last worked. */
    this.exhausted = new Set();
  }

  /** The rungs that worked. */
  get memory() {
    return this.rungs.flatMap((rung, index) => (rung.worked ? [index] : []));
  }

  /** A connection stands over this rung. @param {number} now @param {number} rung */
  connected(now, rung) {
    this.current = rung;
    this.since = now;
    this.exhausted.clear();
  }

  /** The connection ended, and its rung is not to blame. */
  ended() {
    this.since = undefined;
  }

  /**
   * A rung could not connect, or lost its connection; `silent` if nothing was heard at all.
   * @param {number} now @param {number} index @param {boolean} [silent] @returns {boolean}  Whether there is another one to try, which did not fail yet.
   */
  failed(now, index, silent = false) {
    const rung = this.rungs[index], stood = index === this.current && this.stands(now);
    if (index === this.current) this.since = undefined;
    if (stood) this.#works(rung);
    else rung.failures += 1;
    if (stood || (!silent && rung.failures < this.config.failures)) return false;
    this.#rest(now, index);
    if (index === this.current) this.current = this.#next(now);
    return this.current !== index && this.exhausted.size > 0;
  }

  /** Another rung that should be tried while this one still stands. @param {number} now @param {"good" | "fair" | "poor"} grade */
  better(now, grade) {
    if (!this.stands(now)) return undefined;
    const rested = this.rungs.flatMap((rung, index) => (index !== this.current && rung.restsUntil <= now ? [index] : []));
    if (grade !== "poor") {
      this.#works(this.rungs[this.current]);
      return rested.find((index) => index < this.current);
    }
    const other = rested.find((index) => index > this.current) ?? rested[0];
    if (other !== undefined) this.#rest(now, this.current);
    return other;
  }

  /** When a better rung has rested, for {@link Ladder.better}. */
  get timeout() {
    if (this.since === undefined || this.current === 0) return Infinity;
    const stands = this.since + this.config.stable;
    return Math.min(...this.rungs.slice(0, this.current).map((rung) => Math.max(rung.restsUntil, stands)));
  }

  /** Whether a connection has stood for long enough to be a success. @param {number} now */
  stands(now) {
    return this.since !== undefined && now >= this.since + this.config.stable;
  }

  /** @param {Rung} rung */
  #works(rung) {
    Object.assign(rung, { failures: 0, left: 0, worked: true });
  }

  /** @param {number} now @param {number} index */
  #rest(now, index) {
    const rung = this.rungs[index], { coolDown, maxCoolDown } = this.config;
    rung.restsUntil = now + Math.min(coolDown * 2 ** Math.min(rung.left, 30), maxCoolDown);
    rung.left += 1;
    rung.failures = 0;
    this.exhausted.add(index);
    if (this.exhausted.size < this.rungs.length) return;
    this.exhausted.clear();
    this.rungs.forEach((each) => Object.assign(each, { failures: 0, left: 0, restsUntil: 0 }));
  }

  /** The next one down that does not rest, or else whichever has rested first. @param {number} now */
  #next(now) {
    const below = this.rungs.findIndex((each, index) => index > this.current && each.restsUntil <= now);
    if (below >= 0) return below;
    const rested = this.rungs.map((each, index) => ({ at: Math.max(each.restsUntil, now), index }));
    return rested.sort((a, b) => a.at - b.at || a.index - b.index)[0].index;
  }
}

/**
 * What is done about the end of a connection: the table of the Rust end's `session::Recovery`.
 *
 * | code | what |
 * |---|---|
 * | 4001 heartbeat, 4002 handshake, 4003 transport lost | blame the transport, back off |
 * | other 4000–4199 | back off, no less than the server asked for |
 * | 4200–4299 | get new credentials first |
 * | 4303 malformed | blame the transport, as a proxy may have changed the bytes; close after three in a row |
 * | 4307 taken over | back off once, as an earlier tab's hello may have come late; close when it comes again within a minute |
 * | other 4300–4399 | close |
 *
 * @param {number} code @param {number} malformed  How many times in a row.
 * @returns {"blame" | "back-off" | "credentials" | "close"}
 */
export function recovery(code, malformed = 0) {
  if (code >= Code.HeartbeatTimeout && code <= Code.TransportLost) return "blame";
  if (code === Code.Malformed && malformed < MAX_MALFORMED) return "blame";
  if (code < 4200) return "back-off";
  return code < 4300 ? "credentials" : "close";
}

// -------------------------------------------------------------------------------------------------------- transports

/** @param {URL} url @param {string} path @param {Record<string, string>} [query] */
function endpoint(url, path, query = {}) {
  const out = new URL(url);
  out.pathname = `${out.pathname.replace(/\/$/, "")}/${path}`;
  for (const [name, value] of Object.entries(query)) out.searchParams.set(name, value);
  return out;
}

/** @type {Transport} One frame a message. */
export const webSocket = {
  name: "websocket",
  open: ({ url, signal, frame, closed }) => new Promise((resolve, reject) => {
    const address = endpoint(url, "ws");
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, "lastmile.v1");
    let open = false;
    signal.addEventListener("abort", () => socket.close());
    socket.onopen = () => {
      open = true;
      resolve({ send: (text) => socket.send(text), close: (code, text) => socket.close(code, text.slice(0, 30)) });
    };
    socket.onmessage = ({ data }) => frame(typeof data === "string" ? data : "");
    socket.onclose = ({ code, reason }) => {
      const said = code >= 4000 && code < 4400 ? code : Code.TransportLost;
      if (open) closed({ code: said, text: reason });
      else reject(new ConnectError("the WebSocket did not open", said));
    };
  }),
};

/** @type {Transport} Frames come as Server-Sent Events and go by POST. */
export const serverSentEvents = {
  name: "sse",
  async open(opening) {
    const { url, signal, frame } = opening;
    const line = await openLine(opening, "sse");
    const response = await request(endpoint(url, "sse", { c: line.id }), { signal, headers: { accept: "text/event-stream" } });
    const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
    await new Promise((resolve, reject) => {
      readEvents(reader, (name, data) => {
        if (name === "open") resolve(undefined);
        else if (name === "message") frame(data);
        else if (name === "close") line.end(refusal(data) ?? new ConnectError("closed"));
      }).then(() => new ConnectError("the stream ended"), (error) => error).then((error) => {
        reject(error);
        line.end(error);
      });
    });
    return line;
  },
};

/** @type {Transport} Frames come as answers to GETs that wait, and go by POST. */
export const longPoll = {
  name: "long-poll",
  async open(opening) {
    const { url, signal, frame, platform } = opening;
    const line = await openLine(opening, "poll");
    (async () => {
      for (let n = 1; !signal.aborted; n += 1) {
        const query = { c: line.id, n: String(n) }, asked = platform.now();
        // A repeated number gets the same answer: an answer that was lost can be asked for again.
        const text = await repeat(platform, signal, async () => (await request(endpoint(url, "poll", query), { signal })).text());
        for (const each of text.split("\n")) if (each.trim()) frame(each);
        // Something between answers in the server's place: it is not asked as fast as it answers.
        if (text.trim() === "" && platform.now() < asked + EMPTY_POLL_MS) await pause(platform, signal, EMPTY_POLL_MS);
      }
    })().catch((error) => line.end(error));
    return line;
  },
};

/**
 * Opens a connection of single requests: what both of these transports send by.
 * @param {Opening} opening @param {string} by
 */
async function openLine({ url, signal, platform, closed }, by) {
  const { connection: id } = await (await request(endpoint(url, "open", { by }), { method: "POST", signal })).json();
  if (typeof id !== "string") throw new ConnectError("what answers is no server");
  /** @type {string[]} */
  const waiting = [];
  let [n, busy, over, closing] = [0, false, false, false];
  // What was said before it is closed still goes out, also what is under way.
  const ups = new AbortController();
  signal.addEventListener("abort", () => closing || ups.abort(), { once: true });
  let timer = /** @type {any} */ (undefined);
  /** @param {unknown} error */
  const end = (error) => {
    if (over || closing) return;
    over = true;
    const known = error instanceof ConnectError ? error : new ConnectError(String(error));
    closed({ code: known.code, retryAfter: known.retryAfter, text: known.message });
  };
  const flush = async () => {
    if (busy) return;
    busy = true;
    try {
      while (waiting.length > 0 && !over) {
        const { body, size } = takeLines(waiting);
        n += 1;
        const address = endpoint(url, "up", { c: id, n: String(n) });
        // The server takes a number once: what was sent and not answered can be sent again.
        await repeat(platform, ups.signal, () => request(address, { method: "POST", body, signal: ups.signal, keepalive: closing && size <= MAX_KEEPALIVE_BYTES }));
      }
      if (closing && !over) {
        over = true;
        await request(endpoint(url, "close", { c: id }), { method: "POST", signal: ups.signal, keepalive: true });
      }
    } finally {
      busy = false;
      if (closing) platform.clearTimeout(timer);
    }
  };
  return {
    id, end,
    /** @param {string} text */
    send(text) {
      waiting.push(text);
      // What is said in one turn goes in one request.
      queueMicrotask(() => flush().catch(end));
    },
    close() {
      if (closing) return;
      closing = true;
      timer = platform.setTimeout(() => ups.abort(), CLOSING_MS);
      queueMicrotask(() => flush().catch(end));
    },
  };
}

/** The first ones of these lines, as far as they go into one request. @param {string[]} lines */
function takeLines(lines) {
  let [count, size] = [0, 0];
  for (const line of lines) {
    const more = bytesOf(line) + 1;
    if (count > 0 && size + more > MAX_UP_BYTES) break;
    [count, size] = [count + 1, size + more];
  }
  return { body: lines.splice(0, count).join("\n"), size };
}

/**
 * Tries a numbered request three times, while it is the network that fails, or a proxy that lost the answer.
 * @template T @param {Platform} platform @param {AbortSignal | undefined} signal @param {() => Promise<T>} run @returns {Promise<T>}
 */
async function repeat(platform, signal, run) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await run();
    } catch (error) {
      if (signal?.aborted || tries === 3 || (error instanceof ConnectError && !error.passing)) throw error;
      await pause(platform, signal, 200 * 2 ** tries);
      if (signal?.aborted) throw error;
    }
  }
}

/** Waits, until it is aborted at most. @param {Platform} platform @param {AbortSignal | undefined} signal @param {number} ms @returns {Promise<void>} */
function pause(platform, signal, ms) {
  return new Promise((resolve) => {
    const end = () => {
      platform.clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = platform.setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}

/** @param {URL} url @param {RequestInit} init */
async function request(url, init) {
  const response = await fetch(url, { cache: "no-store", ...init });
  if (response.ok) return response;
  const { status } = response, said = refusal(await response.text().catch(() => ""));
  if (said) throw said;
  // Any proxy may have said this: only what every one says in the same sense is believed.
  const code = { 401: Code.CredentialsRefused, 429: Code.RateLimited, 503: Code.Overloaded }[status];
  const error = new ConnectError(`HTTP status ${status}`, code, code && retryAfterOf(response.headers));
  error.passing = [408, 502, 503, 504].includes(status);
  throw error;
}

/** What `Retry-After` says (RFC 9110, section 10.2.3), in milliseconds. @param {Headers} headers */
function retryAfterOf(headers) {
  const text = headers.get("retry-after") ?? "";
  // A date is one by the clock of whoever says it.
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.parse(headers.get("date") ?? "");
  return waitOf(ms);
}

/** A wait that an answer asks for, in milliseconds: none of them costs more than an hour, whoever in between gave it. @param {unknown} ms */
function waitOf(ms) {
  return Number.isSafeInteger(ms) && Number(ms) >= 0 ? Math.min(Number(ms), MAX_WAIT_MS) : undefined;
}

/** What a server says when it refuses something, if it was the server. @param {string} text */
function refusal(text) {
  try {
    const { code, retry_after_ms: after, text: why = "" } = JSON.parse(text);
    if (!Number.isSafeInteger(code) || code < 4000 || code > 4399) return undefined;
    return new ConnectError(String(why), code, waitOf(after));
  } catch {
    return undefined;
  }
}

/**
 * Reads Server-Sent Events until their stream ends.
 * @param {ReadableStreamDefaultReader<string>} reader @param {(name: string, data: string) => void} event
 */
export async function readEvents(reader, event) {
  let [rest, name] = ["", "message"];
  /** @type {string[]} */
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0 || name !== "message") event(name, data.join("\n"));
        [name, data] = ["message", []];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line.startsWith("event:")) {
        name = line.slice(6).trim();
      }
    }
    // The longest event is a frame, as base64, and what stands before it.
    if (data.reduce((sum, each) => sum + each.length, rest.length) > 2 * MAX_FRAME) {
      throw new ConnectError("an event of the stream does not end", Code.FrameTooLarge);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- store

const META = "lastmile.meta", OUTBOX = "lastmile.outbox", INBOX = "lastmile.inbox";

/**
 * What the host writes together with a message: either all of it is kept, or nothing.
 */
export class Writes {
  /** @type {((txn: Txn) => void)[]} */
  #steps = [];

  /** Adds or replaces a row. @param {string} store @param {any} row */
  put(store, row) {
    this.#steps.push((txn) => txn.put(store, row));
  }

  /** Removes a row. @param {string} store @param {IDBValidKey} key */
  delete(store, key) {
    this.#steps.push((txn) => txn.delete(store, key));
  }

  /**
   * Changes a row as it stands then: `change` gets it, or `undefined`, and returns what it should be; `undefined` leaves it alone.
   * @param {string} store @param {IDBValidKey} key @param {(row: any) => any} change  Runs inside the transaction; must not wait.
   */
  update(store, key, change) {
    this.#steps.push((txn) => txn.update(store, key, change));
  }

  get isEmpty() {
    return this.#steps.length === 0;
  }

  /** @param {Txn} txn */
  apply(txn) {
    txn.first(this.#steps.map((step) => () => step(txn)));
  }
}

/** One transaction over all tables. */
class Txn {
  /** @param {IDBTransaction} raw */
  constructor(raw) {
    this.raw = raw;
    /** @type {Change[]} */
    this.changes = [];
    /** @type {unknown} What a step threw. */
    this.error = undefined;
  }

  /** @type {(() => void)[]} */
  #steps = [];
  #reading = 0;

  /** Runs steps one after the other: each sees what those before it wrote. @param {(() => void)[]} steps */
  last(steps) {
    this.#steps.push(...steps);
    this.#next();
  }

  /** Parts of the step that runs: they come before those that wait. @param {(() => void)[]} steps */
  first(steps) {
    this.#steps.unshift(...steps);
    this.#next();
  }

  #next() {
    while (this.#reading === 0 && this.error === undefined) {
      const step = this.#steps.shift();
      if (!step) return;
      this.attempt(step);
    }
  }

  /** @param {string} store @param {any} row @param {IDBValidKey} [key] */
  put(store, row, key) {
    const request = this.raw.objectStore(store).put(row, key);
    request.onsuccess = () => this.#changed(store, request.result, row);
  }

  /** @param {string} store @param {any} row @param {(key: IDBValidKey) => void} [then] */
  add(store, row, then) {
    this.on(this.raw.objectStore(store).add(row), then ?? (() => {}));
  }

  /** @param {string} store @param {IDBValidKey | IDBKeyRange} key */
  delete(store, key) {
    this.raw.objectStore(store).delete(key);
    if (!(key instanceof Object) || Array.isArray(key)) this.#changed(store, /** @type {IDBValidKey} */ (key), undefined);
  }

  /** @param {string} store @param {IDBValidKey} key @param {(row: any) => any} change */
  update(store, key, change) {
    this.read(store, key, (row) => {
      const next = change(row);
      if (next !== undefined) this.put(store, next);
    });
  }

  /** @param {string} store @param {IDBValidKey} key @param {(row: any) => void} then */
  read(store, key, then) {
    this.on(this.raw.objectStore(store).get(key), then);
  }

  /** Runs a step when a request has its result; what it throws ends the transaction. @template T @param {IDBRequest<T>} request @param {(result: T) => void} step */
  on(request, step) {
    this.#reading += 1;
    request.onsuccess = () => {
      this.attempt(() => step(request.result));
      this.#reading -= 1;
      this.#next();
    };
  }

  /** @param {() => void} step */
  attempt(step) {
    if (this.error !== undefined) return;
    try {
      step();
    } catch (error) {
      this.error = error;
      this.raw.abort();
    }
  }

  /** @param {string} store @param {IDBValidKey | undefined} key @param {any} value */
  #changed(store, key, value) {
    if (store !== META && store !== OUTBOX && store !== INBOX) this.changes.push({ store, key, value });
  }
}

/** @typedef {{ step: (txn: Txn) => void, owner: number | undefined, resolve: () => void, reject: (error: unknown) => void }} Work  For the one who was the owner when it was asked for, or for anybody. */

/**
 * The database. Writes that come while one is under way share the next transaction; each is there for good when its promise
 * resolves (`durability: "strict"`), or wholly absent when it rejects.
 */
class Store {
  /** @type {Work[]} */
  #waiting = [];
  #busy = false;
  /** Until nothing is being written. */
  drained = Promise.resolve();

  /**
   * @param {IDBDatabase} db @param {(changes: Change[]) => void} changed
   * @param {() => void} gone  The browser has closed it: its data was cleared, or its disk is in trouble.
   */
  constructor(db, changed, gone) {
    this.db = db;
    this.changed = changed;
    this.gone = gone;
    db.onclose = gone;
    this.tables = Array.from(db.objectStoreNames);
    /** The fence: who owns the outbox and the inbox. Each owner raises it, and a transaction of an earlier one does not go through. */
    this.owner = 0;
    /** Whether another one has raised it since. */
    this.overtaken = false;
  }

  /**
   * @param {IDBFactory} factory @param {string} name @param {number} version @param {Record<string, Table>} tables
   * @param {() => void} blocked  Another tab holds an older version. @returns {Promise<IDBDatabase>}
   */
  static open(factory, name, version, tables, blocked) {
    return new Promise((resolve, reject) => {
      const request = factory.open(`lastmile.${name}`, version);
      request.onupgradeneeded = () => {
        const { result: db, transaction } = request;
        if (!db.objectStoreNames.contains(META)) {
          db.createObjectStore(META);
          db.createObjectStore(OUTBOX, { keyPath: "order", autoIncrement: true }).createIndex("id", "id", { unique: true });
          db.createObjectStore(INBOX, { keyPath: ["stream", "lane", "seq"] });
        }
        for (const [table, { keyPath, indexes = {} }] of Object.entries(tables)) {
          const store = db.objectStoreNames.contains(table)
            ? /** @type {IDBTransaction} */ (transaction).objectStore(table)
            : db.createObjectStore(table, { keyPath });
          for (const [index, path] of Object.entries(indexes)) {
            if (!store.indexNames.contains(index)) store.createIndex(index, path);
          }
        }
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(new LastmileError("storage", `the database does not open: ${request.error?.message}`, request.error));
      // It closes when it hears of the change.
      request.onblocked = blocked;
    });
  }

  /**
   * @param {(txn: Txn) => void} step
   * @param {boolean} [owned]  Whether it is for the owner alone.
   * @returns {Promise<void>}
   */
  write(step, owned = true) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ step, owner: owned ? this.owner : undefined, resolve: () => resolve(undefined), reject });
      if (!this.#busy) this.drained = this.#drain();
    });
  }

  async #drain() {
    this.#busy = true;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, 64);
      const error = await this.#commit(batch);
      if (error === undefined || batch.length === 1) {
        for (const work of batch) error === undefined ? work.resolve() : work.reject(error);
        continue;
      }
      // One of them spoils it for all: each for itself.
      for (const work of batch) {
        const own = await this.#commit([work]);
        if (own === undefined) work.resolve();
        else work.reject(own);
      }
    }
    this.#busy = false;
  }

  /** @param {Work[]} batch @returns {Promise<unknown>}  What went wrong. */
  #commit(batch) {
    return new Promise((resolve) => {
      /** @type {Txn} */
      let txn;
      try {
        txn = new Txn(this.db.transaction(this.tables, "readwrite", { durability: "strict" }));
      } catch (error) {
        this.gone();
        return resolve(new LastmileError("storage", "the database is closed", error));
      }
      txn.raw.oncomplete = () => {
        resolve(undefined);
        if (txn.changes.length > 0) this.changed(txn.changes);
      };
      txn.raw.onabort = () => resolve(txn.error ?? new LastmileError("storage", "nothing was written", txn.raw.error));
      const run = () => txn.last(batch.map(({ step }) => () => step(txn)));
      if (batch.every(({ owner }) => owner === undefined)) return run();
      txn.read(META, "owner", (owner) => {
        if (batch.some((work) => work.owner !== undefined && work.owner !== owner)) {
          this.overtaken = owner !== this.owner;
          throw new LastmileError("another-tab", "another tab has taken over");
        }
        run();
      });
    });
  }

  /** @template T @param {string} table @param {(store: IDBObjectStore) => IDBRequest<T>} ask @returns {Promise<T>} */
  read(table, ask) {
    return new Promise((resolve, reject) => {
      try {
        const request = ask(this.db.transaction(table).objectStore(table));
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(new LastmileError("storage", "nothing was read", request.error));
      } catch (error) {
        if (/** @type {any} */ (error).name === "InvalidStateError") this.gone();
        reject(new LastmileError("storage", "nothing was read", error));
      }
    });
  }
}

// ----------------------------------------------------------------------------------------------------------- session

/**
 * @typedef {{ kind: "ack" } | { kind: "reply", payload: Payload } | { kind: "nack", code: number, delay?: number, text?: string }} Verdict
 */

/**
 * @typedef {object} SessionHost
 * @property {() => number} now
 * @property {(frame: Frame) => void} send  Over the connection that is there.
 * @property {(welcome: Frame) => void} opened
 * @property {(end: { code: number, retryAfter?: number, text: string }) => void} ended  The connection is over.
 * @property {(epoch: string, number: number, stream: string, item: Wire) => void} item  A message; say {@link Session.decide}.
 * @property {(epoch: string, number: number) => void} withdrawn  A message without a verdict is no longer wanted.
 * @property {(lane: string, seq: string) => void} floor
 * @property {(gap: GapReport) => void} gap
 * @property {(number: number, refused: Frame | undefined) => void} receipt
 * @property {(refused: Frame) => void} goingAway
 * @property {() => void} renew  The credentials expire soon.
 */

/**
 * One session with a server, over any number of connections, one at a time: the connector's end of docs/PROTOCOL.md, as a
 * state machine. It is told what happens; it asks nobody.
 */
export class Session {
  /** @param {SessionHost} host @param {{ stream: string, device: string, user?: string, horizon: number }} config */
  constructor(host, config) {
    this.host = host;
    this.config = config;
    this.quality = new Quality();
    /** @type {"down" | "greeting" | "up"} */
    this.phase = "down";
    /** @type {{ token: string, epoch: string } | undefined} */
    this.life = undefined;
    this.peerStream = "";
    this.maxFrame = MAX_FRAME;
    this.canPublish = false;
    this.lastPublished = 0;
    this.#silence = this.#since = this.#heard = 0;
    this.#renewAt = Infinity;
    this.#forget();
  }

  /** @type {number} How long silence may last. */ #silence;
  /** @type {number} */ #since;
  /** @type {number} */ #heard;
  /** @type {number} When to ask for others. */ #renewAt;
  #expiresAt = Infinity;
  /** How often they were asked for since. */ #renewals = 0;
  /** Numbers of the server's: the newest, and the oldest that it has no verdict for. */
  #seen = 0;
  #base = 1;
  /** @type {Map<number, { key: string, critical: boolean, since: number }>} */ #undecided = new Map();
  /** @type {Map<number, { kind: "ack" } | { kind: "reply", payload: Payload } | { kind: "nack", frame: Frame }>} What was said and perhaps not heard. */
  #said = new Map();
  #nacks = 0;
  /**
   * Lanes and keys of which nothing is taken until the server has heard of that nack. Of a number behind its base it hears
   * nothing more, so there are no more than numbers between.
   * @type {Map<string, { nack: number, number: number }>}
   */
  #held = new Map();
  /** @type {number[]} */ #acks = [];
  #ackAt = Infinity;
  #progressAt = Infinity;

  /** A connection stands. @param {string} credentials */
  hello(credentials) {
    this.phase = "greeting";
    this.#since = this.host.now();
    const { stream, device, user, horizon } = this.config;
    this.host.send({
      frame: "hello", oldest: VERSION, newest: VERSION, codecs: [{ codec: "json" }], user, device, credentials, stream,
      ...(this.life && { ...this.life, seen: this.#seen, base: 1 }),
      capabilities: "15", horizon_ms: horizon, window: WINDOW, heartbeat_ms: HEARTBEAT_MS, max_frame: MAX_FRAME,
    });
  }

  /** A frame came, or what is none. @param {string} text */
  receive(text) {
    if (this.phase === "down") return;
    let frame;
    try {
      frame = decode(text);
    } catch (error) {
      return this.end(error instanceof DecodeError ? error.code : Code.Malformed, String(error));
    }
    this.#heard = this.host.now();
    const flaw = this.phase === "greeting" ? this.#greeted(frame) : this.#take(frame);
    if (flaw !== undefined) this.end(flaw, `the frame ${frame.frame}`);
  }

  /** What became of a message. @param {string} epoch @param {number} number @param {Verdict} verdict */
  decide(epoch, number, verdict) {
    const open = epoch === this.life?.epoch ? this.#undecided.get(number) : undefined;
    if (!open) return;
    if (verdict.kind === "nack") return this.#refuse(number, verdict);
    this.#undecided.delete(number);
    if (verdict.kind === "reply") {
      this.#said.set(number, verdict);
      return this.#say({ frame: "reply", number, payload: verdict.payload });
    }
    // When nothing else is under way, no other acknowledgement will come to wait for.
    const isAlone = open.critical || this.#undecided.size === 0;
    this.#ack(number, isAlone ? 0 : ACK_DELAY_MS);
    if (isAlone || this.#acks.length >= ACK_EVERY) this.#flush();
  }

  /** @param {number} number @param {Wire} message */
  publish(number, message) {
    this.lastPublished = Math.max(this.lastPublished, number);
    this.#say({ frame: "publish", number, ...message });
  }

  /** @param {string} credentials */
  renew(credentials) {
    // The server answers, or ends the connection.
    this.#renewAt = Infinity;
    this.#say({ frame: "renew", credentials });
  }

  /** The connection is gone. @param {number} code @param {string} text @param {number} [retryAfter] */
  lost(code, text, retryAfter) {
    if (this.phase === "down") return;
    if (code !== Code.Done && code !== Code.TransportSwitched) this.quality.lost();
    this.phase = "down";
    this.#ackAt = this.#progressAt = Infinity;
    if (code >= 4050 && code < 4100) this.#forget();
    this.host.ended({ code, text, retryAfter });
  }

  /** Closes the connection, and says why. @param {number} code @param {string} text */
  end(code, text) {
    this.#flush();
    this.#say({ frame: "close", code, text: text.slice(0, 80) });
    this.lost(code, text);
  }

  /** Another connection takes this one's place: nothing is heard or said over it any more. */
  freeze() {
    this.phase = "down";
    this.quality = new Quality();
    this.#ackAt = this.#progressAt = Infinity;
  }

  /** When to say {@link Session.tick}, if nothing happens before. */
  get timeout() {
    if (this.phase === "down") return Infinity;
    if (this.phase === "greeting") return this.#since + HANDSHAKE_MS;
    return Math.min(this.#heard + this.#silence, this.#ackAt, this.#renewAt, this.#progressAt);
  }

  /** Time has passed. */
  tick() {
    const now = this.host.now();
    if (now < this.timeout) return;
    if (this.phase === "greeting") return this.end(Code.HandshakeTimeout, "no welcome came");
    if (now >= this.#heard + this.#silence) return this.end(Code.HeartbeatTimeout, "nothing was heard");
    if (now >= this.#ackAt) this.#flush();
    if (now >= this.#renewAt) {
      // Again a while later, unless there are some.
      this.#renewsAt(now + Math.min(RENEW_APART_MS * 2 ** Math.min(this.#renewals, 30), MAX_RENEW_APART_MS));
      this.#renewals += 1;
      this.host.renew();
    }
    if (now >= this.#progressAt) this.#progress(now);
  }

  /** @param {Frame} frame @returns {number | undefined}  The code of what is wrong with it. */
  #greeted(frame) {
    switch (frame.frame) {
      case "welcome":
        return this.#welcomed(frame);
      case "reject":
      case "close":
        this.lost(frame.code, frame.text, frame.retry_after_ms);
        return undefined;
      default:
        return Code.UnexpectedFrame;
    }
  }

  /** @param {Frame} welcome */
  #welcomed(welcome) {
    const { token, epoch, seen, base, resumed } = welcome;
    if (welcome.version !== VERSION || welcome.codec !== "json") return Code.UnsupportedVersion;
    // Of this end's own messages there are none: it publishes. So the server cannot have seen any.
    const known = this.life?.epoch === epoch;
    const sound = resumed
      ? known && this.life?.token === token && seen === 0 && base >= this.#base && base <= this.#seen + 1
      : !known && seen === 0 && base === 1;
    if (!sound) return Code.OutOfOrder;
    if (!resumed) {
      this.#forget();
      this.life = { token, epoch };
    }
    const now = this.host.now();
    this.phase = "up";
    this.peerStream = welcome.stream;
    this.maxFrame = welcome.max_frame;
    this.canPublish = (BigInt(welcome.capabilities) & 4n) !== 0n;
    this.#silence = welcome.heartbeat_ms + welcome.timeout_ms;
    this.#expires(welcome.expires_in_ms);
    if (resumed) this.#sayAgain(base);
    this.#progressAt = this.#undecided.size > 0 ? now + PROGRESS_MS : Infinity;
    this.host.opened(welcome);
    return undefined;
  }

  /** @param {Frame} frame @returns {number | undefined} */
  #take(frame) {
    const { host } = this;
    switch (frame.frame) {
      case "deliver":
        return this.#deliver(frame);
      case "gap":
        return this.#gap(frame);
      case "withdraw":
        return this.#withdraw(frame);
      case "floor":
        return void host.floor(frame.lane, frame.seq);
      case "receipt":
        if (frame.number > this.lastPublished) return Code.AckOfUnsent;
        return void host.receipt(frame.number, frame.code === undefined ? undefined : frame);
      case "ping":
        if (frame.rtt_ms !== undefined) this.quality.told(frame.rtt_ms);
        return this.#say({ frame: "pong", nonce: frame.nonce });
      case "renewed":
        return this.#expires(frame.expires_in_ms);
      case "go-away":
        return void host.goingAway(frame);
      case "close":
        return void this.lost(frame.code, frame.text, frame.retry_after_ms);
      case "ack":
        // Of a life's numbers this end has used none.
        return frame.ranges.length > 0 ? Code.AckOfUnsent : undefined;
      case "nack":
      case "reply":
      case "progress":
        return Code.AckOfUnsent;
      default:
        return Code.UnexpectedFrame;
    }
  }

  /** @param {Frame} deliver */
  #deliver({ first, base, heard, items }) {
    if (items.length === 0) return Code.Malformed;
    const flaw = this.#follow(first, items.length, base, heard);
    if (flaw !== undefined) return flaw;
    const { epoch } = /** @type {{ epoch: string }} */ (this.life), now = this.host.now();
    for (const [index, item] of items.entries()) {
      if (this.#undecided.size >= WINDOW.messages + WINDOW.reserve) return Code.WindowExceeded;
      const number = first + index, key = orderOf(item);
      this.#undecided.set(number, { key, critical: item.priority === "critical", since: now });
      if (this.#held.has(key)) this.#refuse(number, { kind: "nack", code: Code.Busy, delay: 0 });
      else this.host.item(epoch, number, this.peerStream, item);
    }
    this.#progressAt = Math.min(this.#progressAt, now + PROGRESS_MS);
    return undefined;
  }

  /** @param {Frame} gap */
  #gap({ from, to, base, heard, missing, reason, lane, first, last }) {
    if (from < 1 || to < from || (lane !== undefined && BigInt(last) < BigInt(first))) return Code.Malformed;
    const flaw = this.#follow(from, to - from + 1, base, heard);
    if (flaw !== undefined) return flaw;
    const isAlone = this.#undecided.size === 0;
    for (let number = from; number <= to; number += 1) this.#ack(number, isAlone ? 0 : ACK_DELAY_MS);
    if (isAlone) this.#flush();
    if (missing > 0) this.host.gap({ missing, reason, ...(lane !== undefined && { lane, first, last }) });
    return undefined;
  }

  /** @param {Frame} frame */
  #withdraw({ from, to }) {
    if (from < 1 || to < from) return Code.Malformed;
    if (to > this.#seen) return Code.OutOfOrder;
    const { epoch } = /** @type {{ epoch: string }} */ (this.life);
    for (const number of [...this.#undecided.keys()]) if (number >= from && number <= to) this.host.withdrawn(epoch, number);
    return undefined;
  }

  /** Takes the next numbers, if they follow. @param {number} first @param {number} count @param {number} base @param {number} heard */
  #follow(first, count, base, heard) {
    const next = this.#seen + 1, last = this.#seen + count;
    if (first !== next || base < this.#base || base > next) return Code.OutOfOrder;
    if (heard > this.#nacks) return Code.AckOfUnsent;
    if (last - base + 1 > SPAN) return Code.WindowExceeded;
    for (const [key, hold] of this.#held) if (hold.nack <= heard || hold.number < base) this.#held.delete(key);
    this.#rebase(base);
    this.#seen = last;
    return undefined;
  }

  /** The server has heard what was said of numbers below. @param {number} base */
  #rebase(base) {
    for (; this.#base < base; this.#base += 1) this.#said.delete(this.#base);
  }

  /** Says no. Until the server has heard of it nothing with that key is taken, unless the no is final. @param {number} number @param {Verdict & { kind: "nack" }} verdict */
  #refuse(number, { code, delay, text = "" }) {
    const open = this.#undecided.get(number);
    if (!open) return;
    this.#undecided.delete(number);
    this.#nacks += 1;
    if (code < 4450) this.#held.set(open.key, { nack: this.#nacks, number });
    const frame = { frame: "nack", count: this.#nacks, number, code, delay_ms: delay, text: text.slice(0, 80) };
    this.#said.set(number, { kind: "nack", frame });
    this.#say(frame);
  }

  /** @param {number} number @param {number} delay */
  #ack(number, delay) {
    this.#said.set(number, { kind: "ack" });
    this.#acks.push(number);
    this.#ackAt = Math.min(this.#ackAt, this.host.now() + delay);
  }

  /** Says what acknowledgements there are. @param {boolean} [always]  Also if there are none. */
  #flush(always = false) {
    if (this.phase !== "up") return;
    const numbers = this.#acks.sort((a, b) => a - b);
    /** @type {{ from: number, to: number }[]} */
    const ranges = [];
    let taken = 0;
    for (const number of numbers) {
      const last = ranges.at(-1);
      if (last && number <= last.to + 1) last.to = number;
      else if (ranges.length === MAX_RANGES) break;
      else ranges.push({ from: number, to: number });
      taken += 1;
    }
    this.#acks = numbers.slice(taken);
    this.#ackAt = this.#acks.length > 0 ? this.host.now() : Infinity;
    if (ranges.length > 0 || always) this.#say({ frame: "ack", ranges });
  }

  /** The connection is a new one: what the server may not have heard is said again. @param {number} base */
  #sayAgain(base) {
    this.#rebase(base);
    this.#acks = [];
    // In the order in which it was said first: that of the nacks' counts.
    for (const [number, said] of this.#said) {
      if (said.kind === "ack") this.#acks.push(number);
      else if (said.kind === "reply") this.#say({ frame: "reply", number, payload: said.payload });
      else this.#say(said.frame);
    }
    // Also of nothing: what it hears tells the server that this is the connection that is meant.
    this.#flush(true);
  }

  /** Handlers still work on what came a while ago. @param {number} now */
  #progress(now) {
    const late = [...this.#undecided].filter(([, { since }]) => now >= since + PROGRESS_MS).map(([number]) => number);
    if (late.length > 0) this.#say({ frame: "progress", from: Math.min(...late), to: Math.max(...late) });
    this.#progressAt = this.#undecided.size > 0 ? now + PROGRESS_MS : Infinity;
  }

  /** @param {number | undefined} ms @returns {undefined} */
  #expires(ms) {
    const now = this.host.now();
    this.#expiresAt = ms === undefined ? Infinity : now + ms;
    this.#renewals = 0;
    this.#renewsAt(ms === undefined ? Infinity : now + Math.max(RENEW_APART_MS, ms - Math.min(60_000, ms / 4)));
  }

  /** @param {number} at */
  #renewsAt(at) {
    this.#renewAt = at < this.#expiresAt ? at : Infinity;
  }

  /** A new life: numbers start again. */
  #forget() {
    this.life = undefined;
    [this.#seen, this.#base, this.#nacks] = [0, 1, 0];
    this.#undecided.clear();
    this.#said.clear();
    this.#held.clear();
    this.#acks = [];
  }

  /** @param {Frame} frame @returns {undefined} */
  #say(frame) {
    if (this.phase === "up") this.host.send(frame);
  }
}

// ------------------------------------------------------------------------------------------------------------ client

/**
 * A row of the outbox. It has no number until it goes on the wire; `offered` stays when it gets another one.
 * @typedef {object} Row
 * @property {IDBValidKey} [order]  Its place in the outbox; volatile messages are not stored and have none.
 * @property {string} id
 * @property {Wire} message
 * @property {number | undefined} ttl  Milliseconds from `createdAt`.
 * @property {number} size  Of its frame, in bytes.
 * @property {number} createdAt
 * @property {number | null} number  The publish number under which it is on the wire, or was.
 * @property {number | null} offered  When it was first put on the wire, unless it is known since that it was refused.
 * @property {number} attempts
 * @property {number} retryAt
 * @property {Failure} [failure]
 */

/** @typedef {{ message: Message, item: Wire, epoch: string, number: number, place: { stream: string, lane: string, seq: string } | undefined, abort: AbortController }} Job */
/** @typedef {{ jobs: Job[], working?: Job | undefined, busy: boolean, writing: number, broken: boolean }} Queue  Broken: one of them was not taken. */
/** @typedef {(message: any, writes: Writes, signal: AbortSignal) => any} Handler */
/** @typedef {(outgoing: Outgoing, writes: Writes) => void} Tracker */
/** @typedef {{ rung: number, abort: AbortController, wire: Connection | undefined }} Link */

/**
 * What became of one message. It can be asked for again after a reload: {@link Client.sent}.
 */
export class Sent {
  #client;

  /** @param {Client} client @param {string} id @param {Promise<Outgoing>} settled */
  constructor(client, id, settled) {
    this.#client = client;
    this.id = id;
    /**
     * Resolves when it is accepted, has failed, or was cancelled, also by another tab. Not if the page or the tab that would say
     * so ends between that and saying so: then {@link Client.outbox} of the next one shows that it waits no more.
     */
    this.settled = settled;
  }

  /** Takes it back. @returns {Promise<boolean>}  `false` if it was on the wire already: then the server must be asked. */
  cancel() {
    return this.#client.cancel(this.id);
  }

  /** Calls when its status changes. @param {(outgoing: Outgoing) => void} run @returns {() => void} */
  watch(run) {
    return this.#client.watch("outbox", (outgoing) => {
      if (outgoing.id === this.id) run(outgoing);
    });
  }
}

/** One device of one user. See the top of this file. */
export class Client {
  #options;
  #platform;
  #url;
  /** @type {State} */ #state = { name: "offline", retryIn: undefined, why: "not connected", code: undefined };
  /** @type {Map<string, Handler>} */ #handlers = new Map();
  /** @type {Map<string, Set<Tracker>>} */ #trackers = new Map();
  /** @type {Map<string, Set<(value: any) => void>>} */ #watchers = new Map();

  /** @type {Promise<Store> | undefined} */ #opening = undefined;
  /** @type {Store | undefined} */ #store = undefined;
  #blocked = false;
  /** @type {Session | undefined} */ #session = undefined;
  /** @type {Ladder} */ #ladder;
  #backoff;

  #wanted = false;
  #closed = false;
  #owner = false;
  /** @type {AbortController | undefined} While this tab waits for the lock, or holds it. */ #claim = undefined;
  /** @type {{ post(what: any): void, close(): void } | undefined} To other tabs: there is something to send, or what became of it. */ #channel = undefined;
  /** Until it is known whether the outbox is this tab's. */ #claimed = Promise.resolve();
  #release = () => {};
  #unwake = () => {};

  /** @type {Link | undefined} The connection. */ #link = undefined;
  /** @type {Link | undefined} One that is being made. */ #attempt = undefined;
  /** When to connect again. */ #retryAt = Infinity;
  /** When to look for a better rung, at the earliest. */ #climbAt = 0;
  /**
   * Before then the server does not want to see this client, over whatever transport and whoever asks for it: the latest
   * time that a go-away, reject, close or refused attempt named. It is only ever raised, and holds until it has passed.
   */
  #notBefore = 0;
  #malformed = 0;
  #takenOverAt = -Infinity;
  /** @type {string | undefined} Credentials that were given, until they are refused. */ #given = undefined;
  /** @type {string | undefined} The last that were shown. */ #shown = undefined;
  /** @type {Link | undefined} The connection for which others are asked for. */ #renewing = undefined;
  /** When to leave because the server asked for it. */ #leaveAt = Infinity;
  /** @type {any} */ #timer = undefined;

  /** @type {Map<string, Row>} */ #rows = new Map();
  /** @type {Map<number, Row>} */ #pending = new Map();
  /** @type {Map<string, { settled: Promise<Outgoing>, settle: (outgoing: Outgoing) => void }>} Who waits for what becomes of a message. */ #settlers = new Map();
  #number = 1;
  #reserved = 1;
  #pumping = false;
  #pumpAgain = false;
  #pumpAt = Infinity;
  /** @type {(() => void)[]} What the disk did not take: tried again. */ #unwritten = [];
  /** @type {WeakSet<Row>} Rows that have failed, which is not on disk: until it is, nobody is told. */ #unkept = new WeakSet();
  /** Other tabs have sent something that was not looked at. */ #adoptDue = false;
  /** @type {Set<string>} Messages that are being taken back. */ #cancelled = new Set();
  /** @type {Set<string>} Messages that get their numbers. */ #going = new Set();
  #resync = { due: false, fresh: false, published: 0 };

  /** @type {Map<string, Job>} By place: messages that handlers work on. */ #jobs = new Map();
  /** @type {Map<string, Queue>} By lane and key. */ #queues = new Map();
  /** @type {Map<string, { place: any, reply?: Payload }>} What took effect and may come again. */ #places = new Map();
  /** @type {Map<string, string>} By stream and lane. */ #floors = new Map();
  /** @type {Map<string, { stream: string, lane: string, seq: string }>} Floors that are not on disk. */ #risen = new Map();
  #floorAt = Infinity;

  /** @param {Options} options */
  constructor(options) {
    this.#options = {
      maxOutbox: 1000, maxOutboxBytes: 16 << 20, horizon: 3_600_000, handlerTimeout: 60_000, version: 1, stores: {},
      transports: [webSocket, serverSentEvents, longPoll], ...options,
    };
    this.#platform = { ...browser(), ...options.platform };
    this.#url = new URL(options.url, globalThis.location?.href);
    this.#backoff = new Backoff({ ...BACKOFF, ...options.backoff }, this.#platform.random);
    this.#ladder = this.#newLadder([]);
  }

  /** What it is doing. */
  get state() {
    return this.#state;
  }

  // ---- handlers and watchers

  /**
   * Handles messages of an event (`chat.message`), of all below a prefix (`chat.*`), or of all that nobody else handles
   * (`*`). The message is acknowledged when the handler has returned and what it said to `writes` is on disk. If it throws, the
   * message is offered again later ({@link Busy}: without spending an attempt) or refused for good ({@link Reject}). If the
   * message is a request, what the handler returns is the answer. `signal` is aborted when the message is no longer wanted (a call
   * that was answered elsewhere, another tab that has taken over), and when the handler's time is up: a handler that throws after
   * that has not taken it. Register before {@link Client.connect}: a message that nobody handles is offered again later, and
   * spends an attempt.
   * @param {string} pattern @param {(message: Message, writes: Writes, signal: AbortSignal) => any} handler @returns {() => void}  Undoes it.
   */
  on(pattern, handler) {
    if (this.#handlers.has(pattern)) throw new LastmileError("invalid", `${pattern} has a handler`);
    this.#handlers.set(pattern, handler);
    return () => {
      if (this.#handlers.get(pattern) === handler) this.#handlers.delete(pattern);
    };
  }

  /**
   * Calls with each change of status of messages to be sent, within the transaction that makes it: what `track` says to
   * `writes` is kept if and only if the change is. Patterns as in {@link Client.on}. Volatile messages are not tracked.
   * @param {string} pattern @param {Tracker} tracker  Must not wait. @returns {() => void}  Undoes it.
   */
  track(pattern, tracker) {
    return listen(this.#trackers, pattern, tracker);
  }

  /**
   * Calls when something happened: `state`; `outbox` (a status changed, and is on disk); `stored` (rows of the host's tables were
   * written); `gap` (messages will not come); `error` (a handler, tracker or watcher threw).
   * @template {keyof Watched} K @param {K} what @param {(value: Watched[K]) => void} run @returns {() => void}  Undoes it.
   */
  watch(what, run) {
    return listen(this.#watchers, what, run);
  }

  // ---- connecting

  /**
   * Keeps a connection from now on. With `steal` it takes over from another tab; with `credentials`, it uses those instead
   * of asking. Also the way on from `needs-credentials`, and from `closed` unless {@link Client.close} closed it. It ends a wait
   * that this client chose itself; when the server has asked to come back later, it connects then, and `retryIn` says when.
   * @param {{ steal?: boolean, credentials?: string }} [how]
   */
  connect({ steal = false, credentials } = {}) {
    if (this.#closed) throw new LastmileError("closed", "the client is closed");
    this.#given = credentials;
    this.#wanted = true;
    this.#malformed = 0;
    if (!this.#owner) return this.#own(steal);
    if (!this.#link && !this.#attempt) this.#openInTime();
  }

  /**
   * Makes the outbox this tab's without connecting, if no other tab has it: then {@link Client.outbox} shows what waits.
   * @returns {Promise<boolean>}
   */
  claim() {
    return this.#asOwner().then(() => true, () => false);
  }

  /** Keeps no connection from now on. What is sent waits. */
  disconnect() {
    this.#wanted = false;
    this.#retryAt = Infinity;
    this.#drop(Code.Done, "disconnected");
    if (this.#state.name !== "closed") this.#become({ name: "offline", retryIn: undefined, why: "disconnected", code: undefined });
    this.#arm();
  }

  /** Ends it: the connection, the lock, the database. What waits in the outbox stays there. @returns {Promise<void>} */
  close() {
    return this.#end("closed");
  }

  /** @param {string} why @returns {Promise<void>} */
  async #end(why) {
    if (this.#closed) return;
    this.disconnect();
    this.#closed = true;
    this.#platform.clearTimeout(this.#timer);
    this.#disown();
    this.#become({ name: "closed", code: undefined, why });
    this.#forgetOutbox();
    const closing = (this.#opening ?? Promise.resolve(undefined)).catch(() => undefined).then(async (store) => {
      store?.db.close();
      // What is being written is still said to other tabs: one of them has to send it.
      await store?.drained;
      this.#channel?.close();
      this.#channel = undefined;
    });
    // One that another tab holds up is closed when it opens.
    if (!this.#blocked) await closing;
  }

  // ---- sending

  /**
   * Sends a message. When it resolves, the message is on disk and goes out when it can, also after a reload. A volatile one
   * goes out now or fails.
   * @param {Draft} draft @returns {Promise<Sent>}
   * @throws {LastmileError} Nothing was kept.
   */
  async send(draft) {
    const { ttl_ms: ttl, ...message } = toWire(draft, () => this.#newId()), store = await this.#asOwner().catch(() => this.#ready());
    const size = bytesOf(encode({ frame: "publish", number: Number.MAX_SAFE_INTEGER, ttl_ms: Number.MAX_SAFE_INTEGER, ...message }));
    this.#checkRoom(this.#rows.size, [...this.#rows.values()].reduce((sum, row) => sum + row.size, size));
    if (this.#rows.has(message.id)) throw new LastmileError("invalid", "a message with this id waits already");
    /** @type {Row} */
    const row = { id: message.id, message, ttl, size, createdAt: this.#platform.now(), number: null, offered: null, attempts: 0, retryAt: 0 };
    // It counts against the bounds from now on, and keeps those behind it behind it; it is sent when it is on disk.
    this.#rows.set(row.id, row);
    if (message.durability === "volatile") {
      const sent = this.sent(row.id);
      if (this.#state.name === "online") this.#pump();
      else this.#settle(row, "failed", unconfirmed);
      return sent;
    }
    row.retryAt = Infinity;
    const isFirst = !this.#settlers.has(row.id), settled = this.#settled(row.id);
    try {
      await store.write((txn) => {
        const { order: _, ...stored } = { ...row, retryAt: 0 };
        const put = (/** @type {number} */ count, /** @type {number} */ bytes) => {
          this.#checkRoom(count, bytes);
          txn.add(OUTBOX, stored, (order) => {
            row.order = order;
          });
          this.#track(txn, row, "queued");
        };
        // What other tabs have put there counts too. Whoever owns the outbox knows their bytes, but for the latest.
        const outbox = txn.raw.objectStore(OUTBOX);
        if (this.#owner) txn.on(outbox.count(), (count) => put(count, 0));
        else txn.on(outbox.getAll(), (rows) => put(rows.length, rows.reduce((sum, each) => sum + each.size, size)));
      }, false);
    } catch (error) {
      // The row and the settler may be those of one with this id that another tab has, or had.
      if (this.#rows.get(row.id) === row) this.#rows.delete(row.id);
      if (isFirst) this.#settlers.delete(row.id);
      const repeated = error instanceof LastmileError && /** @type {any} */ (error.cause)?.name === "ConstraintError";
      throw repeated ? new LastmileError("invalid", "a message with this id waits already") : error;
    }
    row.retryAt = 0;
    // Whoever owns the outbox sends it. Whoever came to own it meanwhile has it already.
    if (!this.#owner) {
      this.#rows.delete(row.id);
      this.#channel?.post({ sent: row.id });
    } else if (!this.#rows.has(row.id)) {
      this.#adopt();
    }
    this.#tell("outbox", this.#outgoing(row, "queued"));
    this.#pump();
    return new Sent(this, row.id, settled);
  }

  /** @param {number} count @param {number} bytes  With what is to be added. */
  #checkRoom(count, bytes) {
    const { maxOutbox, maxOutboxBytes } = this.#options;
    if (count >= maxOutbox || bytes > maxOutboxBytes) throw new LastmileError("outbox-full", "too much waits: try again later");
  }

  /** What becomes of a message, once it is known. @param {string} id @returns {Promise<Outgoing>} */
  #settled(id) {
    const known = this.#settlers.get(id);
    if (known) return known.settled;
    let settle = (/** @type {Outgoing} */ _) => {};
    const settled = /** @type {Promise<Outgoing>} */ (new Promise((resolve) => {
      settle = resolve;
    }));
    this.#settlers.set(id, { settled, settle });
    return settled;
  }

  /** A handle for a message that waits or has failed. @param {string} id @returns {Sent} */
  sent(id) {
    const row = this.#rows.get(id);
    if (!row) throw new LastmileError("not-found", "no such message waits here");
    return new Sent(this, id, this.#hasFailed(row) ? Promise.resolve(this.#outgoing(row, "failed")) : this.#settled(id));
  }

  /** What waits and what failed, the oldest first. @returns {Outgoing[]} */
  outbox() {
    return [...this.#rows.values()].map((row) =>
      this.#hasFailed(row) ? this.#outgoing(row, "failed") : this.#outgoing({ ...row, failure: undefined }, "queued"));
  }

  /** Whether it has failed, also for a page that comes now. @param {Row} row */
  #hasFailed(row) {
    return row.failure !== undefined && !this.#unkept.has(row);
  }

  /**
   * Takes back a message that was never on the wire, or that failed. `false`: it was on the wire, or is not here.
   * @param {string} id @returns {Promise<boolean>}
   */
  async cancel(id) {
    const store = await this.#asOwner(), row = this.#rows.get(id);
    if (!row || row.order === undefined || row.retryAt === Infinity || this.#going.has(id) || this.#cancelled.has(id)) return false;
    if (row.offered !== null && !row.failure) return false;
    // From here on the pump does not send it. It keeps its place among those behind it, as it may have to stay.
    this.#cancelled.add(id);
    try {
      await store.write((txn) => {
        txn.delete(OUTBOX, /** @type {IDBValidKey} */ (row.order));
        this.#track(txn, row, "cancelled");
      });
    } catch (error) {
      this.#failedToWrite(error);
      throw error;
    } finally {
      this.#cancelled.delete(id);
    }
    this.#settle(row, "cancelled");
    this.#pump();
    return true;
  }

  /**
   * Sends a failed message again, with the same id. After `unknown-outcome` it may arrive twice.
   * @param {string} id
   */
  async retry(id) {
    const store = await this.#asOwner(), row = this.#rows.get(id);
    if (!row?.failure || row.retryAt === Infinity || this.#cancelled.has(id)) throw new LastmileError("not-found", "no such message has failed");
    const { failure: _, ...again } = row;
    const next = { ...again, number: null, offered: null, attempts: 0, retryAt: 0, createdAt: this.#platform.now() };
    // Nothing else is done with it meanwhile.
    row.retryAt = Infinity;
    try {
      await store.write((txn) => {
        txn.put(OUTBOX, next);
        this.#track(txn, next, "queued");
      });
    } catch (error) {
      row.retryAt = 0;
      this.#failedToWrite(error);
      throw error;
    }
    // Whoever has come to own the outbox meanwhile has read what was written.
    if (this.#rows.get(id) !== row) return;
    this.#rows.set(id, next);
    this.#tell("outbox", this.#outgoing(next, "queued"));
    this.#pump();
  }

  // ---- the host's tables

  /** Writes to the host's tables. @param {(writes: Writes) => void} fill @returns {Promise<void>} */
  async write(fill) {
    const writes = new Writes(), store = await this.#ready();
    fill(writes);
    await store.write((txn) => writes.apply(txn), false);
  }

  /**
   * Rows of one of the host's tables, in the order of the key, or of an index.
   * @param {string} table @param {{ index?: string, range?: IDBKeyRange, limit?: number }} [which] @returns {Promise<any[]>}
   */
  async rows(table, { index, range, limit } = {}) {
    const store = await this.#ready();
    return store.read(table, (rows) => (index === undefined ? rows : rows.index(index)).getAll(range, limit));
  }

  // ---- the database, and whose it is

  /** @returns {Promise<Store>} */
  #ready() {
    if (this.#closed) return Promise.reject(new LastmileError("closed", "the client is closed"));
    const { name, version, stores } = this.#options;
    const blocked = () => {
      this.#blocked = true;
      if (this.#state.name === "offline") this.#become({ name: "offline", retryIn: undefined, why: "another tab holds an older version of the database", code: undefined });
    };
    this.#opening ??= Store.open(this.#platform.indexedDB, name, version, stores, blocked).then((db) => {
      this.#blocked = false;
      db.onversionchange = () => this.#end("another tab has a newer version of the database");
      const store = this.#store = new Store(db, (changes) => this.#tell("stored", changes), () => this.#storeIsGone(store));
      // It outlives a database that the browser closed: what was written to that one is still said.
      this.#channel ??= this.#platform.channel(`lastmile.${name}`, (what) => this.#posted(what));
      return store;
    });
    this.#opening.catch(() => {
      this.#opening = undefined;
      this.#blocked = false;
    });
    return this.#opening;
  }

  /** The browser has closed the database under it: it is opened anew. @param {Store} store */
  #storeIsGone(store) {
    if (this.#store !== store || this.#closed) return;
    this.#store = this.#opening = undefined;
    if (this.#owner) this.#lostOwnership("the database was closed");
  }

  /** The database, if the outbox is this tab's or can be: connected or not, one tab has it. @returns {Promise<Store>} */
  async #asOwner() {
    if (!this.#claim && !this.#closed) this.#own(false);
    await this.#claimed;
    const store = await this.#ready();
    if (!this.#owner) throw new LastmileError("another-tab", "another tab holds the outbox");
    return store;
  }

  /** Makes the outbox this tab's, or waits until it can; then connects, if it should. @param {boolean} steal */
  #own(steal) {
    if (this.#claim && !steal) return;
    this.#claim?.abort();
    this.#retryAt = Infinity;
    const { locks } = this.#platform, claim = new AbortController(), name = `lastmile.${this.#options.name}`;
    this.#claim = claim;
    let decided = () => {};
    this.#claimed = new Promise((resolve) => {
      decided = () => resolve(undefined);
    });
    const wait = (/** @type {string} */ why) => this.#become({ name: "offline", retryIn: undefined, why, code: undefined });
    wait("starting");
    const hold = async () => {
      if (this.#claim !== claim || this.#closed) return;
      const until = new Promise((resolve) => {
        this.#release = () => resolve(undefined);
      });
      try {
        await this.#take(claim);
      } catch (error) {
        decided();
        if (this.#claim === claim) this.#notTaken(error);
        return;
      }
      decided();
      if (!this.#owner || this.#claim !== claim) return;
      if (this.#wanted) this.#openInTime();
      else wait("disconnected");
      await until;
    };
    const request = async () => {
      if (!locks) return hold();
      if (steal) return locks.request(name, { steal }, hold);
      const free = await locks.request(name, { ifAvailable: true }, (lock) => (lock ? hold().then(() => true) : false));
      if (free || this.#claim !== claim) return undefined;
      decided();
      wait("another-tab");
      return locks.request(name, { signal: claim.signal }, hold);
    };
    request().catch((error) => {
      decided();
      if (this.#claim !== claim) return;
      // It gave up waiting, or another tab has taken the lock. Otherwise there are no locks here, and the fence has to do.
      if (error?.name === "AbortError" || this.#owner) this.#lostOwnership();
      else hold();
    });
  }

  /** The database does not open, or cannot be read. @param {unknown} error */
  #notTaken(error) {
    this.#claim = undefined;
    if (this.#closed) return;
    const isOutdated = error instanceof LastmileError && /** @type {any} */ (error.cause)?.name === "VersionError";
    if (!this.#wanted || isOutdated) return this.#become({ name: "closed", code: undefined, why: String(error) });
    this.#tell("error", error);
    const delay = this.#backoff.next();
    this.#retryAt = this.#platform.now() + delay;
    this.#become({ name: "offline", retryIn: delay, why: String(error), code: undefined });
    this.#arm();
  }

  /** The outbox is this tab's: raises the fence and reads what is there. @param {AbortController} claim */
  async #take(claim) {
    const store = await this.#ready(), platform = this.#platform;
    // It may have taken its time to open: the outbox of whoever has it by now is left alone.
    if (this.#claim !== claim || this.#closed) return;
    /** @type {Record<string, any>} */
    const meta = {};
    await store.write((txn) => {
      for (const [name, fresh] of /** @type {[string, any][]} */ ([
        ["owner", 0], ["numbers", 1], ["worked", []], ["streams", []],
        ["device", hex(platform.randomBytes(new Uint8Array(16)))], ["stream", hex(platform.randomBytes(new Uint8Array(16)))],
      ])) {
        txn.read(META, name, (value) => {
          meta[name] = name === "owner" ? (value ?? 0) + 1 : value ?? fresh;
          txn.put(META, meta[name], name);
        });
      }
    }, false);
    store.owner = meta.owner;
    store.overtaken = false;
    this.#number = this.#reserved = meta.numbers;
    this.#ladder = this.#newLadder(meta.worked);
    this.#session ??= this.#newSession(meta.stream, meta.device);
    const rows = /** @type {Row[]} */ (await store.read(OUTBOX, (outbox) => outbox.getAll()));
    this.#forgetOutbox();
    for (const row of rows) {
      this.#rows.set(row.id, row);
      if (row.number !== null && !row.failure) this.#pending.set(row.number, row);
    }
    await this.#loadPlaces(store);
    if (this.#claim !== claim || this.#closed) return;
    this.#owner = true;
    this.#unwake = platform.onWake(() => this.#wake());
    rows.forEach((row) => this.#tell("outbox", this.#outgoing(row, row.failure ? "failed" : "queued")));
    // What another tab has sent since they were read, it said to nobody.
    this.#adopt();
  }

  /** @param {Store} store */
  async #loadPlaces(store) {
    const [rows, floors] = [await store.read(INBOX, (inbox) => inbox.getAll()), await store.read(META, (meta) => meta.get("floors"))];
    this.#places.clear();
    this.#floors = new Map(floors ?? []);
    for (const row of rows) this.#places.set(placeKey(row), { place: row, reply: row.reply });
  }

  /** Another tab said something. @param {any} what */
  #posted(what) {
    if (what?.settled === undefined) return void this.#adopt();
    this.#tell("outbox", what.settled);
    this.#settlers.get(what.settled.id)?.settle(what.settled);
    this.#settlers.delete(what.settled.id);
  }

  /** Another tab has sent something: it is this tab's to send. */
  async #adopt() {
    if (!this.#owner) return;
    this.#adoptDue = true;
    /** @type {Row[]} */
    let rows = [];
    try {
      await this.#store?.write((txn) => txn.on(txn.raw.objectStore(OUTBOX).getAll(), (found) => {
        rows = found;
      }));
    } catch (error) {
      return this.#failedToWrite(error, undefined, true);
    }
    this.#adoptDue = false;
    if (!this.#owner) return;
    for (const row of rows) {
      if (row.number === null && !row.failure && !this.#rows.has(row.id) && !this.#cancelled.has(row.id)) this.#rows.set(row.id, row);
    }
    this.#pump();
  }

  #disown() {
    this.#owner = false;
    this.#claim?.abort();
    this.#claim = undefined;
    this.#unwake();
    this.#unwake = () => {};
    this.#release();
  }

  /** Another tab owns the outbox now, or nobody does. @param {string} [why] */
  #lostOwnership(why = "another-tab") {
    if (this.#closed) return;
    this.#disown();
    this.#retryAt = Infinity;
    this.#drop(Code.Done, why);
    // What it knew of the session and the outbox is the other tab's to change, and what came is the other tab's to handle.
    this.#session = undefined;
    this.#forgetOutbox();
    for (const queue of this.#queues.values()) {
      queue.broken = true;
      [queue.working, ...queue.jobs.splice(0)].forEach((job) => job?.abort.abort());
    }
    this.#queues.clear();
    this.#jobs.clear();
    this.#become({ name: "offline", retryIn: undefined, why, code: undefined });
    if (this.#wanted && (this.#platform.locks || why !== "another-tab")) this.#own(false);
  }

  /** The outbox is no longer this page's to know. What was only in its memory nobody will send. */
  #forgetOutbox() {
    this.#unwritten = [];
    const volatile = [...this.#rows.values()].filter(({ message }) => message.durability === "volatile");
    this.#rows.clear();
    this.#pending.clear();
    volatile.forEach((row) => this.#settle(row, "failed", unconfirmed));
  }

  /**
   * What a write threw: the fence is up, the disk is in trouble, or it was what a handler or a tracker wrote.
   * @param {unknown} error @param {() => void} [again]  Tries it once more.
   * @param {boolean} [own]  Nothing of the host's was in it.
   */
  #failedToWrite(error, again, own = false) {
    if (error instanceof LastmileError && error.kind === "another-tab") {
      if (this.#owner && this.#store?.overtaken) this.#lostOwnership();
    } else if (!this.#closed) {
      this.#tell("error", error);
      // What only the host's part of it is to blame for holds nothing else up.
      if (isPassing(error) || own) this.#writeLater(this.#owner ? again : undefined);
      else this.#arm();
    }
  }

  /** Nothing is sent until the disk is tried again, in a second; that does not move, however often it fails until then. @param {() => void} [again] */
  #writeLater(again) {
    if (again) this.#unwritten.push(again);
    this.#pumpAt = Math.min(this.#pumpAt, this.#platform.now() + 1000);
    this.#arm();
  }

  // ---- the connection

  /** The server asked to come back later, wherever it said so. @param {number | undefined} retryAfter */
  #asked(retryAfter) {
    if (retryAfter !== undefined) this.#notBefore = Math.max(this.#notBefore, this.#platform.now() + this.#backoff.behind(retryAfter));
  }

  /** Connects now, or when the server wants to see this client. */
  #openInTime() {
    const now = this.#platform.now();
    if (now >= this.#notBefore) return void this.#open(this.#ladder.current);
    this.#retryAt = this.#notBefore;
    this.#become({ name: "offline", retryIn: this.#retryAt - now, why: "the server asked to come back later", code: undefined });
    this.#arm();
  }

  /** Makes a connection over a rung, while the one that is there goes on. @param {number} rung */
  async #open(rung) {
    this.#retryAt = Infinity;
    const transport = this.#options.transports[rung], platform = this.#platform;
    /** @type {Link} */
    const link = { rung, abort: new AbortController(), wire: undefined };
    this.#attempt = link;
    if (!this.#link) this.#become({ name: "connecting", transport: transport.name });
    let credentials;
    try {
      credentials = await this.#askForCredentials(undefined);
    } catch (error) {
      if (this.#attempt !== link) return;
      this.#attempt = undefined;
      return this.#link ? this.#climbLater() : this.#retry(Code.TransportLost, String(error));
    }
    if (this.#attempt !== link) return;
    if (credentials === undefined) {
      this.#attempt = undefined;
      return this.#link ? this.#climbLater() : this.#become({ name: "needs-credentials", code: undefined });
    }
    const last = rung === this.#options.transports.length - 1, config = { ...LADDER, ...this.#options.ladder };
    const late = () => this.#failed(link, new ConnectError("nothing was heard"), true);
    const patience = platform.setTimeout(late, last ? config.lastOpenTimeout : config.openTimeout);
    link.abort.signal.addEventListener("abort", () => platform.clearTimeout(patience), { once: true });
    try {
      const wire = await transport.open({
        url: this.#url, signal: link.abort.signal, platform,
        frame: (text) => this.#heard(link, text),
        closed: ({ code, retryAfter, text }) => {
          if (this.#link === link) this.#session?.lost(code, text, retryAfter);
          // It broke before hello was said over it.
          else this.#failed(link, new ConnectError(text, code, retryAfter), false);
        },
      });
      if (this.#attempt === link) this.#opened(link, wire, credentials);
      else wire.close(Code.Done, "");
    } catch (error) {
      this.#failed(link, error, false);
    } finally {
      platform.clearTimeout(patience);
    }
  }

  /** @param {Link} link @param {Connection} wire @param {string} credentials */
  #opened(link, wire, credentials) {
    const before = this.#link, session = /** @type {Session} */ (this.#session);
    this.#attempt = undefined;
    this.#link = link;
    link.wire = wire;
    if (before) {
      this.#prove();
      // The old connection says nothing more before the new one says anything.
      session.freeze();
      this.#cut(before, Code.TransportSwitched, "");
      // Until the welcome nothing is known of this one.
      this.#become({ name: "connecting", transport: this.#options.transports[link.rung].name });
    }
    session.hello(credentials);
    this.#arm();
  }

  /** A handshake alone is no success: whoever is let in and sent away at once is to come less and less often. */
  #prove() {
    if (this.#ladder.stands(this.#platform.now())) this.#backoff.reset();
  }

  /** A connection was not made. @param {Link} link @param {unknown} error @param {boolean} silent */
  #failed(link, error, silent) {
    if (this.#attempt !== link) return;
    this.#attempt = undefined;
    link.abort.abort();
    const { code, retryAfter, message } = error instanceof ConnectError ? error : new ConnectError(String(error));
    // Beside a connection that stands it is the transport's fault, whatever was said.
    const blamed = this.#link || recovery(code, this.#malformed) === "blame";
    const other = blamed && this.#ladder.failed(this.#platform.now(), link.rung, silent || this.#link !== undefined);
    if (!this.#link && silent && other) {
      // The wait for an answer was wait enough.
      this.#become({ name: "offline", retryIn: 0, why: message, code });
      return this.#openInTime();
    }
    this.#asked(retryAfter);
    if (!this.#link) return this.#retry(code, message, other);
    this.#climbLater();
  }

  /** An attempt to climb came to nothing: the connection that is there goes on. */
  #climbLater() {
    this.#climbAt = this.#platform.now() + this.#backoff.next();
    this.#arm();
  }

  /** The session's connection ended. @param {{ code: number, retryAfter?: number, text: string }} end */
  #ended({ code, retryAfter, text }) {
    const link = this.#link;
    this.#link = undefined;
    if (link) this.#cut(link, code, text);
    this.#attempt?.abort.abort();
    this.#attempt = undefined;
    this.#leaveAt = Infinity;
    this.#malformed = code === Code.Malformed ? this.#malformed + 1 : 0;
    this.#prove();
    // One that took the place of another, and was not let in, rests.
    const climbed = link !== undefined && link.rung !== this.#ladder.current;
    const blamed = link && (climbed || recovery(code, this.#malformed) === "blame");
    const other = blamed ? this.#ladder.failed(this.#platform.now(), link.rung, climbed) : false;
    this.#ladder.ended();
    this.#asked(retryAfter);
    // What is volatile goes out now or fails.
    for (const row of [...this.#rows.values()]) {
      if (row.message.durability === "volatile" && row.number === null && !this.#going.has(row.id)) this.#settle(row, "failed", unconfirmed);
    }
    if (!this.#wanted || !this.#owner) return;
    const now = this.#platform.now(), again = code === Code.TakenOver && now - this.#takenOverAt > TAKEN_OVER_MS;
    if (code === Code.TakenOver) this.#takenOverAt = now;
    // The hello of a tab that had the outbox before may come late: once that is no reason to give up what is this tab's.
    this.#retry(again ? Code.Done : code, text, other);
  }

  /** What to do next. @param {number} code @param {string} text @param {boolean} [other]  Whether another transport is next. */
  #retry(code, text, other) {
    const now = this.#platform.now();
    switch (recovery(code, this.#malformed)) {
      case "close":
        this.#wanted = false;
        this.#become({ name: "closed", code, why: text });
        break;
      case "credentials":
        this.#become({ name: "needs-credentials", code });
        this.#askAgain(code);
        break;
      default: {
        this.#retryAt = Math.max(now + this.#backoff.next(undefined, other), this.#notBefore);
        this.#become({ name: "offline", retryIn: this.#retryAt - now, why: text, code });
      }
    }
    this.#arm();
  }

  /** @param {number} code */
  async #askAgain(code) {
    const refused = this.#shown;
    this.#given = undefined;
    let credentials;
    try {
      credentials = await this.#askForCredentials(code);
    } catch {
      if (this.#state.name === "needs-credentials") this.#retry(Code.TransportLost, "no credentials could be got");
      return;
    }
    // The same again would be refused again.
    if (this.#state.name !== "needs-credentials" || credentials === undefined || credentials === refused) return;
    this.#given = credentials;
    this.#retryAt = Math.max(this.#platform.now() + this.#backoff.next(), this.#notBefore);
    this.#arm();
  }

  /** @param {number | undefined} refused @returns {Promise<string | undefined>} */
  async #askForCredentials(refused) {
    const asked = this.#given ?? this.#options.credentials(refused);
    const given = (isPromise(asked) ? await within(this.#platform, CREDENTIALS_MS, asked, "no credentials came") : asked) ?? undefined;
    if (given !== undefined && (typeof given !== "string" || bytesOf(given) > MAX_CREDENTIALS_BYTES)) {
      throw new LastmileError("invalid", `credentials: a text of at most ${MAX_CREDENTIALS_BYTES} bytes`);
    }
    if (refused === undefined) this.#shown = given;
    return given;
  }

  /** @param {Link} link @param {string} text */
  #heard(link, text) {
    if (this.#link !== link) return;
    this.#session?.receive(text);
    const { state } = this;
    if (state.name === "online" && this.#session && (state.quality.rtt !== this.#session.quality.report.rtt)) this.#online();
    this.#arm();
  }

  /** @param {number} code @param {string} text */
  #drop(code, text) {
    this.#attempt?.abort.abort();
    this.#attempt = undefined;
    if (this.#link) this.#session?.end(code, text);
  }

  /** @param {Link} link @param {number} code @param {string} text */
  #cut(link, code, text) {
    link.wire?.close(code, text);
    link.abort.abort();
  }

  /** The network or the page is back: whoever waits need not, unless the server asked for it. */
  #wake() {
    if (this.#retryAt < Infinity && !this.#link) this.#retryAt = Math.max(this.#platform.now(), this.#notBefore);
    this.#tick();
  }

  #tick() {
    if (this.#closed) return;
    const now = this.#platform.now();
    if (!this.#owner) {
      if (now >= this.#retryAt) this.#own(false);
      return;
    }
    this.#session?.tick();
    if (now >= this.#floorAt) this.#keepFloors();
    if (now >= this.#leaveAt || (this.#leaveAt < Infinity && this.#isQuiet())) this.#leave();
    if (!this.#attempt && !this.#link && now >= this.#retryAt) this.#open(this.#ladder.current);
    if (!this.#attempt && this.#session && now >= this.#climbsAt()) {
      this.#climbAt = now + 1000;
      const better = this.#ladder.better(now, this.#session.quality.grade);
      if (better !== undefined) this.#open(better);
    }
    if (now >= this.#pumpAt) {
      this.#pumpAt = Infinity;
      if (this.#adoptDue) this.#adopt();
      this.#unwritten.splice(0).forEach((run) => run());
    }
    this.#pump();
  }

  #arm() {
    const platform = this.#platform, now = platform.now();
    platform.clearTimeout(this.#timer);
    if (this.#closed) return;
    let at = this.#owner ? Math.min(this.#session?.timeout ?? Infinity, this.#floorAt, this.#leaveAt, this.#pumpAt) : Infinity;
    const climbAt = Math.max(this.#ladder.timeout, this.#climbsAt());
    if (!this.#attempt) at = Math.min(at, this.#link ? climbAt : this.#retryAt);
    for (const row of this.#pumpAt < Infinity || !this.#owner ? [] : this.#rows.values()) {
      if (row.retryAt > now) at = Math.min(at, row.retryAt);
      if (!this.#cancelled.has(row.id)) at = Math.min(at, uselessAt(row));
    }
    if (at < Infinity) this.#timer = platform.setTimeout(() => this.#tick(), Math.min(Math.max(at - now, 0), 2 ** 31 - 1));
  }

  /** When it looks for a better rung: from an open connection that it is not asked to leave, or there is nothing to wake for. */
  #climbsAt() {
    return this.#session?.phase === "up" && this.#leaveAt === Infinity ? Math.max(this.#climbAt, this.#notBefore) : Infinity;
  }

  /** @param {string} stream @param {string} device */
  #newSession(stream, device) {
    const { user, horizon } = this.#options;
    return new Session({
      now: this.#platform.now,
      send: (frame) => this.#link?.wire?.send(encode(frame)),
      opened: (welcome) => this.#welcomed(welcome),
      ended: (end) => this.#ended(end),
      item: (epoch, number, from, item) => this.#item(epoch, number, from, item),
      withdrawn: (epoch, number) => this.#withdrawn(epoch, number),
      floor: (lane, seq) => this.#floor(lane, seq),
      gap: (gap) => this.#tell("gap", gap),
      receipt: (number, refused) => this.#receipt(number, refused),
      goingAway: ({ retry_after_ms }) => this.#goAway(retry_after_ms),
      renew: () => this.#renew(),
    }, { stream, device, user, horizon });
  }

  /** @param {Frame} welcome */
  #welcomed({ stream, resumed, published }) {
    const now = this.#platform.now();
    const { rung } = /** @type {Link} */ (this.#link), memory = this.#ladder.memory;
    this.#malformed = 0;
    this.#retryAt = Infinity;
    this.#ladder.connected(now, rung);
    /** @type {string[]} */
    let forgotten = [];
    this.#store?.write((txn) => {
      txn.put(META, [...new Set([...memory, rung])], "worked");
      txn.read(META, "streams", (/** @type {string[]} */ streams) => {
        if (streams.at(-1) === stream) return;
        const known = [...streams.filter((each) => each !== stream), stream];
        txn.put(META, known.slice(-MAX_STREAMS), "streams");
        // Places are forgotten here and below their floors, and nowhere else.
        forgotten = known.slice(0, -MAX_STREAMS);
        for (const each of forgotten) txn.delete(INBOX, IDBKeyRange.bound([each], [each, []]));
      });
    }).then(() => {
      for (const [key, { place }] of this.#places) if (forgotten.includes(place.stream)) this.#places.delete(key);
    }, (error) => this.#failedToWrite(error));
    // A new life that was not looked at yet is still one when it is resumed.
    this.#resync = { due: true, fresh: !resumed || (this.#resync.due && this.#resync.fresh), published };
    this.#online();
    this.#pump();
  }

  #online() {
    const session = this.#session, link = this.#link;
    if (session?.phase !== "up" || !link) return;
    this.#become({ name: "online", transport: this.#options.transports[link.rung].name, quality: session.quality.report });
  }

  async #renew() {
    const link = this.#link;
    if (this.#renewing === link) return;
    this.#renewing = link;
    this.#given = undefined;
    try {
      const credentials = await this.#askForCredentials(undefined);
      if (credentials !== undefined && this.#link === link) this.#session?.renew(credentials);
    } catch (error) {
      // They are asked for again; in the end the server will say that they have expired.
      this.#tell("error", error);
    } finally {
      if (this.#renewing === link) this.#renewing = undefined;
    }
  }

  /** The server asks to come back later: ends what is under way, then leaves. @param {number | undefined} retryAfter */
  #goAway(retryAfter) {
    this.#asked(retryAfter);
    // Whoever is asked to go does not come over another transport.
    this.#attempt?.abort.abort();
    this.#attempt = undefined;
    this.#leaveAt = this.#platform.now() + GO_AWAY_MS;
    if (this.#isQuiet()) this.#leave();
  }

  #isQuiet() {
    return this.#jobs.size === 0 && this.#pending.size === 0;
  }

  #leave() {
    this.#leaveAt = Infinity;
    this.#session?.end(Code.Done, "as the server asked");
  }

  // ---- publishing

  /** Sends what can be sent. There is one of it at a time, so that numbers go out in their order. */
  async #pump() {
    this.#pumpAgain = true;
    if (this.#pumping) return;
    this.#pumping = true;
    try {
      while (this.#pumpAgain) {
        this.#pumpAgain = false;
        await this.#pumpOnce();
      }
    } catch (error) {
      this.#failedToWrite(error, undefined, true);
    } finally {
      this.#pumping = false;
      this.#arm();
    }
  }

  async #pumpOnce() {
    const session = this.#session, store = this.#store;
    if (!session || !store || !this.#owner || this.#pumpAt < Infinity) return;
    await this.#expire();
    if (session.phase !== "up") return;
    if (this.#resync.due) return this.#synchronise(session);
    if (!session.canPublish || this.#leaveAt < Infinity) return;
    const rows = this.#pick(), now = this.#platform.now();
    if (rows.length === 0) return;
    const stored = rows.filter((row) => row.order !== undefined);
    const first = this.#number, behind = first + rows.length;
    const next = rows.map((row, index) => ({ ...row, ...this.#fixed(row, now), number: first + index }));
    // On disk before it is on the wire: after a reload it must be known what may have been accepted.
    if (stored.length > 0 || behind > this.#reserved) {
      const until = Math.max(stored.length < rows.length ? behind + NUMBER_BLOCK : behind, this.#reserved);
      this.#going = new Set(rows.map(({ id }) => id));
      try {
        await store.write((txn) => {
          txn.put(META, until, "numbers");
          next.forEach((row) => row.order !== undefined && txn.put(OUTBOX, row));
        });
      } finally {
        this.#going.clear();
      }
      this.#reserved = until;
      // Another tab's by now, which reads what was written.
      if (!this.#owner || this.#session !== session) return;
    }
    this.#number = behind;
    for (const row of next) {
      this.#rows.set(row.id, row);
      this.#pending.set(/** @type {number} */ (row.number), row);
    }
    this.#pumpAgain = true;
    // A connection that came meanwhile, or comes, sends all that is pending.
    if (!this.#resync.due && session.phase === "up") next.forEach((row) => this.#publish(session, row));
  }

  /** What stays the same when a message is repeated: its time to live is fixed when it is first sent. @param {Row} row @param {number} now */
  #fixed(row, now) {
    if (row.offered !== null) return {};
    // Never more than all of it, should the clock have been set back since.
    const left = row.ttl === undefined ? undefined : Math.min(Math.max(1, row.createdAt + row.ttl - now), Math.max(1, row.ttl));
    return { offered: now, message: { ...row.message, ttl_ms: left } };
  }

  /** @param {Session} session @param {Row} row */
  #publish(session, row) {
    session.publish(/** @type {number} */ (row.number), row.message);
  }

  /** What goes out now: by priority, then by age; of each recipient, priority and key one at a time. */
  #pick() {
    const now = this.#platform.now(), session = /** @type {Session} */ (this.#session);
    const busy = new Set([...this.#pending.values()].map(publishKey));
    let room = MAX_PUBLISHES - this.#pending.size;
    /** @type {Row[]} */
    const picked = [];
    for (const lane of LANES) {
      for (const row of this.#rows.values()) {
        const { message } = row, key = publishKey(row);
        if (message.priority !== lane || row.failure || this.#pending.has(row.number ?? 0)) continue;
        if (busy.has(key)) continue;
        // Also if it must wait: those behind it must not overtake it.
        busy.add(key);
        if (row.retryAt > now || this.#cancelled.has(row.id) || (lane !== "critical" && room <= PUBLISH_RESERVE) || room <= 0) continue;
        if (this.#isForgotten(row, now)) {
          this.#fail(row, unknown);
          continue;
        }
        if (row.size > session.maxFrame) {
          this.#fail(row, { kind: "too-large", code: undefined, text: "it is larger than the server takes" });
          continue;
        }
        room -= 1;
        picked.push(row);
      }
    }
    return picked;
  }

  /** Messages that are of no use any more, and were never sent. */
  async #expire() {
    const now = this.#platform.now();
    for (const row of [...this.#rows.values()].filter((row) => uselessAt(row) <= now && !this.#cancelled.has(row.id))) {
      await this.#fail(row, { kind: "expired", code: undefined, text: "it was not sent in time" });
    }
  }

  /**
   * Whether it may have been accepted so long ago that its id may be forgotten: it could be accepted twice. When the clock was
   * set back since, nobody knows how long ago.
   * @param {Row} row @param {number} now
   */
  #isForgotten(row, now) {
    const age = now - (row.offered ?? now);
    return age > this.#options.horizon || age < -CLOCK_SLACK_MS;
  }

  /**
   * After a handshake: what has no receipt is sent again. In the same life, under the same numbers. In a new one nobody can
   * say any more how the old numbers were decided: under new ones, and the server recognises the ids.
   * @param {Session} session
   */
  async #synchronise(session) {
    const { fresh, published } = this.#resync, now = this.#platform.now();
    this.#resync.due = false;
    this.#pumpAgain = true;
    const rows = [...this.#pending.values()].sort((a, b) => Number(a.number) - Number(b.number));
    if (!fresh) return rows.forEach((row) => this.#publish(session, row));
    this.#number = Math.max(this.#number, published + 1);
    this.#pending.clear();
    for (const row of rows) {
      if (row.order === undefined) this.#settle(row, "failed", unconfirmed);
      else if (this.#isForgotten(row, now)) await this.#fail(row, unknown);
      else row.number = null;
    }
  }

  /** What became of a publish. @param {number} number @param {Frame | undefined} refused */
  #receipt(number, refused) {
    const row = this.#pending.get(number);
    if (!row) return;
    this.#pending.delete(number);
    if (!refused) return this.#accepted(row);
    const { code, text, retry_after_ms } = refused;
    if (code >= 4450 || row.order === undefined) {
      this.#fail(row, { kind: row.order === undefined && code < 4450 ? "unconfirmed" : "rejected", code, text });
      return;
    }
    // Not now. It is known that it was not accepted, unless it failed on the way: then nobody knows.
    const delay = retry_after_ms ?? Math.min(60_000, 1000 * 2 ** row.attempts);
    const offered = code === Code.Failed ? row.offered : null;
    const next = { ...row, number: null, offered, attempts: row.attempts + 1, retryAt: this.#platform.now() + delay };
    this.#rows.set(row.id, next);
    this.#store?.write((txn) => txn.put(OUTBOX, { ...next, retryAt: 0 })).catch((error) => this.#failedToWrite(error));
    this.#pump();
  }

  /** @param {Row} row */
  #accepted(row) {
    this.#rows.delete(row.id);
    this.#pump();
    if (row.order === undefined) return this.#settle(row, "accepted");
    this.#store?.write((txn) => {
      txn.delete(OUTBOX, /** @type {IDBValidKey} */ (row.order));
      this.#track(txn, row, "accepted");
    }).then(() => this.#settle(row, "accepted"), (error) => {
      // It stays in the outbox with its number: another page asks about it again.
      this.#failedToWrite(error, () => this.#accepted(row));
    });
  }

  /** @param {Row} row @param {Failure} failure */
  async #fail(row, failure) {
    // By now another tab may have the outbox, or the host has taken it back or sent it again.
    if (this.#rows.get(row.id) !== row) return;
    // While one of these is being written it is not known yet.
    if (this.#cancelled.has(row.id) || row.retryAt === Infinity) return this.#writeLater(() => this.#fail(row, failure));
    const next = { ...row, failure, retryAt: 0 };
    this.#rows.set(row.id, next);
    this.#unkept.add(next);
    this.#pump();
    if (row.order === undefined) return this.#settle(row, "failed", failure);
    try {
      await this.#store?.write((txn) => {
        txn.put(OUTBOX, next);
        this.#track(txn, next, "failed");
      });
      this.#unkept.delete(next);
      this.#settle(next, "failed", failure);
    } catch (error) {
      this.#failedToWrite(error, () => this.#fail(next, failure));
    }
  }

  /** @param {Txn} txn @param {Row} row @param {Status} status */
  #track(txn, row, status) {
    const outgoing = this.#outgoing(row, status), writes = new Writes();
    for (const pattern of patterns(row.message.event)) {
      this.#trackers.get(pattern)?.forEach((tracker) => tracker(outgoing, writes));
    }
    writes.apply(txn);
  }

  /** Says what became of a message for good. @param {Row} row @param {Status} status @param {Failure} [failure] */
  #settle(row, status, failure) {
    if (row.order === undefined || status !== "failed") this.#rows.delete(row.id);
    if (row.order === undefined && row.number !== null) this.#pending.delete(row.number);
    const outgoing = this.#outgoing(failure ? { ...row, failure } : row, status);
    this.#tell("outbox", outgoing);
    this.#settlers.get(row.id)?.settle(outgoing);
    this.#settlers.delete(row.id);
    // The tab that sent it may be another one.
    if (row.order !== undefined) this.#channel?.post({ settled: outgoing });
  }

  /** @param {Row} row @param {Status} status @returns {Outgoing} */
  #outgoing({ id, message, createdAt, offered, failure }, status) {
    const { to, event, payload, priority, ordering_key } = message;
    return { id, to, event, payload, priority, orderingKey: ordering_key, createdAt, status, offered: offered !== null, failure };
  }

  // ---- receiving

  /** @param {string} epoch @param {number} number @param {string} stream @param {Wire} item */
  #item(epoch, number, stream, item) {
    // A volatile message has no place: it comes once or never.
    const place = item.durability === "volatile" ? undefined : { stream, lane: item.priority, seq: sortable(item.seq) };
    if (place) {
      const key = placeKey(place), known = this.#places.get(key), working = this.#jobs.get(key);
      if (working) {
        // It came again, under another number, while its handler is at work.
        Object.assign(working, { epoch, number });
        return;
      }
      if (known) {
        const { reply } = known;
        this.#session?.decide(epoch, number, reply === undefined ? { kind: "ack" } : { kind: "reply", payload: reply });
        return;
      }
      if (place.seq <= (this.#floors.get(laneKey(place)) ?? "")) {
        // Its sender has ended it: nobody knows any more whether it was handled, and to say so might be untrue.
        this.#session?.decide(epoch, number, { kind: "nack", code: Code.Rejected, text: "its sender has ended it" });
        return;
      }
    }
    /** @type {Job} */
    const job = { message: fromWire(item), item, epoch, number, place, abort: new AbortController() };
    if (place) this.#jobs.set(placeKey(place), job);
    const order = orderOf(item), queue = this.#queues.get(order) ?? { jobs: [], busy: false, writing: 0, broken: false };
    this.#queues.set(order, queue);
    queue.jobs.push(job);
    if (!queue.busy) this.#work(order, queue);
  }

  /** A message is no longer wanted: it is not begun with, or its handler is told. @param {string} epoch @param {number} number */
  #withdrawn(epoch, number) {
    for (const [order, queue] of this.#queues) {
      const at = queue.jobs.findIndex((job) => job.epoch === epoch && job.number === number);
      if (at >= 0) return this.#decide(order, queue, queue.jobs.splice(at, 1)[0], withdrawn);
      if (queue.working?.epoch === epoch && queue.working.number === number) return queue.working.abort.abort();
    }
  }

  /**
   * Handles the messages of one lane and key, one after the other. What they write is written in the same order, and the next
   * handler need not wait for it.
   * @param {string} order @param {Queue} queue
   */
  async #work(order, queue) {
    queue.busy = true;
    while (queue.jobs.length > 0) {
      const job = /** @type {Job} */ (queue.jobs.shift());
      queue.working = job;
      const done = queue.broken ? behind : await this.#handle(job);
      queue.working = undefined;
      if ("kind" in done || queue.broken) this.#decide(order, queue, job, "kind" in done ? done : behind);
      else this.#apply(order, queue, job, done);
    }
    queue.busy = false;
    this.#rest(order, queue);
  }

  /** @param {Job} job @returns {Promise<Verdict | { writes: Writes, reply: Payload | undefined }>} */
  async #handle({ message, item, abort }) {
    const { signal } = abort;
    const pattern = patterns(item.event).find((each) => this.#handlers.has(each));
    const handler = pattern === undefined ? undefined : this.#handlers.get(pattern);
    if (!handler) return { kind: "nack", code: Code.Failed, text: "nobody handles this event here" };
    const writes = new Writes();
    try {
      const answer = await this.#inTime(handler(message, writes, signal));
      return { writes, reply: item.reply_within_ms === undefined ? undefined : answerOf(answer) };
    } catch (error) {
      if (signal.aborted) return withdrawn;
      // Should it still be at work, as its time is up: what it does is for nothing.
      abort.abort();
      return this.#refusal(error);
    }
  }

  /** The effect and the place in one transaction, then the acknowledgement. @param {string} order @param {Queue} queue @param {Job} job @param {{ writes: Writes, reply: Payload | undefined }} done */
  async #apply(order, queue, job, { writes, reply }) {
    const { place } = job, store = /** @type {Store} */ (this.#store);
    /** @type {Verdict} */
    let verdict = reply === undefined ? { kind: "ack" } : { kind: "reply", payload: reply };
    queue.writing += 1;
    try {
      if (place || !writes.isEmpty) {
        await store.write((txn) => {
          // One before it was not written: it must not take effect before that one.
          if (queue.broken) throw new Busy(0);
          writes.apply(txn);
          if (place) txn.add(INBOX, { ...place, reply });
        });
      }
      if (place) this.#places.set(placeKey(place), { place, reply });
    } catch (error) {
      const text = "it could not be stored";
      if (error instanceof Busy) verdict = behind;
      // Not the message's fault: it must not use its attempts up.
      else if (isPassing(error)) verdict = { kind: "nack", code: Code.Busy, delay: STORAGE_DELAY_MS, text };
      else verdict = { kind: "nack", code: Code.Failed, text };
      if (!(error instanceof Busy)) this.#failedToWrite(error);
    }
    queue.writing -= 1;
    this.#decide(order, queue, job, verdict);
  }

  /** @param {string} order @param {Queue} queue @param {Job} job @param {Verdict} verdict */
  #decide(order, queue, job, verdict) {
    // What waits behind it must not be taken before it.
    if (verdict.kind === "nack" && verdict.code < 4450) queue.broken = true;
    // Since another tab had the outbox, it may have come anew.
    if (job.place && this.#jobs.get(placeKey(job.place)) === job) this.#jobs.delete(placeKey(job.place));
    this.#session?.decide(job.epoch, job.number, verdict);
    this.#rest(order, queue);
  }

  /** @param {string} order @param {Queue} queue */
  #rest(order, queue) {
    if (!queue.busy && queue.writing === 0 && queue.jobs.length === 0 && this.#queues.get(order) === queue) this.#queues.delete(order);
    if (this.#leaveAt < Infinity) this.#tick();
    else this.#arm();
  }

  /** @param {unknown} error @returns {Verdict} */
  #refusal(error) {
    if (error instanceof Busy) return { kind: "nack", code: Code.Busy, delay: Math.min(Math.max(0, Math.ceil(error.delay) || 0), MAX_DELAY_MS) };
    if (error instanceof Reject) return { kind: "nack", code: Code.Rejected, text: error.message };
    this.#tell("error", error);
    return { kind: "nack", code: Code.Failed, text: "the handler failed" };
  }

  /** @template T @param {T | Promise<T>} result @returns {Promise<T>} */
  #inTime(result) {
    if (!isPromise(result)) return Promise.resolve(result);
    const ms = this.#options.handlerTimeout;
    return within(this.#platform, ms, result, `a handler took longer than ${ms} ms`);
  }

  /** Everything up to there has ended at the server, and never comes again. @param {string} lane @param {string} wide */
  #floor(lane, wide) {
    const place = { stream: /** @type {Session} */ (this.#session).peerStream, lane, seq: sortable(wide) }, key = laneKey(place);
    if (place.seq <= (this.#floors.get(key) ?? "")) return;
    this.#floors.set(key, place.seq);
    this.#risen.set(key, place);
    this.#floorAt = Math.min(this.#floorAt, this.#platform.now() + FLOOR_DELAY_MS);
  }

  /** Forgets the places below the floors. */
  #keepFloors() {
    this.#floorAt = Infinity;
    const risen = [...this.#risen.values()];
    this.#risen.clear();
    for (const [key, { place }] of this.#places) {
      if (place.seq <= (this.#floors.get(laneKey(place)) ?? "")) this.#places.delete(key);
    }
    const streams = new Set([...this.#places.values()].map(({ place }) => place.stream).concat(this.#session?.peerStream ?? ""));
    for (const key of this.#floors.keys()) if (!streams.has(key.split(" ")[0])) this.#floors.delete(key);
    this.#store?.write((txn) => {
      txn.put(META, [...this.#floors], "floors");
      for (const { stream, lane, seq } of risen) {
        txn.delete(INBOX, IDBKeyRange.bound([stream, lane, ""], [stream, lane, seq]));
      }
    }).catch((error) => this.#failedToWrite(error));
  }

  // ---- small things

  /** @param {number[]} worked */
  #newLadder(worked) {
    return new Ladder({ ...LADDER, ...this.#options.ladder }, this.#options.transports.length, worked);
  }

  /** A version 7 UUID: the time, and what nobody can guess. */
  #newId() {
    const bytes = this.#platform.randomBytes(new Uint8Array(16)), now = this.#platform.now();
    for (let at = 0; at < 6; at += 1) bytes[at] = Math.floor(now / 2 ** (8 * (5 - at))) % 256;
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    return hex(bytes);
  }

  /** @param {State} state */
  #become(state) {
    if (this.#closed && state.name !== "closed") return;
    this.#state = state;
    this.#tell("state", state);
  }

  /** @param {string} what @param {any} value */
  #tell(what, value) {
    for (const run of this.#watchers.get(what) ?? []) {
      try {
        run(value);
      } catch (error) {
        if (what !== "error") this.#tell("error", error);
      }
    }
  }
}

/** @type {Verdict} What is said of those behind one that was not taken. */
const behind = Object.freeze({ kind: "nack", code: Code.Busy, delay: 0 });
/** @type {Verdict} */
const withdrawn = Object.freeze({ kind: "nack", code: Code.Withdrawn });
/** @type {Failure} */
const unconfirmed = Object.freeze({ kind: "unconfirmed", code: undefined, text: "nobody heard what became of it" });

/** @type {Failure} */
const unknown = Object.freeze({ kind: "unknown-outcome", code: undefined, text: "it may have been accepted: too much time has passed to repeat it safely" });

/** Whether the same write may go through later: it was the disk, or another tab. @param {unknown} error */
function isPassing(error) {
  if (!(error instanceof LastmileError)) return false;
  const names = ["QuotaExceededError", "InvalidStateError", "UnknownError", "TimeoutError"];
  return error.kind === "another-tab" || (error.kind === "storage" && names.includes(/** @type {any} */ (error.cause)?.name));
}

/** @template T @param {Map<string, Set<T>>} all @param {string} name @param {T} one @returns {() => void} */
function listen(all, name, one) {
  const set = all.get(name) ?? new Set();
  all.set(name, set.add(one));
  return () => {
    set.delete(one);
    if (set.size === 0 && all.get(name) === set) all.delete(name);
  };
}

/** The patterns that an event matches, the most exact first. @param {string} event */
function patterns(event) {
  const segments = event.split(".");
  const prefixes = segments.map((_, index) => `${segments.slice(0, segments.length - index - 1).join(".")}.*`);
  return [event, ...prefixes.slice(0, -1), "*"];
}

/** When a message that was never sent is of no use any more. @param {Row} row */
const uselessAt = ({ ttl, createdAt, offered, failure, order }) =>
  ttl === undefined || offered !== null || failure || order === undefined ? Infinity : createdAt + ttl;
/** @param {Row} row */
const publishKey = ({ message }) => `${message.to} ${orderOf(message)}`;
/** @param {{ stream: string, lane: string }} place */
const laneKey = ({ stream, lane }) => `${stream} ${lane}`;
/** @param {{ stream: string, lane: string, seq: string }} place */
const placeKey = (place) => `${laneKey(place)} ${place.seq}`;

/** Whether it is one, or what a library or another window takes for one. @param {any} value @returns {value is PromiseLike<any>} */
const isPromise = (value) => typeof value?.then === "function";

/** What a promise gives, if it does in time. @template T @param {Platform} platform @param {number} ms @param {PromiseLike<T>} result @param {string} text @returns {Promise<T>} */
function within(platform, ms, result, text) {
  return new Promise((resolve, reject) => {
    const timer = platform.setTimeout(() => reject(new Error(text)), ms);
    Promise.resolve(result).finally(() => platform.clearTimeout(timer)).then(resolve, reject);
  });
}

/** What a handler returned, as an answer. @param {any} answer @returns {Payload | undefined} */
function answerOf(answer) {
  if (answer === undefined) return undefined;
  const payload = payloadOf(answer) ?? JSON.stringify(answer);
  // A call is nothing, and bytes of other sizes are no list of numbers.
  const isNone = payload === undefined || (ArrayBuffer.isView(answer) ? !(answer instanceof Uint8Array) : answer instanceof ArrayBuffer);
  if (isNone) throw new TypeError("what the handler returned is no answer");
  const size = payload instanceof Uint8Array ? payload.length : bytesOf(JSON.stringify(payload));
  if (size > MAX_REPLY_BYTES) throw new Reject(`an answer of ${size} bytes`);
  return payload;
}

/** @returns {Platform} */
function browser() {
  return {
    now: steadyClock(() => Date.now(), () => performance.now()),
    random: () => Math.random(),
    randomBytes: (bytes) => crypto.getRandomValues(/** @type {Uint8Array<ArrayBuffer>} */ (bytes)),
    setTimeout: (run, ms) => setTimeout(run, ms),
    clearTimeout: (timer) => clearTimeout(timer),
    indexedDB: globalThis.indexedDB,
    locks: globalThis.navigator?.locks,
    channel(name, heard) {
      if (!globalThis.BroadcastChannel) return { post: () => {}, close: () => {} };
      const channel = new BroadcastChannel(name);
      channel.onmessage = ({ data }) => heard(data);
      return { post: (what) => channel.postMessage(what), close: () => channel.close() };
    },
    onWake(wake) {
      const visible = () => document.visibilityState === "visible" && wake();
      const windows = /** @type {const} */ (["online", "pageshow"]);
      windows.forEach((name) => window.addEventListener(name, wake));
      document.addEventListener("visibilitychange", visible);
      return () => {
        windows.forEach((name) => window.removeEventListener(name, wake));
        document.removeEventListener("visibilitychange", visible);
      };
    },
  };
}
