// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What is it? From bytes to a 5-tuple and where the headers are; traffic of no Service ends here, after one bit of the address filter.
//!
//! Knows `packet`. What [`plain`] does not read, [`dissect`] does, in another program.

pub mod dissect;
pub mod filter;
pub mod fragment;
pub mod plain;
mod quote;
mod walk;
