//! Tidiness is a test: the dependency directions of `docs/ARCHITECTURE.md` and the house rules that no lint holds.
//!
//! Each rule is a function from a file to its violations, one test over the whole tree, and one test that the rule
//! catches what it is there to catch. A rule that gets in the way is changed here, with its reason, never bypassed.
//!
//! Dependency rules hold for `src/` outside of test code, unless they say otherwise.

#[path = "tidy/source.rs"]
mod source;

use std::fmt::Write as _;
use std::path::Path;

use source::{NamedPath, Source, is_ident, is_test_file, read_tree};

/// Knows nothing above itself.
const VOCABULARY: &[&str] =
    &["id", "message", "event", "status", "record", "time", "config", "error", "digest"];
/// What each layer may name besides itself and the vocabulary. A new top-level module needs a line here.
const LAYERS: &[(&str, &[&str])] = &[
    ("machine", &[]),
    ("session", &[]),
    ("ports", &["machine", "session"]),
    ("codec", &[]),
    ("storage", &["ports", "codec", "machine"]),
    ("runtime", &["machine", "session", "ports", "codec", "storage"]),
    ("testing", &["machine", "session", "ports", "codec", "storage", "runtime"]),
];
/// What storage may name of the machine: the fold of records, its state, and what it asks and hands over to be stored;
/// never its decisions.
const FOLD: &[&str] =
    &["State", "state", "fold", "Survivors", "Query", "Found", "Page", "Matches", "Holdings", "DuePlace"];
/// Who may import which crate.
const CRATES: &[(&str, &[&str])] = &[
    ("sled", &["src/storage/sled/"]),
    ("bincode", &["src/codec.rs"]),
    // Transports are asynchronous, and so are tests of them.
    ("tokio", &["src/runtime/", "src/testing/network.rs", "src/testing/transport_suite.rs"]),
    ("crossbeam_channel", &["src/runtime/"]),
    ("dashmap", &["src/runtime/"]),
    ("metrics", &["src/runtime/meters"]),
    ("chacha20poly1305", &["src/storage/seal"]),
    ("zeroize", &["src/ports/keys.rs"]),
];
/// Crates that not even test code may import elsewhere: tests of other layers would only run with them.
const ISOLATED: &[&str] = &["sled", "bincode"];
/// Time, randomness and tasks: how a path to them ends, and the file that owns them.
const OWNED: &[(&[&str], &str)] = &[
    (&["Instant", "now"], "src/runtime/clock.rs"),
    (&["SystemTime", "now"], "src/runtime/clock.rs"),
    (&["tokio", "spawn"], "src/runtime/tasks.rs"),
    (&["task", "spawn"], "src/runtime/tasks.rs"),
    (&["rand", "rng"], "src/runtime/builder.rs"),
    (&["Uuid", "now_v7"], "src/id.rs"),
];
/// Lines of a file in `src/`, tests not counted.
const MAX_LINES: usize = 500;
/// Where our own code lives.
const ROOTS: &[&str] = &["src", "tests", "examples", "benches", "proptests", "fuzz", "adapters"];

/// A broken rule: the line, and what to do about it.
type Violations = Vec<(usize, String)>;

// ---------------------------------------------------------------------------------------------- dependency direction

/// Layers name only what lies below them.
fn layers(file: &Source, root: &Source) -> Violations {
    let Some(own) = top_module(&file.path) else { return Vec::new() };
    let named = file
        .paths()
        .into_iter()
        .filter(|p| !p.test)
        .filter_map(|p| Some((p.line, in_crate(&file.path, &p)?)));
    named
        .filter_map(|(line, segments)| {
            let segments = through_root(segments, root);
            let why = refusal(&own, &segments)?;
            Some((line, format!("{own} names crate::{}: {why}", segments.join("::"))))
        })
        .collect()
}

/// Why `own` may not name this path of the crate, if so.
fn refusal(own: &str, segments: &[String]) -> Option<String> {
    let target = segments.first()?.as_str();
    let below = LAYERS.iter().find(|(name, _)| *name == own).map(|(_, below)| *below);
    if below.is_none() && !VOCABULARY.contains(&own) {
        return Some(format!("`{own}` has no layer yet; give it one in tests/tidy.rs"));
    }
    if target == own || VOCABULARY.contains(&target) {
        return None;
    }
    if !below.unwrap_or_default().contains(&target) {
        return Some("not a layer below".to_owned());
    }
    let item = segments.get(1).map_or("", String::as_str);
    let decides = own == "storage" && target == "machine" && !FOLD.contains(&item);
    decides.then(|| format!("storage folds records and never decides; of the machine it may name {FOLD:?}"))
}

