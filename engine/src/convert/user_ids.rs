//! Mappings of users and groups: exactly one range, the same for both, from id 0 of the
//! pod on. That is what the kubelet sends, and all that other engines take.

use proto::v1;

use super::{BadRequest, wrong};
use crate::model::{IdRange, IpcMode, NetworkMode, PidMode};

/// The user namespace of a sandbox or container; `None`: the node's.
pub(super) fn from_proto(
    field: &str,
    options: Option<v1::UserNamespace>,
) -> Result<Option<IdRange>, BadRequest> {
    let Some(v1::UserNamespace { mode, uids, gids }) = options else {
        return Ok(None);
    };
    match v1::NamespaceMode::try_from(mode) {
        Ok(v1::NamespaceMode::Node) if uids.is_empty() && gids.is_empty() => Ok(None),
        Ok(v1::NamespaceMode::Node) => Err(wrong(
            field,
            "mappings are for the mode POD, the mode is NODE",
        )),
        Ok(v1::NamespaceMode::Pod) => {
            let names = [format!("{field}.uids"), format!("{field}.gids")];
            range(names, &uids, &gids).map(Some)
        }
        _ => Err(wrong(
            format!("{field}.mode"),
            "only POD and NODE are possible",
        )),
    }
}

/// The one range of two mappings.
pub(super) fn range(
    [uids_name, gids_name]: [String; 2],
    uids: &[v1::IdMapping],
    gids: &[v1::IdMapping],
) -> Result<IdRange, BadRequest> {
    let users = one(&uids_name, uids)?;
    if one(&gids_name, gids)? != users {
        return Err(wrong(gids_name, "differ from those of users"));
    }
    Ok(users)
}

fn one(field: &str, mappings: &[v1::IdMapping]) -> Result<IdRange, BadRequest> {
    let [mapping] = mappings else {
        let reason = format!(
            "exactly one range is possible, there are {}",
            mappings.len()
        );
        return Err(wrong(field, reason));
    };
    let v1::IdMapping {
        host_id,
        container_id,
        length,
    } = *mapping;
    if container_id != 0 {
        return Err(wrong(field, "the range has to begin at container_id 0"));
    }
    if length == 0 {
        return Err(wrong(field, "the range is empty"));
    }
    if host_id == 0 {
        return Err(wrong(field, "root of the node would be in it"));
    }
    // The last id of all is the kernel's word for none.
    if host_id.checked_add(length).is_none() {
        return Err(wrong(field, "ends behind the last id"));
    }
    Ok(IdRange {
        first: host_id,
        length,
    })
}

/// A user namespace owns all others of its pod: none of them can be the node's.
pub(super) fn check_namespaces(
    field: &str,
    network: NetworkMode,
    pid: &PidMode,
    ipc: IpcMode,
) -> Result<(), BadRequest> {
    let nodes = [
        ("network", network == NetworkMode::Node),
        ("pid", *pid == PidMode::Node),
        ("ipc", ipc == IpcMode::Node),
    ];
    match nodes.iter().find(|(_, is_nodes)| *is_nodes) {
        None => Ok(()),
        Some((name, _)) => Err(wrong(
            format!("{field}.userns_options"),
            format!("a pod with a user namespace cannot have the node's {name} namespace"),
        )),
    }
}

/// The user namespace as a status says it.
pub(super) fn to_proto(ids: IdRange) -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod as i32,
        uids: mappings(Some(ids)),
        gids: mappings(Some(ids)),
    }
}

/// The mapping as a status says it.
pub(super) fn mappings(ids: Option<IdRange>) -> Vec<v1::IdMapping> {
    let mapping = |IdRange { first, length }| v1::IdMapping {
        host_id: first,
        container_id: 0,
        length,
    };
    ids.map(mapping).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_id: u32, container_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    fn of(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> Result<Option<IdRange>, String> {
        let options = v1::UserNamespace {
            mode: v1::NamespaceMode::Pod as i32,
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        };
        from_proto("userns_options", Some(options)).map_err(|error| error.to_string())
    }

    #[test]
    fn one_range_from_zero_on_is_taken_and_said_again() {
        for (first, length) in [(65_536, 65_536), (1, 1), (u32::MAX - 1, 1)] {
            let all = [mapping(first, 0, length)];
            let ids = of(&all, &all).expect("valid").expect("a namespace");
            assert_eq!((ids.first, ids.length), (first, length));
            assert_eq!(to_proto(ids).uids, all);
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let good = mapping(65_536, 0, 65_536);
        for (uids, gids, name, why) in [
            (vec![], vec![good], "uids", "exactly one"),
            (vec![good], vec![], "gids", "exactly one"),
            (vec![good, good], vec![good], "uids", "exactly one"),
            (
                vec![good],
                vec![mapping(131_072, 0, 65_536)],
                "gids",
                "differ",
            ),
            (
                vec![mapping(65_536, 1, 10)],
                vec![good],
                "uids",
                "container_id 0",
            ),
            (vec![mapping(65_536, 0, 0)], vec![good], "uids", "empty"),
            (
                vec![mapping(0, 0, 65_536)],
                vec![good],
                "uids",
                "root of the node",
            ),
            (vec![mapping(u32::MAX, 0, 1)], vec![good], "uids", "last id"),
            (vec![mapping(1, 0, u32::MAX)], vec![good], "uids", "last id"),
        ] {
            let error = of(&uids, &gids).expect_err("refused");
            let expected = format!("userns_options.{name}");
            assert!(error.contains(&expected) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn namespaces_of_the_node_are_refused() {
        let own = (NetworkMode::Pod, PidMode::Container, IpcMode::Pod);
        let check =
            |(network, pid, ipc): (_, PidMode, _)| check_namespaces("x", network, &pid, ipc);
        assert!(check(own.clone()).is_ok());
        assert!(check((NetworkMode::Node, own.1.clone(), own.2)).is_err());
        assert!(check((own.0, PidMode::Node, own.2)).is_err());
        assert!(check((own.0, own.1, IpcMode::Node)).is_err());
    }
}
