//! Kubernetes' bandwidth annotations: `kubernetes.io/ingress-bandwidth` and
//! `kubernetes.io/egress-bandwidth`, quantities of bits per second.

use super::{BadRequest, wrong};
use crate::model::Pairs;

/// The directions, as the annotations and CNI's bandwidth plugin name them.
pub(crate) const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

/// The rates that Kubernetes takes for possible, in bits per second.
const POSSIBLE: std::ops::RangeInclusive<u64> = 1000..=1_000_000_000_000_000;

/// The rate that the annotations ask for in a direction.
pub(crate) fn rate(annotations: &Pairs, direction: &str) -> Result<Option<u64>, BadRequest> {
    let name = format!("kubernetes.io/{direction}-bandwidth");
    let Some(text) = annotations.get(&name) else {
        return Ok(None);
    };
    let field = || format!("config.annotations[{name}]");
    let Some(rate) = quantity(text) else {
        let reason = format!(
            "{text:?} is no quantity: digits, perhaps with a fraction, and one of k M G T P E Ki Mi Gi Ti Pi Ei, m or an exponent"
        );
        return Err(wrong(field(), reason));
    };
    if !POSSIBLE.contains(&rate) {
        let (least, most) = (POSSIBLE.start(), POSSIBLE.end());
        let reason = format!("{text:?} is not between {least} and {most} bits per second");
        return Err(wrong(field(), reason));
    }
    Ok(Some(rate))
}

/// A Kubernetes quantity such as `10M`, `1.5G`, `1Gi` or `1e6`, rounded up.
fn quantity(text: &str) -> Option<u64> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let decimals = u32::try_from(fraction.len()).ok()?;
    // More digits than these say nothing about a rate.
    if digits.is_empty() || digits.len() > 20 || fraction.contains('.') {
        return None;
    }
    let (factor, below) = scale(suffix)?;
    let numerator = digits.parse::<u128>().ok()?.checked_mul(factor)?;
    let denominator = 10_u128.checked_pow(decimals)?.checked_mul(below)?;
    u64::try_from(numerator.div_ceil(denominator)).ok()
}

/// What a suffix multiplies by and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = ["", "k", "M", "G", "T", "P", "E"];
    if let Some(power) = decimal.iter().position(|known| *known == suffix) {
        return Some((1000_u128.pow(u32::try_from(power).ok()?), 1));
    }
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(power) = binary.iter().position(|known| *known == suffix) {
        return Some((1024_u128.pow(u32::try_from(power).ok()? + 1), 1));
    }
    let below = ["m", "u", "n"];
    if let Some(power) = below.iter().position(|known| *known == suffix) {
        return Some((1, 1000_u128.pow(u32::try_from(power).ok()? + 1)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("1000", 1000),
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            ("1T", 1_000_000_000_000),
            ("1Gi", 1 << 30),
            ("0.5Ki", 512),
            ("1e6", 1_000_000),
            ("2E3", 2000),
            ("15e-1", 2),
            ("2500m", 3),
            (".5k", 500),
            ("5.k", 5000),
        ] {
            assert_eq!(quantity(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_pattern() {
        for text in [
            "", "M", "fast", "10 M", "-1M", "1.2.3", "10m5", "1e", "1e400", "0x10", "10MB",
        ] {
            assert_eq!(quantity(text), None, "{text}");
            let pairs = [("kubernetes.io/egress-bandwidth".to_owned(), text.to_owned())].into();
            let error = rate(&pairs, "egress").expect_err("refused").to_string();
            assert!(error.contains("Gi Ti"), "{error}");
            assert_eq!(rate(&pairs, "ingress").expect("not asked for"), None);
        }
        for text in ["999", "2P", "1m"] {
            let pairs = [(
                "kubernetes.io/ingress-bandwidth".to_owned(),
                text.to_owned(),
            )]
            .into();
            let error = rate(&pairs, "ingress").expect_err("refused").to_string();
            assert!(error.contains("between"), "{error}");
        }
    }
}
