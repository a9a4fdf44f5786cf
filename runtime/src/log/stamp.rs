//! Time stamps: RFC 3339 with nanoseconds, in UTC.

/// Length of every stamp.
pub(super) const LENGTH: usize = "2026-11-23T08:15:00.123456789Z".len();

/// A formatted time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; LENGTH]);

impl Stamp {
    /// Formats nanoseconds since 1970. Years beyond 9999 are shown as 9999.
    #[must_use]
    pub fn new(wall: i64) -> Self {
        let seconds = wall.div_euclid(1_000_000_000);
        let nanoseconds = wall.rem_euclid(1_000_000_000);
        let (year, month, day) = date(seconds.div_euclid(86_400));
        let of_day = seconds.rem_euclid(86_400);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        for (range, number) in [
            (0..4, year.clamp(0, 9999)),
            (5..7, month),
            (8..10, day),
            (11..13, of_day / 3600),
            (14..16, of_day / 60 % 60),
            (17..19, of_day % 60),
            (20..29, nanoseconds),
        ] {
            digits(text.get_mut(range).unwrap_or_default(), number);
        }
        Self(text)
    }

    /// The stamp of this moment.
    #[must_use]
    pub fn now() -> Self {
        Self::new(crate::protocol::wall_now())
    }

    /// Its text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether a text begins as a record does.
pub(super) fn begins(text: &[u8]) -> bool {
    let template = b"0000-00-00T00:00:00.000000000Z std";
    let alike = |(wanted, found): (&u8, &u8)| match wanted {
        b'0' => found.is_ascii_digit(),
        other => other == found,
    };
    text.len() >= template.len() && template.iter().zip(text).all(alike)
}

/// Writes a number with leading zeros.
fn digits(text: &mut [u8], mut number: i64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
///
/// Years are counted from March here, so that a leap day ends one, and in
/// eras of 400 years, after which the calendar repeats.
fn date(day: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    // 1970-01-01 is day 719468 since 0000-03-01.
    let shifted = day + 719_468;
    let era = shifted.div_euclid(ERA);
    let of_era = shifted.rem_euclid(ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(wall: i64) -> String {
        String::from_utf8(Stamp::new(wall).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            text(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(
            text(1_709_251_199_999_999_999),
            "2024-02-29T23:59:59.999999999Z"
        );
        assert_eq!(
            text(1_795_421_700_123_456_789),
            "2026-11-23T08:15:00.123456789Z"
        );
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(
            text(4_107_542_400_000_000_000),
            "2100-03-01T00:00:00.000000000Z"
        );
    }

    #[test]
    fn days_follow_each_other_for_eight_centuries() {
        let mut expected = (1970, 1, 1);
        for day in 0..300_000 {
            assert_eq!(date(day), expected);
            let (year, month, of_month) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (of_month == length, month) {
                (true, 12) => (year + 1, 1, 1),
                (true, _) => (year, month + 1, 1),
                (false, _) => (year, month, of_month + 1),
            };
        }
    }
}
