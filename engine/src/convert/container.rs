//! The API's `ContainerConfig` to Slipway's [`ContainerConfig`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proto::v1;

use super::sandbox::Around;
use super::{
    BadRequest, absolute, missing, no_nul, relative, required, resources, security, signal,
    user_ids, wrong,
};
use crate::cdi;
use crate::model::{
    Bytes, ContainerConfig, ContainerKey, Device, Forbidden, IdRange, ImageMount, ImageName, Mount,
    Propagation,
};

/// Checks all of a container's configuration against its sandbox.
pub(crate) fn from_proto(
    config: v1::ContainerConfig,
    around: &Around<'_>,
) -> Result<ContainerConfig, BadRequest> {
    let v1::ContainerConfig {
        metadata,
        image,
        command,
        args,
        working_dir,
        envs,
        mounts,
        devices,
        labels,
        annotations,
        log_path,
        stdin,
        stdin_once,
        tty,
        linux,
        windows: _,
        cdi_devices,
        stop_signal,
    } = config;
    let cdi_devices = cdi_devices_from_proto(cdi_devices, &annotations)?;
    for (field, texts) in [("config.command", &command), ("config.args", &args)] {
        texts.iter().try_for_each(|text| no_nul(field, text))?;
    }
    let v1::LinuxContainerConfig {
        resources,
        security_context,
    } = linux.unwrap_or_default();
    let resources = resources.unwrap_or_default();
    let stop_signal = v1::Signal::try_from(stop_signal)
        .map_err(|_| wrong("config.stop_signal", format!("{stop_signal} is not known")))?;
    Ok(ContainerConfig {
        key: key_from_proto(metadata)?,
        image: image_from_proto(image)?,
        command,
        args,
        working_dir: match working_dir.as_str() {
            "" => working_dir,
            path => absolute("config.working_dir", path)?
                .to_string_lossy()
                .into_owned(),
        },
        envs: envs
            .into_iter()
            .map(env_from_proto)
            .collect::<Result<_, _>>()?,
        mounts: enumerated(mounts, |at, mount| {
            mount_from_proto(at, mount, around.sandbox.user_ids)
        })?,
        devices: enumerated(devices, device_from_proto)?,
        cdi_devices,
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        log_path: match (log_path.as_str(), &around.log_directory) {
            ("", _) => None,
            (path, directory) => {
                let path = relative("config.log_path", path)?;
                directory.as_ref().map(|directory| directory.join(path))
            }
        },
        stdin,
        stdin_once,
        tty,
        resources: resources::from_proto("config.linux.resources", resources)?,
        security: security::from_proto(security_context.unwrap_or_default(), around)?,
        stop_signal: signal::to_kernel(stop_signal),
    })
}

