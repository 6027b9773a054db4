//! x
pub mod cleanup;
pub mod get;
