//! Loopback.

use serde_json::json;

use super::equal;
use crate::world::Chain;

#[test]
fn loopback_alone() {
    for version in ["1.0.0", "1.1.0"] {
        equal(&Chain::new([json!({"type": "loopback"})]).version(version));
    }
    // For older versions the plugin prints a result of 1.0 all the same, which they
    // do not know; the built-in's is of the version.
    for version in ["0.3.1", "0.4.0"] {
        equal(
            &Chain::new([json!({"type": "loopback"})])
                .version(version)
                .without_result(),
        );
    }
}
