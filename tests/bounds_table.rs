//! The table of bounds in docs/GUARANTEES.md has each field of the configuration once, with its default.

use std::collections::BTreeMap;

use lastmile::Config;

const GUARANTEES: &str = include_str!("../docs/GUARANTEES.md");

/// The lines of the table, as `field → (default, at it, test)`; lines of other bounds have names without backquotes.
fn table() -> Vec<Vec<&'static str>> {
    let (_, section) = GUARANTEES.split_once("## The bounds, and where each is held to").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The fields of the default, and what their values are in one line each.
fn defaults() -> BTreeMap<String, String> {
    let printed = format!("{:#?}", Config::default());
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in printed.lines().skip(1).filter(|line| *line != "}") {
        let is_field = line.starts_with("    ") && !line.starts_with("     ");
        match line.trim().split_once(": ") {
            Some((field, value)) if is_field => {
                field.clone_into(&mut name);
                fields.insert(name.clone(), value.trim_end_matches(',').to_owned());
            }
            _ => {
                let value = fields.get_mut(&name).expect("a value belongs to a field");
                let item = line.trim();
                value.push_str(if item == "]" || item == "]," { "]" } else { item });
            }
        }
    }
    fields
}

/// With a comma between thousands.
fn grouped(number: &str) -> String {
    let mut grouped = String::new();
    for (n, digit) in number.chars().enumerate() {
        if n > 0 && (number.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[test]
fn each_field_of_the_configuration_is_in_the_table_of_bounds_once_with_its_default() {
    let table = table();
    let defaults = defaults();
    assert!(defaults.len() > 50, "{defaults:?}");
    for (field, value) in &defaults {
        let lines: Vec<_> = table.iter().filter(|line| line[0] == format!("`{field}`")).collect();
        assert_eq!(lines.len(), 1, "{field} is in {} lines", lines.len());
        let said = lines[0][1];
        let is_said = match value.as_str() {
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                said.split([' ', ';']).next() == Some(&grouped(number))
            }
            "[]" => said.starts_with("none"),
            // By priority, in KiB.
            _ if field == "shares" => {
                let [critical, high, normal, low] = Config::default().shares.map(|share| share.get());
                assert!([critical, high, normal, low].iter().all(|share| share.is_multiple_of(1 << 10)));
                let [critical, high, normal, low] = [critical, high, normal, low].map(|share| share >> 10);
                said == format!("{critical}, {high}, {normal} and {low} KiB a turn, by priority")
            }
            list if list.starts_with('[') => said == list.replace(",]", "]").replace(',', ", "),
            other => said.split([' ', ';']).next() == Some(other),
        };
        assert!(is_said, "the default of {field} is {value}, not {said}");
    }
}

#[test]
fn each_line_of_the_table_says_what_happens_and_no_bound_is_in_it_twice() {
    let table = table();
    let mut names: Vec<_> = table.iter().map(|line| line[0]).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before, "a bound is in the table twice");
    for line in &table {
        assert!(line.len() == 4 && line.iter().all(|cell| !cell.is_empty()), "{line:?}");
        let field = line[0].strip_prefix('`').and_then(|name| name.strip_suffix('`'));
        let is_known = field.is_none_or(|field| defaults().contains_key(field));
        assert!(is_known, "{} is no field of the configuration", line[0]);
    }
}
