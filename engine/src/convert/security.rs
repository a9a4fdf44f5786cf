//! `LinuxContainerSecurityContext` to [`Security`].

use proto::v1;
use v1::security_profile::ProfileType;

use super::sandbox::{Around, Namespaces, namespaces_from_proto, refuse_selinux};
use super::{BadRequest, absolute, kernel_id, no_nul, wrong};
use crate::apparmor;
use crate::model::{
    AppArmor, IpcMode, NetworkMode, PidMode, RunAs, SandboxConfig, Seccomp, Security,
};

const FIELD: &str = "config.linux.security_context";

/// Checks a container's isolation against that of its sandbox.
pub(super) fn from_proto(
    context: v1::LinuxContainerSecurityContext,
    around: &Around<'_>,
) -> Result<Security, BadRequest> {
    #[expect(
        deprecated,
        reason = "the kubelet still sends the old fields beside the new"
    )]
    let v1::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp,
        apparmor,
        apparmor_profile,
        // Replaced by `seccomp` since Kubernetes 1.25, which the kubelet sends always.
        seccomp_profile_path: _,
    } = context;
    refuse_selinux(&format!("{FIELD}.selinux_options"), selinux_options)?;
    if privileged && !around.privileged {
        let reason = "the sandbox's configuration allows no privileged containers";
        return Err(wrong(format!("{FIELD}.privileged"), reason));
    }
    let sandbox = around.sandbox;
    let pid = match namespace_options {
        Some(options) => namespaces_of_container(options, sandbox)?,
        None => sandbox.pid.clone(),
    };
    let v1::Capability {
        add_capabilities,
        drop_capabilities,
        add_ambient_capabilities,
    } = capabilities.unwrap_or_default();
    let run_as = run_as_from_proto(run_as_user, run_as_username)?;
    if run_as_group.is_some() && run_as == RunAs::Image {
        let field = format!("{FIELD}.run_as_group");
        return Err(wrong(field, "needs run_as_user or run_as_username"));
    }
    for path in masked_paths.iter().chain(&readonly_paths) {
        absolute(&format!("{FIELD}.masked_paths or readonly_paths"), path)?;
    }
    Ok(Security {
        add_capabilities,
        drop_capabilities,
        ambient_capabilities: add_ambient_capabilities,
        privileged,
        pid,
        run_as,
        run_as_group: run_as_group
            .map(|v1::Int64Value { value }| kernel_id(&format!("{FIELD}.run_as_group"), value))
            .transpose()?,
        read_only_rootfs: readonly_rootfs,
        supplemental_groups: supplemental_groups
            .into_iter()
            .map(|id| kernel_id(&format!("{FIELD}.supplemental_groups"), id))
            .collect::<Result<_, _>>()?,
        strict_groups: is_strict(supplemental_groups_policy)?,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp: seccomp_from_proto(seccomp)?,
        apparmor: apparmor_from_proto(apparmor, &apparmor_profile)?,
    })
}

fn run_as_from_proto(user: Option<v1::Int64Value>, name: String) -> Result<RunAs, BadRequest> {
    match (user, name.as_str()) {
        (Some(_), name) if !name.is_empty() => Err(wrong(
            format!("{FIELD}.run_as_username"),
            "run_as_user is set as well",
        )),
        (Some(v1::Int64Value { value }), _) => {
            kernel_id(&format!("{FIELD}.run_as_user"), value).map(RunAs::Uid)
        }
        (None, "") => Ok(RunAs::Image),
        (None, _) => Ok(RunAs::Name(name)),
    }
}

fn is_strict(policy: i32) -> Result<bool, BadRequest> {
    match v1::SupplementalGroupsPolicy::try_from(policy) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(false),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(true),
        Err(_) => {
            let field = format!("{FIELD}.supplemental_groups_policy");
            Err(wrong(field, format!("{policy} is not known")))
        }
    }
}

/// A container shares network and IPC with its sandbox, whatever it is asked.
fn namespaces_of_container(
    options: v1::NamespaceOption,
    sandbox: &SandboxConfig,
) -> Result<PidMode, BadRequest> {
    let field = format!("{FIELD}.namespace_options");
    let says_nothing = options.userns_options.is_none();
    let namespaces = namespaces_from_proto(&field, options)?;
    let Namespaces {
        network,
        pid,
        ipc,
        user_ids,
    } = namespaces;
    if !says_nothing && user_ids != sandbox.user_ids {
        return Err(wrong(
            format!("{field}.userns_options"),
            "the sandbox has another user namespace",
        ));
    }
    if network == NetworkMode::Node && sandbox.network == NetworkMode::Pod {
        return Err(wrong(
            format!("{field}.network"),
            "the sandbox has a network of its own",
        ));
    }
    if ipc == IpcMode::Node && sandbox.ipc == IpcMode::Pod {
        return Err(wrong(
            format!("{field}.ipc"),
            "the sandbox has an IPC namespace of its own",
        ));
    }
    // Every process of the node would be seen, and signalled where the user is the same.
    if pid == PidMode::Node && sandbox.pid != PidMode::Node {
        let reason = "the sandbox does not have the node's PID namespace";
        return Err(wrong(format!("{field}.pid"), reason));
    }
    Ok(pid)
}