/// The names in the field, and those in annotations, which kubelets before the field and
/// device plugins use, each once.
fn cdi_devices_from_proto(
    devices: Vec<v1::CdiDevice>,
    annotations: &HashMap<String, String>,
) -> Result<Vec<String>, BadRequest> {
    const PREFIX: &str = "cdi.k8s.io/";
    let mut names: Vec<String> = Vec::new();
    let mut take = |field: &str, name: &str| {
        if !cdi::is_qualified(name) {
            let reason = format!("{name:?} is no name such as \"vendor.com/class=device\"");
            return Err(wrong(field, reason));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        Ok(())
    };
    for v1::CdiDevice { name } in devices {
        take("config.CDI_devices", &name)?;
    }
    let ours = |(key, _): &(&String, &String)| key.starts_with(PREFIX);
    let mut annotated: Vec<_> = annotations.iter().filter(ours).collect();
    annotated.sort();
    for (key, value) in annotated {
        let field = format!("config.annotations[{key}]");
        value.split(',').try_for_each(|name| take(&field, name))?;
    }
    Ok(names)
}

fn enumerated<P, T>(
    items: Vec<P>,
    convert: impl Fn(usize, P) -> Result<T, BadRequest>,
) -> Result<Vec<T>, BadRequest> {
    items
        .into_iter()
        .enumerate()
        .map(|(at, item)| convert(at, item))
        .collect()
}

fn key_from_proto(metadata: Option<v1::ContainerMetadata>) -> Result<ContainerKey, BadRequest> {
    let v1::ContainerMetadata { name, attempt } =
        metadata.ok_or_else(|| missing("config.metadata"))?;
    Ok(ContainerKey {
        name: required("config.metadata.name", name)?,
        attempt,
    })
}

/// The identity of a container as the API says it.
pub(crate) fn key_to_proto(key: &ContainerKey) -> v1::ContainerMetadata {
    let ContainerKey { name, attempt } = key.clone();
    v1::ContainerMetadata { name, attempt }
}

fn image_from_proto(image: Option<v1::ImageSpec>) -> Result<ImageName, BadRequest> {
    let v1::ImageSpec {
        image,
        annotations,
        user_specified_image,
        // Every handler launches from the same snapshots.
        runtime_handler: _,
        // Filled in by an engine, in a status.
        image_ref: _,
    } = image.ok_or_else(|| missing("config.image"))?;
    Ok(ImageName {
        image: required("config.image.image", image)?,
        annotations: annotations.into_iter().collect(),
        user_specified: user_specified_image,
    })
}

/// The image as a status repeats it.
pub(crate) fn image_to_proto(image: &ImageName) -> v1::ImageSpec {
    let ImageName {
        image,
        annotations,
        user_specified,
    } = image.clone();
    v1::ImageSpec {
        image,
        annotations: annotations.into_iter().collect(),
        user_specified_image: user_specified,
        runtime_handler: String::new(),
        image_ref: String::new(),
    }
}

fn env_from_proto(pair: v1::KeyValue) -> Result<(String, Bytes), BadRequest> {
    let v1::KeyValue { key, value } = pair;
    let field = format!("config.envs[{key}]");
    if key.is_empty() || key.contains('=') {
        return Err(wrong(field, "the name is empty or contains \"=\""));
    }
    no_nul(&field, &key)?;
    if value.contains(&0) {
        return Err(wrong(field, "contains a NUL byte"));
    }
    Ok((key, Bytes(value)))
}

fn mount_from_proto(
    at: usize,
    mount: v1::Mount,
    pods: Option<IdRange>,
) -> Result<Mount, BadRequest> {
    let v1::Mount {
        container_path,
        host_path,
        readonly,
        // Nothing is labelled, so there is nothing to relabel; see refuse_selinux.
        selinux_relabel: _,
        propagation,
        uid_mappings,
        gid_mappings,
        recursive_read_only,
        image,
        image_sub_path,
        mount_options,
    } = mount;
    let field = |name: &str| format!("config.mounts[{at}].{name}");
    let user_ids = match (uid_mappings.as_slice(), gid_mappings.as_slice()) {
        ([], []) => None,
        (uids, gids) => {
            let names = [field("uidMappings"), field("gidMappings")];
            let user_ids = Some(user_ids::range(names, uids, gids)?);
            if user_ids != pods {
                let reason = "differ from those of the pod's user namespace";
                return Err(wrong(field("uidMappings"), reason));
            }
            user_ids
        }
    };
    let propagation = match v1::MountPropagation::try_from(propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            return Err(wrong(
                field("propagation"),
                format!("{propagation} is not known"),
            ));
        }
    };
    if pods.is_some() && propagation == Propagation::Bidirectional {
        let reason = "no mounts travel to the node from a pod with a user namespace";
        return Err(wrong(field("propagation"), reason));
    }
    if recursive_read_only && !(readonly && propagation == Propagation::Private) {
        let reason = "needs readonly and PROPAGATION_PRIVATE";
        return Err(wrong(field("recursive_read_only"), reason));
    }
    let container_path = place_of_mount(&field("container_path"), &container_path)?;
    // Clients send an empty message where there is no image.
    let image = image.filter(|image| !image.image.is_empty());
    let image = match image {
        Some(image) => {
            let mount = (host_path.as_str(), readonly, propagation);
            Some(image_volume(&field, image, &image_sub_path, mount)?)
        }
        None if !image_sub_path.is_empty() => {
            return Err(wrong(field("image_sub_path"), "needs image"));
        }
        None => None,
    };
    Ok(Mount {
        container_path: container_path.to_string_lossy().into_owned(),
        host_path: match host_path.as_str() {
            "" if image.is_some() => PathBuf::new(),
            "" => return Err(missing(&field("host_path"))),
            path => absolute(&field("host_path"), path)?,
        },
        read_only: readonly,
        recursive_read_only,
        propagation,
        user_ids,
        forbidden: forbidden_from_proto(&field("mount_options"), &mount_options)?,
        image,
    })
}

