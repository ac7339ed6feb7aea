//! What is printed at the end.

use std::time::Duration;

use lastmile::Priority;

use super::check::{Ledger, Outcome};
use super::plan::Plan;

/// Prints the table, the first violations, and the line that counts.
pub(crate) fn print(outcome: &Outcome, plan: &Plan, kills: u32, took: Duration, ledger: Ledger) {
    println!(
        "{} users, {} messages, {} senders, killed {kills} times, {:.1} s",
        plan.users,
        plan.messages,
        plan.senders(),
        took.as_secs_f64()
    );
    println!();
    println!("{:<28}{:>10}{:>12}{:>12}", "", "messages", "wait p50", "wait p99");
    row("accepted", outcome.accepted);
    for priority in Priority::ALL {
        let waits = &outcome.waits[priority.index()];
        let name = format!("delivered, {}", priority.as_str());
        let [p50, p99] = [0.5, 0.99].map(|quantile| wait(waits.value_at_quantile(quantile)));
        println!("{name:<28}{:>10}{p50:>12}{p99:>12}", waits.len());
    }
    row("expired", outcome.expired);
    row("repeated sends refused", outcome.repeats_refused);
    row("repeated deliveries refused*", ledger.inbox_repeats);
    row("handlers run again, told so", outcome.reruns);
    row("log lines cut off by a kill", outcome.torn_lines);
    println!("* by the inbox, in the last life");
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

fn wait(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{:.1} s", millis as f64 / 1000.0) }
}
