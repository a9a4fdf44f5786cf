//! The launcher suite: what every launcher must do, run for each of them; and
//! what a monitor must do whoever launches.

// Clippy takes only what is marked so for tests.
#[cfg(test)]
mod suite;
#[cfg(test)]
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

/// What is measured, never by itself.
macro_rules! measurements {
    ($kind:expr; $($what:ident),*) => {
        mod timing {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "measures, claims nothing"]
            async fn $what() {
                crate::suite::timing::$what($kind).await;
            })*
        }
    };
}

/// All claims for one launcher; at the end those that are not for all.
macro_rules! launcher_suite {
    ($launcher:ident, $kind:expr; $($area:ident { $($claim:ident),* $(,)? })*) => {
        #[cfg(test)]
        mod $launcher {
            mod besides {
                claims! { $kind; $($area { $($claim),* })* }
            }
            measurements! { $kind; of_calls, of_monitors, of_logs }
            claims! { $kind;
                life {
                    output_and_exit_code_are_recorded,
                    created_container_waits_for_its_start,
                    signals_reach_the_first_process,
                    real_time_signals_are_sent,
                    delete_follows_the_state,
                    killed_before_its_start_is_an_exit,
                    requests_out_of_order_are_refused,
                    engine_that_returns_finds_everything,
                    frozen_monitor_keeps_nobody_waiting,
                    silent_monitor_is_not_gone,
                    a_socket_that_accepts_proves_no_life,
                    broken_connection_comes_back,
                    dead_monitor_is_reported,
                    creations_do_not_wait_for_each_other,
                    shutdown_leaves_nothing,
                }
                programs {
                    owners_only_program_runs,
                    image_runs_no_code_before_its_program,
                    working_directory_is_entered,
                    missing_working_directory_is_made,
                }
                isolation {
                    process_is_what_was_asked_for,
                    root_has_the_capabilities_it_was_given,
                    missing_capabilities_are_none,
                    all_cgroups_are_joined,
                    container_sees_its_own_cgroups,
                    device_nodes_are_made,
                    lowered_oom_score_never_fails,
                }
                exec {
                    exit_and_output_come_back,
                    namespaces_are_the_containers,
                    input_is_given,
                    users_can_open_their_output,
                    missing_program_is_named,
                    working_directory_never_leads_out,
                    timeout_kills_the_session,
                    unwanted_process_ends,
                    ended_container_takes_no_process,
                    end_of_the_container_ends_its_processes,
                    many_at_once_come_back,
                    output_ends_with_the_process,
                }
                clients {
                    commands_read_as_it_comes,
                    slow_readers_of_commands_get_all,
                    commands_have_terminals,
                    terminals_carry_signals,
                    false_terminals_are_refused,
                    attached_clients_read_along,
                    clients_that_do_not_read_hold_up_nobody,
                    input_closes_once_or_stays,
                    attached_clients_have_the_terminal,
                    clients_that_write_in_vain_hold_up_nobody,
                    bytes_pass_unchanged,
                }
                streams {
                    long_output_is_complete,
                    reopened_log_loses_nothing,
                    followed_log_is_whole_before_its_next_file,
                    log_at_rest_goes_on_by_itself,
                    full_disk_never_blocks_the_container,
                    output_without_a_log_is_dropped,
                    log_that_cannot_be_opened_is_named,
                    log_that_is_no_file_is_named,
                    input_is_empty_or_open,
                    terminal_is_logged,
                    terminal_outlives_its_users,
                    grandchild_keeps_no_exit_waiting,
                    what_comes_after_an_exit_is_bounded,
                }
                pods {
                    containers_share_the_pods_namespaces,
                    kernel_parameters_are_set,
                    shared_init_has_nothing_to_take,
                    shared_processes_end_with_their_container,
                    no_number_leads_into_another_pid_namespace,
                    an_exit_is_told_behind_the_last_process,
                    shared_init_ends_on_kill_only,
                    a_fork_bomb_ends_with_its_container,
                    lack_of_memory_is_told,
                    lack_of_memory_behind_a_shell_is_told,
                    a_kill_after_lack_of_memory_is_told_as_a_kill,
                    lack_of_memory_in_a_child_keeps_the_exit_code,
                }
                mounts {
                    detached_mounts_are_sources,
                    read_only_root_is_honoured,
                    paths_are_masked_and_read_only,
                    host_cgroups_can_be_a_volume,
                }
            }
        }
    };
}

/// The launchers made here: their first process waits in the monitor's sight, the
/// environment is the specification's to the letter, and a specification without
/// rules for devices allows the usual ones only. On v2 OCI runtimes replace the
/// program for devices by their own, which allows some besides.
macro_rules! own_launcher {
    ($launcher:ident, $kind:expr; $($area:ident { $($claim:ident),* $(,)? })*) => {
        launcher_suite! { $launcher, $kind;
            life {
                start_is_answered_whoever_holds_the_gate,
                a_program_is_told_to_run_whoever_holds_the_gate,
                a_start_that_is_held_up_fails,
                a_start_that_is_said_to_have_failed_ends,
                start_whose_engine_died_is_told,
                launch_that_hangs_can_be_deleted,
            }
            programs {
                missing_program_fails_the_start,
                environment_is_kept_as_it_is,
                missing_path_and_home_are_no_error,
            }
            pods {
                missing_program_is_named_among_shared_processes,
                a_gate_whose_lock_is_held_keeps_up_its_own_start_only,
            }
            isolation {
                unsupported_wishes_are_refused_by_name,
            }
            $($area { $($claim),* })*
        }
    };
}

/// OCI runtimes look for the program when they create.
macro_rules! oci_launcher {
    ($launcher:ident, $kind:expr) => {
        launcher_suite! { $launcher, $kind;
            programs {
                missing_program_fails_the_creation,
                missing_runtime_is_named,
            }
            pods {
                host_pid_processes_end_with_their_container,
            }
            mounts {
                each_mount_has_its_own_propagation,
            }
        }
    };
}

/// With what is the node's besides, which pods with user namespaces have not.
macro_rules! nodes_launcher {
    ($launcher:ident, $kind:expr) => {
        own_launcher! { $launcher, $kind;
            nodes_isolation {
                devices_follow_the_rules,
                devices_follow_the_rules_on_v2,
            }
            nodes_pods {
                host_pid_processes_end_with_their_container,
            }
            nodes_mounts {
                each_mount_has_its_own_propagation,
            }
        }
    };
}

nodes_launcher!(libcontainer, crate::support::Kind::Libcontainer);
nodes_launcher!(native, crate::support::Kind::Native);
// Containers of pods with user namespaces make no device nodes, see no process of the node
// and send it no mounts.
own_launcher! { inside, crate::support::Kind::Inside;
    inside {
        root_is_nobody_on_the_node,
        rights_over_the_node_are_none,
        devices_work_and_are_the_containers,
        what_reaches_out_of_it_is_refused,
        shared_processes_are_inside,
    }
}
oci_launcher!(runc, crate::support::Kind::Runc);
oci_launcher!(crun, crate::support::Kind::Crun);
