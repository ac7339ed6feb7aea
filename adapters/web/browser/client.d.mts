/**
 * Reads a frame. Unknown fields are dropped; bytes are strings, or `Uint8Array`s where they are no text; payloads are
 * strings, `Uint8Array`s, or what their JSON says.
 * @param {string} text
 * @param {number} [maxFrame]
 * @returns {Frame}
 */
export function decode(text: string, maxFrame?: number): Frame;
/**
 * Writes a frame. Fields that are `undefined` are left out.
 * @param {Frame} frame
 * @returns {string}
 */
export function encode(frame: Frame): string;
/**
 * A clock that does not go back when the wall's is set back: it goes on from where it was, by the other one. When the wall's
 * jumps forward it follows, as that is what it also does when the machine slept, which the other one need not count.
 * @param {() => number} wall  Milliseconds since 1970. @param {() => number} steady  Milliseconds since any time.
 */
export function steadyClock(wall: () => number, steady: () => number): () => number;
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
export function recovery(code: number, malformed?: number): "blame" | "back-off" | "credentials" | "close";
/**
 * Reads Server-Sent Events until their stream ends.
 * @param {ReadableStreamDefaultReader<string>} reader @param {(name: string, data: string) => void} event
 */
export function readEvents(reader: ReadableStreamDefaultReader<string>, event: (name: string, data: string) => void): Promise<void>;
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
export const Code: Readonly<{
    Done: 4000;
    HeartbeatTimeout: 4001;
    HandshakeTimeout: 4002;
    TransportLost: 4003;
    TransportSwitched: 4005;
    OutOfOrder: 4050;
    AckOfUnsent: 4051;
    WindowExceeded: 4052;
    Overloaded: 4100;
    RateLimited: 4101;
    CredentialsNeeded: 4200;
    CredentialsRefused: 4201;
    UnsupportedVersion: 4300;
    FrameTooLarge: 4302;
    Malformed: 4303;
    UnexpectedFrame: 4304;
    TakenOver: 4307;
    Failed: 4400;
    Busy: 4401;
    Rejected: 4450;
    Invalid: 4453;
    Withdrawn: 4455;
}>;
/** Something that a call cannot do; nothing was changed. */
export class LastmileError extends Error {
    /**
     * @param {"invalid" | "outbox-full" | "closed" | "another-tab" | "storage" | "not-found"} kind
     * @param {string} text
     * @param {unknown} [cause]
     */
    constructor(kind: "invalid" | "outbox-full" | "closed" | "another-tab" | "storage" | "not-found", text: string, cause?: unknown);
    /** What kind of error; the same few words for ever. */
    kind: "closed" | "invalid" | "outbox-full" | "another-tab" | "storage" | "not-found";
    /** Whether the same call may succeed later. */
    get retryable(): boolean;
}
/** Thrown by a handler: the message is refused for good, and its sender hears so. */
export class Reject extends Error {
}
/** Thrown by a handler: not now. The server offers the message again after `delay` milliseconds; no attempt is spent. */
export class Busy extends Error {
    /** @param {number} delay */
    constructor(delay: number);
    delay: number;
}
/** Why a transport could not connect. */
export class ConnectError extends Error {
    /**
     * @param {string} text
     * @param {number} [code]
     * @param {number} [retryAfter]  Milliseconds.
     */
    constructor(text: string, code?: number, retryAfter?: number);
    code: number;
    retryAfter: number | undefined;
    /** Whether the same request may get another answer. */
    passing: boolean;
}
/** Bytes that are no frame. */
export class DecodeError extends Error {
    /**
     * @param {string} text
     * @param {number} [code]
     */
    constructor(text: string, code?: number);
    code: number;
}
/** How long to wait before connecting again: exponential with full jitter, and no less than the server asked for. */
export class Backoff {
    /** @param {typeof BACKOFF} config @param {() => number} random */
    constructor(config: typeof BACKOFF, random: () => number);
    config: {
        floor: number;
        cap: number;
    };
    random: () => number;
    failures: number;
    /** @param {number} [retryAfter] @param {boolean} [other]  Whether something else is tried next, which did not fail yet. */
    next(retryAfter?: number, other?: boolean): number;
    /** When to come for whoever was asked to come no earlier. It counts no failure. @param {number} retryAfter */
    behind(retryAfter: number): number;
    reset(): void;
    #private;
}
/**
 * How good a connection is: the round-trip time that the server has measured, its variation, losses; a score from 0 to 100 and a grade
 * that does not flap. The weights are those of the Rust end's `session::Quality`.
 */
