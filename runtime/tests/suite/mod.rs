//! The claims of the launcher suite, by area.

pub mod life;
