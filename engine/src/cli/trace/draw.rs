//! Waterfalls: one line a step, on a scale that is the call's.

use super::Call;

/// Columns of the bars in the terminal.
const COLUMNS: u64 = 60;
/// Columns of the names.
const NAMES: usize = 34;

const WIDTH: u64 = 1000;
const LEFT: u64 = 280;
const ROOM: u64 = 600;
const LINE: u64 = 18;

/// Nanoseconds for people.
pub(super) fn milliseconds(nanoseconds: u64) -> String {
    let micros = nanoseconds / 1000;
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

/// Where a moment of a call is on a scale of so many parts.
fn at(moment: u64, call: &Call, parts: u64) -> u64 {
    moment.min(call.took) * parts / call.took.max(1)
}

/// All calls, in letters.
pub(super) fn terminal(calls: &[Call]) -> String {
    let mut text = String::new();
    for call in calls {
        text.push_str(&call.title());
        text.push('\n');
        for (depth, step) in call.lines() {
            let name = format!("{:indent$}{}", "", step.name, indent = 2 + depth * 2);
            let (from, to) = (at(step.start, call, COLUMNS), at(step.end, call, COLUMNS));
            let bar = if step.place == "monitor" {
                "░"
            } else {
                "█"
            };
            // What is too short to be seen is seen nevertheless.
            let long = (to - from).max(1);
            let bar: String = (0..long).map(|_| bar).collect();
            let before = usize::try_from(from.min(COLUMNS - 1)).unwrap_or(0);
            let took = milliseconds(step.end.saturating_sub(step.start));
            text.push_str(&format!("{name:<NAMES$} {took:>10} │{:before$}{bar}\n", ""));
        }
        text.push('\n');
    }
    if calls.is_empty() {
        text.push_str("the engine remembers no call of this pod\n");
    }
    text
}

/// All calls, as a picture.
pub(super) fn svg(calls: &[Call]) -> String {
    let lines: usize = calls.iter().map(|call| call.steps.len() + 3).sum();
    let height = (u64::try_from(lines).unwrap_or(0) + 1) * LINE;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut y = LINE;
    for call in calls {
        let title = escaped(&call.title());
        text.push_str(&format!(
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{title}</text>\n"
        ));
        y += LINE;
        for (depth, step) in call.lines() {
            let (from, to) = (at(step.start, call, ROOM), at(step.end, call, ROOM));
            let indent = 20 + u64::try_from(depth).unwrap_or(0) * 14;
            let colour = if step.place == "monitor" {
                "#e69f00"
            } else {
                "#0072b2"
            };
            let (name, took) = (
                escaped(&step.name),
                milliseconds(step.end.saturating_sub(step.start)),
            );
            let (left, top, wide) = (LEFT + from, y - 11, (to - from).max(1));
            let end = left + wide + 6;
            text.push_str(&format!(
                "<text x=\"{indent}\" y=\"{y}\">{name}</text>\
                 <rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"13\" fill=\"{colour}\"/>\
                 <text x=\"{end}\" y=\"{y}\">{took}</text>\n"
            ));
            y += LINE;
        }
        y += 2 * LINE;
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::call;
    use super::*;

    #[test]
    fn a_bar_begins_and_ends_where_its_step_does() {
        let text = terminal(&[call()]);
        let setup = text.lines().nth(1).expect("a line");
        assert!(setup.starts_with("  monitor: setup "), "{setup}");
        let bar = setup.split('│').nth(1).expect("a bar");
        assert_eq!(bar, format!("{}{}", " ".repeat(6), "█".repeat(18)));
        let part = text.lines().nth(2).expect("a line");
        assert!(
            part.ends_with(&format!("│{}{}", " ".repeat(12), "░".repeat(6))),
            "{part}"
        );
    }

    #[test]
    fn names_cannot_break_the_picture() {
        let mut call = call();
        call.steps[0].name = "<a&b>".to_owned();
        let text = svg(&[call]);
        assert!(text.contains("&lt;a&amp;b&gt;") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn a_step_that_outlives_its_call_ends_with_it() {
        let mut call = call();
        call.steps[0].end = 99_000_000;
        assert!(
            terminal(&[call])
                .lines()
                .all(|line| line.chars().count() <= 120)
        );
    }
}
