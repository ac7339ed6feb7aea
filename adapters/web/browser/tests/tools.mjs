/**
 * Packages that only the tests use. They live outside of the clone: in the folder that LASTMILE_NPM names, or in the one that
 * `.ci/run browser` fills.
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";

const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");

/** Where the packages are. */
export const npm = process.env.LASTMILE_NPM ?? join(cache, "lastmile-ci", "npm");

if (!existsSync(join(npm, "node_modules"))) {
  throw new Error(`no packages in ${npm}: run .ci/run client, or npm ci there with tests/package.json`);
}

/** Loads one of them. */
export const load = createRequire(join(npm, "package.json"));
