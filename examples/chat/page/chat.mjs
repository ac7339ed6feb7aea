// @ts-check
/**
 * The chat's page. The database is the truth: handlers and trackers write rows in the transactions of the client, and what
 * is on the screen follows from the rows that changed. So a reload shows what was there, and nothing is shown that is not kept.
 */
import { Client, readEvents } from "/client.mjs";

/** @typedef {{ id: string, with: string, mine: boolean, kind: string, text: string, at: number, order: number, status: string, why?: string, seen?: boolean, ttl?: number }} Row */
/** @typedef {{ with: string, last: string, at: number, order: number, unread: number, newest?: string }} Talk */

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);
/** @param {string} tag @param {Record<string, any>} [fields] @param {(Node | string)[]} children */
const make = (tag, fields = {}, ...children) => {
  const { data = {}, ...own } = fields, element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
};
/** What a screen reader says and nobody sees. @param {string} text */
const spoken = (text) => make("span", { className: "hidden", textContent: text });
/** @param {string} path */
const icon = (path) => {
  const box = document.createElement("span");
  box.innerHTML = `<svg viewBox="0 0 22 16" aria-hidden="true"><path d="${path}"/></svg>`;
  return /** @type {SVGElement} */ (box.firstChild);
};
const MARKS = /** @type {Record<string, [string, string]>} */ ({
  queued: ["M11 2a6 6 0 1 0 .01 0M11 5v3.2l2.2 1.6", "waiting to be sent"],
  accepted: ["M5 9l3.5 3.5L16 4", "accepted by the server"],
  delivered: ["M2 9l3.5 3.5L13 4M9.5 12.2l.4.3L18 4", "delivered"],
  read: ["M2 9l3.5 3.5L13 4M9.5 12.2l.4.3L18 4", "read"],
  failed: ["M11 2v7M11 13v.2", "failed"], undelivered: ["M11 2v7M11 13v.2", "not delivered"], expired: ["M11 2v7M11 13v.2", "not delivered in time"], cancelled: ["M5 3l12 11M17 3L5 14", "taken back"],
});
/** A later status is never replaced by an earlier one. @type {Record<string, number>} */
const RANK = { queued: 0, failed: 1, accepted: 2, cancelled: 3, expired: 3, undelivered: 3, delivered: 4, read: 5 };
const priorities = ["critical", "high", "normal", "low"];

const session = {
  /** @type {Client | undefined} */ client: undefined,
  me: "", token: "", tokenUntil: 0, open: "",
  /** @type {Map<string, boolean>} Who is there. */ people: new Map(),
  /** @type {Map<string, Talk>} */ talks: new Map(),
  /** @type {Map<string, any>} */ typing: new Map(),
  /** @type {Map<string, { row: Row, element: HTMLElement }>} */ shown: new Map(),
  order: 0, flood: { got: 0, of: 0 }, typedAt: 0, caughtUp: false,
  abort: new AbortController(),
};

// -------------------------------------------------------------------------------------------------------- the server

/** @param {string} path @param {any} [body] */
async function ask(path, body) {
  const headers = { authorization: `Bearer ${await token()}`, ...(body && { "content-type": "application/json" }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal: session.abort.signal });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/** @param {boolean} [fresh] */
async function token(fresh = false) {
  if (!fresh && Date.now() < session.tokenUntil) return session.token;
  const response = await fetch("/api/token", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ name: session.me }) });
  if (!response.ok) throw new Error(`no token: ${response.status}`);
  const { token: given, expires_in_ms: ms } = await response.json();
  Object.assign(session, { token: given, tokenUntil: Date.now() + ms * 0.7 });
  return given;
}

/** Runs again and again while signed in; what fails is tried again. @param {() => Promise<unknown>} run @param {number} ms */
async function keep(run, ms) {
  const { signal } = session.abort;
  while (!signal.aborted) {
    await run().catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, ms));
  }
}

// ------------------------------------------------------------------------------------------------------ the messages

const together = (/** @type {string} */ peer) => [session.me, peer].sort().join("|");
/** Rows are shown in the order in which they came to this page. */
const nextOrder = () => (session.order = Math.max(session.order + 0.001, Date.now()));
/** @type {Record<string, string>} */
const WHY = { expired: "not sent in time", "unknown-outcome": "it may have arrived", "too-large": "too long" };
const whyFailed = (/** @type {any} */ failure) => WHY[failure?.kind] ?? failure?.text ?? "failed";

