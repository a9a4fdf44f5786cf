//! Which devices the container may use.
//!
//! Owns the way from the spec's rules into force: the v1 controller where there
//! is one, else a program on the v2 cgroup. Both before anything runs in the
//! cgroup. A machine that can enforce neither gets no container with rules.

use std::os::fd::AsFd;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use runtime::devices::{Access, Kind, Rule, compile};
use runtime::launcher::LaunchError;
use runtime::sys::bpf::{attach_device_program, load_device_program};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cgroups::{Cgroups, write};

/// What every container may use, whatever its rules say: making any node,
/// which is no access to it, and devices that harm nobody.
const ALWAYS: [(Kind, Option<u32>, Option<u32>, &str); 11] = [
    (Kind::Char, None, None, "m"),
    (Kind::Block, None, None, "m"),
    (Kind::Char, Some(1), Some(3), "rwm"),
    (Kind::Char, Some(1), Some(5), "rwm"),
    (Kind::Char, Some(1), Some(7), "rwm"),
    (Kind::Char, Some(1), Some(8), "rwm"),
    (Kind::Char, Some(1), Some(9), "rwm"),
    (Kind::Char, Some(5), Some(0), "rwm"),
    (Kind::Char, Some(5), Some(1), "rwm"),
    (Kind::Char, Some(5), Some(2), "rwm"),
    (Kind::Char, Some(136), None, "rwm"),
];

/// Puts the spec's rules in force.
pub(crate) fn enforce(spec: &Spec, cgroups: &Cgroups) -> Result<(), LaunchError> {
    let rules = rules(spec)?;
    let find = |file: &str| cgroups.dirs().iter().find(|dir| dir.join(file).exists());
    if let Some(dir) = find("devices.allow") {
        return rules.iter().try_for_each(|rule| {
            apply_v1(dir, rule).map_err(|errno| {
                LaunchError::failed("restrict devices", format!("{}: {errno}", rule.v1_text()))
            })
        });
    }
    if rules.iter().all(|rule| rule.allow) {
        // Everything is allowed, as it is without a program.
        return Ok(());
    }
    let Some(dir) = find("cgroup.controllers") else {
        let message = "the container has neither a v1 devices cgroup nor a v2 cgroup".to_owned();
        return Err(LaunchError::Unsupported {
            what: "linux.resources.devices".into(),
            message,
        });
    };
    apply_v2(dir, &rules).map_err(|errno| LaunchError::failed("restrict devices", errno))
}

fn apply_v1(dir: &Path, rule: &Rule) -> Result<(), Errno> {
    let file = if rule.allow {
        "devices.allow"
    } else {
        "devices.deny"
    };
    write(&dir.join(file), rule.v1_text().as_bytes())
}

fn apply_v2(dir: &Path, rules: &[Rule]) -> Result<(), Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir, flags, Mode::empty())?;
    let program = load_device_program(&compile(rules))?;
    attach_device_program(cgroup.as_fd(), program.as_fd())
}

/// The spec's rules and those of every container. No rules at all mean that
/// nothing else is allowed.
fn rules(spec: &Spec) -> Result<Vec<Rule>, LaunchError> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let devices = resources.and_then(|resources| resources.devices().as_ref());
    let mut rules: Vec<_> = devices
        .into_iter()
        .flatten()
        .map(rule)
        .collect::<Result<_, LaunchError>>()?;
    let about_everything =
        |rule: &Rule| *rule == Rule::everything(true) || *rule == Rule::everything(false);
    if !rules.first().is_some_and(about_everything) {
        rules.insert(0, Rule::everything(false));
    }
    if rules != [Rule::everything(true)] {
        rules.extend(ALWAYS.iter().filter_map(|(kind, major, minor, access)| {
            let access = Access::parse(access)?;
            Some(Rule {
                allow: true,
                kind: *kind,
                major: *major,
                minor: *minor,
                access,
            })
        }));
    }
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule, LaunchError> {
    let failed = |message: String| LaunchError::failed("read device rules", message);
    let letters = device.access().as_deref().unwrap_or("rwm");
    let access =
        Access::parse(letters).ok_or_else(|| failed(format!("access {letters:?} is none")))?;
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        Some(LinuxDeviceType::A) | None => Kind::All,
        Some(LinuxDeviceType::P) => return Err(failed("a pipe is no device".to_owned())),
    };
    // Negative numbers mean any. One that is too large must not.
    let number = |number: Option<i64>| match number.filter(|number| *number >= 0) {
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| failed(format!("no device has the number {number}"))),
        None => Ok(None),
    };
    let rule = Rule {
        allow: device.allow(),
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        access,
    };
    // The v1 controller takes "a" for everything, whatever else is said.
    if kind == Kind::All && rule != Rule::everything(rule.allow) {
        let message = "a rule for all kinds of devices must be for all numbers and accesses";
        return Err(failed(message.to_owned()));
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(devices: &serde_json::Value) -> Result<Vec<(bool, String)>, LaunchError> {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0", "linux": { "resources": { "devices": devices } }
        }))
        .unwrap();
        Ok(rules(&spec)?
            .into_iter()
            .map(|rule| (rule.allow, rule.v1_text()))
            .collect())
    }

    #[test]
    fn no_rules_mean_the_harmless_devices_only() {
        for none in [
            serde_json::json!([]),
            serde_json::json!([{"allow": false, "access": "rwm"}]),
        ] {
            let rules = parse(&none).unwrap();
            assert_eq!(rules[0], (false, "a *:* rwm".to_owned()));
            assert_eq!(rules.len(), 1 + ALWAYS.len());
            assert!(rules[1..].iter().all(|(allow, _)| *allow));
            assert!(rules.contains(&(true, "c 1:3 rwm".to_owned())));
        }
    }

    #[test]
    fn allowing_everything_needs_no_more() {
        let rules = parse(&serde_json::json!([{"allow": true, "access": "rwm"}])).unwrap();
        assert_eq!(rules, [(true, "a *:* rwm".to_owned())]);
    }

    #[test]
    fn single_devices_keep_their_order() {
        let rules = parse(&serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"},
        ]))
        .unwrap();
        assert_eq!(rules[1], (true, "c 10:229 rw".to_owned()));
        assert_eq!(rules[2], (true, "b 8:* r".to_owned()));
    }

    #[test]
    fn rules_that_the_kernel_would_read_differently_are_refused() {
        for device in [
            serde_json::json!({"allow": true, "access": "rx"}),
            serde_json::json!({"allow": true, "type": "a", "major": 1, "access": "rwm"}),
            serde_json::json!({"allow": true, "type": "a", "access": "r"}),
            serde_json::json!({"allow": true, "type": "p", "access": "rwm"}),
            serde_json::json!({"allow": true, "type": "b", "major": 4_294_967_296_i64}),
        ] {
            assert!(parse(&serde_json::json!([device])).is_err(), "{device}");
        }
    }
}
