//! What a measurement gives: samples of a named thing for each contestant, and
//! what to make of them.

use std::time::Duration;

use serde_json::{Value, json};

/// What samples are counted in, and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; fewer are better.
    Milliseconds,
    /// How many in a second; more are better.
    PerSecond,
    /// Mebibytes in a second; more are better.
    MebibytesPerSecond,
    /// Kibibytes; fewer are better.
    Kibibytes,
    /// Percent of one core; fewer are better.
    CorePercent,
    /// A plain number that is neither good nor bad.
    Count,
}

impl Unit {
    /// The unit as a table shows it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::MebibytesPerSecond => "MiB/s",
            Self::Kibibytes => "KiB",
            Self::CorePercent => "% of a core",
            Self::Count => "",
        }
    }

    const fn better(self) -> &'static str {
        match self {
            Self::Milliseconds | Self::Kibibytes | Self::CorePercent => "lower",
            Self::PerSecond | Self::MebibytesPerSecond => "higher",
            Self::Count => "neither",
        }
    }
}

/// Samples of one thing from one contestant; none where it was not measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// One value.
    #[must_use]
    pub fn one(value: f64) -> Self {
        Self(vec![value])
    }

    /// Durations in milliseconds.
    #[must_use]
    pub fn milliseconds(times: &[Duration]) -> Self {
        Self(
            times
                .iter()
                .map(|time| time.as_secs_f64() * 1000.0)
                .collect(),
        )
    }

    /// The value that this share of the samples does not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied()
    }
}

/// One thing measured of all contestants.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In which unit.
    pub unit: Unit,
    /// One for each contestant, in their order.
    pub samples: Vec<Samples>,
    /// Whether it is drawn too, and not only listed.
    pub drawn: bool,
}

impl Row {
    /// A row.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: Unit, samples: Vec<Samples>) -> Self {
        let name = name.into();
        Self {
            name,
            unit,
            samples,
            drawn: true,
        }
    }

    /// The row, only listed.
    #[must_use]
    pub fn only_listed(mut self) -> Self {
        self.drawn = false;
        self
    }

    /// How many times better the first contestant is than this one; `None` where
    /// one of the two has no figure or there is no better.
    #[must_use]
    pub fn ratio(&self, contestant: usize) -> Option<f64> {
        let first = self.samples.first()?.percentile(50)?;
        let other = self.samples.get(contestant)?.percentile(50)?;
        let ratio = match self.unit.better() {
            "lower" => other / first,
            "higher" => first / other,
            _ => return None,
        };
        ratio.is_finite().then_some(ratio)
    }
}

/// The rows of one mode.
#[derive(Debug, Clone)]
pub struct Section {
    /// The mode's name.
    pub mode: &'static str,
    /// What was done, in a sentence.
    pub what: String,
    /// What it gave.
    pub rows: Vec<Row>,
}

impl Section {
    /// The section in the benchmark's own JSON.
    #[must_use]
    pub fn json(&self, contestants: &[String]) -> Value {
        let row = |row: &Row| {
            let figures = row.samples.iter().zip(contestants).enumerate();
            let results = figures.map(|(at, (samples, name))| {
                json!({
                    "engine": name,
                    "p50": samples.percentile(50),
                    "p90": samples.percentile(90),
                    "p99": samples.percentile(99),
                    "firstIsBetterBy": row.ratio(at),
                    "samples": samples.0,
                })
            });
            json!({
                "name": row.name,
                "unit": row.unit.word(),
                "better": row.unit.better(),
                "results": results.collect::<Vec<_>>(),
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({ "mode": self.mode, "what": self.what, "rows": rows })
    }

    /// The section as a Markdown table; ratios are of the medians.
    #[must_use]
    pub fn markdown(&self, contestants: &[String]) -> String {
        let mut text = format!("### {}\n\n{}\n\n| |", self.mode, self.what);
        for (at, name) in contestants.iter().enumerate() {
            text.push_str(&format!(" {name} |"));
            if at > 0 {
                text.push_str(" ratio |");
            }
        }
        text.push_str("\n|---|");
        text.push_str(&"---:|".repeat(contestants.len() * 2 - 1));
        for row in &self.rows {
            let several = row.samples.iter().any(|one| one.0.len() > 1);
            let tail = if several { ", p50 / p90 / p99" } else { "" };
            let unit = match row.unit.word() {
                "" => String::new(),
                word => format!(", {word}"),
            };
            text.push_str(&format!("\n| {}{unit}{tail} |", row.name));
            for (at, samples) in row.samples.iter().enumerate() {
                text.push_str(&format!(" {} |", cell(samples)));
                if at > 0 {
                    let ratio = row.ratio(at).map(|ratio| format!("{ratio:.1} x"));
                    text.push_str(&format!(" {} |", ratio.unwrap_or_default()));
                }
            }
        }
        text.push('\n');
        text
    }
}

fn cell(samples: &Samples) -> String {
    let figure = |percent| samples.percentile(percent).map(digits).unwrap_or_default();
    match samples.0.len() {
        0 => "-".to_owned(),
        1 => figure(50),
        _ => format!("{} / {} / {}", figure(50), figure(90), figure(99)),
    }
}

/// A number with as many digits as mean something.
#[must_use]
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, medians: [f64; 2]) -> Row {
        Row::new("a", unit, medians.map(Samples::one).to_vec())
    }

    #[test]
    fn a_percentile_is_a_sample_that_was_taken() {
        let samples = Samples((1..=10).rev().map(f64::from).collect());
        assert_eq!(samples.percentile(50), Some(5.0));
        assert_eq!(samples.percentile(90), Some(9.0));
        assert_eq!(samples.percentile(99), Some(10.0));
        assert_eq!(Samples::default().percentile(50), None);
    }

    #[test]
    fn a_ratio_says_how_much_better_the_first_is_whichever_way_is_better() {
        assert_eq!(row(Unit::Milliseconds, [2.0, 8.0]).ratio(1), Some(4.0));
        assert_eq!(row(Unit::PerSecond, [8.0, 2.0]).ratio(1), Some(4.0));
        assert_eq!(row(Unit::Count, [8.0, 2.0]).ratio(1), None);
        assert_eq!(row(Unit::Milliseconds, [0.0, 2.0]).ratio(1), None);
    }

    #[test]
    fn what_was_not_measured_is_a_dash_in_the_table() {
        let mut row = row(Unit::Milliseconds, [2.0, 8.0]);
        row.samples[1] = Samples::default();
        let section = Section {
            mode: "latency",
            what: "A.".into(),
            rows: vec![row],
        };
        let table = section.markdown(&["x".into(), "y".into()]);
        assert!(table.ends_with("| a, ms | 2.00 | - |  |\n"), "{table}");
    }
}
