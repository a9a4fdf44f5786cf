//! Which devices the container may use.
//!
//! Owns the rules of the v1 controller. They are written before anything runs
//! in the cgroup. A machine that cannot enforce rules gets no container.

use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use runtime::launcher::LaunchError;
use rustix::io::Errno;

use crate::cgroups::{Cgroups, write};

/// What every container may use, whatever its rules say: making any node,
/// which is no access to it, and devices that harm nobody.
const ALWAYS: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// One rule in the kernel's words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    allow: bool,
    text: String,
}

/// Puts the spec's rules in force.
pub(crate) fn enforce(spec: &Spec, cgroups: &Cgroups) -> Result<(), LaunchError> {
    let rules = rules(spec)?;
    let controller = cgroups
        .dirs()
        .iter()
        .find(|dir| dir.join("devices.allow").exists());
    let Some(dir) = controller else {
        if rules.first().is_some_and(|rule| rule.allow) {
            // Everything is allowed, as it is without a controller.
            return Ok(());
        }
        let message = "there is no v1 devices controller among the container's cgroups";
        let what = "linux.resources.devices".to_owned();
        return Err(LaunchError::Unsupported {
            what,
            message: message.to_owned(),
        });
    };
    for rule in &rules {
        apply(dir, rule).map_err(|errno| {
            LaunchError::failed("restrict devices", format!("{}: {errno}", rule.text))
        })?;
    }
    Ok(())
}

fn apply(dir: &Path, rule: &Rule) -> Result<(), Errno> {
    let file = if rule.allow {
        "devices.allow"
    } else {
        "devices.deny"
    };
    write(&dir.join(file), rule.text.as_bytes())
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
    if !rules.first().is_some_and(|rule| rule.text == "a *:* rwm") {
        rules.insert(
            0,
            Rule {
                allow: false,
                text: "a *:* rwm".to_owned(),
            },
        );
    }
    let everything = rules.len() == 1 && rules.first().is_some_and(|rule| rule.allow);
    if !everything {
        rules.extend(ALWAYS.iter().map(|text| Rule {
            allow: true,
            text: (*text).to_owned(),
        }));
    }
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule, LaunchError> {
    let access = device.access().as_deref().unwrap_or("rwm");
    if access.is_empty() || !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(LaunchError::failed(
            "read device rules",
            format!("access {access:?}"),
        ));
    }
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => 'b',
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => 'c',
        Some(LinuxDeviceType::A) | None => 'a',
        Some(LinuxDeviceType::P) => {
            return Err(LaunchError::failed(
                "read device rules",
                "a pipe is no device",
            ));
        }
    };
    let number = |number: Option<i64>| match number {
        Some(number) if number >= 0 => number.to_string(),
        _ => "*".to_owned(),
    };
    let (major, minor) = (number(device.major()), number(device.minor()));
    let all = kind == 'a' && major == "*" && minor == "*";
    // The kernel takes "a" for everything, whatever else is said.
    if kind == 'a' && (!all || !is_full(access)) {
        let message = "a rule for all kinds of devices must be for all numbers and accesses";
        return Err(LaunchError::failed("read device rules", message));
    }
    let access = if all { "rwm" } else { access };
    Ok(Rule {
        allow: device.allow(),
        text: format!("{kind} {major}:{minor} {access}"),
    })
}

fn is_full(access: &str) -> bool {
    ['r', 'w', 'm']
        .iter()
        .all(|letter| access.contains(*letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(devices: serde_json::Value) -> Result<Vec<(bool, String)>, LaunchError> {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0", "linux": { "resources": { "devices": devices } }
        }))
        .unwrap();
        Ok(rules(&spec)?
            .into_iter()
            .map(|rule| (rule.allow, rule.text))
            .collect())
    }

    fn always() -> impl Iterator<Item = (bool, String)> {
        ALWAYS.iter().map(|text| (true, (*text).to_owned()))
    }

    #[test]
    fn no_rules_mean_the_harmless_devices_only() {
        let denied = (false, "a *:* rwm".to_owned());
        let expected: Vec<_> = std::iter::once(denied).chain(always()).collect();
        assert_eq!(parse(serde_json::json!([])).unwrap(), expected);
        assert_eq!(
            parse(serde_json::json!([{"allow": false, "access": "rwm"}])).unwrap(),
            expected
        );
    }

    #[test]
    fn allowing_everything_needs_no_more() {
        let rules = parse(serde_json::json!([{"allow": true, "access": "rwm"}])).unwrap();
        assert_eq!(rules, [(true, "a *:* rwm".to_owned())]);
    }

    #[test]
    fn single_devices_keep_their_order() {
        let rules = parse(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
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
        ] {
            assert!(parse(serde_json::json!([device])).is_err(), "{device}");
        }
    }
}
