//! What happens to containers: launch, exit, removal.
//!
//! Owns the transitions that `container` draws, but for the start (`start`). The exit is
//! written down before anybody is told, and told when the log has what was written before
//! (`logs`), unless a disk stalls; whoever waits for an answer gets one, whatever happens.

use runtime::exit::ExitRecord;
use runtime::launcher::Ready;
use runtime::protocol::{Body, Created, Failure, FailureKind, monotonic_now, wall_now};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::container::{Container, Init, Lingering, State};
use crate::log_writer;
use crate::monitor::Monitor;
use crate::pids::{Place, Wanted};
use crate::process::{KILL, raw, send_signal};
use crate::reactor::Key;

/// When what outlives a first process is looked for again, and at the latest: nanoseconds.
const FIRST_PAUSE: u64 = 1_000_000;
const LONGEST_PAUSE: u64 = 1_000_000_000;

impl Monitor {
    /// Goes on with a container in the making.
    pub(crate) fn launch_progress(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let State::Launching { launch, .. } = &mut container.state else {
            return;
        };
        match launch.progress() {
            Ok(None) => {}
            Ok(Some(ready)) => {
                if let Err(failure) = self.launched(key, ready) {
                    self.launch_failed(key, failure);
                }
            }
            Err(error) => self.launch_failed(key, error.into()),
        }
    }

