//! The demo's walk as a test.

use conformance::walk::{Steps, pod_life};

use crate::rig::with_engine;

#[test]
fn a_pods_whole_life() {
    with_engine(async |rig| {
        let mut steps = Steps::default();
        let logs = rig.engine.path("logs");
        let (image, cgroup) = (rig.image.clone(), rig.engine.cgroup_parent().to_owned());
        pod_life(&mut rig.client, &image, &cgroup, &logs, &mut steps)
            .await
            .expect("a whole life");
        assert!(steps.0.len() >= 11, "{}", steps.table());
    });
}