export class Quality {
    /** @type {number | undefined} Milliseconds. */
    rtt: number | undefined;
    variation: number;
    loss: number;
    /** @type {"good" | "fair" | "poor"} */
    grade: "good" | "fair" | "poor";
    /** The server, which measures round trips, says how long they take: smoothed already. @param {number} ms */
    told(ms: number): void;
    /** A connection broke, or nobody answered. */
    lost(): void;
    get score(): number;
    /** @returns {QualityReport} */
    get report(): QualityReport;
    #private;
}
/** @typedef {{ failures: number, left: number, restsUntil: number, worked: boolean }} Rung */
/**
 * Which transport to use: the best that works here. A rung that fails twice in a row, or once without any answer, rests, for
 * twice as long each time; the next one down is used. While a lower one holds, better ones are tried when they have rested.
 * When every rung has failed since one worked, it was not the rungs' fault: all start anew.
 */
export class Ladder {
    /** @param {typeof LADDER} config @param {number} rungs @param {number[]} worked  What worked here before. */
    constructor(config: typeof LADDER, rungs: number, worked: number[]);
    config: {
        failures: number;
        coolDown: number;
        maxCoolDown: number;
        stable: number;
        openTimeout: number;
        lastOpenTimeout: number;
    };
    /** @type {Rung[]} */
    rungs: Rung[];
    /** The rung that is connected, or is to be tried. */
    current: number;
    /** @type {number | undefined} Since when the connection stands. */
    since: number | undefined;
    /** @type {Set<number>} Rungs that came to rest since one last worked. */
    exhausted: Set<number>;
    /** The rungs that worked. */
    get memory(): number[];
    /** A connection stands over this rung. @param {number} now @param {number} rung */
    connected(now: number, rung: number): void;
    /** The connection ended, and its rung is not to blame. */
    ended(): void;
    /**
     * A rung could not connect, or lost its connection; `silent` if nothing was heard at all.
     * @param {number} now @param {number} index @param {boolean} [silent] @returns {boolean}  Whether there is another one to try, which did not fail yet.
     */
    failed(now: number, index: number, silent?: boolean): boolean;
    /** Another rung that should be tried while this one still stands. @param {number} now @param {"good" | "fair" | "poor"} grade */
    better(now: number, grade: "good" | "fair" | "poor"): number | undefined;
    /** When a better rung has rested, for {@link Ladder.better}. */
    get timeout(): number;
    /** Whether a connection has stood for long enough to be a success. @param {number} now */
    stands(now: number): boolean;
    #private;
}
/** @type {Transport} One frame a message. */
export const webSocket: Transport;
/** @type {Transport} Frames come as Server-Sent Events and go by POST. */
export const serverSentEvents: Transport;
/** @type {Transport} Frames come as answers to GETs that wait, and go by POST. */
export const longPoll: Transport;
/**
 * What the host writes together with a message: either all of it is kept, or nothing.
 */
