//! The launcher suite: what every launcher must do, run for each of them.

mod suite;
mod support;

/// One test per claim.
macro_rules! claims {
    ($kind:expr; $($area:ident { $($claim:ident),* $(,)? })*) => {
        $(mod $area {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                crate::suite::$area::$claim($kind).await;
            })*
        })*
    };
}

/// All claims for one launcher.
macro_rules! launcher_suite {
    ($launcher:ident, $kind:expr) => {
        mod $launcher {
            claims! { $kind;
                life {
                    output_and_exit_code_are_recorded,
                    created_container_waits_for_its_start,
                }
            }
        }
    };
}

launcher_suite!(libcontainer, runtime::client::LauncherKind::Libcontainer);