/** @param {any} writes @param {Row} row @param {boolean} unread */
function keepRow(writes, row, unread) {
  writes.update("history", row.id, (/** @type {Row | undefined} */ known) => known ?? row);
  writes.update("talks", row.with, (/** @type {Talk | undefined} */ talk) => ({
    with: row.with, last: row.text, at: row.at, order: row.order, unread: (talk?.unread ?? 0) + (unread ? 1 : 0),
    newest: row.mine ? talk?.newest : row.id,
  }));
}

/** @param {any} writes @param {string} id @param {string} status @param {string} [why] */
function mark(writes, id, status, why) {
  writes.update("history", id, (/** @type {Row | undefined} */ row) => {
    if (!row || !row.mine || (status !== "queued" && RANK[status] < RANK[row.status])) return undefined;
    return { ...row, status, why };
  });
}

/** @param {string} name */
function start(name) {
  session.me = name;
  const client = new Client({
    name: `chat.${name}`, url: "/lastmile", user: name, credentials: (refused) => token(refused !== undefined),
    stores: {
      history: { keyPath: "id", indexes: { with: ["with", "order"] } },
      talks: { keyPath: "with" },
    },
  });
  session.client = client;
  client.on("chat.message", (message, writes) => {
    const from = String(message.from), here = isRead(from);
    keepRow(writes, { id: message.id, with: from, mine: false, kind: "message", text: String(message.payload.text), at: message.acceptedAt, order: nextOrder(), status: "" }, !here);
    typing(from, false);
  });
  client.on("call.ring", (message, writes) => {
    const from = String(message.from);
    keepRow(writes, { id: message.id, with: from, mine: from === session.me, kind: "call", text: from === session.me ? "You rang yourself" : "Rang you", at: message.acceptedAt, order: nextOrder(), status: "" }, false);
    ringing(from);
  });
  client.on("chat.typing", (message) => typing(String(message.from), true));
  client.on("chat.read", (message, writes) => readUpTo(String(message.from), message.payload.up_to, writes));
  client.on("chat.status", ({ payload: { id, status } }, writes) => heardOf(writes, id, status));
  client.on("flood.item", ({ payload }) => flooded(payload));
  for (const event of ["chat.message", "call.ring"]) {
    client.track(event, ({ id, to, payload, status, createdAt, failure }, writes) => {
      const call = event === "call.ring", text = call ? "You rang" : payload.text;
      if (status === "queued") keepRow(writes, { id, with: to, mine: true, kind: call ? "call" : "message", text, at: createdAt, order: nextOrder(), status }, false);
      if (status === "cancelled") writes.delete("history", id);
      else mark(writes, id, status, failure && whyFailed(failure));
    });
  }
  client.watch("stored", (changes) => changes.forEach(({ store, key, value }) => (store === "history" ? showRow(value, key) : store === "talks" && showTalk(value))));
  client.watch("state", showState);
  client.watch("outbox", () => {
    $("own").textContent = String(client.outbox().filter(({ status }) => status === "queued").length);
  });
  client.watch("error", (error) => console.warn("lastmile:", error));
  client.watch("gap", ({ missing, reason }) => reason !== "volatile" && console.warn(`${missing} messages will not come: ${reason}`));
  return client;
}

/** What the server says became of a message, in the words of its ledger. @param {import("/client.mjs").Writes} writes @param {string} id @param {string} status */
function heardOf(writes, id, status) {
  const known = /** @type {Record<string, string>} */ ({ accepted: "accepted", sent: "accepted", retrying: "accepted", delivered: "delivered", expired: "expired", cancelled: "cancelled" })[status];
  if (known) mark(writes, id, known);
  else if (status !== "unknown") mark(writes, id, "undelivered", status === "rejected" ? "refused by the other side" : "not delivered");
}

/** @param {string} peer */
const isRead = (peer) => session.open === peer && document.visibilityState === "visible";

