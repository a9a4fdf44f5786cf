//! The second step: changes to a specification that neither the request's own fields nor
//! the image ask for.
//!
//! In comes a complete specification, out goes a complete one, before anything of the
//! container exists but its root and its cgroup. Devices by the Container Device Interface
//! are put in here; the place of NRI's plugins, too, which this version has not. Whatever
//! follows from a specification (limits, the message, what the record keeps) is
//! taken from what comes out here.

use runtime::client::steps::mark;
use runtime::spec::Spec;

use super::Parts;
use crate::cdi;
use crate::context::Engine;
use crate::pod::error::PodError;
use crate::pod::record::ContainerRecord;
use crate::spec::Visitor;

/// Adjusts a specification.
///
/// # Errors
/// `Cdi`: a device is not known, or what it needs cannot be had.
pub(super) fn adjust(
    engine: &Engine,
    record: &ContainerRecord,
    parts: &Parts,
    spec: Spec,
) -> Result<Spec, PodError> {
    let devices = &record.config.cdi_devices;
    if devices.is_empty() {
        return Ok(spec);
    }
    let _step = mark("CDI devices");
    let visitor = Visitor {
        paths: &engine.host_paths,
        at: &parts.at,
    };
    let adjusted = cdi::apply(&engine.cdi, devices, visitor, spec);
    Ok(adjusted.map_err(Box::new)?)
}
