//! Capabilities: the default set, and what a request adds and drops.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::Capability;
use runtime::spec::CapabilitySets;
use runtime::spec::oci::{CAPABILITIES, bits};

use super::SpecError;
use crate::model::Security;

/// What a container has unless told otherwise: enough for an ordinary image to
/// change users and bind low ports, nothing that reaches the node.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

fn named(field: &'static str, name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map_err(|_| SpecError::NoSuchCapability {
        field,
        name: name.to_owned(),
    })
}

/// All that this engine may hand on: what its own bounding set has.
fn all() -> HashSet<Capability> {
    let bounding = own_bounding();
    let all = CAPABILITIES.into_iter();
    all.filter(|capability| bounding & bits([capability]) != 0)
        .collect()
}

/// The bounding set of this process as the kernel's bit mask.
fn own_bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

/// The capabilities that a container may ever have.
pub(super) fn bounding(security: &Security) -> Result<Vec<Capability>, SpecError> {
    let all = all();
    let set = if security.privileged {
        all
    } else {
        changed(DEFAULT.into_iter().collect(), security, &all)?
    };
    Ok(CAPABILITIES
        .into_iter()
        .filter(|capability| set.contains(capability))
        .collect())
}

/// Whether a container may trace whatever process it sees. A privileged one has the
/// node anyway.
pub(crate) fn may_trace(security: &Security) -> bool {
    !security.privileged && bounding(security).is_ok_and(|set| set.contains(&Capability::SysPtrace))
}

fn changed(
    mut set: HashSet<Capability>,
    security: &Security,
    all: &HashSet<Capability>,
) -> Result<HashSet<Capability>, SpecError> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    if security.add_capabilities.iter().any(is_all) {
        set.clone_from(all);
    }
    if security.drop_capabilities.iter().any(is_all) {
        set.clear();
    }
    let field = "config.linux.security_context.capabilities.add_capabilities";
    let ambient = "config.linux.security_context.capabilities.add_ambient_capabilities";
    for name in security
        .add_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set.insert(named(field, name)?);
    }
    for name in &security.ambient_capabilities {
        set.insert(named(ambient, name)?);
    }
    let field = "config.linux.security_context.capabilities.drop_capabilities";
    for name in security
        .drop_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set.remove(&named(field, name)?);
    }
    Ok(set)
}

/// The sets of the container's process.
pub(super) fn sets(security: &Security) -> Result<CapabilitySets, SpecError> {
    let all = bits(&bounding(security)?);
    let field = "config.linux.security_context.capabilities.add_ambient_capabilities";
    let ambient = security
        .ambient_capabilities
        .iter()
        .map(|name| named(field, name))
        .collect::<Result<Vec<_>, _>>()?;
    // Ambient capabilities must be inheritable; nothing else needs to be. One that is
    // dropped as well is dropped: the kernel has no ambient one that is not permitted.
    let ambient = bits(&ambient) & all;
    Ok(CapabilitySets {
        bounding: all,
        effective: all,
        permitted: all,
        inheritable: ambient,
        ambient,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Security {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Security::of_nothing()
        }
    }

    #[test]
    fn drop_all_and_add_one_leaves_one() {
        let set = bounding(&security(&["NET_ADMIN"], &["ALL"])).expect("valid");
        assert_eq!(set, [Capability::NetAdmin]);
    }

    #[test]
    fn add_all_and_drop_one_lacks_one() {
        let set = bounding(&security(&["all"], &["CAP_CHOWN"])).expect("valid");
        assert!(!set.contains(&Capability::Chown));
        assert!(set.contains(&Capability::Fowner));
    }

    #[test]
    fn an_ambient_capability_is_in_every_set_unless_it_is_dropped() {
        let ambient = |drop: &[&str]| Security {
            ambient_capabilities: vec!["NET_BIND_SERVICE".into(), "CAP_SYS_NICE".into()],
            ..security(&[], drop)
        };
        let both = bits(&[Capability::NetBindService, Capability::SysNice]);
        for drop in [&[][..], &["ALL"]] {
            let sets = sets(&ambient(drop)).expect("valid");
            assert_eq!((sets.ambient, sets.inheritable), (both, both));
            assert_eq!(sets.permitted & both, both);
        }
        let one = bits(&[Capability::NetBindService]);
        let sets = sets(&ambient(&["SYS_NICE"])).expect("valid");
        assert_eq!((sets.ambient, sets.inheritable), (one, one));
        assert_eq!(sets.bounding & both, one);
    }

    #[test]
    fn an_unknown_capability_is_named() {
        let error = bounding(&security(&["FLY"], &[])).expect_err("unknown");
        assert!(error.to_string().contains("FLY"));
    }
}