/** Somebody has read up to there. @param {string} peer @param {string} id @param {import("/client.mjs").Writes} writes */
async function readUpTo(peer, id, writes) {
  const rows = /** @type {Row[]} */ (await session.client?.rows("history", { index: "with", range: IDBKeyRange.bound([peer, 0], [peer, Infinity]) }) ?? []);
  const last = rows.find((row) => row.id === id);
  for (const row of rows) if (last && row.mine && row.order <= last.order && ["accepted", "delivered"].includes(row.status)) mark(writes, row.id, "read");
}

/** Says that what is open was read. */
async function sayRead() {
  const { client, open, talks } = session, talk = talks.get(open);
  if (!client || !isRead(open) || !talk?.newest) return;
  const { newest } = talk, said = `read ${session.me} ${open}`;
  if (talk.unread > 0) await client.write((writes) => writes.update("talks", open, (/** @type {Talk} */ row) => row && { ...row, unread: 0 }));
  if (localStorage.getItem(said) === newest) return;
  localStorage.setItem(said, newest);
  await client.send({ to: open, event: "chat.read", payload: { up_to: newest }, orderingKey: together(open), collapseKey: together(open) });
}

/** Learns what became of messages while this page did not listen. */
async function catchUp() {
  const rows = /** @type {Row[]} */ (await session.client?.rows("history") ?? []);
  const open = rows.filter((row) => row.mine && ["accepted", "delivered"].includes(row.status)).sort((a, b) => b.order - a.order).slice(0, 200);
  if (open.length === 0) return;
  const { statuses } = await ask("/api/status", { ids: open.map((row) => ({ to: row.with, id: row.id })) });
  await session.client?.write((writes) => statuses.forEach((/** @type {any} */ { id, status }) => heardOf(writes, id, status)));
}

// -------------------------------------------------------------------------------------------------------- the screen

/** @param {string} name */
const hue = (name) => String([...name].reduce((sum, c) => (sum * 31 + (c.codePointAt(0) ?? 0)) % 360, 7));
/** @param {HTMLElement} element @param {string} name */
function face(element, name) {
  element.textContent = [...name][0] ?? "";
  element.style.setProperty("--hue", hue(name));
  element.dataset.online = String(session.people.get(name) ?? false);
  return element;
}
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

/** @type {Record<string, string>} */
const TRANSPORTS = { websocket: "WebSocket", sse: "event stream", "long-poll": "long poll" };

/** @param {import("/client.mjs").State} state */
function showState(state) {
  const text = {
    online: () => (state.name === "online" ? [TRANSPORTS[state.transport], state.quality.rtt === undefined ? "" : `${state.quality.rtt} ms`].filter(Boolean).join(" · ") : ""),
    connecting: () => "connecting …",
    offline: () => (state.name === "offline" && state.retryIn !== undefined ? `offline · trying again in ${Math.ceil(state.retryIn / 1000)} s` : "offline"),
    "needs-credentials": () => "signing in …", closed: () => "closed",
  }[state.name]();
  $("state").textContent = text;
  $("state").dataset.is = state.name;
  $("state").dataset.transport = state.name === "online" ? state.transport : "";
  $("state").title = state.name === "online" ? `Online, a ${state.quality.grade} connection` : state.name === "offline" ? state.why : "";
  face($("me-face"), session.me).dataset.online = String(state.name === "online");
  const elsewhere = state.name === "offline" && state.why === "another-tab", closed = state.name === "closed";
  banner(elsewhere ? "This chat is open in another tab." : closed ? `The connection was closed (${state.why}).` : !$("online").matches(":checked") ? "You are offline. What you send waits here." : "",
    elsewhere ? "Use it here" : closed ? "Connect again" : "", () => session.client?.connect({ steal: elsewhere }));
  if (state.name === "online" && !session.caughtUp) catchUp().catch(() => {});
  session.caughtUp = state.name === "online";
}
/** @param {string} text @param {string} action @param {() => void} run */
function banner(text, action, run) {
  $("banner").hidden = text === "";
  $("banner").replaceChildren(text, ...(action ? [make("button", { textContent: action, onclick: run })] : []));
}

/** @param {Talk | undefined} talk */
function showTalk(talk) {
  if (!talk) return;
  session.talks.set(talk.with, talk);
  showPeople();
  if (talk.unread > 0 || talk.newest) sayRead().catch(() => {});
}

