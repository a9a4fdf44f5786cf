//! Which devices the container may use.
//!
//! Owns the way from the spec's rules to those of [`runtime::devices`], which
//! puts them in force. A machine that can enforce none gets no container with
//! rules.

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use runtime::devices::{EnforceError, Kind, Rule, complete};
use runtime::launcher::LaunchError;

use crate::cgroups::Cgroups;

/// Puts the spec's rules in force.
pub(crate) fn enforce(spec: &Spec, cgroups: &Cgroups) -> Result<(), LaunchError> {
    let rules = rules(spec)?;
    runtime::devices::enforce(&rules, cgroups.dirs()).map_err(|error| match error {
        EnforceError::NoCgroup => LaunchError::Unsupported {
            what: "linux.resources.devices".into(),
            message: error.to_string(),
        },
        EnforceError::Kernel { .. } => LaunchError::failed("restrict devices", error),
    })
}

/// The spec's rules and those of every container.
fn rules(spec: &Spec) -> Result<Vec<Rule>, LaunchError> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let devices = resources.and_then(|resources| resources.devices().as_ref());
    let rules: Result<_, LaunchError> = devices.into_iter().flatten().map(rule).collect();
    rules.map(complete)
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule, LaunchError> {
    let failed =
        |message: &dyn std::fmt::Display| LaunchError::failed("read device rules", message);
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        Some(LinuxDeviceType::A) | None => Kind::All,
        Some(LinuxDeviceType::P) => return Err(failed(&"a pipe is no device")),
    };
    let numbers = (device.major(), device.minor());
    Rule::parse(device.allow(), kind, numbers, device.access().as_deref())
        .map_err(|error| failed(&error))
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
            assert_eq!(rules.len(), 12);
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