export class Writes {
    /** Adds or replaces a row. @param {string} store @param {any} row */
    put(store: string, row: any): void;
    /** Removes a row. @param {string} store @param {IDBValidKey} key */
    delete(store: string, key: IDBValidKey): void;
    /**
     * Changes a row as it stands then: `change` gets it, or `undefined`, and returns what it should be; `undefined` leaves it alone.
     * @param {string} store @param {IDBValidKey} key @param {(row: any) => any} change  Runs inside the transaction; must not wait.
     */
    update(store: string, key: IDBValidKey, change: (row: any) => any): void;
    get isEmpty(): boolean;
    /** @param {Txn} txn */
    apply(txn: Txn): void;
    #private;
}
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
    constructor(host: SessionHost, config: {
        stream: string;
        device: string;
        user?: string;
        horizon: number;
    });
    host: SessionHost;
    config: {
        stream: string;
        device: string;
        user?: string;
        horizon: number;
    };
    quality: Quality;
    /** @type {"down" | "greeting" | "up"} */
    phase: "down" | "greeting" | "up";
    /** @type {{ token: string, epoch: string } | undefined} */
    life: {
        token: string;
        epoch: string;
    } | undefined;
    peerStream: string;
    maxFrame: number;
    canPublish: boolean;
    lastPublished: number;
    /** A connection stands. @param {string} credentials */
    hello(credentials: string): void;
    /** A frame came, or what is none. @param {string} text */
    receive(text: string): void;
    /** What became of a message. @param {string} epoch @param {number} number @param {Verdict} verdict */
    decide(epoch: string, number: number, verdict: Verdict): void;
    /** @param {number} number @param {Wire} message */
    publish(number: number, message: Wire): void;
    /** @param {string} credentials */
    renew(credentials: string): void;
    /** The connection is gone. @param {number} code @param {string} text @param {number} [retryAfter] */
    lost(code: number, text: string, retryAfter?: number): void;
    /** Closes the connection, and says why. @param {number} code @param {string} text */
    end(code: number, text: string): void;
    /** Another connection takes this one's place: nothing is heard or said over it any more. */
    freeze(): void;
    /** When to say {@link Session.tick}, if nothing happens before. */
    get timeout(): number;
    /** Time has passed. */
    tick(): void;
    #private;
}
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
    /** @param {Client} client @param {string} id @param {Promise<Outgoing>} settled */
    constructor(client: Client, id: string, settled: Promise<Outgoing>);
    id: string;
    /**
     * Resolves when it is accepted, has failed, or was cancelled, also by another tab. Not if the page or the tab that would say
     * so ends between that and saying so: then {@link Client.outbox} of the next one shows that it waits no more.
     */
    settled: Promise<Outgoing>;
    /** Takes it back. @returns {Promise<boolean>}  `false` if it was on the wire already: then the server must be asked. */
    cancel(): Promise<boolean>;
    /** Calls when its status changes. @param {(outgoing: Outgoing) => void} run @returns {() => void} */
    watch(run: (outgoing: Outgoing) => void): () => void;
    #private;
}
/** One device of one user. See the top of this file. */
export class Client {
    /** @param {Options} options */
    constructor(options: Options);
    /** What it is doing. */
    get state(): State;
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
    on(pattern: string, handler: (message: Message, writes: Writes, signal: AbortSignal) => any): () => void;
    /**
     * Calls with each change of status of messages to be sent, within the transaction that makes it: what `track` says to
     * `writes` is kept if and only if the change is. Patterns as in {@link Client.on}. Volatile messages are not tracked.
     * @param {string} pattern @param {Tracker} tracker  Must not wait. @returns {() => void}  Undoes it.
     */
    track(pattern: string, tracker: Tracker): () => void;
    /**
     * Calls when something happened: `state`; `outbox` (a status changed, and is on disk); `stored` (rows of the host's tables were
     * written); `gap` (messages will not come); `error` (a handler, tracker or watcher threw).
     * @template {keyof Watched} K @param {K} what @param {(value: Watched[K]) => void} run @returns {() => void}  Undoes it.
     */
    watch<K extends keyof Watched>(what: K, run: (value: Watched[K]) => void): () => void;
    /**
     * Keeps a connection from now on. With `steal` it takes over from another tab; with `credentials`, it uses those instead
     * of asking. Also the way on from `needs-credentials`, and from `closed` unless {@link Client.close} closed it. It ends a wait
     * that this client chose itself; when the server has asked to come back later, it connects then, and `retryIn` says when.
     * @param {{ steal?: boolean, credentials?: string }} [how]
     */
    connect({ steal, credentials }?: {
        steal?: boolean;
        credentials?: string;
    }): void;
    /**
     * Makes the outbox this tab's without connecting, if no other tab has it: then {@link Client.outbox} shows what waits.
     * @returns {Promise<boolean>}
     */
    claim(): Promise<boolean>;
    /** Keeps no connection from now on. What is sent waits. */
    disconnect(): void;
    /** Ends it: the connection, the lock, the database. What waits in the outbox stays there. @returns {Promise<void>} */
    close(): Promise<void>;
    /**
     * Sends a message. When it resolves, the message is on disk and goes out when it can, also after a reload. A volatile one
     * goes out now or fails.
     * @param {Draft} draft @returns {Promise<Sent>}
     * @throws {LastmileError} Nothing was kept.
     */
    send(draft: Draft): Promise<Sent>;
    /** A handle for a message that waits or has failed. @param {string} id @returns {Sent} */
    sent(id: string): Sent;
    /** What waits and what failed, the oldest first. @returns {Outgoing[]} */
    outbox(): Outgoing[];
    /**
     * Takes back a message that was never on the wire, or that failed. `false`: it was on the wire, or is not here.
     * @param {string} id @returns {Promise<boolean>}
     */
    cancel(id: string): Promise<boolean>;
    /**
     * Sends a failed message again, with the same id. After `unknown-outcome` it may arrive twice.
     * @param {string} id
     */
    retry(id: string): Promise<void>;
    /** Writes to the host's tables. @param {(writes: Writes) => void} fill @returns {Promise<void>} */
    write(fill: (writes: Writes) => void): Promise<void>;
    /**
     * Rows of one of the host's tables, in the order of the key, or of an index.
     * @param {string} table @param {{ index?: string, range?: IDBKeyRange, limit?: number }} [which] @returns {Promise<any[]>}
     */
    rows(table: string, { index, range, limit }?: {
        index?: string;
        range?: IDBKeyRange;
        limit?: number;
    }): Promise<any[]>;
    #private;
}
export type Priority = "critical" | "high" | "normal" | "low";
/**
 * What the server promises when it accepts; volatile is never stored, here neither.
 */
