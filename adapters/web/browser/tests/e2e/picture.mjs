/** Makes the README's picture of the chat, from the real server: `node picture.mjs docs/chat.png`. */
import { Person, Server, launch } from "./harness.mjs";

const [path] = process.argv.slice(2);
const browser = await launch(), server = await new Server().start();
const [alice, bob] = [await Person.enter(browser, "alice", server.url, { deviceScaleFactor: 1.5, viewport: { width: 1280, height: 940 } }), await Person.enter(browser, "bob", server.url)];
const carol = await Person.enter(browser, "carol", server.url);
await carol.talkTo("alice");
await carol.write("Dinner on Friday?");
await alice.talkTo("bob");
await bob.talkTo("alice");
await alice.page.click("#panel-open");
await alice.write("Hi Bob! Are you on the train?");
await bob.shows(["Hi Bob! Are you on the train?"]);
await bob.write("Yes. There is a tunnel in a minute …");
await alice.shows(["Yes. There is a tunnel in a minute …"]);
await alice.all("read");
await bob.switch();
await bob.is("offline");
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
// Some seconds here and there for the plots to have something to show.
await pause(8);
await alice.write("No problem, it waits.", "I found the tickets: they were in the blue bag.");
await alice.page.waitForFunction(() => document.querySelectorAll("#connections li").length === 2);
await pause(7);
await alice.switch();
await alice.write("See you at eight!");
await alice.page.screenshot({ path });
await browser.close();
await server.close();
