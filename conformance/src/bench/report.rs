//! The results for people and for programs.

use serde_json::{Value, json};

use super::figures::Section;
use super::machine;

/// Who was measured where, when, by what.
#[derive(Debug, Clone)]
pub struct Head {
    /// The machine.
    pub machine: String,
    /// The command line.
    pub command: String,
    /// Seconds since 1970.
    pub at: u64,
    /// The contestants' names.
    pub contestants: Vec<String>,
}

impl Head {
    /// Of this process, now.
    #[must_use]
    pub fn new(contestants: Vec<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let words = std::env::args().collect::<Vec<_>>();
        Self {
            machine: machine::describe(),
            command: words.join(" "),
            at: now.unwrap_or_default().as_secs(),
            contestants,
        }
    }

    /// Names that are all different: two of the same get a number.
    #[must_use]
    pub fn distinct(names: &[&str]) -> Vec<String> {
        let numbered = |(at, name): (usize, &&str)| {
            let before = names[..at].iter().filter(|other| *other == name).count();
            match before {
                0 => (*name).to_owned(),
                more => format!("{name} #{}", more + 1),
            }
        };
        names.iter().enumerate().map(numbered).collect()
    }
}

/// Everything, in a layout of its own.
#[must_use]
pub fn json(head: &Head, sections: &[Section]) -> Value {
    let Head {
        machine,
        command,
        at,
        contestants,
    } = head;
    let sections = sections.iter().map(|one| one.json(contestants));
    json!({
        "format": "slipway-bench-1",
        "machine": machine,
        "command": command,
        "at": at,
        "engines": contestants,
        "sections": sections.collect::<Vec<_>>(),
    })
}

/// Everything as Markdown.
#[must_use]
pub fn markdown(head: &Head, sections: &[Section]) -> String {
    let mut text = format!(
        "{}\n\n- machine: {}\n- command: `{}`\n",
        head.contestants.join(" beside "),
        head.machine,
        head.command
    );
    if head.contestants.len() > 1 {
        text.push_str(&format!(
            "- ratio: how many times better {} is, by the medians\n",
            head.contestants[0]
        ));
    }
    for section in sections {
        text.push('\n');
        text.push_str(&section.markdown(&head.contestants));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_the_same_name_can_be_told_apart() {
        assert_eq!(Head::distinct(&["a", "b", "a"]), ["a", "b", "a #2"]);
    }
}