export type Durability = "synced" | "buffered" | "volatile";
/**
 * Text, bytes, or what JSON can say of an object or array.
 */
export type Payload = string | Uint8Array | Record<string, any> | any[];
export type Status = "queued" | "accepted" | "failed" | "cancelled";
/**
 * A message to be sent.
 */
export type Draft = {
    /**
     * The recipient, 1 to 255 bytes.
     */
    to: string;
    /**
     * What it is: segments of `a`–`z`, `0`–`9`, `_`, `-`, joined by dots; at most 128 bytes.
     */
    event: string;
    /**
     * Default: empty text.
     */
    payload?: Payload | undefined;
    /**
     * 32 hexadecimal digits; made if there is none. The same id is accepted once.
     */
    id?: string | undefined;
    /**
     * Default: normal.
     */
    priority?: Priority | undefined;
    /**
     * Default: synced.
     */
    durability?: Durability | undefined;
    /**
     * Messages with the same key keep their order; so do those without one.
     */
    orderingKey?: string | undefined;
    /**
     * Milliseconds from now after which it is of no use any more.
     */
    ttl?: number | undefined;
    /**
     * Milliseconds since 1970 before which it must not be delivered.
     */
    notBefore?: number | undefined;
    /**
     * A newer message with the same key replaces one that still waits.
     */
    collapseKey?: string | undefined;
    /**
     * A decimal number of 64 bits; older versions of the same collapse key are refused.
     */
    version?: string | undefined;
    /**
     * At most 32, together 2,048 bytes.
     */
    headers?: Record<string, string> | undefined;
};
/**
 * A message that came.
 */