    /// Gives up a container in the making.
    pub(crate) fn launch_failed(&mut self, key: Key, failure: Failure) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        container.kill();
        let Some(mut container) = self.remove(key) else {
            return;
        };
        if let State::Launching { reply, .. } = &mut container.state
            && let Some(reply) = reply.take()
        {
            self.reply(reply, Err(failure));
        }
        self.forget_unknown_exits();
    }

    fn launched(&mut self, key: Key, ready: Ready) -> Result<(), Failure> {
        let Ready {
            pid,
            gate,
            console,
            steps,
            warnings,
            runtimes_keyring,
        } = ready;
        let failed = |message: String| {
            Failure::new(FailureKind::Launch, "container's first process", message)
        };
        let early = self.containers.get(&key).and_then(|one| one.ended_early);
        if let Some(how) = early {
            return Err(failed(format!("it died: {how:?}")));
        }
        if !self.is_new_child(pid) && adopt(pid).is_ok() {
            return Err(failed("it is another process".to_owned()));
        }
        let init = adopt(pid).map_err(|errno| {
            // The number may have been another process's before.
            let died = self
                .unknown_exits
                .iter()
                .rev()
                .find(|(known, _)| *known == pid);
            failed(died.map_or_else(|| errno.to_string(), |(_, how)| format!("it died: {how:?}")))
        })?;
        let wanted = self.containers.get(&key).map(|one| one.wanted_pids);
        let place = self.place_of(wanted.unwrap_or(Wanted::Anywhere), pid);
        if place == Place::Elsewhere {
            let _gone = send_signal(pid, KILL);
            return Err(failed(
                "it lives in another PID namespace than it was to".to_owned(),
            ));
        }
        let Some(container) = self.containers.get_mut(&key) else {
            return Ok(());
        };
        if let Some(console) = console {
            container
                .output
                .attach_console(key, console, &mut self.reactor)
                .map_err(|errno| failed(format!("watch its terminal: {errno}")))?;
        }
        // The helper may be the first process itself, which is named now.
        container.helper_ended(pid);
        if runtimes_keyring {
            container.keyring = String::new();
        }
        container.own_pid_namespace = place == Place::Own;
        let created = State::Created { init, gate };
        let former = std::mem::replace(&mut container.state, created);
        if let State::Launching {
            launch,
            token,
            reply,
            ..
        } = former
        {
            self.reactor.unwatch(launch.descriptor(), token);
            if let Some(mut reply) = reply {
                reply.steps(steps);
                reply.step("finish the launch");
                self.reply(
                    reply,
                    Ok(Body::Created(Created {
                        pid: raw(pid),
                        warnings,
                    })),
                );
            }
        }
        self.forget_unknown_exits();
        Ok(())
    }

    /// A container's first process was reaped.
    pub(crate) fn container_exited(&mut self, key: Key, code: i32, signal: Option<i32>) {
        self.ended_in_start(key);
        let finished_at = wall_now();
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let oom_killed = container.was_oom_killed(code);
        if !container.own_pid_namespace {
            container.kill_group();
            container.lingering = Some(Lingering {
                look: monotonic_now(),
                pause: FIRST_PAUSE,
            });
        }
        container.output.drain(&mut self.scratch, &mut self.reactor);
        let started_at = match container.state {
            State::Running { started_at, .. } => started_at,
            _ => 0,
        };
        let record = ExitRecord {
            container: container.id.clone(),
            exit_code: code,
            signal,
            oom_killed,
            started_at,
            finished_at,
        };
        container.state = State::Exited(record);
        if container.lingering.is_some() {
            return self.look_for_rest(key);
        }
        self.ended_as_a_whole(key);
    }

    /// Where processes are shared, a container has ended with the last of its own, not
    /// with its first. The kernel sees to that where it has a PID namespace of its own.
    fn look_for_rest(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(Lingering { pause, .. }) = container.lingering else {
            return;
        };
        if container.has_processes() {
            container.kill_group();
            container.lingering = Some(Lingering {
                look: monotonic_now().saturating_add(pause),
                pause: (pause * 2).min(LONGEST_PAUSE),
            });
            return;
        }
        container.lingering = None;
        self.ended_as_a_whole(key);
    }

    /// Looks for what outlives first processes.
    pub(crate) fn look_for_all_rests(&mut self, now: u64) {
        let due = |one: &Container| one.lingering.is_some_and(|rest| rest.look <= now);
        let due = self.containers.iter().filter(|(_, one)| due(one));
        let due: Vec<_> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.look_for_rest(key);
        }
    }

    fn ended_as_a_whole(&mut self, key: Key) {
        let container = self.containers.get(&key);
        if container.is_some_and(|container| container.deletes.is_empty()) {
            self.write_record(key);
        }
        self.begin_telling(key);
    }

    /// Takes a container out of the monitor: watches end, streams close.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Container> {
        let mut container = self.containers.remove(&key)?;
        // One that has not quite ended yet.
        if let Some(helper) = container.helper() {
            let _gone = send_signal(helper, KILL);
            self.dying.push(helper);
        }
        match &mut container.state {
            State::Launching { launch, token, .. } => {
                self.reactor.unwatch(launch.descriptor(), *token);
            }
            State::Starting(start) => start.unwatch(&mut self.reactor),
            State::Created { .. } | State::Running { .. } | State::Exited(_) => {}
        }
        let output = std::mem::take(&mut container.output);
        self.leave(output);
        Some(container)
    }

    /// Kills all processes of the pod.
    pub(crate) fn kill_everything(&mut self) {
        for exec in self.execs.values_mut() {
            exec.kill();
        }
        let mut launching = Vec::new();
        for (key, container) in &mut self.containers {
            if container.deadline().is_some() {
                launching.push(*key);
            } else if !container.is_over() || container.helper().is_some() {
                container.kill();
            }
        }
        for key in launching {
            let failure = Failure::new(FailureKind::Launch, "create", "the pod is shut down");
            self.launch_failed(key, failure);
        }
        if let Some(init) = self.pod.as_ref().and_then(|pod| pod.init) {
            let _gone = send_signal(init, KILL);
        }
    }

    /// Has the exit written down by a process of its own: the disk may take its time.
    fn write_record(&mut self, key: Key) {
        let (Some(pod), Some(container)) = (&self.pod, self.containers.get_mut(&key)) else {
            return;
        };
        if let State::Exited(record) = &container.state {
            // An engine that is there is told; without one and without a
            // disk, the list of this monitor still has it.
            match log_writer::record(record, &pod.exit_dir) {
                Ok(recorder) => container.recorder = Some(recorder),
                Err(_) => container.write_later(),
            }
        }
    }

    /// A process was reaped: whether it was to write an exit record.
    pub(crate) fn recorder_ended(&mut self, pid: Pid, has_written: bool) -> bool {
        let mut containers = self.containers.iter_mut();
        let found = containers.find(|(_, container)| container.recorder == Some(pid));
        let Some((key, container)) = found else {
            return false;
        };
        container.recorder = None;
        if has_written {
            container.unwritten = None;
        } else {
            container.write_later();
        }
        let key = *key;
        self.tell_when_written(key);
        true
    }

    /// Writes exit records again that a disk did not take.
    pub(crate) fn write_records_again(&mut self, now: u64) {
        let due = |one: &Container| one.next_write().is_some_and(|at| at <= now);
        let due = self.containers.iter().filter(|(_, one)| due(one));
        let due: Vec<_> = due.map(|(key, _)| *key).collect();
        for key in due {
            self.write_record(key);
        }
    }

    /// Nobody will ask for these any more.
    pub(crate) fn forget_unknown_exits(&mut self) {
        if !self.expects_births() {
            self.unknown_exits = Vec::new();
        }
    }

    /// Whether a child may turn out to be a first process that its launcher has not named
    /// yet.
    pub(crate) fn expects_births(&self) -> bool {
        let launching = |container: &Container| container.deadline().is_some();
        self.containers.values().any(launching)
    }

    /// Whether somebody may be born whose maker is about to end.
    pub(crate) fn has_makers(&self) -> bool {
        self.expects_births() || self.execs.values().any(|exec| !exec.is_born())
    }

    /// Whether a child of the monitor is nothing that it knows already.
    pub(crate) fn is_new_child(&self, pid: Pid) -> bool {
        let init = self.pod.as_ref().and_then(|pod| pod.init);
        let known = init == Some(pid)
            || self.execs.contains_key(&raw(pid))
            || self.containers.values().any(|one| one.pid() == Some(pid));
        !known && adopt(pid).is_ok()
    }
}

/// Makes sure that the process is a child of this one.
fn adopt(pid: Pid) -> Result<Init, Errno> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), options)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Init { pid, pidfd })
}