function showPeople() {
  const filter = $("whom").value.trim().toLowerCase(), focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.name;
  const names = [...new Set([...session.talks.keys(), ...session.people.keys()])].filter((name) => name !== session.me && name.toLowerCase().includes(filter));
  names.sort((a, b) => (session.talks.get(b)?.order ?? 0) - (session.talks.get(a)?.order ?? 0) || Number(session.people.get(b) ?? 0) - Number(session.people.get(a) ?? 0) || a.localeCompare(b));
  $("people").replaceChildren(...names.map((name) => {
    const talk = session.talks.get(name), there = session.people.get(name) ?? false;
    const button = make("button", { onclick: () => open(name), data: { name } },
      face(make("span", { className: "face", ariaHidden: "true" }), name),
      make("span", { className: "grow" }, make("span", { className: "name", textContent: name }), spoken(!talk ? ", " : there ? ", online, " : ", offline, "), make("span", { className: "last", textContent: session.typing.has(name) ? "typing …" : talk?.last ?? (there ? "online" : "offline") })),
      make("span", { className: "meta" }, talk ? clock.format(talk.at) : "", ...(talk?.unread ? [make("span", { className: "count", textContent: String(talk.unread), ariaHidden: "true" }), spoken(`, ${talk.unread} unread`)] : [])));
    button.setAttribute("aria-current", String(session.open === name));
    return make("li", {}, button);
  }));
  if (focused) $("people").querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  if (session.open) {
    face($("peer-face"), session.open);
    const is = session.typing.has(session.open) ? "typing" : session.people.get(session.open) ? "online" : "away";
    $("presence").textContent = { typing: "typing …", online: "online", away: "away: messages wait" }[is];
    $("presence").dataset.is = is;
  }
}

/** Opens a conversation. @param {string} name */
async function open(name) {
  session.open = name;
  session.shown.clear();
  $("app").dataset.shows = "talk";
  $("nobody").hidden = true;
  $("conversation").hidden = false;
  $("peer").textContent = name;
  $("log").replaceChildren();
  showPeople();
  sessionStorage.setItem("open", name);
  const rows = await session.client?.rows("history", { index: "with", range: IDBKeyRange.bound([name, 0], [name, Infinity]) }) ?? [];
  if (session.open !== name) return;
  rows.slice(-500).forEach((row) => showRow(row, row.id));
  $("log").scrollTop = $("log").scrollHeight;
  if (matchMedia("(pointer: fine)").matches) $("text").focus();
  await sayRead();
}

/** @param {Row | undefined} row @param {any} key */
function showRow(row, key) {
  const known = session.shown.get(key);
  if (!row) {
    known?.element.remove();
    session.shown.delete(key);
    return;
  }
  if (row.with !== session.open) return;
  const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80, element = drawRow(row);
  if (known) {
    // Its text stays: a screen reader says it once, not with each status.
    known.element.dataset.status = row.status;
    known.element.querySelector(".foot")?.replaceWith(/** @type {Node} */ (element.querySelector(".foot")));
  } else {
    const last = [...session.shown.values()].at(-1)?.row;
    if (!last || day.format(last.at) !== day.format(row.at)) log.append(make("div", { className: "day", textContent: day.format(row.at) }));
    log.append(element);
  }
  session.shown.set(row.id, { row, element: known?.element ?? element });
  if (atEnd || (row.mine && !known)) log.scrollTop = log.scrollHeight;
}

