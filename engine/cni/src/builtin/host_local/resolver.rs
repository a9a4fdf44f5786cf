//! The resolver's settings from a file in the form of `resolv.conf`.

use std::fs;
use std::path::Path;

use crate::Error;
use crate::result::Dns;

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Dns, Error> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::because(format!("read {}", path.display()), error))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let keyword = words.next();
        let mut values = words.map(str::to_owned).peekable();
        if values.peek().is_none() {
            continue;
        }
        match keyword {
            Some("nameserver") => dns.nameservers.extend(values.next()),
            Some("domain") => dns.domain = values.next().unwrap_or_default(),
            Some("search") => dns.search.extend(values),
            Some("options") => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_keywords_are_skipped_and_lists_add_up() {
        let text = "nameserver 192.0.2.0\n;nameserver 1.1.1.1\n# nameserver 2.2.2.2\nnameserver\n\
            \tnameserver 192.0.2.2 extra\ndomain a.example\nsearch b c\nsearch d\noptions x y\noptions z\n";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["192.0.2.0", "192.0.2.2"]);
        assert_eq!(dns.domain, "a.example");
        assert_eq!(dns.search, ["b", "c", "d"]);
        assert_eq!(dns.options, ["x", "y", "z"]);
    }
}
