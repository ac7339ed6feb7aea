//! Any bytes are a script, and no script breaks a promise.
#![no_main]

use lastmile::testing::sim::{Script, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let script = Script::of_bytes(&bytes[..bytes.len().min(900)]);
    let outcome = run(&script, None);
    assert!(outcome.violation.is_none(), "{:?}\n{script}", outcome.violation);
});