/** @param {Row} row */
function drawRow(row) {
  const { id, status } = row, foot = make("span", { className: "foot", ariaLive: "off" });
  const act = (/** @type {string} */ name, /** @type {() => Promise<unknown> | undefined} */ run) => make("button", { className: "act", textContent: name, onclick: () => run()?.catch((error) => console.warn(error)) });
  if (row.mine && status === "failed") {
    foot.append(make("span", { className: "why", textContent: row.why ?? "failed" }),
      act("Retry", () => session.client?.retry(id)), act("Cancel", () => session.client?.cancel(id)));
  } else if (row.mine && row.kind === "message" && (status === "undelivered" || status === "expired")) {
    foot.append(make("span", { className: "why", textContent: row.why ?? "not delivered in time" }), act("Send again", async () => {
      await sendTo(row.with, row.text);
      await session.client?.write((writes) => writes.delete("history", id));
    }));
  } else if (row.mine && status === "queued") {
    foot.append(act("Cancel", () => session.client?.cancel(id)));
  } else if (row.mine && row.kind === "message" && status === "accepted") {
    foot.append(Object.assign(act("Take back", async () => {
      const { cancelled } = await ask("/api/cancel", { to: row.with, id });
      if (cancelled) await session.client?.write((writes) => mark(writes, id, "cancelled"));
    }), { className: "act quiet" }));
  }
  foot.append(make("time", { textContent: clock.format(row.at), dateTime: new Date(row.at).toISOString() }));
  if (row.mine && MARKS[status]) {
    const [path, said] = MARKS[status], box = make("span", { className: "mark", title: said, data: { status } }, icon(path));
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", said);
    foot.append(box);
  }
  const text = row.kind === "call" ? `${row.mine ? "↗" : "↙"} ${row.text}` : row.text;
  return make("div", { className: `message ${row.mine ? "mine" : "theirs"} ${row.kind}`, data: { id, status } }, make("span", { className: "text", textContent: text }), foot);
}

/** @param {string} name @param {boolean} on */
function typing(name, on) {
  clearTimeout(session.typing.get(name));
  session.typing.delete(name);
  if (on) session.typing.set(name, setTimeout(() => typing(name, false), 4000));
  showPeople();
}

/** @param {string} name */
function ringing(name) {
  const dialog = /** @type {HTMLDialogElement} */ ($("call")), { got, of } = session.flood;
  face($("caller-face"), name);
  $("caller").textContent = name;
  $("call-text").textContent = got < of ? `is calling · ahead of ${(of - got).toLocaleString()} low‑priority messages` : "is calling";
  if (got < of) $("flood-text").textContent = `The call came after ${got.toLocaleString()} of ${of.toLocaleString()}: it overtook ${(of - got).toLocaleString()} that were sent before it.`;
  if (!dialog.open) dialog.showModal();
  $("answer").focus();
}

/** @param {{ n: number, of?: number }} item */
function flooded({ of }) {
  const { flood } = session;
  flood.of = of ?? (flood.of || 10_000);
  flood.got += 1;
  const bar = /** @type {HTMLProgressElement} */ ($("flood-bar"));
  if (flood.got % 25 && flood.got < flood.of) return;
  Object.assign(bar, { hidden: false, max: flood.of, value: flood.got });
  bar.setAttribute("aria-valuetext", `${flood.got} of ${flood.of}`);
  if (flood.got < flood.of) return;
  $("flood-text").append(` All ${flood.of.toLocaleString()} have arrived.`);
  $("flood-text").dataset.done = String(flood.got);
  session.flood = { got: 0, of: 0 };
}

// --------------------------------------------------------------------------------------------------- the live engine

const HISTORY = 60;
/** @type {any[]} */
let snapshots = [];

/** @param {string} d @param {string} color */
function draw(d, color) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", d);
  path.style.stroke = `var(${color})`;
  return path;
}

/** Where there is no value, a line has a gap. @param {string} id @param {{ name: string, color: string, values: (number | undefined)[] }[]} lines */
function plot(id, lines) {
  const most = Math.max(1e-9, ...lines.flatMap(({ values }) => values.map((value) => value ?? 0))), [width, height] = [300, 56];
  const path = (/** @type {(number | undefined)[]} */ values) => values.map((value, at) => {
    if (value === undefined) return "";
    const x = ((at + HISTORY - values.length) / (HISTORY - 1)) * width;
    return `${at > 0 && values[at - 1] !== undefined ? "L" : "M"}${x} ${height - 3 - (value / most) * (height - 8)}`;
  }).join("");
  const svg = $(id);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(draw(`M0 ${height - 1}H${width}`, "--line"), ...lines.filter(({ values }) => values.some(Boolean)).map(({ color, values }) => draw(path(values), `--${color}`)));
}

/** @param {string} id @param {{ name: string, color: string, text: string }[]} entries */
function legend(id, entries) {
  $(id).replaceChildren(...entries.map(({ name, color, text }) => {
    const dot = make("i");
    dot.style.background = `var(--${color})`;
    return make("li", {}, dot, `${name} ${text}`);
  }));
}

