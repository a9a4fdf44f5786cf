//! The last step of a container's first process: waiting, then the program.
//!
//! Owns what libcontainer's own executor does differently: the environment in
//! its order, the search along PATH, and leaving it to the kernel what may be
//! executed. Runs in the container, with the container's filter in force.

use std::collections::HashMap;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use runtime::exec::Program;
use runtime::launcher::StartEnd;

/// Exit code of a process whose program could not be executed.
const CANNOT_START: i32 = 128;

/// Waits for the monitor, then executes the program.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    program: Rc<Program>,
    start: Rc<StartEnd>,
}

impl Waiting {
    /// The program and what to wait at, which closes on exec.
    pub(crate) fn new(program: Program, start: StartEnd) -> Self {
        Self {
            program: Rc::new(program),
            start: Rc::new(start),
        }
    }
}

impl Executor for Waiting {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let start = self.start.waiting();
        if !start.wait() {
            // The monitor is gone: nobody would look after the container.
            std::process::exit(CANNOT_START);
        }
        let refused = self.program.command().execute();
        start.fail(refused, refused.is_unusable());
        std::process::exit(CANNOT_START);
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