/// The runtime takes any store: it does not name sled.
fn runtime_does_not_name_sled(file: &Source) -> Violations {
    if !file.path.starts_with("src/runtime/") {
        return Vec::new();
    }
    let names = |t: &str| t == "sled" || t.starts_with("sled_") || t.starts_with("Sled");
    let found = file.tokens.iter().filter(|t| !t.test && names(&t.text));
    found.map(|t| (t.line, format!("the runtime names `{}`; it knows only the Store port", t.text))).collect()
}

/// Replaceable crates are imported in one place each.
fn crates(file: &Source) -> Violations {
    let check = |p: &NamedPath| {
        let (name, owners) = CRATES.iter().find(|(name, _)| *name == p.segments[0])?;
        let owned = owners.iter().any(|owner| file.path.starts_with(owner));
        let exempt = owned || (p.test && !ISOLATED.contains(name));
        (!exempt).then(|| {
            (p.line, format!("only {owners:?} import {name} (a module of that name is `self::{name}`)"))
        })
    };
    file.paths().iter().filter(|p| !p.segments.is_empty()).filter_map(check).collect()
}

/// Only the files that own time, randomness and tasks touch them.
fn owners(file: &Source) -> Violations {
    let check = |p: &NamedPath| {
        let (what, owner) = OWNED
            .iter()
            .find(|(end, _)| p.segments.iter().map(String::as_str).collect::<Vec<_>>().ends_with(end))?;
        let exempt = file.path == *owner || p.test;
        (!exempt).then(|| (p.line, format!("only {owner} calls {}", what.join("::"))))
    };
    file.paths().iter().filter_map(check).collect()
}

/// The module right below the crate root that a file belongs to; none for the root itself.
fn top_module(path: &str) -> Option<String> {
    let first = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    (first != "lib").then(|| first.to_owned())
}

/// A path relative to the crate root, if it names something of this crate by `crate::` or `super::`.
fn in_crate(file: &str, path: &NamedPath) -> Option<Vec<String>> {
    let module = file.strip_prefix("src/")?.trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = module.split('/').count();
    let rest: Vec<String> = match path.segments.first()?.as_str() {
        "crate" => path.segments[1..].to_vec(),
        "super" => {
            let ups = path.segments.iter().take_while(|s| *s == "super").count();
            (ups >= depth).then(|| path.segments[ups..].to_vec())?
        }
        _ => return None,
    };
    (!rest.is_empty()).then_some(rest)
}

/// `crate::Name` leads to the module that the root re-exports the name from.
fn through_root(segments: Vec<String>, root: &Source) -> Vec<String> {
    let exported =
        root.paths().into_iter().find(|p| p.segments.len() > 1 && p.segments.last() == segments.first());
    match exported {
        Some(path) => {
            let skip = usize::from(["self", "crate"].contains(&path.segments[0].as_str()));
            path.segments[skip..].iter().chain(&segments[1..]).cloned().collect()
        }
        None => segments,
    }
}

// ------------------------------------------------------------------------------------------------------- house rules

/// A file that a reader can hold in mind.
fn size(file: &Source) -> Violations {
    let lines = file.lines_without_tests();
    let over = file.path.starts_with("src/") && !is_test_file(&file.path) && lines > MAX_LINES;
    over.then(|| (MAX_LINES + 1, format!("{lines} lines without tests, {MAX_LINES} at most: split it")))
        .into_iter()
        .collect()
}

/// Each file opens by saying what it is for.
fn module_docs(file: &Source) -> Violations {
    let first = file.text.lines().position(|l| !l.trim().is_empty());
    let documented = first.is_some_and(|at| file.text.lines().nth(at).is_some_and(|l| l.starts_with("//!")));
    let exempt = file.path.ends_with("/tests.rs");
    (!documented && !exempt)
        .then(|| (1, "say what the module is for: `//!`".to_owned()))
        .into_iter()
        .collect()
}