/** @param {number} ms */
const age = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : ms < 3_600_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`);

/** @param {any} snapshot */
function showEngine(snapshot) {
  snapshots = [...snapshots, snapshot].slice(-HISTORY);
  if ($("panel").hidden) return;
  const sum = priorities.reduce((all, name) => all + snapshot.waiting[name], 0), oldest = Math.max(...priorities.map((name) => snapshot.oldest_ms[name] ?? 0));
  $("waiting-sum").textContent = (snapshot.waiting_in_all ?? sum).toLocaleString();
  $("oldest-max").textContent = sum === 0 ? "–" : age(oldest);
  $("dedup").textContent = snapshot.dedup_hits.toLocaleString();
  const commit = (/** @type {any} */ each, /** @type {string} */ field) => /** @type {number | undefined} */ (each.commit_ms?.[field] ?? undefined);
  // Bounds of buckets, of the last ten seconds; nothing when nothing was committed.
  const within = (/** @type {number | undefined} */ ms) => (ms !== undefined ? `≤ ${Number(ms.toPrecision(2)).toLocaleString()} ms` : "–");
  $("commit-now").textContent = within(commit(snapshot, "p50"));
  const lines = (/** @type {string} */ field) => priorities.map((name) => ({ name, color: name, values: snapshots.map((each) => each[field][name] ?? 0) }));
  plot("waiting", lines("waiting"));
  plot("oldest", lines("oldest_ms"));
  legend("waiting-key", priorities.map((name) => ({ name, color: name, text: (snapshot.waiting[name] ?? "–").toLocaleString() })));
  legend("oldest-key", priorities.map((name) => ({ name, color: name, text: snapshot.waiting[name] ? age(snapshot.oldest_ms[name] ?? 0) : "–" })));
  plot("commit", [["p50", "high"], ["p99", "low"]].map(([name, color]) => ({ name, color, values: snapshots.map((each) => commit(each, name)) })));
  legend("commit-key", [["median", "p50", "high"], ["p99", "p99", "low"]].map(([name, field, color]) => ({ name, color, text: within(commit(snapshot, field)) })));
  $("connections-sum").textContent = String(snapshot.connections.length);
  $("connections").replaceChildren(...snapshot.connections.slice(0, 50).map((/** @type {any} */ { user, transport, quality, rtt_ms: rtt }) =>
    make("li", {}, make("span", { textContent: user }), make("span", { textContent: [transport, quality, rtt === undefined || rtt === null ? undefined : `${Math.round(rtt)} ms`].filter(Boolean).join(" · ") }))));
}

async function watchEngine() {
  const response = await fetch("/api/engine", { headers: { authorization: `Bearer ${await token()}` }, signal: session.abort.signal });
  if (!response.ok || !response.body) throw new Error(String(response.status));
  await readEvents(/** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader(), (name, data) => name === "message" && showEngine(JSON.parse(data)));
}

// ------------------------------------------------------------------------------------------------------ what is done

async function sendText() {
  const text = $("text").value.trim(), to = session.open;
  if (!text || !to) return;
  $("text").value = "";
  session.typedAt = 0;
  try {
    await sendTo(to, text);
  } catch (error) {
    $("text").value = text;
    banner(String(error instanceof Error ? error.message : error), "", () => {});
  }
}

/** @param {string} to @param {string} text */
async function sendTo(to, text) {
  await session.client?.send({ to, event: "chat.message", payload: { text }, priority: "high", orderingKey: together(to) });
}

function sayTyping() {
  const now = Date.now();
  if (now - session.typedAt < 3000 || !$("text").value || session.client?.state.name !== "online" || !session.people.get(session.open)) return;
  session.typedAt = now;
  session.client.send({ to: session.open, event: "chat.typing", payload: {}, priority: "low", durability: "volatile" }).catch(() => {});
}

/** @param {string} to */
const ring = (to) => session.client?.send({ to, event: "call.ring", payload: {}, priority: "critical", ttl: 30_000 });

async function flood() {
  const button = /** @type {HTMLButtonElement} */ ($("flood")), count = 10_000;
  button.disabled = true;
  session.flood = { got: 0, of: count };
  $("flood-text").textContent = "Putting them into your outbox …";
  try {
    const { accepted } = await ask("/api/flood", { to: session.me, count });
    $("flood-text").textContent = `${accepted.toLocaleString()} wait. Ringing …`;
    await ring(session.me);
  } catch (error) {
    $("flood-text").textContent = String(error);
  }
  button.disabled = false;
}

function setUp() {
  $("sign-in").onsubmit = (/** @type {any} */ event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (name) enter(name);
  };
  $("write").onsubmit = (/** @type {any} */ event) => {
    event.preventDefault();
    sendText();
  };
  $("text").onkeydown = (/** @type {any} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    sendText();
  };
  $("text").oninput = sayTyping;
  $("ring").onclick = () => ring(session.open)?.catch(() => {});
  $("answer").onclick = $("decline").onclick = () => /** @type {HTMLDialogElement} */ ($("call")).close();
  $("back").onclick = () => leave();
  $("find").onsubmit = (/** @type {any} */ event) => {
    event.preventDefault();
    const name = $("whom").value.trim();
    $("whom").value = "";
    if (/^[^|]{1,32}$/u.test(name) && name !== session.me) open(name);
    showPeople();
  };
  $("whom").oninput = showPeople;
  const panel = (/** @type {boolean} */ shown) => {
    const inside = $("panel").contains(document.activeElement);
    $("panel").hidden = !shown;
    $("panel-open").setAttribute("aria-expanded", String(shown));
    localStorage.setItem("panel", String(shown));
    if (shown && snapshots.length > 0) showEngine(snapshots.pop());
    // Where it covers the conversation the keyboard goes with it, and comes back.
    if (shown && innerWidth <= 1080) $("panel-close").focus();
    else if (inside) $("panel-open").focus();
  };
  $("panel-open").onclick = () => panel($("panel").hidden);
  $("panel-close").onclick = () => panel(false);
  if (localStorage.getItem("panel") === "true" && innerWidth > 1080) panel(true);
  $("flood").onclick = flood;
  $("online").onchange = () => {
    const on = $("online").matches(":checked");
    sessionStorage.setItem("offline", String(!on));
    if (on) session.client?.connect();
    else session.client?.disconnect();
  };
  $("sign-out").onclick = async () => {
    sessionStorage.clear();
    session.abort.abort();
    await session.client?.close();
    location.reload();
  };
  document.addEventListener("visibilitychange", () => sayRead().catch(() => {}));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("panel").hidden && innerWidth <= 1080) panel(false);
    if (!event.altKey || (event.key !== "ArrowDown" && event.key !== "ArrowUp")) return;
    const names = [...$("people").querySelectorAll("button")].map((button) => button.dataset.name ?? "");
    const next = names[(names.indexOf(session.open) + (event.key === "ArrowDown" ? 1 : -1) + names.length) % names.length];
    event.preventDefault();
    if (next) open(next);
  });
}

function leave() {
  session.open = "";
  sessionStorage.removeItem("open");
  $("app").dataset.shows = "people";
  $("nobody").hidden = false;
  $("conversation").hidden = true;
  showPeople();
}

/** @param {string} name */
async function enter(name) {
  sessionStorage.setItem("name", name);
  document.title = `${name} · lastmile chat`;
  $("welcome").hidden = true;
  $("app").hidden = false;
  $("app").dataset.shows = "people";
  $("me").textContent = name;
  const client = start(name), offline = sessionStorage.getItem("offline") === "true";
  $("online").checked = !offline;
  const rows = /** @type {Row[]} */ (await client.rows("history"));
  session.order = rows.reduce((most, row) => Math.max(most, row.order), 0);
  (await client.rows("talks")).forEach((talk) => session.talks.set(talk.with, talk));
  if (offline) await client.claim();
  else client.connect();
  showState(client.state);
  showPeople();
  const before = sessionStorage.getItem("open");
  if (before) await open(before);
  keep(async () => {
    const { people } = await ask("/api/people");
    session.people = new Map(people.map((/** @type {any} */ each) => [each.name, each.online]));
    showPeople();
  }, 2500);
  keep(watchEngine, 2000);
}

setUp();
const name = sessionStorage.getItem("name");
if (name) enter(name);
else {
  $("welcome").hidden = false;
  $("name").focus();
}