export type Message = {
    id: string;
    to: string;
    from: string | undefined;
    event: string;
    /**
     * A string, a `Uint8Array`, or what the JSON said.
     */
    payload: any;
    orderingKey: string | undefined;
    priority: Priority;
    durability: Durability;
    headers: Record<string, string>;
    /**
     * Milliseconds since 1970 by the server's clock.
     */
    acceptedAt: number;
    /**
     * Whether it may have been here before.
     */
    redelivered: boolean;
    /**
     * If it is a request: what the handler returns is its answer.
     */
    replyWithin: number | undefined;
};
/**
 * Why a message failed.
 */
export type Failure = {
    /**
     * `unknown-outcome`: it may have been
     * accepted, and it is too late to repeat it safely. `unconfirmed`: volatile, and nobody heard what became of it.
     */
    kind: "rejected" | "expired" | "too-large" | "unknown-outcome" | "unconfirmed";
    /**
     * The server's code, if it said one.
     */
    code: number | undefined;
    text: string;
};
/**
 * What became of a message so far.
 */
export type Outgoing = {
    id: string;
    to: string;
    event: string;
    payload: any;
    priority: Priority;
    orderingKey: string | undefined;
    /**
     * Milliseconds since 1970.
     */
    createdAt: number;
    status: Status;
    /**
     * Whether it was ever put on the wire: then it cannot be cancelled here any more.
     */
    offered: boolean;
    failure: Failure | undefined;
};
export type QualityReport = {
    grade: "good" | "fair" | "poor";
    score: number;
    rtt: number | undefined;
};
/**
 * What a client is doing.
 */
export type State = {
    name: "offline";
    retryIn: number | undefined;
    why: string;
    code: number | undefined;
} | {
    name: "connecting";
    transport: string;
} | {
    name: "online";
    transport: string;
    quality: QualityReport;
} | {
    name: "needs-credentials";
    code: number | undefined;
} | {
    name: "closed";
    code: number | undefined;
    why: string;
};
/**
 * Messages that will not
 *   come. If they had places, the priority they had, and no place of theirs lies before `first` or after `last`.
 */
export type GapReport = {
    missing: number;
    reason: string;
    lane?: string;
    first?: string;
    last?: string;
};
/**
 * A row of the host's that was written; without a value it was removed.
 */
export type Change = {
    store: string;
    key: IDBValidKey | undefined;
    value: any;
};
/**
 * A table of the host's own, in the client's database.
 */
export type Table = {
    keyPath: string | string[];
    indexes?: Record<string, string | string[]> | undefined;
};
/**
 * What {@link Client.watch} tells.
 */
export type Watched = {
    state: State;
    outbox: Outgoing;
    stored: Change[];
    gap: GapReport;
    error: unknown;
};
export type Frame = Record<string, any>;
/**
 * A message as it stands in a frame.
 */
export type Wire = Record<string, any>;
/**
 * What the client needs of the world. Default: the browser's.
 */
export type Platform = {
    /**
     * Milliseconds since 1970, which never go back: see {@link steadyClock}.
     */
    now: () => number;
    /**
     * 0 to 1.
     */
    random: () => number;
    /**
     * Fills it with what nobody can guess.
     */
    randomBytes: (bytes: Uint8Array) => Uint8Array;
    setTimeout: (run: () => void, ms: number) => any;
    clearTimeout: (timer: any) => void;
    indexedDB: IDBFactory;
    locks: LockManager | undefined;
    /**
     * Calls when the network or the page comes back; returns what undoes it.
     */
    onWake: (wake: () => void) => () => void;
    /**
     * Calls `heard` when another tab posts.
     */
    channel: (name: string, heard: (what: any) => void) => {
        post(what: any): void;
        close(): void;
    };
};
/**
 * An open connection. `send` keeps frames whole and in order.
 */
