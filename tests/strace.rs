//! What the engine asks of the kernel, as strace sees it.
//!
//! The test runs itself under strace. Where strace is missing it says so loudly and proves nothing; the gate installs
//! it.
#![cfg(all(feature = "runtime", feature = "sled", target_os = "linux"))]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use lastmile::storage::SledStore;
use lastmile::{Config, Engine, Message};

const DIR: &str = "LASTMILE_STRACE_DIR";
const NAME: &str = "each_commit_is_one_write_and_one_sync_and_segments_wait_for_the_store";

/// A segment's header, and a group's alignment.
const BLOCK: u64 = 4 << 10;

/// One system call on a file below the engine's directory.
#[derive(Debug)]
struct Call {
    name: String,
    file: String,
    offset: u64,
    bytes: u64,
}

/// Sends enough for several settlings: 10,000 users, payloads to 1 MiB. Prints the number of commits.
fn workload(dir: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = Config::default();
        config.max_payload_bytes = (1 << 20).try_into().unwrap();
        let store = SledStore::open(dir).unwrap();
        let engine = Engine::builder(store).config(config).journal_size(8 << 20, 4).build().unwrap();
        let mut sends = tokio::task::JoinSet::new();
        for i in 0..10_000_usize {
            let bytes = if i % 200 == 0 { 1 << 20 } else { 64 + i % 4000 };
            let message =
                Message::to(format!("user-{i}"), "chat.message", vec![i as u8; bytes]).build().unwrap();
            let engine = engine.clone();
            sends.spawn(async move { engine.send(message).await.unwrap() });
            if sends.len() == 64 {
                while sends.join_next().await.is_some_and(|send| send.is_ok()) {}
            }
        }
        while sends.join_next().await.is_some_and(|send| send.is_ok()) {}
        let stats = engine.stats().await.unwrap();
        engine.shutdown(std::time::Duration::from_secs(20)).await;
        println!("\ncommits={} settlements={}", stats.commits, stats.settlements);
    });
}

fn number_after(text: &str, label: &str) -> u64 {
    let rest = text.split(label).nth(1).unwrap_or_else(|| panic!("{label} is missing in {text}"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// `123 pwrite64(7</dir/journal/x>, ""..., 4096, 8192) = 4096`
fn parse(line: &str, dir: &str) -> Option<Call> {
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start();
    let (name, rest) = call.split_once('(')?;
    let file = rest.split_once('<')?.1.split_once('>')?.0.strip_prefix(dir)?.trim_start_matches('/');
    let arguments = rest.split(" = ").next().unwrap_or(rest);
    let mut numbers = arguments.split(" <unfinished").next().unwrap_or(arguments).rsplit(", ");
    let mut number = || numbers.next().and_then(|text| text.trim_end_matches(')').parse().ok()).unwrap_or(0);
    let (offset, bytes) = (number(), number());
    Some(Call { name: name.to_owned(), file: file.to_owned(), offset, bytes })
}

#[test]
fn each_commit_is_one_write_and_one_sync_and_segments_wait_for_the_store() {
    if let Ok(dir) = std::env::var(DIR) {
        return workload(&dir);
    }
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: strace is not installed, so {NAME} proved nothing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let home = dir.path().join("outbox");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "0", "-e", "trace=pwrite64,write,fdatasync,fsync,sync_file_range", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DIR, &home)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: Vec<_> = trace.lines().filter_map(|line| parse(line, home.to_str().unwrap())).collect();
    let (commits, settlements) = (number_after(&said, "commits="), number_after(&said, "settlements="));
    assert!(commits > 100 && settlements > 1, "the workload proves nothing: {said}");
    check_journal(&calls, commits, settlements);
    check_recycling(&calls, settlements);
    check_no_blobs(&home);
}

fn is_journal(call: &Call) -> bool {
    call.file.starts_with("journal/")
}

fn is_sync(call: &Call) -> bool {
    call.name == "fdatasync" || call.name == "fsync"
}

/// After the segments were filled with zeros, writes and syncs of the journal alternate, and there is one pair for each
/// commit, besides one for each segment that was given back and one for opening.
fn check_journal(calls: &[Call], commits: u64, settlements: u64) {
    let journal: Vec<_> = calls.iter().filter(|call| is_journal(call) && call.file != "journal/").collect();
    let zeroed =
        journal.windows(2).rposition(|pair| !is_sync(pair[0]) && !is_sync(pair[1])).map_or(0, |i| i + 1);
    let steady = &journal[zeroed + 1..];
    let first = steady.iter().position(|call| !is_sync(call)).unwrap();
    let steady = &steady[first..];
    for pair in steady.chunks(2) {
        assert!(!is_sync(pair[0]), "a sync without a write: {pair:?}");
        assert!(pair.get(1).is_none_or(|call| is_sync(call)), "a write without a sync: {pair:?}");
        assert!(
            pair.get(1).is_none_or(|call| call.file == pair[0].file),
            "another file was synced: {pair:?}"
        );
    }
    let pairs = steady.len() as u64 / 2;
    assert!(pairs >= commits, "{pairs} writes for {commits} commits");
    let extra = pairs - commits;
    assert!(extra <= 4 * settlements + 2, "{extra} writes more than commits, in {settlements} settlements");
    println!("{commits} commits: {pairs} pairs of one write and one sync; {settlements} settlements");
}

/// Between the last group of a segment and the mark that gives it back, the store's file was written and synced.
fn check_recycling(calls: &[Call], settlements: u64) {
    let mut last_group: HashMap<&str, usize> = HashMap::new();
    let mut marks = 0;
    let journal: Vec<_> = (0..calls.len()).filter(|i| is_journal(&calls[*i])).collect();
    let zeroed =
        journal.windows(2).rfind(|pair| pair.iter().all(|i| !is_sync(&calls[*i]))).map_or(0, |pair| pair[1]);
    for (i, call) in
        calls.iter().enumerate().skip(zeroed + 1).filter(|(_, call)| is_journal(call) && !is_sync(call))
    {
        if call.offset != 0 || call.bytes > BLOCK {
            last_group.insert(&call.file, i);
            continue;
        }
        let Some(last) = last_group.remove(call.file.as_str()) else { continue };
        marks += 1;
        let mut between = calls[last..i].iter().filter(|call| call.file == "db/db");
        assert!(
            between.any(|call| call.name == "pwrite64"),
            "{} was given back before the store was written",
            call.file
        );
        assert!(between.any(is_sync), "{} was given back before the store was synced", call.file);
    }
    assert!(marks >= settlements, "{marks} segments were given back in {settlements} settlements");
    println!("{marks} segments were given back, each after the store's write and sync");
}

fn check_no_blobs(home: &Path) {
    let blobs = home.join("db").join("blobs");
    let files = std::fs::read_dir(blobs).map(Iterator::count).unwrap_or(0);
    assert_eq!(files, 0, "sled made blob files");
}
