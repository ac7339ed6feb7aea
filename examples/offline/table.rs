//! What is printed at the end.

use std::time::Duration;

use lastmile::{EndReason, Priority};

use hdrhistogram::Histogram;

use super::check::{Ledger, Outcome};
use super::plan::{Copy, DEVICES, Plan};

/// Prints the table, the first violations, and the line that counts.
pub(crate) fn print(
    outcome: &Outcome,
    plan: &Plan,
    kills: u32,
    took: Duration,
    (ledger, rows): (Ledger, &[String]),
) {
    println!(
        "{} users with {} devices each, {} messages, {} senders, killed {kills} times, {:.1} s",
        plan.users,
        DEVICES.len(),
        plan.messages,
        plan.senders(),
        took.as_secs_f64()
    );
    println!();
    println!("{:<14}{}", "delivered for", Priority::ALL.map(|of| format!("{:>28}", of.as_str())).concat());
    for copy in Copy::ALL {
        let waits = outcome.waits.get(copy.code()).into_iter().flatten();
        println!("{:<14}{}", copy.name(), waits.map(cell).collect::<String>());
    }
    println!("copies, and how long they waited: half of them at most, and 99 of 100");
    println!();
    row("accepted", outcome.accepted);
    row("delivered", outcome.delivered);
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
    println!("the first of those that were not delivered");
    rows.iter().for_each(|row| println!("  {row}"));
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

fn cell(waits: &Histogram<u64>) -> String {
    let [p50, p99] = [0.5, 0.99].map(|quantile| wait(waits.value_at_quantile(quantile)));
    format!("{:>8}{p50:>10}{p99:>10}", waits.len())
}

fn wait(millis: u64) -> String {
    if millis < 10_000 { format!("{millis} ms") } else { format!("{:.1} s", millis as f64 / 1000.0) }
}
