/** Frames: what docs/PROTOCOL.md shows is what the client reads and writes. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Code, DecodeError, decode, encode } from "../client.mjs";

const doc = readFileSync(new URL("../../../../docs/PROTOCOL.md", import.meta.url), "utf8");
const examples = [...doc.matchAll(/```json frame\n([\s\S]*?)```/g)].map(([, text]) => text);

test("every example of the document is read, and written again as it stands there", () => {
  assert.ok(examples.length >= 20, `${examples.length} examples`);
  for (const text of examples) {
    const shown = JSON.parse(text), frame = decode(text);
    assert.equal(frame.frame, shown.frame);
    assert.deepEqual(JSON.parse(encode(frame)), shown);
  }
});

test("every kind of frame of the document is known", () => {
  const kinds = [...doc.matchAll(/^\| \d+ \| `([a-z-]+)` \|/gm)].map(([, kind]) => kind);
  const shown = new Set(examples.map((text) => JSON.parse(text).frame));
  assert.equal(kinds.length, 19);
  for (const kind of kinds) assert.ok(shown.has(kind), kind);
});

test("every code that the client names is in the document", () => {
  for (const [name, number] of Object.entries(Code)) assert.ok(doc.includes(`| ${number} | \`${name}\` |`), name);
});

test("payloads of each sort come out as they went in", () => {
  for (const payload of ["", "text \u{1f600}", { a: [1, { b: null }] }, [1, 2], new Uint8Array([0, 255, 128])]) {
    assert.deepEqual(decode(encode({ frame: "reply", number: 1, payload })).payload, payload);
  }
  const large = new Uint8Array(300_000).map((_, at) => at);
  assert.deepEqual(decode(encode({ frame: "reply", number: 1, payload: large })).payload, large);
});

test("half of a surrogate pair is never written, because no other end could read it", () => {
  const payload = { text: "a\ud800b \\ud800 \\\\\ud801", "\udc00": 1, whole: "\u{1f600}" };
  const text = encode({ frame: "reply", number: 1, payload });
  assert.ok(text.isWellFormed?.() ?? true);
  assert.doesNotMatch(text.replaceAll("\\\\", ""), /\\ud[89a-f]/i);
  assert.deepEqual(decode(text).payload, { text: "a\ufffdb \\ud800 \\\\\ufffd", "\ufffd": 1, whole: "\u{1f600}" });
});

test("what is no frame is refused with its code", () => {
  const bad = [
    "", "{", "[]", "null", "7", '{"frame":7}', '{"frame":"nonsense"}', '{"frame":"toString"}', '{"frame":"ping"}',
    '{"frame":"ping","nonce":-1}', '{"frame":"ping","nonce":1.5}', '{"frame":"ping","nonce":9007199254740992}', '{"frame":"ping","nonce":"1"}',
    '{"frame":"floor","lane":"urgent","seq":"1"}', '{"frame":"floor","lane":"high","seq":1}', '{"frame":"floor","lane":"high","seq":"01"}',
    '{"frame":"floor","lane":"high","seq":"18446744073709551616"}', '{"frame":"close","code":99,"text":""}',
    '{"frame":"reply","number":1,"payload":{"base64":"%"}}', '{"frame":"reply","number":1,"payload":{"json":7}}', '{"frame":"reply","number":1,"payload":7}',
    '{"frame":"deliver","first":1,"base":1,"heard":0,"items":[7]}', '{"frame":"deliver","first":1,"base":1,"heard":0,"items":{}}',
  ];
  for (const text of bad) assert.throws(() => decode(text), (error) => error instanceof DecodeError && error.code === Code.Malformed, text);
  const floor = decode('{"frame":"floor","lane":"high","seq":"18446744073709551615","more":[1]}');
  assert.deepEqual(floor, { frame: "floor", lane: "high", seq: "18446744073709551615" });
  assert.throws(() => decode('{"frame":"pong","nonce":1}', 8), (error) => error.code === Code.FrameTooLarge);
});
