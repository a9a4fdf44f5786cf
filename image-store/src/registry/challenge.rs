//! `WWW-Authenticate`: how a registry says what it wants to see.
//!
//! Pure text work on what a stranger sent.

/// One way in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lowercase: `bearer`, `basic`.
    pub(crate) scheme: String,
    /// In order, names in lowercase.
    pub(crate) params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Reads one header, which may hold several challenges.
    pub(crate) fn parse(header: &str) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if word.is_empty() {
                // The end, or something that is no word: skip what stands there.
                let mut chars = after.chars();
                if chars.next().is_none() {
                    return out;
                }
                rest = chars.as_str();
                continue;
            }
            match (after.trim_start().strip_prefix('='), out.last_mut()) {
                (Some(value), Some(challenge)) => {
                    let (value, tail) = value_of(value.trim_start());
                    challenge.params.push((word.to_ascii_lowercase(), value));
                    rest = tail;
                }
                (Some(value), None) => rest = value,
                (None, _) => {
                    out.push(Self {
                        scheme: word.to_ascii_lowercase(),
                        params: Vec::new(),
                    });
                    rest = after;
                }
            }
        }
    }
}

/// A word, or a text in quotes with backslashes undone; and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return (value, chars.as_str()),
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bearer_with_quotes_and_commas_is_read() {
        let header = r#"Bearer realm="https://auth.io/token",service="reg, \"1\"",scope="repository:a/b:pull,push""#;
        let got = Challenge::parse(header);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].scheme, "bearer");
        assert_eq!(got[0].get("realm"), Some("https://auth.io/token"));
        assert_eq!(got[0].get("service"), Some("reg, \"1\""));
        assert_eq!(got[0].get("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn several_challenges_in_one_header_are_told_apart() {
        let got = Challenge::parse(r#"Negotiate, BASIC realm=x , bearer Realm = "y" ,service=z"#);
        let schemes: Vec<_> = got.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(got[1].get("realm"), Some("x"));
        assert_eq!(got[2].get("realm"), Some("y"));
        assert_eq!(got[2].get("service"), Some("z"));
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "[a-zB \\t,=\"\\\\é]{0,60}") {
            drop(Challenge::parse(&header));
        }
    }
}
