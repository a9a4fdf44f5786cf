//! The text of an error together with what caused it. Slipway's errors name the step that
//! failed and leave why to their `source`: whoever logs or answers one says both.

use std::error::Error;

/// An error and all its causes, outermost first, with colons between them.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::error::PodError;

    #[test]
    fn every_cause_is_said_once() {
        let kernel = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let kernel_says = kernel.to_string();
        let inner = PodError::runtime("write the record", kernel);
        let outer = PodError::runtime("start the pod", inner);
        let text = with_causes(&outer);
        assert_eq!(text.matches(&kernel_says).count(), 1, "{text}");
        assert!(
            text.find("start the pod") < text.find("write the record"),
            "{text}"
        );
        assert_eq!(with_causes(&std::fmt::Error), std::fmt::Error.to_string());
    }
}
