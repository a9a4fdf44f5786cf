//! Kernel parameters by name.
//!
//! Owns the way from a name to a file below /proc/sys. A name never leads
//! outside of it.

/// The path of a parameter below /proc/sys.
///
/// As sysctl(8): the first separator decides. With dots, a slash stands for a
/// dot in a name (`net.ipv4.conf.eth0/100.forwarding`); with slashes, a dot is
/// a dot. `None`: the name is none.
pub(crate) fn path(name: &str) -> Option<String> {
    let first = name.find(['.', '/'])?;
    let dotted = name.as_bytes().get(first) == Some(&b'.');
    let path: String = if dotted {
        name.chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    } else {
        name.to_owned()
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c))
    };
    path.split('/').all(plain).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_name_the_same_file() {
        assert_eq!(
            path("net.core.somaxconn").as_deref(),
            Some("net/core/somaxconn")
        );
        assert_eq!(
            path("net/core/somaxconn").as_deref(),
            Some("net/core/somaxconn")
        );
    }

    #[test]
    fn interface_names_keep_their_dots() {
        let expected = Some("net/ipv4/conf/eth0.100/forwarding");
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding").as_deref(),
            expected
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.100/forwarding").as_deref(),
            expected
        );
    }

    #[test]
    fn names_never_lead_outside() {
        for bad in [
            "",
            "kernel",
            "/etc/passwd",
            "../etc/passwd",
            "net/../../etc/passwd",
            "net/./core",
            "a.//.b",
            "net..core",
            "net/core/",
            ".net.core",
            "net.core.\0",
            "net/co re/x",
            "net.core.a\n",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }
}
