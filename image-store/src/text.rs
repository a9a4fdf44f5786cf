//! Texts from strangers in messages: short, and without what would move a
//! terminal's cursor or begin a line in a log.

/// Characters that are shown.
const MOST: usize = 200;

/// A text as it may stand in a message.
#[must_use]
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect();
    if text.chars().nth(MOST).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_short_and_in_one_line() {
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{9b}d"), "a[2Jbcd");
        assert_eq!(shown(&"x".repeat(5000)).len(), MOST + 3);
        assert_eq!(shown(&"x".repeat(MOST)).len(), MOST);
    }
}
