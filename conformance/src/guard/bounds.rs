//! The recorded bounds, and what exceeds them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Counts;

/// What a run may cost.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// How much more than recorded is still no more, as a share.
    pub tolerance: f64,
    /// The recorded counts of each kind of machine.
    pub machines: BTreeMap<String, Counts>,
}

impl Bounds {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there or not what it should be.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        let Some(tolerance) = value["tolerance"].as_f64() else {
            bail!("{} has no tolerance", path.display())
        };
        let machines = serde_json::from_value(value["machines"].clone());
        let machines = machines.with_context(|| format!("the machines in {}", path.display()))?;
        Ok(Self {
            tolerance,
            machines,
        })
    }

    /// Records the counts of a machine in the place of those before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&mut self, path: &Path, machine: &str, counts: &Counts) -> anyhow::Result<()> {
        let rounded = counts
            .iter()
            .map(|(name, count)| (name.clone(), count.ceil()));
        self.machines.insert(machine.to_owned(), rounded.collect());
        let value = json!({"tolerance": self.tolerance, "machines": self.machines});
        let text = serde_json::to_string_pretty(&value)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// What a count may be, if something is recorded.
    #[must_use]
    pub fn of(&self, machine: &str, name: &str) -> Option<f64> {
        let recorded = self.machines.get(machine)?.get(name)?;
        // One more of a few is no share worth speaking of, and yet a lot.
        Some((recorded * (1.0 + self.tolerance)).max(recorded + 0.5))
    }

    /// Names every count that exceeds its bound, and by how much.
    #[must_use]
    pub fn exceeded(&self, machine: &str, counts: &Counts) -> Vec<String> {
        let over = |(name, count): (&String, &f64)| {
            let bound = self.of(machine, name).unwrap_or(0.0);
            (*count > bound).then(|| {
                format!(
                    "{name}: {count:.1}, {:.1} more than the bound of {bound:.1}",
                    count - bound
                )
            })
        };
        counts.iter().filter_map(over).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(count: f64) -> Counts {
        Counts::from([("processes started".to_owned(), count)])
    }

    #[test]
    fn a_count_above_its_bound_is_named_with_the_excess() {
        let bounds = Bounds {
            tolerance: 0.1,
            machines: BTreeMap::from([("v2".to_owned(), counts(10.0))]),
        };
        assert!(bounds.exceeded("v2", &counts(11.0)).is_empty());
        assert_eq!(
            bounds.exceeded("v2", &counts(12.0)),
            ["processes started: 12.0, 1.0 more than the bound of 11.0"]
        );
    }

    #[test]
    fn something_that_was_not_counted_before_has_no_room() {
        let bounds = Bounds {
            tolerance: 0.1,
            machines: BTreeMap::from([("v2".to_owned(), Counts::new())]),
        };
        assert_eq!(bounds.exceeded("v2", &counts(1.0)).len(), 1);
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("guard.json");
        let mut bounds = Bounds {
            tolerance: 0.1,
            ..Bounds::default()
        };
        bounds.record(&path, "v2", &counts(2.4)).expect("written");
        let bounds = Bounds::read(&path).expect("read");
        assert_eq!(bounds.of("v2", "processes started"), Some(3.5));
        assert_eq!(bounds.of("v1", "processes started"), None);
    }
}
