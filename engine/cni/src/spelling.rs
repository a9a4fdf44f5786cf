//! Keys whose case is not the documented one.
//!
//! The plugins take keys in any case, the built-ins in one. A configuration that
//! would lose a key by that is none for a built-in.

use serde_json::Value;

/// The keys of all built-ins, as they are documented.
const KEYS: &str = "
    name type cniVersion ipam dns runtimeConfig args cni prevResult
    nameservers domain search options
    bridge isGateway isDefaultGateway forceAddress ipMasq ipMasqBackend mtu hairpinMode
    promiscMode vlan vlanTrunk minID maxID id preserveDefaultVlan macspoofchk enabledad
    disableContainerInterface portIsolation mac
    subnet rangeStart rangeEnd gateway ranges routes dataDir resolvConf ips ipRanges addresses
    address dst gw advmss priority table scope
    sysctl promisc allmulti txQLen
    backend snat masqAll markMasqBit externalSetMarkChain conditionsV4 conditionsV6 portMappings
    hostPort containerPort protocol hostIP
    iptablesAdminChainName firewalldZone ingressPolicy
    ingressRate ingressBurst egressRate egressBurst bandwidth
";
/// What is below these has names of others.
const FOREIGN: [&str; 3] = ["sysctl", "prevResult", "capabilities"];

/// Whether a key, at any depth, is known in another case only.
pub(crate) fn is_odd(config: &Value) -> bool {
    match config {
        Value::Object(keys) => keys.iter().any(|(key, value)| {
            let known = |exact: bool| {
                KEYS.split_whitespace().any(|known| {
                    if exact {
                        known == key
                    } else {
                        known.eq_ignore_ascii_case(key)
                    }
                })
            };
            let inside = !FOREIGN.contains(&key.as_str()) && is_odd(value);
            inside || (known(false) && !known(true))
        }),
        Value::Array(items) => items.iter().any(is_odd),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_in_another_case_is_odd_wherever_it_is() {
        for (config, odd) in [
            (
                json!({"type": "bridge", "isGateway": true, "unknown": 1}),
                false,
            ),
            (json!({"type": "bridge", "isgateway": true}), true),
            (
                json!({"type": "bridge", "ipam": {"ranges": [[{"Subnet": "10.0.0.0/8"}]]}}),
                true,
            ),
            (json!({"type": "tuning", "sysctl": {"MTU": "1"}}), false),
        ] {
            assert_eq!(is_odd(&config), odd, "{config}");
            assert_eq!(crate::is_builtin_config(&config), !odd, "{config}");
        }
    }
}
