//! Rules about devices, and the program that enforces them on cgroup v2.
//!
//! Owns the meaning of a list of rules: the last one that speaks of an access
//! decides. Puts them in force for one cgroup; a crash leaves them there, for
//! as long as that lives.

mod enforce;

use crate::sys::bpf::Instruction;

pub use enforce::{EnforceError, enforce};

/// What every container may use, whatever its rules say: making any node,
/// which is no access to it, and devices that harm nobody.
const ALWAYS: [(Kind, Option<u32>, Option<u32>, Access); 11] = {
    const MAKE: Access = Access {
        read: false,
        write: false,
        mknod: true,
    };
    const ALL: Access = Access::ALL;
    [
        (Kind::Char, None, None, MAKE),
        (Kind::Block, None, None, MAKE),
        (Kind::Char, Some(1), Some(3), ALL),
        (Kind::Char, Some(1), Some(5), ALL),
        (Kind::Char, Some(1), Some(7), ALL),
        (Kind::Char, Some(1), Some(8), ALL),
        (Kind::Char, Some(1), Some(9), ALL),
        (Kind::Char, Some(5), Some(0), ALL),
        (Kind::Char, Some(5), Some(1), ALL),
        (Kind::Char, Some(5), Some(2), ALL),
        (Kind::Char, Some(136), None, ALL),
    ]
};

/// Kinds of devices that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block and character devices.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

impl Kind {
    /// Its letter: `a`, `b` or `c`.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::All => 'a',
            Self::Block => 'b',
            Self::Char => 'c',
        }
    }

    /// The kind of a letter.
    #[must_use]
    pub fn of(letter: &str) -> Option<Self> {
        [Self::All, Self::Block, Self::Char]
            .into_iter()
            .find(|kind| letter.chars().eq([kind.letter()]))
    }
}

/// Ways to use a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Opening it for reading.
    pub read: bool,
    /// Opening it for writing.
    pub write: bool,
    /// Making a node of it.
    pub mknod: bool,
}

impl Access {
    /// All ways.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        mknod: true,
    };

    /// Reads letters out of `rwm`. `None`: none, or others.
    #[must_use]
    pub fn parse(letters: &str) -> Option<Self> {
        let known = letters.chars().all(|letter| "rwm".contains(letter));
        (known && !letters.is_empty()).then(|| Self {
            read: letters.contains('r'),
            write: letters.contains('w'),
            mknod: letters.contains('m'),
        })
    }

    /// The ways as letters out of `rwm`.
    #[must_use]
    pub fn letters(self) -> String {
        [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')]
            .iter()
            .filter_map(|(set, letter)| set.then_some(*letter))
            .collect()
    }

    /// The kernel's bits.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Devices of which kind.
    pub kind: Kind,
    /// Their major number; `None`: any.
    pub major: Option<u32>,
    /// Their minor number; `None`: any.
    pub minor: Option<u32>,
    /// An allowing rule speaks of accesses that are all in here, a denying one
    /// of those with any in here.
    pub access: Access,
}

impl Rule {
    /// A rule about everything.
    #[must_use]
    pub fn everything(allow: bool) -> Self {
        Self {
            allow,
            kind: Kind::All,
            major: None,
            minor: None,
            access: Access::ALL,
        }
    }

    /// The rule in the words of the v1 controller.
    #[must_use]
    pub fn v1_text(&self) -> String {
        let kind = self.kind.letter();
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        let letters = self.access.letters();
        format!(
            "{kind} {}:{} {letters}",
            number(self.major),
            number(self.minor)
        )
    }
}

/// A rule that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum BadRule {
    /// Not letters out of `rwm`.
    #[error("access {0:?} is none")]
    Access(String),
    /// Above what a device number can be.
    #[error("no device has the number {0}")]
    Number(i64),
    /// The v1 controller takes "a" for everything, whatever else is said.
    #[error("a rule for all kinds of devices must be for all numbers and accesses")]
    Everything,
}

