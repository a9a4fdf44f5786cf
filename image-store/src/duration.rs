//! Durations as Go writes them: `300ms`, `1.5h`, `1m30s`.
//!
//! Files for other engines have them, so they are read alike. Pure text work.

use std::time::Duration;

/// Reads a duration; `None` when it is none, negative or too long to count.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_go_reads_is_read_alike() {
        for (text, millis) in [
            ("1m30s", 90_000),
            ("1h2m3.5s", 3_723_500),
            ("300ms", 300),
            (".5s", 500),
            ("1.s", 1000),
            ("2000us", 2),
            ("2000\u{b5}s", 2),
            ("+5s", 5000),
            ("0", 0),
            ("0s", 0),
        ] {
            let want = Some(Duration::from_millis(millis));
            assert_eq!(parse_duration(text), want, "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "5 s",
            "1m30",
            "1d",
            ".s",
            "1..5s",
            "1e3s",
            "9999999999999999h",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "[0-9.hmsun\u{b5} +-]{0,20}") {
            prop_assert!(parse_duration(&text).is_none_or(|d| d <= Duration::MAX));
        }
    }
}
