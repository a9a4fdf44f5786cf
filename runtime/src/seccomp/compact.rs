//! The same filter in fewer instructions.
//!
//! libseccomp writes two instructions for every call of every architecture, and the
//! kernel makes machine code of all of them for every process that is started.
//! Neighbours in the table of calls mostly share an answer, so that ranges of numbers
//! need a fraction of it.
//!
//! What a filter answers is found by running it. That is exact: where it only compares
//! the number with constants, as it does in all that is rewritten here, its answer
//! can change at those constants and nowhere between. Where it looks at arguments its
//! own instructions are copied. A filter that does anything else stays as it is.

use std::collections::BTreeSet;

use super::program::{
    AND, ARCH, Instruction, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, LOAD, NUMBER,
    Program, RETURN, X32_BIT,
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This is returned.
    Answer(u32),
    /// It depends on more than the number, from this instruction on, which loads it.
    Arguments(usize),
}

/// The same for all numbers from the first on, up to that of the next range.
type Range = (u32, Outcome);

/// A filter with the same answers, if there is a shorter one.
pub(super) fn compact(program: &Program) -> Option<Program> {
    rewrite(&program.code).filter(|short| short.code.len() < program.code.len())
}

/// The filter by ranges, be it shorter or not.
pub(super) fn rewrite(code: &[Instruction]) -> Option<Program> {
    let starts = starts(code);
    let (other, arches) = arches(code, &starts)?;
    let mut items = vec![Item::Is(Instruction::new(LOAD, 0, 0, ARCH))];
    for arch in arches {
        let tree = tree(&ranges(code, &starts, arch)?);
        let block = u32::try_from(tree.len() + 1).ok()?;
        items.push(Item::Is(Instruction::new(JUMP_EQUAL, 1, 0, arch)));
        items.push(Item::Is(Instruction::new(JUMP, 0, 0, block)));
        items.push(Item::Is(Instruction::new(LOAD, 0, 0, NUMBER)));
        items.extend(tree);
    }
    items.extend(tree(&ranges(code, &starts, other)?));
    link(&items, code)
}

/// Numbers at which an answer can change.
pub(super) fn starts(code: &[Instruction]) -> BTreeSet<u32> {
    let mut starts: BTreeSet<u32> = (0..4).map(|count| count * X32_BIT).collect();
    for one in code {
        if matches!(one.op, JUMP_EQUAL | JUMP_GREATER | JUMP_AT_LEAST) {
            starts.insert(one.value);
            starts.extend(one.value.checked_add(1));
        }
    }
    starts
}

/// An architecture that the filter does not know, and all that it does: whatever it
/// compares the unknown one with.
fn arches(code: &[Instruction], starts: &BTreeSet<u32>) -> Option<(u32, BTreeSet<u32>)> {
    let other = (1..).find(|number| !starts.contains(number))?;
    let mut known = BTreeSet::new();
    for number in starts {
        run(code, other, *number, &mut known)?;
    }
    Some((other, known))
}

/// What the filter does with the calls of an architecture.
fn ranges(code: &[Instruction], starts: &BTreeSet<u32>, arch: u32) -> Option<Vec<Range>> {
    let mut ranges: Vec<Range> = Vec::new();
    for start in starts {
        let outcome = run(code, arch, *start, &mut BTreeSet::new())?;
        if ranges.last().is_none_or(|(_, last)| *last != outcome) {
            ranges.push((*start, outcome));
        }
    }
    Some(ranges)
}

/// Runs a filter up to where it looks at more than architecture and number. Notes what
/// it compares the architecture with. `None`: it does what is not understood here.
pub(super) fn run(
    code: &[Instruction],
    arch: u32,
    number: u32,
    arches: &mut BTreeSet<u32>,
) -> Option<Outcome> {
    let (mut at, mut word, mut is_arch) = (0, 0, false);
    loop {
        let one = code.get(at)?;
        let (holds, value) = match (one.op, is_arch) {
            (LOAD, _) => {
                match one.value {
                    NUMBER => (word, is_arch) = (number, false),
                    ARCH => (word, is_arch) = (arch, true),
                    _ => return Some(Outcome::Arguments(at)),
                }
                at += 1;
                continue;
            }
            (JUMP, _) => {
                at += 1 + usize::try_from(one.value).ok()?;
                continue;
            }
            (RETURN, _) => return Some(Outcome::Answer(one.value)),
            (JUMP_EQUAL, _) => (word == one.value, one.value),
            (JUMP_GREATER, false) => (word > one.value, one.value),
            (JUMP_AT_LEAST, false) => (word >= one.value, one.value),
            (JUMP_SET, false) if one.value == X32_BIT => (word & X32_BIT != 0, one.value),
            _ => return None,
        };
        if is_arch {
            arches.insert(value);
        }
        at += 1 + usize::from(if holds { one.if_true } else { one.if_false });
    }
}

/// An instruction of the new filter.
enum Item {
    Is(Instruction),
    /// A jump to what was this instruction of the old one.
    To(usize),
}

/// As many ranges as one search may have: so are all its jumps short enough for a
/// comparison.
const AT_ONCE: usize = 128;

