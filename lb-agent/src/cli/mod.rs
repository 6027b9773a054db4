//! x
pub mod cleanup;