fn seccomp_from_proto(profile: Option<v1::SecurityProfile>) -> Result<Seccomp, BadRequest> {
    let field = format!("{FIELD}.seccomp");
    // Absent means unconfined, an empty message means RuntimeDefault.
    let Some(v1::SecurityProfile {
        profile_type,
        localhost_ref,
    }) = profile
    else {
        return Ok(Seccomp::Unconfined);
    };
    match ProfileType::try_from(profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Seccomp::Unconfined),
        Ok(ProfileType::Localhost) => {
            let path = localhost_ref
                .strip_prefix("localhost/")
                .unwrap_or(&localhost_ref);
            absolute(&format!("{field}.localhost_ref"), path).map(Seccomp::Localhost)
        }
        Err(_) => Err(wrong(
            format!("{field}.profile_type"),
            format!("{profile_type} is not known"),
        )),
    }
}

fn apparmor_from_proto(
    profile: Option<v1::SecurityProfile>,
    deprecated: &str,
) -> Result<AppArmor, BadRequest> {
    let field = format!("{FIELD}.apparmor");
    let wanted = match profile {
        Some(v1::SecurityProfile {
            profile_type,
            localhost_ref,
        }) => match ProfileType::try_from(profile_type) {
            Ok(ProfileType::RuntimeDefault) => "runtime/default".to_owned(),
            Ok(ProfileType::Unconfined) => "unconfined".to_owned(),
            // The kubelet gives the name alone, others with what annotations had before it.
            Ok(ProfileType::Localhost) if localhost_ref.starts_with("localhost/") => localhost_ref,
            Ok(ProfileType::Localhost) => format!("localhost/{localhost_ref}"),
            Err(_) => return Err(wrong(field, format!("{profile_type} is not known"))),
        },
        None => deprecated.to_owned(),
    };
    match wanted.as_str() {
        // What Kubernetes means by no profile is the default, where there is one.
        "" if apparmor::has_default() => Ok(AppArmor::RuntimeDefault),
        "" => Ok(AppArmor::Unset),
        // Without AppArmor every process is unconfined, and there is no file to say it to.
        "unconfined" | "runtime/default" if !apparmor::is_enabled() => Ok(AppArmor::Unset),
        "unconfined" => Ok(AppArmor::Unconfined),
        "runtime/default" if apparmor::has_default() => Ok(AppArmor::RuntimeDefault),
        "runtime/default" => Err(wrong(
            field,
            "the default profile is not loaded, `slipway check` says why",
        )),
        _ => localhost_apparmor(&field, &wanted),
    }
}

fn localhost_apparmor(field: &str, wanted: &str) -> Result<AppArmor, BadRequest> {
    let Some(name) = wanted
        .strip_prefix("localhost/")
        .filter(|name| !name.is_empty())
    else {
        return Err(wrong(field, format!("{wanted:?} is no AppArmor profile")));
    };
    no_nul(field, name)?;
    if !apparmor::is_enabled() {
        let reason = format!("{name:?} was asked for, the kernel has no AppArmor");
        return Err(wrong(field, reason));
    }
    match apparmor::is_loaded(name) {
        Ok(true) => Ok(AppArmor::Localhost(name.to_owned())),
        Ok(false) => {
            let reason = format!("the AppArmor profile {name:?} is not loaded");
            Err(wrong(field, reason))
        }
        Err(error) => {
            let reason = format!("the loaded profiles cannot be read: {error}");
            Err(wrong(field, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No kernel has this profile, and the refusal names what was looked for.
    #[test]
    fn an_apparmor_profile_may_be_given_with_its_prefix_or_without() {
        for localhost_ref in ["no-such-profile", "localhost/no-such-profile"] {
            let profile = v1::SecurityProfile {
                profile_type: ProfileType::Localhost as i32,
                localhost_ref: localhost_ref.to_owned(),
            };
            let error = apparmor_from_proto(Some(profile), "").expect_err("no such profile");
            let error = error.to_string();
            assert!(error.contains("\"no-such-profile\""), "{error}");
        }
    }
}