/// A search for the range that a number is in.
fn tree(ranges: &[Range]) -> Vec<Item> {
    if ranges.len() <= AT_ONCE {
        return Search::new(ranges).items();
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let middle = high.first().map_or(0, |(start, _)| *start);
    let below = tree(low);
    let over = u32::try_from(below.len()).unwrap_or(u32::MAX);
    let mut items = vec![
        Item::Is(Instruction::new(JUMP_AT_LEAST, 0, 1, middle)),
        Item::Is(Instruction::new(JUMP, 0, 0, over)),
    ];
    items.extend(below);
    items.extend(tree(high));
    items
}

/// A binary search: comparisons, and behind them each outcome once.
#[derive(Default)]
struct Search {
    comparisons: Vec<Comparison>,
    outcomes: Vec<Outcome>,
}

struct Comparison {
    middle: u32,
    at_least: Branch,
    less: Branch,
}

/// Where a search goes on.
#[derive(Clone, Copy)]
enum Branch {
    Comparison(usize),
    Outcome(usize),
}

impl Search {
    fn new(ranges: &[Range]) -> Self {
        let mut search = Self::default();
        search.add(ranges);
        search
    }

    fn add(&mut self, ranges: &[Range]) -> Option<Branch> {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (middle, outcome) = high.first()?;
        if low.is_empty() {
            let known = self.outcomes.iter().position(|one| one == outcome);
            return Some(Branch::Outcome(known.unwrap_or_else(|| {
                self.outcomes.push(*outcome);
                self.outcomes.len() - 1
            })));
        }
        // Its place comes first: jumps only go forward.
        let here = self.comparisons.len();
        let nowhere = Branch::Outcome(0);
        self.comparisons.push(Comparison {
            middle: *middle,
            at_least: nowhere,
            less: nowhere,
        });
        let (less, at_least) = (self.add(low)?, self.add(high)?);
        let comparison = self.comparisons.get_mut(here)?;
        (comparison.less, comparison.at_least) = (less, at_least);
        Some(Branch::Comparison(here))
    }

    fn items(&self) -> Vec<Item> {
        let over = |here: usize, branch| {
            let place = match branch {
                Branch::Comparison(at) => at,
                Branch::Outcome(at) => self.comparisons.len() + at,
            };
            // Fits, by [`AT_ONCE`].
            u8::try_from(place - here - 1).unwrap_or(u8::MAX)
        };
        let comparisons = self.comparisons.iter().enumerate().map(|(here, one)| {
            let (at_least, less) = (over(here, one.at_least), over(here, one.less));
            Item::Is(Instruction::new(JUMP_AT_LEAST, at_least, less, one.middle))
        });
        let outcomes = self.outcomes.iter().map(|outcome| match outcome {
            Outcome::Answer(value) => Item::Is(Instruction::new(RETURN, 0, 0, *value)),
            Outcome::Arguments(at) => Item::To(*at),
        });
        comparisons.chain(outcomes).collect()
    }
}

/// Puts what is reached of the old filter behind the new instructions.
fn link(items: &[Item], code: &[Instruction]) -> Option<Program> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<usize> = items
        .iter()
        .filter_map(|item| match item {
            Item::To(at) => Some(*at),
            Item::Is(_) => None,
        })
        .collect();
    while let Some(at) = open.pop() {
        if reached.insert(at) {
            open.extend(next(code, at)?);
        }
    }
    // Jumps only go forward, and no further than they did: nothing comes between.
    let place = |at: usize| Some(items.len() + reached.iter().position(|one| *one == at)?);
    let mut program = Program::default();
    for (here, item) in items.iter().enumerate() {
        program.code.push(match item {
            Item::Is(one) => *one,
            Item::To(at) => {
                let over = u32::try_from(place(*at)? - here - 1).ok()?;
                Instruction::new(JUMP, 0, 0, over)
            }
        });
    }
    for &at in &reached {
        let one = *code.get(at)?;
        let here = place(at)?;
        let over = |step: usize| Some(place(at + 1 + step)? - here - 1);
        program.code.push(match one.op {
            JUMP => {
                let over = over(usize::try_from(one.value).ok()?)?;
                Instruction::new(JUMP, 0, 0, u32::try_from(over).ok()?)
            }
            JUMP_EQUAL | JUMP_GREATER | JUMP_AT_LEAST | JUMP_SET => {
                let over = |step: u8| u8::try_from(over(step.into())?).ok();
                Instruction::new(one.op, over(one.if_true)?, over(one.if_false)?, one.value)
            }
            _ => one,
        });
    }
    Some(program)
}

/// What can follow an instruction. `None`: it is none that a copy is known to be safe of.
fn next(code: &[Instruction], at: usize) -> Option<Vec<usize>> {
    let one = code.get(at)?;
    Some(match one.op {
        LOAD | AND => vec![at + 1],
        JUMP => vec![at + 1 + usize::try_from(one.value).ok()?],
        JUMP_EQUAL | JUMP_GREATER | JUMP_AT_LEAST | JUMP_SET => {
            let both = [one.if_true, one.if_false];
            both.map(|step| at + 1 + usize::from(step)).to_vec()
        }
        RETURN => Vec::new(),
        _ => return None,
    })
}
