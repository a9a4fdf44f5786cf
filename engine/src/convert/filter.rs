//! The filters of list calls.

use proto::v1;

use super::{BadRequest, wrong};
use crate::model::Pairs;
use crate::pod::view::{ContainerView, PodView};

/// Which sandboxes a list call wants.
#[derive(Debug, Default)]
pub(crate) struct SandboxFilter {
    id: String,
    ready: Option<bool>,
    labels: Pairs,
}

/// Which containers a list call wants.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    id: String,
    pod: String,
    state: Option<v1::ContainerState>,
    labels: Pairs,
}

fn has_all(labels: &Pairs, wanted: &Pairs) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

impl SandboxFilter {
    pub(crate) fn from_proto(filter: Option<v1::PodSandboxFilter>) -> Result<Self, BadRequest> {
        let v1::PodSandboxFilter {
            id,
            state,
            label_selector,
        } = filter.unwrap_or_default();
        let ready =
            match state.map(|state| (state.state, v1::PodSandboxState::try_from(state.state))) {
                None => None,
                Some((_, Ok(v1::PodSandboxState::SandboxReady))) => Some(true),
                Some((_, Ok(v1::PodSandboxState::SandboxNotready))) => Some(false),
                Some((state, Err(_))) => {
                    return Err(wrong("filter.state", format!("{state} is not known")));
                }
            };
        Ok(Self {
            id,
            ready,
            labels: label_selector.into_iter().collect(),
        })
    }

    pub(crate) fn from_stats(filter: Option<v1::PodSandboxStatsFilter>) -> Self {
        let v1::PodSandboxStatsFilter { id, label_selector } = filter.unwrap_or_default();
        Self {
            id,
            ready: None,
            labels: label_selector.into_iter().collect(),
        }
    }

    /// Prefixes of ids match: people give them to crictl.
    pub(crate) fn matches(&self, pod: &PodView) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.ready.is_none_or(|ready| ready == pod.ready)
            && has_all(&pod.config.labels, &self.labels)
    }
}

impl ContainerFilter {
    pub(crate) fn from_proto(filter: Option<v1::ContainerFilter>) -> Result<Self, BadRequest> {
        let v1::ContainerFilter {
            id,
            state,
            pod_sandbox_id,
            label_selector,
        } = filter.unwrap_or_default();
        let state = state
            .map(|v1::ContainerStateValue { state }| {
                v1::ContainerState::try_from(state)
                    .map_err(|_| wrong("filter.state", format!("{state} is not known")))
            })
            .transpose()?;
        Ok(Self {
            id,
            pod: pod_sandbox_id,
            state,
            labels: label_selector.into_iter().collect(),
        })
    }

    pub(crate) fn from_stats(filter: Option<v1::ContainerStatsFilter>) -> Self {
        let v1::ContainerStatsFilter {
            id,
            pod_sandbox_id,
            label_selector,
        } = filter.unwrap_or_default();
        Self {
            id,
            pod: pod_sandbox_id,
            state: None,
            labels: label_selector.into_iter().collect(),
        }
    }

    pub(crate) fn matches(&self, pod: &PodView, container: &ContainerView) -> bool {
        container.id.as_str().starts_with(&self.id)
            && pod.id.as_str().starts_with(&self.pod)
            && self
                .state
                .is_none_or(|state| state == super::status::container_state(container))
            && has_all(&container.config.labels, &self.labels)
    }
}