export type Connection = {
    send(text: string): void;
    close(code: number, text: string): void;
};
/**
 * What a transport is given.
 */
export type Opening = {
    /**
     * Where the server's session endpoints are.
     */
    url: URL;
    /**
     * Aborted when the connection is no longer wanted; it must then end.
     */
    signal: AbortSignal;
    platform: Platform;
    /**
     * Says that a frame came.
     */
    frame: (text: string) => void;
    /**
     * Says that an open connection ended.
     */
    closed: (end: {
        code: number;
        retryAfter?: number;
        text: string;
    }) => void;
};
/**
 * A rung of the ladder.
 */
export type Transport = {
    name: string;
    /**
     * Rejects with a {@link ConnectError}.
     */
    open: (opening: Opening) => Promise<Connection>;
};
export type Options = {
    /**
     * Names the database: one for each user who signs in here.
     */
    name: string;
    /**
     * Where the server's session endpoints are, such as `/lastmile`.
     */
    url: string | URL;
    /**
     * Asked before each
     * connection, and before what it gave expires; with a code after a refusal. `undefined`: there are none, see {@link Client.connect}.
     * If it throws, it is asked again later, as if the server could not be reached.
     */
    credentials: (refused: number | undefined) => string | undefined | Promise<string | undefined>;
    /**
     * Who the hello says that this is; the credentials decide.
     */
    user?: string | undefined;
    /**
     * Tables for the host's own data, written together with what was received.
     */
    stores?: Record<string, Table> | undefined;
    /**
     * Of those tables: raise it when they change. Default: 1.
     */
    version?: number | undefined;
    /**
     * The best first. Default: {@link webSocket}, {@link serverSentEvents}, {@link longPoll}.
     */
    transports?: Transport[] | undefined;
    /**
     * Messages that may wait or have failed. Default: 1,000.
     */
    maxOutbox?: number | undefined;
    /**
     * Their bytes. Default: 16 MiB.
     */
    maxOutboxBytes?: number | undefined;
    /**
     * For how long after it was first sent a message may be repeated by itself, in milliseconds; must
     * not be longer than the server remembers ids. Default: one hour.
     */
    horizon?: number | undefined;
    /**
     * How long a handler may take, in milliseconds. Default: 60,000.
     */
    handlerTimeout?: number | undefined;
    ladder?: Partial<{
        failures: number;
        coolDown: number;
        maxCoolDown: number;
        stable: number;
        openTimeout: number;
        lastOpenTimeout: number;
    }> | undefined;
    backoff?: Partial<{
        floor: number;
        cap: number;
    }> | undefined;
    /**
     * For tests.
     */
    platform?: Partial<Platform> | undefined;
};
/**
 * A `?` marks an option; `option` a group, present if its first field is.
 */
export type Field = string | readonly string[] | {
    list: Shape;
    max: number;
} | {
    object: Shape;
} | {
    option: Shape;
};
export type Shape = {
    [name: string]: Field;
};
export type Rung = {
    failures: number;
    left: number;
    restsUntil: number;
    worked: boolean;
};
/**
 * For the one who was the owner when it was asked for, or for anybody.
 */