/// `matches!(…);` tests nothing; `assert!(matches!(…));` was meant.
fn bare_matches(file: &Source) -> Violations {
    let starts = |at: usize| at.checked_sub(1).is_none_or(|i| [";", "{", "}", "]"].contains(&file.token(i)));
    let ends = |at: usize| file.token(file.closing(at + 2) + 1) == ";";
    let found =
        (0..file.tokens.len()).filter(|&at| file.is_at(at, &["matches", "!"]) && starts(at) && ends(at));
    found.map(|at| (file.tokens[at].line, "`matches!` as a statement; assert it".to_owned())).collect()
}

/// What is not finished does not land.
fn unfinished(file: &Source) -> Violations {
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let words =
        |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| markers.contains(&w));
    let notes = file.text.lines().enumerate().filter(|(_, l)| words(l)).map(|(i, _)| i + 1);
    let macros = (0..file.tokens.len())
        .filter(|&at| file.is_at(at, &["todo", "!"]) || file.is_at(at, &["unimplemented", "!"]))
        .map(|at| file.tokens[at].line);
    notes.chain(macros).map(|line| (line, "unfinished: do it, or file an issue".to_owned())).collect()
}

/// The public API is written out, name by name.
fn glob_exports(file: &Source) -> Violations {
    let exports = |at: usize| {
        let after = if file.token(at + 1) == "(" { file.closing(at + 1) + 1 } else { at + 1 };
        file.token(at) == "pub" && file.token(after) == "use"
    };
    let globs = |at: usize| {
        let end = (at..file.tokens.len()).find(|&i| file.token(i) == ";").unwrap_or(at);
        (at..end).any(|i| file.token(i) == "*")
    };
    let found = (0..file.tokens.len()).filter(|&at| exports(at) && globs(at));
    found.map(|at| (file.tokens[at].line, "a glob export; name what is exported".to_owned())).collect()
}

/// Every test and every example in the docs runs.
fn ignored_tests(file: &Source) -> Violations {
    let attribute = |at: usize| {
        file.is_at(at, &["#", "["]) && (at..file.closing(at + 1)).any(|i| file.token(i) == "ignore")
    };
    let attributes = (0..file.tokens.len()).filter(|&at| attribute(at)).map(|at| file.tokens[at].line);
    let fenced = |l: &str| l.trim_start().starts_with("//") && l.contains(concat!("```", "ignore"));
    let fences = file.text.lines().enumerate().filter(|(_, l)| fenced(l)).map(|(i, _)| i + 1);
    attributes.chain(fences).map(|line| (line, "ignored; make it run, or remove it".to_owned())).collect()
}

// ------------------------------------------------------------------------------------------------------- the real tree

