//! What is printed at the end.

use std::time::Duration;

use lastmile::{EndReason, Priority};

use hdrhistogram::Histogram;

use super::check::{Ledger, Outcome};
use super::plan::{Copy, DEVICES, Plan};

/// Prints the table, the first violations, and the line that counts.
pub(crate) fn print(outcome: &Outcome, plan: &Plan, kills: u32, took: Duration, ledger: Ledger) {
    println!(
        "{} users with {} devices each, {} messages, {} senders, killed {kills} times, {:.1} s",
        plan.users,
        DEVICES.len(),
        plan.messages,
        plan.senders(),
        took.as_secs_f64()
    );
    println!();
    println!("{:<28}{:>10}{:>12}{:>12}", "", "copies", "wait p50", "wait p99");
    row("accepted", outcome.accepted);
    for priority in Priority::ALL {
        waits(&format!("delivered, {}", priority.as_str()), &outcome.waits[priority.index()]);
    }
    for copy in Copy::ALL {
        waits(&format!("delivered, for {}", copy.name()), &outcome.waits_of_copies[copy.code()]);
    }
    row("expired", outcome.expired);
    row("repeated sends refused", outcome.repeats_refused);
    row("repeated deliveries refused*", ledger.inbox_repeats);
    row("handlers run again, told so", outcome.reruns);
    row("log lines cut off by a kill", outcome.torn_lines);
    println!("* by the inboxes, in the last life");
    println!();
    println!("the outbox's ledger");
    for reason in EndReason::ALL {
        let ended = ledger.ended[reason.index()];
        if ended > 0 {
            row(&format!("ended, {}", reason.as_str()), ended);
        }
    }
    println!();
    for complaint in &outcome.complaints {
        println!("VIOLATION: {complaint}");
    }
    println!(
        "accepted={} delivered={} lost={} duplicated={} inverted={}",
        outcome.accepted, outcome.delivered, outcome.lost, outcome.duplicated, outcome.inverted
    );
}

fn row(name: &str, count: u64) {
    println!("{name:<28}{count:>10}");
}

fn waits(name: &str, waits: &Histogram<u64>) {
    let [p50, p99] = [0.5, 0.99].map(|quantile| wait(waits.value_at_quantile(quantile)));
    println!("{name:<28}{:>10}{p50:>12}{p99:>12}", waits.len());
}

fn wait(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{:.1} s", millis as f64 / 1000.0) }
}
