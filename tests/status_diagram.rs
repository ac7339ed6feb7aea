//! Draws docs/status.svg from the table of legal transitions, and fails when the file says something else.
//!
//! `LASTMILE_BLESS=1 cargo test --test status_diagram` draws it anew.

use std::fmt::Write as _;
use std::path::Path;

use lastmile::{EndReason, Status};

const LIVE: [(Status, &str, &str); 3] =
    [drawn(Status::Accepted), drawn(Status::Sent), drawn(Status::Retrying)];

/// What is written in the box of a live status; a new one does not compile until it is here, and then in [`LIVE`].
const fn drawn(status: Status) -> (Status, &'static str, &'static str) {
    match status {
        Status::Accepted => (status, "Accepted", "durable here"),
        Status::Sent => (status, "Sent", "handed to a sink"),
        Status::Retrying => (status, "Retrying", "not confirmed in time"),
        Status::Ended(_) => panic!("ends are drawn by their reasons"),
    }
}
/// Width and height of a box, and the distance between two.
const BOX: (i32, i32, i32) = (150, 48, 110);
const TOP: i32 = 60;
const ENDS: i32 = 250;
const END: (i32, i32, i32) = (96, 40, 8);

/// The middle of a live status.
fn x_of(i: usize) -> i32 {
    let i = i32::try_from(i).unwrap();
    90 + BOX.0 / 2 + i * (BOX.0 + BOX.2)
}

fn x_of_end(i: usize) -> i32 {
    20 + END.0 / 2 + i32::try_from(i).unwrap() * (END.0 + END.2)
}

fn node(out: &mut String, (x, y): (i32, i32), (w, h): (i32, i32), class: &str, lines: &[&str]) {
    let (left, top) = (x - w / 2, y - h / 2);
    writeln!(out, r#"<rect class="{class}" x="{left}" y="{top}" width="{w}" height="{h}" rx="8"/>"#).unwrap();
    for (i, line) in (0..).zip(lines) {
        let y = y + 5 - 8 * (i32::try_from(lines.len()).unwrap() - 1) + 17 * i;
        let class = if i == 0 { "name" } else { "note" };
        writeln!(out, r#"<text class="{class}" x="{x}" y="{y}">{line}</text>"#).unwrap();
    }
}

fn arrow(out: &mut String, path: &str, class: &str) {
    writeln!(out, r#"<path class="{class}" d="{path}" marker-end="url(#head)"/>"#).unwrap();
}

/// Arrows between two live statuses: forth above, back below, and over the one between them.
fn between(out: &mut String, from: usize, to: usize) {
    let (a, b) = (x_of(from), x_of(to));
    let half = BOX.0 / 2;
    let path = match (from.abs_diff(to), from < to) {
        (1, true) => format!("M{} {} L{} {}", a + half, TOP - 8, b - half - 4, TOP - 8),
        (1, false) => format!("M{} {} L{} {}", a - half, TOP + 8, b + half + 4, TOP + 8),
        (_, true) => format!("M{a} {} C{a} 0 {b} 0 {b} {}", TOP - BOX.1 / 2, TOP - BOX.1 / 2 - 4),
        (_, false) => format!("M{a} {} C{a} 130 {b} 130 {b} {}", TOP + BOX.1 / 2, TOP + BOX.1 / 2 + 4),
    };
    arrow(out, &path, "line");
}

fn draw() -> String {
    let width = x_of_end(EndReason::ALL.len() - 1) + END.0 / 2 + 20;
    let mut out = String::new();
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 340" role="img" aria-label="Statuses of a message">
<style>
text {{ font: 13px sans-serif; text-anchor: middle; fill: #1f2328 }}
.name {{ font-weight: bold }} .note {{ font-size: 11px; fill: #59636e }}
rect {{ fill: #f6f8fa; stroke: #59636e }} .good {{ fill: #dafbe1; stroke: #1a7f37 }} .all {{ fill: none; stroke-dasharray: 4 3 }}
path {{ fill: none; stroke: #59636e }} .late {{ stroke: #1a7f37; stroke-dasharray: 4 3 }} marker path {{ fill: #59636e }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #f0f6fc }} .note {{ fill: #9198a1 }} rect {{ fill: #151b23; stroke: #9198a1 }} .good {{ fill: #12261e; stroke: #3fb950 }}
.all {{ fill: none }} path {{ stroke: #9198a1 }} .late {{ stroke: #3fb950 }} marker path {{ fill: #9198a1 }}
}}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>"##
    )
    .unwrap();
    for (i, (status, name, note)) in LIVE.iter().enumerate() {
        node(&mut out, (x_of(i), TOP), (BOX.0, BOX.1), "live", &[name, note]);
        for (j, (next, ..)) in LIVE.iter().enumerate().filter(|(j, _)| *j != i) {
            if status.may_become(*next) {
                between(&mut out, i, j);
            }
        }
        let ends: Vec<_> =
            EndReason::ALL.iter().map(|reason| status.may_become(Status::Ended(*reason))).collect();
        // To the frame around them all, or to each by itself.
        let (x, bottom) = (x_of(i), TOP + BOX.1 / 2);
        if ends.iter().all(|may| *may) {
            arrow(&mut out, &format!("M{x} {bottom} L{x} {}", ENDS - 62), "line");
        } else {
            for (k, _) in ends.iter().enumerate().filter(|(_, may)| **may) {
                arrow(&mut out, &format!("M{x} {bottom} L{} {}", x_of_end(k), ENDS - END.1 / 2 - 4), "line");
            }
        }
    }
    writeln!(
        out,
        r#"<rect class="all" x="8" y="{}" width="{}" height="140" rx="8"/>"#,
        ENDS - 58,
        width - 16
    )
    .unwrap();
    writeln!(
        out,
        r#"<text class="note" x="{}" y="{}">Ended: exactly once, for one reason</text>"#,
        width / 2,
        ENDS - 40
    )
    .unwrap();
    for (i, reason) in EndReason::ALL.into_iter().enumerate() {
        let class = if reason == EndReason::Delivered { "good" } else { "end" };
        node(&mut out, (x_of_end(i), ENDS), (END.0, END.1), class, &[reason.as_str()]);
        for (j, _) in EndReason::ALL
            .iter()
            .enumerate()
            .filter(|(j, next)| *j != i && Status::Ended(reason).may_become(Status::Ended(**next)))
        {
            let (from, to, bottom) = (x_of_end(i), x_of_end(j), ENDS + END.1 / 2);
            let low = bottom + 12 + 3 * i32::try_from(i.abs_diff(j)).unwrap();
            arrow(
                &mut out,
                &format!("M{from} {bottom} L{from} {low} L{to} {low} L{to} {}", bottom + 4),
                "late",
            );
        }
    }
    writeln!(
        out,
        r#"<text class="note" x="{}" y="{}">a late confirmation is believed</text>"#,
        width / 2,
        ENDS + 74
    )
    .unwrap();
    out + "</svg>\n"
}

#[test]
fn the_drawing_in_the_docs_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status.svg");
    let drawn = draw();
    if std::env::var_os("LASTMILE_BLESS").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == drawn,
        "docs/status.svg is not what the table says: draw it anew, as this file says above"
    );
}

#[test]
fn every_status_is_drawn() {
    let drawn = draw();
    for reason in EndReason::ALL {
        assert!(drawn.contains(&format!(">{}<", reason.as_str())), "{reason:?}");
        // A new kind of end that only some may reach would need a place of its own.
        assert!(LIVE.iter().all(|(status, ..)| status.may_become(Status::Ended(reason))), "{reason:?}");
    }
}