impl Rule {
    /// A rule in a runtime spec's words: negative numbers mean any, missing
    /// letters all.
    ///
    /// # Errors
    /// See [`BadRule`].
    pub fn parse(
        allow: bool,
        kind: Kind,
        (major, minor): (Option<i64>, Option<i64>),
        access: Option<&str>,
    ) -> Result<Self, BadRule> {
        let letters = access.unwrap_or("rwm");
        let access = Access::parse(letters).ok_or_else(|| BadRule::Access(letters.to_owned()))?;
        // One that is too large must not become "any".
        let number = |number: Option<i64>| match number.filter(|number| *number >= 0) {
            Some(number) => u32::try_from(number)
                .map(Some)
                .map_err(|_| BadRule::Number(number)),
            None => Ok(None),
        };
        let rule = Self {
            allow,
            kind,
            major: number(major)?,
            minor: number(minor)?,
            access,
        };
        if kind == Kind::All && rule != Self::everything(allow) {
            return Err(BadRule::Everything);
        }
        Ok(rule)
    }
}

/// The rules of a container: its spec's and those of every container. No rules
/// at all mean that nothing else is allowed.
#[must_use]
pub fn complete(mut rules: Vec<Rule>) -> Vec<Rule> {
    let about_everything =
        |rule: &Rule| *rule == Rule::everything(true) || *rule == Rule::everything(false);
    if !rules.first().is_some_and(about_everything) {
        rules.insert(0, Rule::everything(false));
    }
    if rules != [Rule::everything(true)] {
        rules.extend(ALWAYS.iter().map(|(kind, major, minor, access)| Rule {
            allow: true,
            kind: *kind,
            major: *major,
            minor: *minor,
            access: *access,
        }));
    }
    rules
}

impl From<&Rule> for crate::protocol::DeviceRule {
    fn from(rule: &Rule) -> Self {
        Self {
            allow: rule.allow,
            kind: rule.kind.letter().to_string(),
            major: rule.major,
            minor: rule.minor,
            access: rule.access.letters(),
        }
    }
}

impl Rule {
    /// Reads a message. `None`: it is no rule.
    #[must_use]
    pub fn of(message: &crate::protocol::DeviceRule) -> Option<Self> {
        Some(Self {
            allow: message.allow,
            kind: Kind::of(&message.kind)?,
            major: message.major,
            minor: message.minor,
            access: Access::parse(&message.access)?,
        })
    }
}

/// Registers of the program.
mod register {
    /// What it answers: 1 allows.
    pub(super) const ANSWER: u8 = 0;
    /// What it is asked.
    pub(super) const QUESTION: u8 = 1;
    /// Kind of the device.
    pub(super) const KIND: u8 = 2;
    /// Bits of the access.
    pub(super) const ACCESS: u8 = 3;
    /// Major number.
    pub(super) const MAJOR: u8 = 4;
    /// Minor number.
    pub(super) const MINOR: u8 = 5;
}