export type Work = {
    step: (txn: Txn) => void;
    owner: number | undefined;
    resolve: () => void;
    reject: (error: unknown) => void;
};
export type Verdict = {
    kind: "ack";
} | {
    kind: "reply";
    payload: Payload;
} | {
    kind: "nack";
    code: number;
    delay?: number;
    text?: string;
};
export type SessionHost = {
    now: () => number;
    /**
     * Over the connection that is there.
     */
    send: (frame: Frame) => void;
    opened: (welcome: Frame) => void;
    /**
     * The connection is over.
     */
    ended: (end: {
        code: number;
        retryAfter?: number;
        text: string;
    }) => void;
    /**
     * A message; say {@link Session.decide}.
     */
    item: (epoch: string, number: number, stream: string, item: Wire) => void;
    /**
     * A message without a verdict is no longer wanted.
     */
    withdrawn: (epoch: string, number: number) => void;
    floor: (lane: string, seq: string) => void;
    gap: (gap: GapReport) => void;
    receipt: (number: number, refused: Frame | undefined) => void;
    goingAway: (refused: Frame) => void;
    /**
     * The credentials expire soon.
     */
    renew: () => void;
};
/**
 * A row of the outbox. It has no number until it goes on the wire; `offered` stays when it gets another one.
 */
export type Row = {
    /**
     * Its place in the outbox; volatile messages are not stored and have none.
     */
    order?: IDBValidKey | undefined;
    id: string;
    message: Wire;
    /**
     * Milliseconds from `createdAt`.
     */
    ttl: number | undefined;
    /**
     * Of its frame, in bytes.
     */
    size: number;
    createdAt: number;
    /**
     * The publish number under which it is on the wire, or was.
     */
    number: number | null;
    /**
     * When it was first put on the wire, unless it is known since that it was refused.
     */
    offered: number | null;
    attempts: number;
    retryAt: number;
    failure?: Failure | undefined;
};
export type Job = {
    message: Message;
    item: Wire;
    epoch: string;
    number: number;
    place: {
        stream: string;
        lane: string;
        seq: string;
    } | undefined;
    abort: AbortController;
};
/**
 * Broken: one of them was not taken.
 */
export type Queue = {
    jobs: Job[];
    working?: Job | undefined;
    busy: boolean;
    writing: number;
    broken: boolean;
};
export type Handler = (message: any, writes: Writes, signal: AbortSignal) => any;
export type Tracker = (outgoing: Outgoing, writes: Writes) => void;
export type Link = {
    rung: number;
    abort: AbortController;
    wire: Connection | undefined;
};
declare namespace BACKOFF {
    let floor: number;
    let cap: number;
}
declare namespace LADDER {
    let failures: number;
    let coolDown: number;
    let maxCoolDown: number;
    let stable: number;
    let openTimeout: number;
    let lastOpenTimeout: number;
}
/** One transaction over all tables. */
declare class Txn {
    /** @param {IDBTransaction} raw */
    constructor(raw: IDBTransaction);
    raw: IDBTransaction;
    /** @type {Change[]} */
    changes: Change[];
    /** @type {unknown} What a step threw. */
    error: unknown;
    /** Runs steps one after the other: each sees what those before it wrote. @param {(() => void)[]} steps */
    last(steps: (() => void)[]): void;
    /** Parts of the step that runs: they come before those that wait. @param {(() => void)[]} steps */
    first(steps: (() => void)[]): void;
    /** @param {string} store @param {any} row @param {IDBValidKey} [key] */
    put(store: string, row: any, key?: IDBValidKey): void;
    /** @param {string} store @param {any} row @param {(key: IDBValidKey) => void} [then] */
    add(store: string, row: any, then?: (key: IDBValidKey) => void): void;
    /** @param {string} store @param {IDBValidKey | IDBKeyRange} key */
    delete(store: string, key: IDBValidKey | IDBKeyRange): void;
    /** @param {string} store @param {IDBValidKey} key @param {(row: any) => any} change */
    update(store: string, key: IDBValidKey, change: (row: any) => any): void;
    /** @param {string} store @param {IDBValidKey} key @param {(row: any) => void} then */
    read(store: string, key: IDBValidKey, then: (row: any) => void): void;
    /** Runs a step when a request has its result; what it throws ends the transaction. @template T @param {IDBRequest<T>} request @param {(result: T) => void} step */
    on<T>(request: IDBRequest<T>, step: (result: T) => void): void;
    /** @param {() => void} step */
    attempt(step: () => void): void;
    #private;
}
export {};