/// An image in a container, which nobody can write to and nothing is mounted in.
fn image_volume(
    field: &impl Fn(&str) -> String,
    image: v1::ImageSpec,
    sub_path: &str,
    (host_path, readonly, propagation): (&str, bool, Propagation),
) -> Result<ImageMount, BadRequest> {
    if !host_path.is_empty() {
        return Err(wrong(field("host_path"), "image is set as well"));
    }
    if !readonly {
        return Err(wrong(field("readonly"), "an image is always read-only"));
    }
    if propagation == Propagation::Bidirectional {
        let reason = "nothing of an image can be shared with the node";
        return Err(wrong(field("propagation"), reason));
    }
    Ok(ImageMount {
        name: image_from_proto(Some(image))?,
        id: String::new(),
        sub_path: relative(&field("image_sub_path"), sub_path)?,
    })
}

/// The options that Kubernetes has for the mounts of a container.
fn forbidden_from_proto(field: &str, options: &[String]) -> Result<Forbidden, BadRequest> {
    let mut forbidden = Forbidden::default();
    for option in options {
        match option.as_str() {
            "noexec" => forbidden.programs = true,
            "nodev" => forbidden.devices = true,
            "nosuid" => forbidden.set_ids = true,
            other => {
                let reason = format!("{other:?} is none of noexec, nodev and nosuid");
                return Err(wrong(field, reason));
            }
        }
    }
    Ok(forbidden)
}

fn forbidden_to_proto(forbidden: Forbidden) -> Vec<String> {
    let Forbidden {
        programs,
        devices,
        set_ids,
    } = forbidden;
    let options = [
        (programs, "noexec"),
        (devices, "nodev"),
        (set_ids, "nosuid"),
    ];
    let set = options.into_iter().filter(|(set, _)| *set);
    set.map(|(_, option)| option.to_owned()).collect()
}

/// Where a volume goes, by a clean path: Kubernetes allows `/a/../b`, and means `/b`.
/// Some clients leave the first slash out.
fn place_of_mount(field: &str, text: &str) -> Result<PathBuf, BadRequest> {
    if text.is_empty() {
        return Err(missing(field));
    }
    no_nul(field, text)?;
    let clean = runtime::launcher::links::clean(Path::new(text));
    if clean == Path::new("/") {
        let reason = format!("{text:?} is the container's root, which is the image's");
        return Err(wrong(field, reason));
    }
    Ok(clean)
}

/// A mount as a status repeats it.
pub(crate) fn mount_to_proto(mount: &Mount) -> v1::Mount {
    let Mount {
        container_path,
        host_path,
        read_only,
        recursive_read_only,
        propagation,
        user_ids,
        forbidden,
        image,
    } = mount;
    let propagation = match propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: container_path.clone(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: *read_only,
        recursive_read_only: *recursive_read_only,
        propagation: propagation as i32,
        mount_options: forbidden_to_proto(*forbidden),
        image: image.as_ref().map(|image| v1::ImageSpec {
            image_ref: image.id.clone(),
            ..image_to_proto(&image.name)
        }),
        image_sub_path: image
            .as_ref()
            .map(|image| image.sub_path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        selinux_relabel: false,
        uid_mappings: user_ids::mappings(*user_ids),
        gid_mappings: user_ids::mappings(*user_ids),
    }
}

fn device_from_proto(at: usize, device: v1::Device) -> Result<Device, BadRequest> {
    let v1::Device {
        container_path,
        host_path,
        permissions,
    } = device;
    let field = |name: &str| format!("config.devices[{at}].{name}");
    let known = |letter: char| "rwm".contains(letter);
    if permissions.is_empty() || !permissions.chars().all(known) {
        let reason = format!("{permissions:?} is not made of r, w and m");
        return Err(wrong(field("permissions"), reason));
    }
    let host_path = absolute(&field("host_path"), &host_path)?;
    let container_path = match container_path.as_str() {
        "" => host_path.to_string_lossy().into_owned(),
        path => absolute(&field("container_path"), path)?
            .to_string_lossy()
            .into_owned(),
    };
    Ok(Device {
        container_path,
        host_path,
        permissions,
    })
}
