//! The configuration of `bridge`.
//!
//! Owns its keys and their checks.

use serde::Deserialize;
use serde_json::Value;

use crate::config::{arguments, decode};
use crate::result::Dns;
use crate::rtnl::link::{Mac, PortMode};
use crate::{Command, Error, Invocation};

/// The keys of the plugin.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<Trunk>>,
    preserve_default_vlan: bool,
    #[serde(rename = "macspoofchk")]
    mac_spoof_check: bool,
    #[serde(rename = "enabledad")]
    enable_dad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    args: Option<Args>,
    runtime_config: Option<MacOf>,
}

#[derive(Debug, Deserialize)]
struct Trunk {
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
    id: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Args {
    cni: Option<MacOf>,
}

#[derive(Debug, Deserialize)]
struct MacOf {
    mac: Option<String>,
}

/// A checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// Name of the bridge.
    pub(super) bridge: String,
    /// The bridge has the gateway's address.
    pub(super) is_gateway: bool,
    /// The container's default route goes there.
    pub(super) is_default_gateway: bool,
    /// The gateway's address replaces another one.
    pub(super) force_address: bool,
    /// What leaves the network is masqueraded.
    pub(super) masquerade: bool,
    /// Of the bridge and of both ends; 0 = the kernel's choice.
    pub(super) mtu: u32,
    /// Mode of the port.
    pub(super) port: PortMode,
    /// The bridge receives what is not for it.
    pub(super) promiscuous: bool,
    /// VLANs of the port.
    pub(super) vlans: Vlans,
    /// Look for others with the container's IPv6 addresses.
    pub(super) detect_duplicates: bool,
    /// The container's end stays down.
    pub(super) leave_down: bool,
    /// Hardware address of the container's end, for ADD.
    pub(super) mac: Option<Mac>,
    /// Replaces what address management says.
    pub(super) dns: Option<Dns>,
}

/// VLANs of a bridge's port.
#[derive(Debug, Default)]
pub(super) struct Vlans {
    /// The bridge tells VLANs apart.
    pub(super) filtering: bool,
    /// The port's own, untagged; 0 = none.
    pub(super) own: u16,
    /// Let through with their tags.
    pub(super) trunk: Vec<u16>,
    /// The bridge's default VLAN stays.
    pub(super) keep_default: bool,
}

impl Vlans {
    fn new(raw: &Raw) -> Result<Self, Error> {
        let own = u16::try_from(raw.vlan).ok().filter(|id| *id <= 4094);
        let own = own.ok_or_else(|| {
            let msg = format!("invalid VLAN ID {} (must be between 0 and 4094)", raw.vlan);
            Error::internal(msg)
        })?;
        let mut trunk = Vec::new();
        for part in raw.vlan_trunk.iter().flatten() {
            trunk.extend(part.ids()?);
        }
        trunk.sort_unstable();
        trunk.dedup();
        Ok(Self {
            filtering: own != 0 || raw.vlan_trunk.is_some(),
            own,
            trunk,
            keep_default: raw.preserve_default_vlan,
        })
    }
}

impl Trunk {
    fn ids(&self) -> Result<Vec<u16>, Error> {
        let wrong = |what: &str| Error::internal(format!("vlanTrunk: {what}"));
        let id = |id: i64, what: &str| {
            let id = u16::try_from(id).ok().filter(|id| (1..=4094).contains(id));
            id.ok_or_else(|| wrong(&format!("{what} must be between 1 and 4094")))
        };
        let mut ids = Vec::new();
        match (self.min, self.max) {
            (Some(min), Some(max)) => {
                let (min, max) = (id(min, "minID")?, id(max, "maxID")?);
                if max < min {
                    return Err(wrong("minID is greater than maxID"));
                }
                ids.extend(min..=max);
            }
            (None, None) => {}
            _ => return Err(wrong("minID and maxID belong together")),
        }
        if let Some(single) = self.id {
            ids.push(id(single, "id")?);
        }
        Ok(ids)
    }
}

impl Config {
    /// Reads and checks the configuration of a call.
    pub(super) fn load(call: &Invocation<'_>) -> Result<Self, Error> {
        let raw: Raw = decode(call.config)?;
        let vlans = Vlans::new(&raw)?;
        // What could not be added can be deleted.
        let adds = call.command == Command::Add;
        if adds && raw.hairpin_mode && raw.promisc_mode {
            let msg = "cannot set hairpin mode and promiscuous mode at the same time";
            return Err(Error::internal(msg));
        }
        let mac = mac(call.args, &raw)?.filter(|_| adds);
        let parse = |text: &str| text.parse().map_err(|error| Error::because("mac", error));
        let mac = mac.map(parse).transpose()?;
        Ok(Self {
            bridge: raw.bridge.unwrap_or_else(|| "cni0".into()),
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            masquerade: raw.ip_masq,
            mtu: u32::try_from(raw.mtu).unwrap_or_default(),
            port: PortMode {
                hairpin: raw.hairpin_mode,
                isolated: raw.port_isolation,
            },
            promiscuous: raw.promisc_mode,
            vlans,
            detect_duplicates: raw.enable_dad,
            leave_down: raw.disable_container_interface,
            mac,
            dns: dns(call.config)?,
        })
    }
}

/// Whether the built-in does all that a configuration asks for.
pub(super) fn accepts(config: &Value) -> bool {
    // The plugin says best what is wrong with what it cannot read either.
    Raw::deserialize(config).is_ok_and(|raw| {
        let masquerade = crate::masquerade::accepts(raw.ip_masq_backend.as_deref());
        !raw.mac_spoof_check && (!raw.ip_masq || masquerade)
    })
}

/// The hardware address that was asked for; the runtime's word is the last.
fn mac<'a>(args: &'a str, raw: &'a Raw) -> Result<Option<&'a str>, Error> {
    let pairs = arguments(args, &["MAC"])?;
    let in_config = raw
        .args
        .as_ref()
        .and_then(|args| args.cni.as_ref()?.mac.as_deref());
    let by_runtime = raw
        .runtime_config
        .as_ref()
        .and_then(|runtime| runtime.mac.as_deref());
    let in_arguments = pairs.get("MAC").copied();
    let mut words = [by_runtime, in_config, in_arguments].into_iter().flatten();
    Ok(words.find(|text| !text.is_empty()))
}

/// The settings of the resolver, if the configuration has some.
pub(in crate::builtin) fn dns(config: &Value) -> Result<Option<Dns>, Error> {
    let dns = &config["dns"];
    let lists = ["nameservers", "search", "options"];
    let has_list = lists.iter().any(|key| dns[key].is_array());
    let has_domain = dns["domain"]
        .as_str()
        .is_some_and(|domain| !domain.is_empty());
    (has_list || has_domain).then(|| decode(dns)).transpose()
}
