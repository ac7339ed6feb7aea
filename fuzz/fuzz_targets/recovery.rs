//! An engine opens over any disk and any store, or refuses with an error. What opens can be worked with: records are
//! replayed, users come, messages are loaded and delivered, everything settles, is merged, verified, exported and imported;
//! and it all takes no more memory than it is worth.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use support::input::Input;
use support::outbox::{copy, import, read, users_of};
use support::shell::Shell;
use support::world::{World, shared};
use support::{Counting, within};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What each byte on disk may take in memory: a user in memory takes some 3 KiB, and a record that makes one some 10 bytes.
const FOR_A_BYTE: usize = 512;
/// A filter takes at most 4 MiB, and there may be an old and a new one.
const AT_LEAST: usize = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let world = World::of(Input(bytes));
    within(FOR_A_BYTE * world.bytes + AT_LEAST, || live(&world));
});

fn live(world: &World) {
    let (mut users, senders) = users_of(&world.store);
    let Some(mut shell) = Shell::open(shared(&world.disk), Arc::new(world.store.clone())) else { return };
    users.extend(shell.users.iter().take(4).cloned());
    read(&shell.outbox, &users, &senders, shell.now);
    for user in &users {
        shell.attach(user, "d");
    }
    shell.pass(120_000);
    let _ = shell.settle();
    for _ in 0..3 {
        if !shell.merge(Default::default()) {
            break;
        }
    }
    read(&shell.outbox, &users, &senders, shell.now);
    if let Some((_, stream)) = copy(&shell.outbox) {
        import(&stream);
    }
    drop(shell);
    Shell::open(shared(&world.disk), Arc::new(world.store.clone()));
}