/// Reads the files below `roots` and fails with every violation, by file and line.
fn assert_clean(roots: &[&str], rule: impl Fn(&Source) -> Violations) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<Source> = roots.iter().flat_map(|root| read_tree(repository, root)).collect();
    assert!(files.iter().any(|f| f.path == "src/lib.rs"), "the source tree was not found");
    let mut report = String::new();
    for file in &files {
        for (line, what) in rule(file) {
            writeln!(report, "{}:{line}: {what}", file.path).expect("a string takes everything");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

fn crate_root() -> Source {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    Source::parse("src/lib.rs", &text.expect("src/lib.rs is readable"))
}

#[test]
fn layers_name_only_what_lies_below_them() {
    let root = crate_root();
    assert_clean(&["src"], |file| layers(file, &root));
}

#[test]
fn the_runtime_does_not_name_sled() {
    assert_clean(&["src"], runtime_does_not_name_sled);
}

#[test]
fn replaceable_crates_are_imported_in_one_place() {
    assert_clean(&["src"], crates);
}

#[test]
fn time_randomness_and_tasks_are_touched_by_their_owners_only() {
    assert_clean(&["src"], owners);
}

#[test]
fn no_source_file_is_oversized() {
    assert_clean(&["src"], size);
}

#[test]
fn every_file_says_what_it_is_for() {
    assert_clean(ROOTS, module_docs);
}

#[test]
fn no_matches_is_a_bare_statement() {
    assert_clean(ROOTS, bare_matches);
}

#[test]
fn nothing_is_left_unfinished() {
    assert_clean(ROOTS, unfinished);
}

#[test]
fn nothing_is_exported_by_a_glob() {
    assert_clean(ROOTS, glob_exports);
}

#[test]
fn no_test_is_ignored() {
    assert_clean(ROOTS, ignored_tests);
}

// ------------------------------------------------------------------------------------------- the rules catch and spare

/// The lines of `text`, standing at `path`, that break the rule.
fn lines(rule: impl Fn(&Source) -> Violations, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::parse(path, text)).into_iter().map(|(line, _)| line).collect()
}

#[test]
fn layer_rule_catches_every_way_to_name_a_layer_above() {
    let root = Source::parse("src/lib.rs", "pub use runtime::{Engine, Receipt};\npub use time::Timestamp;\n");
    let broken = |path: &str, text: &str| lines(|f| layers(f, &root), path, text);
    assert_eq!(broken("src/id.rs", "\nuse crate::machine::Machine;"), [2]);
    assert_eq!(
        broken("src/machine/lane.rs", "use crate::{\n  id::{self, UserId},\n  ports::Store,\n};"),
        [3]
    );
    assert_eq!(broken("src/machine/mod.rs", "fn f(s: &super::session::Session) {}"), [1]);
    assert_eq!(broken("src/machine/lane.rs", "use super::super::storage;"), [1]);
    assert_eq!(broken("src/ports/store.rs", "type E = crate::Engine;"), [1]);
    assert_eq!(broken("src/codec.rs", "use crate::ports::Store;"), [1]);
    assert_eq!(broken("src/storage/settle.rs", "use crate::machine::{State, Lane};"), [1]);
    assert_eq!(broken("src/storage/settle.rs", "use crate::testing::Disk;"), [1]);
    assert_eq!(broken("src/newcomer.rs", "use crate::id::UserId;"), [1]);
}

#[test]
fn layer_rule_spares_what_lies_below_and_tests() {
    let root = Source::parse("src/lib.rs", "pub use time::Timestamp;\n");
    let broken = |path: &str, text: &str| lines(|f| layers(f, &root), path, text);
    let below = "use crate::{Timestamp, id::UserId};\nuse super::timer;\nuse super::super::record;";
    assert!(broken("src/machine/lane.rs", below).is_empty());
    assert!(
        broken("src/storage/settle.rs", "use crate::machine::{State, fold};\nuse crate::ports;").is_empty()
    );
    assert!(broken("src/ports/mod.rs", "// crate::runtime\nconst A: &str = \"crate::runtime\";").is_empty());
    assert!(broken("src/ports/mod.rs", "#[cfg(test)]\nmod tests { use crate::testing::Clock; }").is_empty());
    assert!(broken("src/machine/tests.rs", "use crate::testing::Clock;").is_empty());
    assert!(broken("src/lib.rs", "use crate::runtime::Engine;").is_empty());
    assert!(broken("src/id.rs", "macro_rules! m { () => { $crate::runtime::f() } }").is_empty());
}

#[test]
fn sled_rule_catches_module_and_type() {
    let broken = |path: &str| {
        lines(runtime_does_not_name_sled, path, "//! sled\nuse crate::storage::sled;\nfn f(s: SledStore) {}")
    };
    assert_eq!(broken("src/runtime/builder.rs"), [2, 3]);
    assert!(broken("src/testing/mod.rs").is_empty());
}

#[test]
fn crate_rule_catches_imports_outside_their_place() {
    let broken = |path: &str, text: &str| lines(crates, path, text);
    assert_eq!(
        broken("src/storage/mod.rs", "use sled;\nuse ::sled::Db;\nuse {std::io, sled::Tree};"),
        [1, 2, 3]
    );
    assert_eq!(broken("src/storage/mod.rs", "extern crate sled;\nfn f() { ::bincode::encode() }"), [1, 2]);
    assert_eq!(
        broken("src/machine/mod.rs", "#[cfg(test)] mod tests { use sled::Db; use tokio::time; }"),
        [1]
    );
    assert_eq!(broken("src/machine/mod.rs", "use dashmap::DashMap;\nuse crossbeam_channel as c;"), [1, 2]);
    assert_eq!(broken("src/testing/sink.rs", "#[tokio::main]\nasync fn main() {}"), [1]);
}

#[test]
fn crate_rule_spares_owners_and_modules_of_that_name() {
    let broken = |path: &str, text: &str| lines(crates, path, text);
    assert!(broken("src/storage/mod.rs", "mod sled;\npub use self::sled::SledStore;").is_empty());
    assert!(broken("src/storage/sled/mod.rs", "use sled::Db;").is_empty());
    assert!(broken("src/codec.rs", "use bincode::config;").is_empty());
    assert!(broken("src/runtime/engine.rs", "use tokio::sync::oneshot;").is_empty());
}

#[test]
fn owner_rule_catches_clocks_tasks_and_randomness() {
    let broken = |path: &str, text: &str| lines(owners, path, text);
    let text = "fn f() { std::time::Instant::now();\nSystemTime::now();\ntokio::spawn(g());\nrand::rng(); }";
    assert_eq!(broken("src/machine/mod.rs", text), [1, 2, 3, 4]);
    assert_eq!(broken("src/runtime/clock.rs", text), [3, 4]);
    assert_eq!(broken("src/runtime/driver.rs", "use tokio::{select, spawn};"), [1]);
    assert!(broken("src/runtime/tasks.rs", "fn f() { tokio::spawn(g()); }").is_empty());
    assert!(broken("src/time.rs", "#[test]\nfn f() {}\n#[cfg(test)]\nfn g() { Instant::now(); }").is_empty());
}

#[test]
fn size_rule_counts_all_but_tests() {
    let docs = "//! Docs.\n".repeat(MAX_LINES);
    let tests = "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n";
    assert!(lines(size, "src/id.rs", &format!("{docs}{tests}")).is_empty());
    assert_eq!(lines(size, "src/id.rs", &format!("{docs}{tests}\n")), [MAX_LINES + 1]);
    assert!(lines(size, "src/id/tests.rs", &docs.repeat(2)).is_empty());
}

#[test]
fn docs_rule_catches_a_silent_module() {
    assert_eq!(lines(module_docs, "src/id.rs", "use std::fmt;\n//! Late."), [1]);
    assert_eq!(lines(module_docs, "src/id.rs", ""), [1]);
    assert!(lines(module_docs, "src/id.rs", "\n//! Ids.\nuse std::fmt;").is_empty());
}

#[test]
fn matches_rule_catches_statements_only() {
    let broken = |text: &str| lines(bare_matches, "tests/a.rs", text);
    assert_eq!(broken("fn f() {\n    matches!(a, B { .. });\n    g();\n    matches!(a, (1, 2));\n}"), [2, 4]);
    assert!(broken("fn f() -> bool {\n    assert!(matches!(a, B));\n    let b = matches!(a, B);\n    matches!(a, B)\n}").is_empty());
}

#[test]
fn unfinished_rule_catches_notes_and_macros() {
    let note = format!(
        "// {}: later\nfn f() {{ todo!() }}\nfn g() {{ unimplemented!(\"x\") }}",
        concat!("FIX", "ME")
    );
    assert_eq!(lines(unfinished, "src/id.rs", &note), [1, 2, 3]);
    assert!(lines(unfinished, "src/id.rs", "// a method todo\nfn todo() {}").is_empty());
}

#[test]
fn glob_rule_catches_exports_only() {
    let text = "pub use id::*;\npub(crate) use a::{b, c::*};\nuse super::*;\npub use time::Timestamp;";
    assert_eq!(lines(glob_exports, "src/lib.rs", text), [1, 2]);
}

#[test]
fn ignore_rule_catches_attributes_and_fences() {
    let text = "#[test]\n#[ignore]\nfn a() {}\n#[cfg_attr(miri, ignore = \"slow\")]\nfn b() { ignore(); }\n";
    let fence = format!("{text}/// {}\n", concat!("```", "ignore"));
    assert_eq!(lines(ignored_tests, "tests/a.rs", &fence), [2, 4, 6]);
}

#[test]
fn reader_is_not_fooled_by_strings_comments_and_lifetimes() {
    let text = "/* a /* sled::b */ sled::c */ const A: &str = r#\"\"sled::d\"#; fn f<'a>(c: &'a u8) { let _ = ['\"', '\\'', b'\\n' as char]; }\nuse sled::Db;";
    assert_eq!(lines(crates, "src/id.rs", text), [2]);
}

#[test]
fn reader_expands_groups_to_paths() {
    let file = Source::parse("src/id.rs", "pub use a::{b::{C, D as E}, f::*, self};");
    let paths: Vec<String> = file.paths().iter().map(|p| p.segments.join("::")).collect();
    assert_eq!(paths, ["a::b::C", "a::b::D", "a::f::*", "a::self"]);
    assert!(is_ident("a") && !is_ident("::"));
}