/// Compiles rules to a program. What no rule speaks of is denied.
#[must_use]
pub fn compile(rules: &[Rule]) -> Vec<Instruction> {
    use register::{ACCESS, ANSWER, KIND, MAJOR, MINOR, QUESTION};
    // The question: access in the upper half of the first word, kind in the
    // lower; major and minor behind.
    let mut program = vec![
        Instruction::load_word(KIND, QUESTION, 0),
        Instruction::copy(ACCESS, KIND),
        Instruction::and(KIND, 0xffff),
        Instruction::shift_right(ACCESS, 16),
        Instruction::load_word(MAJOR, QUESTION, 4),
        Instruction::load_word(MINOR, QUESTION, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
        if *rule == Rule::everything(rule.allow) {
            // The kernel refuses programs with parts that never run.
            return program;
        }
    }
    program.extend([Instruction::set(ANSWER, 0), Instruction::exit()]);
    program
}

fn compile_rule(rule: &Rule) -> Vec<Instruction> {
    use register::{ACCESS, ANSWER, KIND, MAJOR, MINOR};
    let mut body = Vec::new();
    let mut skips = Vec::new();
    // Each condition is a jump behind this rule; how far is known at the end.
    let mut unless_equal = |body: &mut Vec<Instruction>, register, value| {
        skips.push(body.len());
        body.push(Instruction::jump_unless_equal(register, value));
    };
    match rule.kind {
        Kind::All => {}
        Kind::Block => unless_equal(&mut body, KIND, 1),
        Kind::Char => unless_equal(&mut body, KIND, 2),
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            // The kernel's numbers have 12 and 20 bits.
            unless_equal(&mut body, register, i32::try_from(number).unwrap_or(-1));
        }
    }
    if rule.access != Access::ALL {
        let bits = rule.access.bits();
        body.push(Instruction::copy(ANSWER, ACCESS));
        if rule.allow {
            body.push(Instruction::and(ANSWER, !bits & Access::ALL.bits()));
            unless_equal(&mut body, ANSWER, 0);
        } else {
            body.push(Instruction::and(ANSWER, bits));
            skips.push(body.len());
            body.push(Instruction::jump_if_equal(ANSWER, 0));
        }
    }
    body.extend([
        Instruction::set(ANSWER, i32::from(rule.allow)),
        Instruction::exit(),
    ]);
    let end = body.len();
    for index in skips {
        if let Some(jump) = body.get_mut(index) {
            jump.set_distance(i16::try_from(end - index - 1).unwrap_or(0));
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the list means, in plain words.
    fn meaning(rules: &[Rule], kind: Kind, (major, minor): (u32, u32), access: i32) -> bool {
        let speaks = |rule: &&Rule| {
            let bits = rule.access.bits();
            (rule.kind == Kind::All || rule.kind == kind)
                && rule.major.is_none_or(|number| number == major)
                && rule.minor.is_none_or(|number| number == minor)
                && if rule.allow {
                    access & !bits == 0
                } else {
                    access & bits != 0
                }
        };
        rules
            .iter()
            .rev()
            .find(speaks)
            .is_some_and(|rule| rule.allow)
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Block), Just(Kind::Char)]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0_u32..3);
        let access = (1_u8..8).prop_map(|bits| Access {
            read: bits & 2 != 0,
            write: bits & 4 != 0,
            mknod: bits & 1 != 0,
        });
        let kind = prop_oneof![Just(Kind::All), kind()];
        (any::<bool>(), kind, number(), number(), access).prop_map(
            |(allow, kind, major, minor, access)| Rule {
                allow,
                kind,
                major,
                minor,
                access,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn program_means_what_the_rules_mean(
            rules in proptest::collection::vec(rule(), 0..8),
            kind in kind(), major in 0_u32..3, minor in 0_u32..3, access in 1_i32..8,
        ) {
            let number = if kind == Kind::Block { 1 } else { 2 };
            let question = [u32::try_from(access).unwrap() << 16 | number, major, minor];
            let answer = crate::sys::bpf::interpret(&compile(&rules), question);
            prop_assert_eq!(answer == 1, meaning(&rules, kind, (major, minor), access));
        }
    }

    #[test]
    fn kernel_takes_the_program() {
        let mut rules = vec![Rule::everything(false)];
        for minor in 0..200 {
            let rule = Rule {
                allow: true,
                kind: Kind::Char,
                minor: Some(minor),
                ..rules[0]
            };
            rules.push(Rule {
                access: Access::parse("rw").unwrap(),
                major: Some(10),
                ..rule
            });
        }
        crate::sys::bpf::load_device_program(&compile(&rules)).unwrap();
        crate::sys::bpf::load_device_program(&compile(&rules[1..])).unwrap();
        rules.push(Rule::everything(true));
        crate::sys::bpf::load_device_program(&compile(&rules)).unwrap();
        crate::sys::bpf::load_device_program(&compile(&[])).unwrap();
    }

    #[test]
    fn v1_words() {
        assert_eq!(Rule::everything(false).v1_text(), "a *:* rwm");
        let rule = Rule {
            kind: Kind::Block,
            major: Some(8),
            ..Rule::everything(true)
        };
        let rule = Rule {
            access: Access::parse("mr").unwrap(),
            ..rule
        };
        assert_eq!(rule.v1_text(), "b 8:* rm");
        assert!(Access::parse("").is_none() && Access::parse("rx").is_none());
    }
}
